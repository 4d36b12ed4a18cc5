"""Any array: an op sees the values of its arguments, and not how they lie in memory.

Every call of the table is made with plain arrays, and then with each argument in each of `FORMS`:
the results have the same bits, the arguments are as they were, and nothing shares memory that is
not said to. Arrays that are no floats, and masked ones, are refused by name.
"""

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from cases import Case, compare
from numpy.lib.stride_tricks import as_strided
from specs import SPECS
from specs.conv_pool import PATHS
from specs.conv_sizes import conv
from specs.spec import Draw

import fastlayers as fl
from fastlayers import nn, ops, optim, reference
from fastlayers.nn import functional as F
from fastlayers.ops.conv import prepare
from fastlayers.ops.conv.routes import ROUTES

CHAPTER = "any array"
DTYPES = ("f4", "f8")


class Foreign(np.ndarray):
    """A subclass on which everything means something else, as `*` does for `np.matrix`."""

    def _refused(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an op used a method of a subclass")

    __array_ufunc__ = __array_function__ = __getitem__ = __setitem__ = _refused
    reshape = transpose = ravel = astype = copy = sum = view = _refused


def fortran(a):
    return np.array(a, order="F")


def channels_last(a):
    return np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1) if a.ndim > 2 else a.copy()


def apart(a):
    """Elements three apart, with NaN or the largest number between them."""
    between = np.nan if a.dtype.kind == "f" else np.iinfo(a.dtype).max
    wide = np.full((*a.shape, 3), between, a.dtype)
    wide[..., 1] = a
    return wide[..., 1]


def backwards(a):
    reverse = (slice(None, None, -1),) * a.ndim
    return a[*reverse, ...].copy()[*reverse, ...]


def inner(a):
    """A window of a larger array, whose rows are contiguous and further apart."""
    large = np.zeros([n + 2 for n in a.shape], a.dtype)
    large[(slice(1, -1),) * a.ndim] = a
    return large[(slice(1, -1),) * a.ndim] if a.ndim else a.copy()


def unaligned(a):
    out = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def swapped(a):
    return a.astype(a.dtype.newbyteorder())


def swapped_last(a):
    return swapped(channels_last(a))


def tagged(a):
    """A dtype that equals NumPy's own, but is another object."""
    return a.astype(np.dtype(a.dtype, metadata={"unit": "m"}))


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def mapped(a, mode="c"):
    """Memory of a file; mode c keeps what is written to it out of the file, r forbids it."""
    if not a.size:
        return read_only(a) if mode == "r" else a.copy()
    with tempfile.TemporaryFile() as file:
        file.write(a.tobytes())
        file.flush()
        return np.memmap(file, a.dtype, mode, shape=a.shape)


def mapped_read_only(a):
    return mapped(a, "r")


def matrix(a):
    return a.copy().view(np.matrix) if a.ndim == 2 else foreign(a)


def foreign(a):
    return a.copy().view(Foreign)


def mixed(a):
    """Several at once: a read-only, unaligned, byte-swapped window, backwards."""
    out = backwards(swapped(a))
    moved = np.zeros(a.nbytes * 2 + 1, np.uint8)[1:].view(out.dtype).reshape(*a.shape, 2)[..., 0]
    moved[...] = out
    moved.flags.writeable = False
    return moved


FORMS = (
    *(fortran, channels_last, apart, backwards, inner, unaligned, swapped, swapped_last, tagged),
    *(read_only, mapped, mapped_read_only, matrix, foreign, mixed),
)
FROZEN = (read_only, mapped_read_only, mixed)
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


@dataclass
class Call:
    """A call of an op, all of its arguments by name."""

    op: str
    arguments: dict[str, Any]
    result_shares: bool = False  # as is documented
    arrays: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.arrays = {n: a for n, a in self.arguments.items() if isinstance(a, np.ndarray)}

    @property
    def updated(self) -> set[str]:
        """Names of what is updated in place."""
        running = {"running_mean", "running_var"} & self.arrays.keys()
        return running if self.arguments.get("training") else set()

    def run(self, arrays: dict[str, Any]) -> list[np.ndarray]:
        fl.manual_seed(0)
        found = getattr(ops, self.op)(**self.arguments | arrays)
        return [a for a in (found if isinstance(found, tuple) else (found,)) if a is not None]


def listed(dtype: str) -> Iterator[Call]:
    """Every op in small, by every path of a convolution, and what gives views of its input."""
    for spec in SPECS.values():
        for found in (spec.calls(Draw(dtype, 6)), spec.array_calls(Draw(dtype, 7, plain=True))):
            for op, arguments, options, shares in found:
                bound = inspect.signature(getattr(ops, op)).bind(*arguments, **options).arguments
                own = {n: a.copy() if isinstance(a, np.ndarray) else a for n, a in bound.items()}
                yield Call(op, own, shares)


@functools.cache
def calls(dtype: str) -> list[Call]:
    """Give the table: arrays in it are copied before they are passed on."""
    return list(listed(dtype))


dtypes = pytest.mark.parametrize("dtype", DTYPES)


def test_every_op_is_called():
    for dtype in DTYPES:
        called = {call.op for call in calls(dtype)}
        assert called >= set(ops.__all__) and len(calls(dtype)) >= 240


def test_every_path_of_a_convolution_is_taken():
    found = set()
    for x, w, options in PATHS:
        options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
        plan = prepare("conv2d", np.ones(x, "f4"), np.ones(w, "f4"), **options, algorithm="auto")[2]
        found.add(plan.algorithms.forward.name)
    assert found == {row.algorithm.name for row in ROUTES} - {"NumPy"}


def bits(a: np.ndarray) -> bytes:
    """The values in C order and native byte order."""
    a = np.asarray(a)
    return a.astype(a.dtype.newbyteorder("=")).tobytes()


def same(found: list[np.ndarray], wanted: list[np.ndarray], what: str) -> None:
    assert len(found) == len(wanted), what
    for value, want in zip(found, wanted, strict=True):
        assert type(value) is np.ndarray, what
        assert value.dtype.newbyteorder("=") == want.dtype and value.shape == want.shape, what
        assert bits(value) == bits(want), what


def check(
    call: Call, given: dict[str, Any], wanted: list[np.ndarray], after: Any, form: str
) -> None:
    """Make the call with some arrays in place of its own; then spoil what it returned."""
    options = {n: v for n, v in call.arguments.items() if n not in call.arrays}
    what = f"{call.op}({', '.join(given)}) as {form}, {options}"
    arrays = {n: a.copy() for n, a in call.arrays.items()} | given
    found = call.run(arrays)
    same(found, wanted, what)
    for name, array in arrays.items():
        assert bits(array) == after[name], f"{what}: {name} was changed"
    for a, b in combinations(found, 2):
        assert not np.may_share_memory(a, b), what
    if call.result_shares:
        return
    for value in found:
        assert value.dtype.isnative and value.flags.writeable and value.flags.aligned, what
        for name, array in arrays.items():
            assert not np.may_share_memory(value, np.asarray(array)), f"{what}: {name}"
        value.fill(1)  # what the library keeps is not in its results: later calls are right


def plain(call: Call) -> tuple[list[np.ndarray], dict[str, bytes]]:
    """Results for plain arrays, and the bits of these afterwards."""
    arrays = {name: a.copy() for name, a in call.arrays.items()}
    wanted = [value.copy() for value in call.run(arrays)]
    after = {name: bits(a) for name, a in arrays.items()}
    for name, array in call.arrays.items():
        assert (bits(array) != after[name]) == (name in call.updated), f"{call.op}: {name}"
    return wanted, after


def refused(call: Call, given: dict[str, Any], error: type[Exception], message: str) -> None:
    """Assert that the call fails and that nothing was changed."""
    arrays = {n: a.copy() for n, a in call.arrays.items()} | given
    kept = {n: bits(a) for n, a in arrays.items() if isinstance(a, np.ndarray)}
    with pytest.raises(error, match=message):
        call.run(arrays)
    for name, before in kept.items():
        assert bits(arrays[name]) == before, name


@dtypes
def test_results_do_not_depend_on_how_an_array_lies_in_memory(dtype, figures, effort):
    """In the short form each call has one type, and what follows it the same: its gradient."""
    for number, call in enumerate(calls(dtype)):
        if not call.arrays or effort(DTYPES[number // 2 % 2] != dtype, False):
            continue
        wanted, after = plain(call)
        for form in FORMS:
            names = [{name} for name in call.arrays]
            for changed in names + [set(call.arrays)] * (len(names) > 1):
                given = {name: form(call.arrays[name]) for name in changed}
                if form in FROZEN and changed & call.updated:
                    refused(call, given, ValueError, "must be writable")
                else:
                    check(call, given, wanted, after, form.__name__)
                figures.count(CHAPTER, "calls compared with a plain array's")
    figures.most(CHAPTER, "forms of an array", len(FORMS) + 1)
    figures.most(CHAPTER, "public ops", len({call.op for call in calls(dtype)}))


@dtypes
def test_broadcast_views(dtype, figures):
    """Zero strides along the first axis, the last, and all."""
    for call in calls(dtype):
        for name, array in call.arrays.items():
            if not array.ndim or not array.size:
                continue
            for part in (array[:1], array[..., :1], array[(slice(0, 1),) * array.ndim]):
                view = np.broadcast_to(part, array.shape)
                if name in call.updated:
                    refused(call, {name: view}, ValueError, f"{name} must be writable")
                    strided = as_strided(part.copy(), array.shape, view.strides)
                    refused(call, {name: strided}, ValueError, f"{name} must be writable")
                else:
                    repeated = Call(call.op, call.arguments | {name: view.copy()})
                    repeated.result_shares = call.result_shares
                    check(repeated, {name: view}, *plain(repeated), str(view.strides))
                figures.count(CHAPTER, "calls compared with a plain array's")


def wrong(array: np.ndarray) -> Iterator[Any]:
    """The argument as an array of another type, or as none."""
    others = ["f2", "c8", "c16", "g", "O", "U3", "S3", "M8[s]", "m8[s]", [("x", "f4")], "?"]
    if array.dtype.kind == "f":
        others += ["i4", "i8", "u1"]
    else:
        others += ["f4", "f8"] + (["i2"] if array.dtype == np.uint8 else [])
    for other in others:
        yield channels_last(np.resize(np.arange(7), array.shape).astype(other))
    yield np.ma.masked_array(array, mask=np.ones(array.shape, bool))
    yield np.ma.masked_array(array)
    if array.ndim:
        yield array.tolist()


@dtypes
def test_other_types_are_refused_by_name(dtype, figures):
    seen = set()
    for call in calls(dtype):
        floats = [a for a in call.arrays.values() if a.dtype.kind == "f"]
        for name, array in call.arrays.items():
            if (call.op, name) in seen:
                continue
            seen.add((call.op, name))
            message = rf"(?s)^\w+: {name} must .*\b(got|given)\b"
            for value in wrong(array):
                is_masked = isinstance(value, np.ma.MaskedArray)
                if call.op == "flatten" and isinstance(value, np.ndarray) and not is_masked:
                    axes = {n: v for n, v in call.arguments.items() if n != name}
                    same(call.run({name: value}), [reference.flatten(value, **axes)], call.op)
                elif name != "grad_output" or isinstance(value, np.ndarray):
                    refused(call, {name: value}, TypeError, message)
                    figures.count(CHAPTER, "arguments refused by name")
            if len(floats) > 1 and array.dtype.kind == "f":  # float32 beside float64
                other = array.astype("f8" if dtype == "f4" else "f4")
                refused(call, {name: other}, TypeError, r"^\w+: \w+ must be float")


@dtypes
def test_nan_infinity_and_overflow_give_no_warnings(dtype):
    """A warning is an error here; kernels give none, and so should what is left to NumPy."""
    values = np.array([np.nan, np.inf, -np.inf, np.finfo(dtype).max, 1], dtype)
    for call in calls(dtype):
        for some in (values, values[1:3], values[3:]):
            filled = {
                name: np.resize(some, array.shape)
                for name, array in call.arrays.items()
                if array.dtype.kind == "f"
            }
            call.run({n: a.copy() for n, a in call.arrays.items()} | filled)


DIMENSIONS = {"n": 2, "c": 3, "h": 6, "w": 5, "m": 4, "r": 3, "s": 2}


def emptied() -> Iterator[tuple[Case, bool]]:
    """The cases with each of their dimensions 0 in turn, and whether that is refused."""
    for spec in SPECS.values():
        for shapes, options, never in spec.empty:
            for letter in dict.fromkeys("".join(shapes.values())):
                sizes = DIMENSIONS | {letter: 0}
                given = {n: tuple(sizes[s] for s in shape) for n, shape in shapes.items()}
                yield Case(spec.op, given, options), letter in never


@pytest.mark.parametrize(("case", "never"), list(emptied()), ids=lambda v: getattr(v, "id", ""))
@dtypes
def test_empty_arrays(case, never, dtype, figures):
    figures.count(CHAPTER, "calls with a dimension of 0")
    if not never:
        arrays = case.arrays(dtype)
        if "dim" in case.options and not arrays["input"].shape[case.options["dim"]]:
            assert all(not a.size for a in case.run(ops, arrays).values())
            return
        with np.errstate(all="ignore"):
            want = case.run(reference, arrays)
        compare(case.run(ops, arrays), want)
        return
    arrays = {name: np.ones(shape, dtype) for name, shape in case.shapes.items()}
    arrays |= {name: np.zeros(case.shapes[name], int) for name in case.spec.labels}
    with pytest.raises(ValueError, match=rf"(?s)^{case.op}: .*\b(got|given)\b"):
        getattr(ops, case.op)(**arrays, **case.options)


@dtypes
@pytest.mark.parametrize("size", [(0, 5), (6, 0), (0, 0)], ids=str)
@pytest.mark.parametrize(("x", "w", "options"), PATHS, ids=str)
def test_images_without_pixels(x, w, options, size, dtype):
    """Padding makes no images of them, but a batch of none has an output, as by PyTorch."""
    options = options | {"padding": 4}
    weight, bias = np.ones(w, dtype), np.ones(w[0], dtype)
    for batch in ((2,), ()):
        with pytest.raises(ValueError, match=r"^conv2d: input must have pixels, got shape"):
            ops.conv2d(np.ones((*batch, x[1], *size), dtype), weight, **options)
    case, window = conv((0, x[1], *size), w, **options), (2, 2, 0, 1, False)
    arrays = case.arrays(dtype)
    want = case.run(reference, arrays)
    compare(case.run(ops, arrays), want)
    arguments, images = options | {"pool": window}, arrays["input"]
    y, cells = ops.conv2d_max_pool2d(images, weight, bias, **arguments)
    assert y.shape == cells.shape == ops.max_pool2d(want["y"], *window).shape
    grads = ops.conv2d_max_pool2d_backward(y, y, cells, images, weight, **arguments)
    names = ("dinput", "dweight", "dbias")
    compare(dict(zip(names, grads, strict=True)), {name: want[name] for name in names})


@dtypes
def test_empty_batches_of_fused_ops(dtype):
    x, w, b = np.zeros((0, 3, 8, 8), dtype), np.ones((4, 3, 3, 3), dtype), np.ones(4, dtype)
    window = (2, 2, 0, 1, False)
    y, cells = ops.conv2d_max_pool2d(x, w, b, pool=window)
    assert y.shape == cells.shape == (0, 4, 3, 3)
    grads = ops.conv2d_max_pool2d_backward(y, y, cells, x, w, pool=window)
    assert [g.shape for g in grads] == [x.shape, w.shape, b.shape]
    assert not np.any(grads[1]) and not np.any(grads[2])
    z, ones = np.zeros((0, 4, 6, 6), dtype), np.ones(4, dtype)
    for window in ((2,), (3, 1, 1)):
        y, cells = ops.batch_norm_max_pool2d(z, ones, ones, ones, b, *window)
        saved = (z, ones, ones, ones, True, (True,) * 3)
        grads = ops.batch_norm_max_pool2d_backward(y, y, cells, *saved, *window)
        assert grads[0].shape == z.shape and not np.any(grads[1]) and not np.any(grads[2])
    assert ops.max_pool2d_indices(cells, z.shape, 2).shape == cells.shape
    assert ops.flatten(z, 1).shape == (0, 144)
    assert ops.flatten_backward(np.zeros((0, 144), dtype), z.shape).shape == z.shape


def network() -> nn.Sequential:
    fl.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(36, 5),
    )


IMAGES = np.random.default_rng(4).standard_normal((6, 3, 8, 8)).astype(np.float32)
LABELS = np.array([0, 4, 2, 2, 1, 3])


def step(images: Any, labels: Any, training: bool, change: Any = None) -> dict[str, bytes]:
    """Loss, gradients and buffers of a step by the network, of which `change` may alter arrays."""
    model = network().train(training)
    if change is not None:
        change(model)
    fl.manual_seed(3)
    loss = F.cross_entropy(model(fl.Tensor(images)), labels)
    loss.backward()
    results = {"loss": bits(loss.array())} | {n: bits(b) for n, b in model.named_buffers()}
    if not training:  # a normalisation goes into the convolution's weight
        with fl.no_grad():
            results["output"] = bits(model(fl.Tensor(images)).array())
    for name, p in model.named_parameters():
        gradient = p.grad_array()
        assert type(gradient) is np.ndarray and gradient.dtype == np.float32, name
        results[f"{name}.grad"] = bits(gradient)
    return results


def put(name: str, form: Callable[[np.ndarray], Any]) -> Callable[[nn.Module], None]:
    """Give a function that replaces an array of a module's state by another form of it."""

    def change(model: nn.Module) -> None:
        path, _, key = name.rpartition(".")
        part = model.get_submodule(path)
        value = getattr(part, key)
        if isinstance(value, nn.Parameter):
            value.data = form(value.array())
        else:
            part.register_buffer(key, form(value.numpy()))

    return change


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("fusion", [True, False], ids=["fused", "single"])
@forms
def test_layers(form, training, fusion, figures):
    before = fl.is_fusion_enabled()
    fl.set_fusion_enabled(fusion)
    try:
        wanted = step(IMAGES, LABELS, training)
        assert step(form(IMAGES), form(LABELS), training) == wanted
        for name in network().state_dict():
            figures.count(CHAPTER, "steps compared with a plain array's")
            is_updated = training and any(b in name for b in ("running", "num_batches"))
            if is_updated and form in FROZEN:
                changed = put(name, form)
                model = network()
                changed(model)
                kept = {n: bits(b) for n, b in model.named_buffers()}
                with pytest.raises(ValueError, match=rf"{name.split('.')[1]} must be writable"):
                    model(fl.Tensor(IMAGES))
                assert {n: bits(b) for n, b in model.named_buffers()} == kept
            else:
                assert step(IMAGES, LABELS, training, put(name, form)) == wanted, name
    finally:
        fl.set_fusion_enabled(before)


def test_tensors_and_layers_refuse_masks():
    masked = np.ma.masked_array(np.ones(3, np.float32), mask=[0, 1, 0])
    for make in (fl.tensor, fl.as_tensor, fl.Tensor, fl.from_numpy):
        with pytest.raises(TypeError, match=r"^\w+: data must have no mask, got a masked float32"):
            make(masked)
    norm = network()[1]
    with pytest.raises(TypeError, match="^Tensor: data must have no mask"):
        norm.weight.data = masked
    with pytest.raises(TypeError, match="^BatchNorm2d: running_mean must have no mask"):
        norm.running_mean = masked
    with pytest.raises(TypeError, match="^BatchNorm2d: running_var must have no mask"):
        norm.register_buffer("running_var", masked)


def leaf_of(data: np.ndarray, grad: np.ndarray) -> nn.Parameter:
    """A parameter with a gradient, of these very arrays."""
    p = nn.Parameter(data)
    p.data, p.grad = data, grad
    return p


MAKERS: Any = {
    "sgd": lambda p: optim.SGD(p, 0.1),
    "momentum": lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.1, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, 0.1),
    "adadelta": lambda p: optim.Adadelta(p, 0.1, weight_decay=0.1),
}


def optimised(make: Any, role: str, form: Any) -> tuple[dict[str, Any], Any]:
    """Arrays of a parameter after a first step, one of them in another form, and a step to do."""
    data, grad = np.random.default_rng(7).standard_normal((2, 3, 4, 2))
    first = leaf_of(np.ones(2), np.ones(2))
    leaf = leaf_of(data.copy(), grad.copy())
    optimizer = make([first, leaf])
    optimizer.step()
    state = optimizer.state[leaf]
    if role in ("data", "grad"):
        setattr(leaf, role, form(getattr(leaf, role).numpy()))
    elif role in state:
        state[role] = form(state[role])
    arrays = {"data": leaf.array(), "grad": leaf.grad_array(), "other": first.array()}
    return arrays | {n: a for n, a in state.items() if n != "step"}, optimizer.step


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_optimisers(make, figures):
    wanted, do = optimised(make, "", None)
    do()
    wanted = {name: bits(a) for name, a in wanted.items()}

    def zeros(a: np.ndarray) -> np.ndarray:
        return as_strided(np.zeros(1), a.shape, (0,) * a.ndim)

    for role in wanted.keys() - {"other"}:
        for form in (*FORMS, zeros, np.ma.masked_array, np.float32, np.ndarray.tolist):
            figures.count(CHAPTER, "updates compared with a plain array's")
            if (role, form) in (("data", np.ma.masked_array), ("grad", np.ndarray.tolist)):
                with pytest.raises(TypeError, match=r"must (have no mask|be a Tensor or None)"):
                    optimised(make, role, form)  # by the parameter itself
                continue
            arrays, do = optimised(make, role, form)
            before = {n: bits(a) for n, a in arrays.items()}
            is_wrong = form in (swapped, swapped_last, mixed, np.float32)
            if form is np.ndarray.tolist and role == "data":
                continue
            if is_wrong or (role != "grad" and form in (*FROZEN, zeros)):
                with pytest.raises(ValueError, match=r"must be (writable|[<>]?float|[<>]f8)"):
                    do()
            elif form in (np.ma.masked_array, np.ndarray.tolist):
                with pytest.raises(TypeError, match=r"must (have no mask|be an array)"):
                    do()
            else:
                do()
                if form is not zeros:
                    found = {n: bits(a) for n, a in arrays.items()}
                    assert found == wanted, (role, form.__name__)
                continue
            assert {n: bits(a) for n, a in arrays.items()} == before, (role, form.__name__)


def test_state_is_read_from_any_array():
    plain_state = {name: t.numpy() for name, t in network().state_dict().items()}
    for form in FORMS:
        model = network()
        for p in model.parameters():
            p.data[...] = 0
        model.load_state_dict({name: form(a) for name, a in plain_state.items()})
        found = [t.numpy() for t in model.state_dict().values()]
        same(found, list(plain_state.values()), form.__name__)
