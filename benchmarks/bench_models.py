"""Whole training steps: forward, loss, backward and SGD with momentum."""

import numpy as np

import fastlayers as fl
from benchmarks.layers import images

MODELS = {
    "cifar-cnn-batch-4": (fl.models.CifarCNN, (4, 3, 32, 32)),
    "cifar-cnn-batch-128": (fl.models.CifarCNN, (128, 3, 32, 32)),
    "cifar-cnn-bn-batch-128": (lambda: fl.models.CifarCNN(batch_norm=True), (128, 3, 32, 32)),
    "mlp-batch-64": (fl.models.MLP, (64, 1, 28, 28)),
    "vgg-small-batch-32": (fl.models.vgg_small, (32, 3, 32, 32)),
    "resnet20-batch-32": (fl.models.resnet20, (32, 3, 32, 32)),
}


class TrainingStep:
    params = list(MODELS)
    param_names = ["model"]
    timeout = 180

    def setup(self, name):
        fl.manual_seed(0)
        factory, shape = MODELS[name]
        self.model, self.loss = factory(), fl.nn.CrossEntropyLoss()
        self.optimizer = fl.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        self.x = fl.tensor(np.ascontiguousarray(images(shape)))
        self.y = fl.tensor(np.arange(shape[0]) % 10)
        self.time_step(name)

    def time_step(self, name):
        self.optimizer.zero_grad()
        self.loss(self.model(self.x), self.y).backward()
        self.optimizer.step()
