"""Whole training steps, and networks in evaluation."""

import functools

from benchmarks.compare.cases import CASES
from benchmarks.suite import Attributes

# The comparison's models by name; those for 224x224 pixels take gigabytes at larger batches.
MODELS = {case.name: case for case in CASES if case.shape[-1] < 224}
LARGE = {case.name: case for case in CASES if case.shape[-1] >= 224}


@functools.lru_cache(maxsize=1)
def _step(name, batch):
    """A function that makes a step: forward, loss, backward and SGD with momentum."""
    import fastlayers as fl
    from benchmarks.compare.contestants import prepare_fastlayers

    case = (MODELS | LARGE)[name]
    step, _ = prepare_fastlayers(fl.get_num_threads(), case.at(batch or case.batch))
    return step


@functools.lru_cache(maxsize=1)
def _forward(name, batch):
    import fastlayers as fl

    case = MODELS[name].at(batch)
    model = getattr(fl.models, case.factory)(**case.options).eval()
    x = fl.tensor(case.batches(1)[0][0])

    def forward():
        with fl.no_grad():
            return model(x)

    forward()
    return forward


class TrainingStep(Attributes):
    params = [list(MODELS), [4, 32, 128]]
    param_names = ("model", "batch")
    marked = [("CIFAR CNN", 128), ("CIFAR CNN, batch norm", 128)]

    def setup(self, model, batch):
        self.step = _step(model, batch)

    def time_step(self, model, batch):
        self.step()


class LargeTrainingStep(Attributes):
    params = [list(LARGE)]
    param_names = ("model",)
    repeat = (3, 5, 4.0)
    rounds = 1

    def setup(self, model):
        self.step = _step(model, 0)

    def time_step(self, model):
        self.step()


class Evaluation(Attributes):
    params = [list(MODELS), [1, 128]]
    param_names = ("model", "batch")

    def setup(self, model, batch):
        self.forward = _forward(model, batch)

    def time_forward(self, model, batch):
        self.forward()
