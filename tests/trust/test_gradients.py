"""Every differentiable function, argument and option against central differences, in float64."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import cases
import numpy as np
import pytest
from specs import SPECS
from specs.loss import WEIGHTS
from specs.spec import Arrays, Calls, Layer, distinct, every, positive

import fastlayers as fl
from fastlayers import Tensor, nn, ops
from fastlayers.autograd import record
from fastlayers.lazy import set_fusion_enabled
from fastlayers.nn import functional as F
from fastlayers.nn.fuse.chains import _NEXT
from fastlayers.ops.conv import prepare
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.pooled import prepare_pooled
from fastlayers.testing import GradcheckError, gradcheck
from fastlayers.vision import models

Options = dict[str, Any]

CHAPTER = "gradients"
# Elements of all inputs from which the derivative along one direction stands for all elements; in
# the short form from FEW on but for each twelfth call.
MOST, FEW = 400, 60
# Calls of functions, methods and layers with distinct options that are checked at least.
LEAST = 1900


@pytest.fixture(autouse=True)
def restored():
    fl.manual_seed(0)
    yield
    set_fusion_enabled(True)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def check(function: Callable[..., Any], learnt: Arrays, most: int = MOST) -> int:
    """Check the gradients by all arrays, and by each subset of them; how many comparisons."""
    given = list(learnt.values())
    large = sum(a.size for a in given) > most
    inputs = [
        fl.tensor(a, requires_grad=True) if a.flags.c_contiguous else Tensor(a, True) for a in given
    ]
    gradcheck(
        lambda *ts: function(**dict(zip(learnt, ts, strict=True))),
        inputs,
        rtol=1e-5,
        atol=1e-6,
        fast_mode=large,
    )
    whole = gradients(function, learnt, set(learnt))
    count = len(learnt)
    for size in range(1, len(learnt)):
        for some in itertools.combinations(learnt, size):
            part = gradients(function, learnt, set(some))
            count += size
            for name in learnt:
                if name not in some:
                    assert part[name] is None, f"{name} got a gradient that it did not ask for"
                    continue
                close = np.testing.assert_allclose
                close(part[name], whole[name], 1e-9, 1e-9, err_msg=f"{name} of {some} alone")
    return count


def gradients(function: Callable[..., Any], learnt: Arrays, wanted: set[str]) -> dict[str, Any]:
    tensors = {name: Tensor(a, name in wanted) for name, a in learnt.items()}
    y = function(**tensors)
    y = y if isinstance(y, Tensor) else y[0]
    y.backward(cases.like(y.array()))
    return {name: t.grad for name, t in tensors.items()}


FUNCTIONS: dict[str, Callable[[], Calls]] = {
    name: calls for spec in SPECS.values() for name, calls in spec.functions.items()
}
# Ops without a function of their own: who calls them.
CALLERS = {spec.op: spec.caller for spec in SPECS.values() if spec.caller}


def test_every_function_and_op_is_in_the_table():
    assert FUNCTIONS.keys() == set(F.__all__) - {"one_hot", "pad"}  # functions of NumPy's
    for spec in SPECS.values():
        assert spec.op in spec.functions or spec.caller or not hasattr(ops, spec.op), spec.op
    for caller in CALLERS.values():
        assert caller in FUNCTIONS or caller in [(kind, *steps) for kind, _, steps in chains()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, effort, figures):
    function = getattr(F, name)
    values: dict[str, set[str]] = {key: set() for key in inspect.signature(function).parameters}
    compared = number = 0
    for number, (learnt, options) in enumerate(FUNCTIONS[name](), 1):
        for key, seen in values.items():
            seen.add("learnt" if key in learnt else repr(options.get(key)))

        def call(options: Options = options, **tensors: Tensor) -> Any:
            fl.manual_seed(0)
            if options.get("inplace"):  # which no leaf can be
                tensors = {key: t * 1 for key, t in tensors.items()}
            return function(**options, **tensors)

        layout = cases.LAYOUTS[number % len(cases.LAYOUTS)]
        learnt = {key: layout(a) for key, a in learnt.items()}
        try:
            compared += check(call, learnt, MOST if number % 12 == 0 else effort(FEW, MOST))
        except AssertionError as error:
            shapes = {key: a.shape for key, a in learnt.items()}
            raise AssertionError(f"{name}, {shapes}, {layout.__name__}, {options}") from error
    for key, seen in values.items():
        assert "learnt" in seen or key == "target" or len(seen) > 1, f"one value of {key} alone"
    figures.count(CHAPTER, "functions")
    figures.count(CHAPTER, "functions x options", number)
    figures.count(CHAPTER, "functions x options x arguments", compared)


def test_there_are_enough_calls():
    assert sum(len(list(calls())) for calls in FUNCTIONS.values()) >= LEAST


LOGITS, LABELS = distinct(4, 3), np.array([1, 0, 2, 1])


@pytest.mark.parametrize(
    ("name", "others", "arguments"),
    [
        ("batch_norm", {"running_mean": WEIGHTS, "running_var": WEIGHTS}, {}),
        (
            "binary_cross_entropy_with_logits",
            dict.fromkeys(("weight", "pos_weight"), WEIGHTS),
            {"target": LOGITS},
        ),
        ("cross_entropy", {"weight": WEIGHTS}, {"target": LABELS}),
        ("nll_loss", {"weight": WEIGHTS}, {"target": LABELS}),
    ],
)
def test_a_gradient_that_is_not_computed_is_no_silent_zero(name, others, arguments):
    for key in others:
        given = {k: Tensor(a, k == key) for k, a in others.items()} | arguments
        with pytest.raises(ValueError, match=f"^{name}: {key} must not require a gradient"):
            getattr(F, name)(Tensor(LOGITS, True), **given)
        with fl.no_grad():
            getattr(F, name)(Tensor(LOGITS, True), **given)


BROADCAST = [
    ((), ()),
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (2, 3)),
    ((2, 1), (1, 3)),
    ((), (2, 2)),
    ((2, 1, 2), (3, 1)),
    ((0, 3), (3,)),
]
STACKED = [
    ((2, 3), (3, 4)),
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((4, 2, 3), (3, 2)),
    ((2, 3), (4, 3, 1)),
    ((4, 1, 2, 3), (2, 3, 2)),
    ((3,), (2, 3, 4)),
    ((2, 4, 3), (3,)),
]


def binary(name: str) -> list[tuple[Callable[..., Any], list[np.ndarray]]]:
    """Both operands learnt, one of them an array or a number, and one tensor on both sides."""
    calls: list[tuple[Callable[..., Any], list[np.ndarray]]] = []
    method = getattr(Tensor, name)
    product = "matmul" in name
    for left, right in STACKED if product else BROADCAST:
        a, b = positive(*left), positive(*right, seed=1)
        if name.startswith("__r"):
            a, b = b, a
        calls += [(method, [a, b]), (lambda t, other=b: method(t, other), [a])]
        calls += [(lambda t, other=a: method(other_tensor(other), t), [b])]
    square = positive(3, 3)
    calls += [(lambda t: method(t, t), [square])]
    if not product:
        numbers = (2, 2.5, np.float64(3), np.float32(0.5))
        calls += [(lambda t, other=x: method(t, other), [square]) for x in numbers]
    return calls


def other_tensor(a: np.ndarray) -> Tensor:
    return Tensor(a)


def reduced(name: str) -> list[tuple[Callable[..., Any], list[np.ndarray]]]:
    x = distinct(2, 3, 4)
    dims = (None, 0, -1, (0, 2), (1,), (0, 1, 2))
    method = getattr(Tensor, name)
    return [
        (lambda t, dim=dim, keep=keep: method(t, dim, keepdim=keep), [x])
        for dim, keep in itertools.product(dims, (False, True))
    ] + [(method, [x]), (method, [distinct()])]


INDICES = [
    1,
    (0, -1),
    slice(None, None, 2),
    slice(None, None, -1),
    slice(0, 0),
    ...,
    (..., 0),
    None,
    [0, 2, 0, 0],
    ([0, 0], [1, 1]),
    np.array([True, False, True]),
    np.array([[0, 1], [1, 1]]),
    Tensor(np.array([2, 2])),
]
SHAPED = [(4, 3, 2), (-1,), ((2, -1),), (1, 24), ([4, 6],)]
METHODS: dict[str, list[tuple[Callable[..., Any], list[np.ndarray]]]] = {
    **{
        f"__{r}{op}__": binary(f"__{r}{op}__")
        for op in ("add", "sub", "mul", "truediv", "matmul")
        for r in ("", "r")
    },
    **{name: reduced(name) for name in ("sum", "mean")},
    **{
        name: [(lambda t, s=s, n=name: getattr(t, n)(*s), [a]) for s in SHAPED for a in (x, x.T)]
        for name in ("reshape", "view")
        for x in [distinct(2, 3, 4)]
    },
    "flatten": [
        (lambda t, o=o: t.flatten(**o), list(learnt.values()))
        for learnt, o in FUNCTIONS["flatten"]()
    ],
    "__getitem__": [(lambda t, i=i: t[i], [distinct(3, 4)]) for i in INDICES],
    "__neg__": [(lambda t: -t, [distinct(2, 3)])],
    "to": [
        (lambda t, target=d: t.to(target) * t, [distinct(3)]) for d in ("cpu", float, fl.float64)
    ],
}
# Tensors that carry no gradient, by what their documentation says; and what gives no tensor.
CONSTANTS = {
    "detach": lambda t: t.detach(),
    "argmax": lambda t: t.argmax(0),
    "__eq__": lambda t: t == t,  # noqa: PLR0124
    "__ne__": lambda t: t != 1,
}
NO_TENSORS = {"size", "dim", "numel", "item", "tolist", "numpy", "array", "backward"}
NO_TENSORS |= {f"__{n}__" for n in ["init", "array", "len", "bool", "float", "int", "repr", "hash"]}


def test_every_method_is_in_the_table():
    # The table of functions, with their forms in place, is compared with PyTorch in tests/parity.
    known = {name for name in dir(Tensor) if callable(getattr(Tensor, name))}
    assert METHODS.keys() | CONSTANTS.keys() | NO_TENSORS <= known
    for function in CONSTANTS.values():
        assert not function(Tensor(distinct(2, 3), True)).requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_methods(name, figures):
    for number, (function, given) in enumerate(METHODS[name]):
        layout = cases.LAYOUTS[number % len(cases.LAYOUTS)]
        inputs = [Tensor(layout(a), True) for a in given]
        assert gradcheck(function, inputs, rtol=1e-5, atol=1e-6), (name, number)
    figures.count(CHAPTER, "methods of tensors")
    figures.count(CHAPTER, "methods x arguments", sum(len(a) for _, a in METHODS[name]))


def test_conversions_between_dtypes_are_differentiated():
    x = Tensor(distinct(2, 3), True)
    y = x.to(np.float32)
    (y * y).sum().backward()
    assert y.dtype == np.float32 and x.grad.dtype == np.float64
    np.testing.assert_allclose(x.grad, 2 * x.array(), rtol=1e-6)
    assert not x.to(np.int64).requires_grad and x.to(np.float64) is x


LAYERS: dict[str, Layer] = {
    name: layer for spec in SPECS.values() for name, layer in spec.layers.items()
}
LAYERS["Identity"] = Layer({"args": [()], "kwargs": [{}]}, [distinct(4, 3)])
# What is no layer by itself, and where it is checked.
NO_LAYERS = {"Module", "Parameter", "ParameterList", "Sequential", "ModuleList", "ModuleDict"}
NO_LAYERS |= {"functional", "init", "utils"}


def test_every_layer_and_option_is_in_the_table():
    assert LAYERS.keys() | NO_LAYERS == set(nn.__all__)
    for name, layer in LAYERS.items():
        parameters = inspect.signature(getattr(nn, name)).parameters.keys() - {"device", "dtype"}
        assert parameters == layer.options.keys() >= layer.base.keys(), name


def in_double(module: nn.Module) -> nn.Module:
    """The module with float64 parameters and buffers, and no two of a kind alike."""
    rng = np.random.default_rng(2)
    for part in module.modules():
        for key, p in part._parameters.items():
            if p is not None:
                setattr(part, key, nn.Parameter(p.array() + rng.uniform(0, 0.1, p.shape)))
        for key, b in part._buffers.items():
            if b is not None and b.dtype.kind == "f":
                setattr(part, key, b + rng.uniform(0, 0.5, b.shape))
    return module


def check_module(module: nn.Module, *inputs: Any, **options: Any) -> int:
    """Check the gradients by inputs and parameters; how many there are."""
    names = dict(module.named_parameters())
    buffers = [(b, b.clone()) for b in module.buffers()]

    def function(*tensors: Any) -> Any:
        fl.manual_seed(0)
        for buffer, before in buffers:  # momentum=None counts the batches
            buffer[...] = before
        values = dict(zip(names, tensors[len(inputs) :], strict=True))
        given = tensors[: len(inputs)]
        if getattr(module, "inplace", False):  # which no leaf can be
            given = tuple(t * 1 for t in given)
        return fl.func.functional_call(module, values, given)

    real = [i for i in inputs if isinstance(i, np.ndarray) and i.dtype.kind == "f"]
    given = [
        Tensor(i, True) if i is real[0] or isinstance(module, nn.MSELoss) else i for i in inputs
    ]
    values = [Tensor(p.array(), True) for p in names.values()]
    gradcheck(function, [*given, *values], rtol=1e-5, atol=1e-6, **options)
    return len(values) + sum(isinstance(t, Tensor) for t in given)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, figures, effort):
    """In the short form along one direction, but for each fourth layer."""
    options, inputs, base, _ = LAYERS[name]
    varied = [base] if base or "dim" not in options else []
    varied += [
        base | {key: value}
        for key, values in options.items()
        for value in values
        if key not in ("args", "kwargs")
    ]
    compared = 0
    for number, (arguments, training) in enumerate(itertools.product(varied, (True, False))):
        layer = in_double(getattr(nn, name)(**arguments)).train(training)
        compared += check_module(layer, *inputs, fast_mode=effort(number % 4 > 0, False))
    figures.count(CHAPTER, "layers")
    figures.count(CHAPTER, "layers x options x arguments", compared)


def chains() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every way through the table of what may follow what: the head, the last state, the steps."""

    def walk(kind: str, state: str, steps: tuple[str, ...]) -> Any:
        yield kind, state, steps
        for (before, step), after in _NEXT.items():
            if before == state and len(steps) < 4 and step not in steps:
                yield from walk(kind, after, (*steps, step))

    for kind in ("conv", "linear", "norm"):
        yield from walk(kind, kind, ())


WINDOWS = {"2": (2,), "3, 2, 1": (3, 2, 1)}
AFFINE = {"gamma": normal(4, seed=3), "beta": normal(4, seed=4)}


def head(kind: str, options: Options) -> tuple[Callable[..., Tensor], Arrays]:
    if kind == "linear":
        learnt = {"x": normal(4, 5), "weight": normal(4, 5, seed=1), "bias": normal(4)}
        return lambda x, weight, bias: F.linear(x, weight, bias), learnt
    if kind == "conv":
        learnt = {"x": normal(2, 2, 7, 6), "weight": normal(4, 2, 3, 3, seed=1)}
        return lambda x, weight: F.conv2d(x, weight, padding=1), learnt
    learnt = {"x": normal(2, 4, 6, 5), "weight": normal(4), "bias": normal(4, seed=5)}
    return lambda x, weight, bias: norm(x, weight, bias, options["training"]), learnt


def norm(x: Tensor, weight: Tensor, bias: Tensor, training: bool) -> Tensor:
    return F.batch_norm(x, np.full(4, 0.1), np.full(4, 1.5), weight, bias, training)


@pytest.mark.parametrize(("kind", "state", "steps"), list(chains()), ids=str)
def test_chains_that_run_as_one(kind, state, steps, figures, effort):
    """And as one op after the other, in the short form along one direction."""
    compared = 0
    for o in every(
        training=[True, False] if kind == "norm" else [False],
        window=WINDOWS.values() if "pool" in steps else [None],
        held=[None, *range(len(steps))],
        fused=[True, False],
    ):
        call, learnt = head(kind, o)
        extra: Arrays = {}
        if "normalise" in steps:
            extra = AFFINE
        if "add" in steps:
            extra = {"residual": normal(*learnt["x"].shape, seed=6)}

        def function(
            o: Options = o, call: Any = call, extra: Arrays = extra, **t: Tensor
        ) -> Tensor:
            names = {key: t.pop(key) for key in extra}
            y, kept = call(**t), []
            for i, step in enumerate(steps):
                if o["held"] == i:
                    kept.append(y)  # so that the chain goes on from its values
                if step == "relu":
                    y = F.relu(y)
                elif step == "pool":
                    y = F.max_pool2d(y, *o["window"])
                elif step == "add":
                    y = y + names["residual"]
                else:
                    y = norm(y, names["gamma"], names["beta"], False)
            if o["fused"] and "normalise" not in steps:
                assert y.deferred is not None and y.deferred.state == state
            return y if not kept else y * 1 + kept[0].sum()

        set_fusion_enabled(o["fused"])
        fast = effort(not o["fused"], False)
        compared += check_own(function, learnt | extra, fast)
    figures.count(CHAPTER, "fused chains")
    figures.count(CHAPTER, "fused chains x options x arguments", compared)


def check_own(function: Callable[..., Any], learnt: Arrays, fast: bool) -> int:
    """Check gradients by each subset of tensors that own their memory, so that ops wait."""
    count = 0
    for size in range(1, len(learnt) + 1):
        for some in itertools.combinations(learnt, size):
            given = [fl.tensor(a, requires_grad=name in some) for name, a in learnt.items()]
            gradcheck(
                lambda *ts: function(**dict(zip(learnt, ts, strict=True))),
                given,
                rtol=1e-5,
                atol=1e-6,
                fast_mode=fast or size < len(learnt),
            )
            count += size
    return count


# Convolutions by what computes them: shapes of input and weight, options, and how its words begin.
REGIMES: dict[str, tuple[tuple[int, ...], tuple[int, ...], Options, str]] = {
    "Winograd, 2x2": ((2, 16, 6, 6), (16, 16, 3, 3), {"padding": 1}, "winograd F(2x2)"),
    "Winograd, 4x4": ((2, 32, 12, 12), (32, 32, 3, 3), {"padding": 1}, "winograd F(4x4)"),
    "Winograd, panels": ((2, 32, 8, 8), (128, 32, 3, 3), {"padding": 1}, "winograd F(4x4)"),
    "Winograd, input": ((2, 128, 8, 8), (32, 128, 3, 3), {}, "winograd F"),
    "Winograd, dilation": (
        (2, 32, 12, 12),
        (32, 32, 3, 3),
        {"padding": 2, "dilation": 2},
        "winograd F",
    ),
    "Winograd, rows": ((8, 3, 14, 14), (6, 3, 5, 5), {}, "winograd rows"),
    "Winograd, padded rows": ((16, 3, 14, 14), (6, 3, 5, 5), {"padding": 2}, "winograd rows"),
    "planes": ((2, 3, 16, 16), (6, 3, 3, 3), {"padding": 1}, "planar"),
    "depthwise": ((2, 32, 9, 9), (32, 1, 3, 3), {"groups": 32, "padding": 1}, "depthwise"),
    "grouped": ((2, 32, 9, 9), (64, 2, 3, 3), {"groups": 16, "stride": 2}, "depthwise"),
    "wide groups": ((2, 64, 9, 9), (64, 32, 3, 3), {"groups": 2, "padding": 1}, "direct"),
    "1x1": ((2, 40, 9, 9), (24, 40, 1, 1), {"stride": 2}, "direct"),
    "7x7, stride 2": ((2, 3, 30, 30), (16, 3, 7, 7), {"stride": 2, "padding": 3}, "direct"),
}


@pytest.mark.parametrize("pool", [None, (2, None, 0, 1, False), (3, 2, 1, 1, True)], ids=str)
@pytest.mark.parametrize("name", REGIMES)
def test_kernels_of_convolution(name, pool, figures):
    shape, weight, options, begins = REGIMES[name]
    learnt = {
        "input": normal(*shape),
        "weight": normal(*weight, seed=1),
        "bias": normal(weight[0], seed=2),
    }
    o = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    convolution = prepare("conv2d", learnt["input"], learnt["weight"], *o.values(), "auto")[2]
    which = Pass.BACKWARD_INPUT if name == "Winograd, input" else Pass.FORWARD
    served = convolution.algorithm(which)
    assert served.describe(which).startswith(begins)

    def function(**tensors: Tensor) -> Tensor:
        y = F.relu(F.conv2d(**tensors, **options))
        return y if pool is None else F.max_pool2d(y, *pool)

    count = check(function, learnt)
    figures.count(CHAPTER, "kernels of convolution x arguments", count)


def test_convolutions_with_pooling_reach_each_kernel():
    found = set()
    for shape, weight, options, _ in REGIMES.values():
        o = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
        convolution = prepare("conv2d", np.zeros(shape), np.zeros(weight), *o.values(), "auto")[2]
        for pool in ((2, None, 0, 1, False), (3, 2, 1, 1, True)):
            pooled = prepare_pooled("conv2d", convolution, pool, True)
            found |= {pooled.algorithm(which).name for which in Pass}
    assert found == {"winograd rows", "planar", "direct by image", "sparse", "separate"}


@pytest.mark.parametrize(
    ("rows", "columns", "outputs"),
    [(200, 8, 16), (4, 300, 17), (3, 256, 300), (60, 700, 400), (9, 3, 1100)],
)
def test_kernels_of_linear_maps(rows, columns, outputs, figures):
    learnt = {
        "input": normal(rows, columns),
        "weight": normal(outputs, columns, seed=1) / np.sqrt(columns),
        "bias": normal(outputs, seed=2),
    }
    count = check(lambda **t: F.relu(F.linear(**t)), learnt)
    figures.count(CHAPTER, "kernels of linear maps x arguments", count)


@pytest.mark.parametrize(
    "case", [c for c in cases.CASES if hasattr(F, c.op) and c.size > MOST], ids=lambda c: c.id
)
def test_larger_cases_of_the_common_table(case, figures):
    """Chunks, threads and vectors that small arrays do not fill, along one direction."""
    arrays = case.arrays(np.float64, "distinct")
    learnt = set(case.spec.learnt)
    fixed = {k: v for k, v in arrays.items() if k not in learnt}

    def function(**tensors: Tensor) -> Any:
        fl.manual_seed(0)
        return getattr(F, case.op)(**tensors, **fixed, **case.options)

    count = check(function, {k: v for k, v in arrays.items() if k in learnt})
    figures.count(CHAPTER, "larger cases x arguments", count)


class Branches(nn.Module):
    """A list of modules called in turn, one of them twice, around a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)])

    def forward(self, x: Any) -> Tensor:
        for part in [*self.parts, self.parts[0]]:
            x = x + F.tanh(part(x))
        return x


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Branches": (Branches, (5, 6)),
    "CNN": (lambda: models.CNN(image_size=8, width=16), (3, 3, 8, 8)),
    "CifarCNN": (models.CifarCNN, (3, 3, 32, 32)),
    "CifarCNN, batch norm": (lambda: models.CifarCNN(batch_norm=True, dropout=0.2), (8, 3, 32, 32)),
    "MLP": (lambda: models.MLP(20), (6, 20)),
    "ResNet": (lambda: models.ResNet((1, 1), (16, 32), 10), (2, 3, 12, 12)),
    "ResNet, large": (
        lambda: models.ResNet((1, 1), (16, 32), 10, large_images=True),
        (2, 3, 32, 32),
    ),
    "VGG": (
        lambda: models.VGG((16, 16, "M", 32, "M"), 32 * 16, (20,), 10, batch_norm=True),
        (2, 3, 16, 16),
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, training, figures):
    fl.manual_seed(0)
    make, shape = MODELS[name]
    model = in_double(make()).train(training)
    count = check_module(model, distinct(*shape), fast_mode=True)
    figures.count(CHAPTER, "models x parameters and inputs", count)


def test_every_model_is_in_the_table():
    kinds = {getattr(models, name) for name in models.__all__}
    assert {k.__name__ for k in kinds if isinstance(k, type)} <= MODELS.keys()


# gradcheck itself.


def slope(given: float, told: float) -> Callable[[Tensor], Tensor]:
    return lambda x: record(x.array() * given, (x,), lambda dy: (dy * told,))


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(positive(*shape, seed=seed), True)


def one_wrong_element(x: Tensor) -> Tensor:
    factors = np.where(np.arange(x.numel()).reshape(x.shape) == 4, 2.001, 2)
    return record(x.array() * 2, (x,), lambda dy: (dy * factors,))


def of_wrong_shape(x: Tensor) -> Tensor:
    return record(x.array() * 2, (x,), lambda dy: (dy[:1] * 2,), fresh=True)


class Counter:
    """A function that gives another output, or another gradient, in each call."""

    def __init__(self, which: str) -> None:
        self.which, self.calls = which, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        off = self.calls * 1e-9
        forward, backward = (off, 0.0) if self.which == "output" else (0.0, off)
        return record(x.array() * 2 + forward, (x,), lambda dy: (dy * 2 + backward,))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("function", "match"),
    [
        (slope(2, 3), r"output 0 by inputs\[0\] must be that of central differences"),
        (slope(2, 0), "central differences"),
        (slope(2, np.nan), "got nan"),
        (slope(np.nan, 2), "nan"),
        (lambda x: x * x.detach(), "central differences"),
        (lambda x: x.detach(), "central differences"),
        (lambda x: [x * 2, slope(2, 3)(x)], r"output 1 by inputs\[0\]"),
        (of_wrong_shape, r"must be a float64 array of shape \(2, 3\), got float64 of shape \(1, 3"),
        (Counter("output"), "another output in the second"),
        (Counter("gradient"), "another gradient in the second"),
        (lambda x: F.dropout(x * 2), "seed its random numbers"),
    ],
    ids=itertools.count().__next__ and str,
)
def test_gradcheck_finds(function, match, fast):
    with pytest.raises(GradcheckError, match=match):
        gradcheck(function, [leaf(2, 3)], fast_mode=fast)
    assert not gradcheck(function, [leaf(2, 3)], fast_mode=fast, raise_exception=False)
    assert issubclass(GradcheckError, AssertionError)


def test_gradcheck_names_the_element_that_differs_most():
    with pytest.raises(GradcheckError, match=r"at \(1, 1\) "):
        gradcheck(one_wrong_element, [leaf(2, 3)], rtol=1e-5)


def test_gradcheck_allows_what_it_is_told_to():
    for which in ("output", "gradient"):
        assert gradcheck(Counter(which), [leaf(2)], nondet_tol=1e-8)
    assert gradcheck(slope(2, 2.01), [leaf(2)], rtol=0.1)
    assert gradcheck(slope(2, 2.01), [leaf(2)], atol=0.1)


def base_and_view() -> list[Tensor]:
    base = positive(2, 3)
    return [Tensor(base, True), Tensor(base[:, ::-1], True)]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x: x * x, leaf(2, 3)),
        (lambda x, y: x * y + y, [leaf(2, 3), Tensor(positive(2, 3))]),
        (lambda x, a, k, n: x * a * k if n is None else x, [leaf(3), positive(3), 2.5, None]),
        (lambda x, t: F.cross_entropy(x, t), [leaf(4, 3), Tensor(LABELS)]),
        (lambda x, y: (x * y, x.sum(), y.argmax(0), x + 1), [leaf(2, 3), leaf(3)]),
        (lambda x: [x * 2] * 2, leaf(2, 3)),
        (lambda x: F.max_pool2d(x, 2, return_indices=True), Tensor(distinct(1, 2, 4, 4), True)),
        (lambda x, y: x / y * 2 + F.tanh(y), [leaf(2, 3)] * 2),
        (lambda x, y: x / y, base_and_view()),
        (lambda x: x * x, Tensor(np.broadcast_to(positive(3), (2, 3)), True)),
        (lambda x: x, leaf(2)),
        (lambda x, y: y, [leaf(2), leaf(3)]),
        (lambda x: x * 0 + 1, leaf(2)),
        (lambda x: x * x, leaf(0, 3)),
        (lambda x: x * x, leaf()),
        (lambda x: F.relu(x) * x, leaf(4) * -1 + 1),
        *((lambda x: F.tanh(x).sum(0), Tensor(f(positive(2, 3, 4)), True)) for f in cases.LAYOUTS),
    ],
)
def test_gradcheck_takes(function, inputs, fast):
    assert gradcheck(function, inputs, fast_mode=fast)


def test_gradcheck_gives_tensors_of_the_same_memory_and_leaves_the_given_ones_alone():
    x, seen = Tensor(positive(4, 3).T, True), []
    x.grad = np.ones((3, 4))

    def function(t: Tensor) -> Tensor:
        seen.append(t.array())
        return t * t

    before = x.array().copy()
    assert gradcheck(function, x)
    assert seen[0] is x.array() and all(a.strides == x.array().strides for a in seen)
    np.testing.assert_array_equal(x.grad, np.ones((3, 4)))
    np.testing.assert_array_equal(x.array(), before)


def test_gradcheck_with_fast_mode_takes_two_calls_an_input():
    calls = []
    gradcheck(lambda x, y: calls.append(0) or x @ y, [leaf(9, 9), leaf(9, 9)], fast_mode=True)
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("error", "match", "function", "inputs"),
    [
        (
            TypeError,
            r"inputs\[1\] must be float64, got float32",
            None,
            [leaf(2), fl.tensor(2.0, requires_grad=True)],
        ),
        (ValueError, "must hold a tensor that requires a gradient", None, [Tensor(positive(2)), 1]),
        (ValueError, "requires a gradient, got none", None, []),
        (
            TypeError,
            "must return a Tensor or a sequence of them, got ndarray",
            lambda x: x.array(),
            leaf(2),
        ),
        (TypeError, "got list", lambda x: [x, 1], leaf(2)),
        (ValueError, "must return a floating point tensor", lambda x: x.argmax(), leaf(2)),
        (ValueError, "must return a floating point tensor", lambda x: [], leaf(2)),
    ],
)
def test_gradcheck_errors(error, match, function, inputs):
    for mode in ({}, {"raise_exception": False}):
        with pytest.raises(error, match=f"^gradcheck: .*{match}"):
            gradcheck(function, inputs, **mode)
