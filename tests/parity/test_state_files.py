"""Files that PyTorch and the package safetensors write, and what they read of ours."""

import io

import numpy as np
import pytest
from state.loading import load_arrays

import fastlayers as fl
from fastlayers import nn

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

DTYPES = [
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bfloat16",
    "float16", "float32", "float64",
]  # fmt: skip


def network(module):
    return module.Sequential(
        module.Conv2d(1, 2, 3), module.BatchNorm2d(2), module.ReLU(), module.Flatten(),
        module.Linear(18, 3),
    )  # fmt: skip


def trained(kind=torch.optim.Adam, **options):
    torch.manual_seed(0)
    model = network(torch.nn)
    optimizer = kind(model.parameters(), lr=0.1, **options)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 5, 5)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    file.seek(0)
    return file


def check_equal(found, expected):
    """Equal in structure, types, dtypes and bits; bfloat16 is float32."""
    if isinstance(expected, torch.Tensor):
        expected = expected.detach()
        expected = expected.float() if expected.dtype == torch.bfloat16 else expected
        expected = expected.contiguous().numpy()
        assert type(found) is np.ndarray
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            check_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert isinstance(expected, type(found)) and len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            check_equal(a, b)
    else:
        assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {}),
    ],
)
def test_checkpoints_of_a_training(kind, options):
    model, optimizer = trained(kind, **options)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    checkpoint = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.5,
        "scheduler": scheduler.state_dict(), "history": [(1, 0.25), (2, float("inf"))], "n": 2**70,
        "best": None, "name": "größe", "shape": model[0].weight.shape, "resumed": True,
    }  # fmt: skip
    found = load_arrays(saved(checkpoint), map_location="cpu", weights_only=True)
    check_equal(found, checkpoint)
    ours = network(nn)
    ours.load_state_dict(found["model"])
    x = torch.randn(4, 1, 5, 5)
    y = ours.eval()(fl.tensor(x.numpy())).detach()
    expected = model.eval()(x).detach().numpy()
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5, atol=1e-6)


def test_a_state_dict_in_a_file(tmp_path):
    model, _ = trained()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    check_equal(load_arrays(tmp_path / "model.pth"), dict(model.state_dict()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    values = torch.arange(-3, 9).reshape(3, 4).to(getattr(torch, dtype))
    value = {
        "whole": values,
        "scalar": values[0, 0].clone(),
        "empty": torch.zeros(0, 3).to(values.dtype),
    }
    check_equal(load_arrays(saved(value)), value)
    if dtype not in ("uint16", "uint32", "uint64"):  # of which old releases of it know none
        content = safetensors_torch.save(value)
        found = load_arrays(io.BytesIO(content))
        check_equal({name: found[name] for name in value}, value)


def test_views_and_shared_storages():
    base = torch.arange(24.0).reshape(2, 3, 4)
    value = {
        "base": base, "again": base, "slice": base[:, 1:, ::2], "turned": base.permute(2, 0, 1),
        "row": base[1, 2], "element": base[1, 2, 3], "expanded": base[0, 0, :1].expand(5, 4),
        "none of it": base[:0], "last": base.to(memory_format=torch.contiguous_format).mT,
        "half": base.to(torch.bfloat16)[1],
    }  # fmt: skip
    check_equal(load_arrays(saved(value)), value)


def test_parameters_and_buffers():
    attributed = torch.nn.Parameter(torch.ones(2))
    attributed.note = "a"
    value = [
        torch.nn.Parameter(torch.ones(2, 3)),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
        attributed,
        torch.nn.Buffer(torch.ones(3)),
        torch.ones(2, requires_grad=True),
    ]
    check_equal(load_arrays(saved(value)), value)
    check_equal(load_arrays(saved(value[0])), value[0])


def test_dtypes_as_data():
    found = load_arrays(saved([torch.float16, torch.bfloat16, torch.int64]))
    assert found == [np.dtype("f2"), np.dtype("f4"), np.dtype("i8")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            network(torch.nn),
            "global 'torch.nn.modules.container.Sequential' is refused",
        ),
        (torch.ones(2, dtype=torch.complex64), "global 'torch.ComplexFloatStorage' is refused"),
        (torch.ones(2).to(torch.float8_e4m3fn), "global 'torch.float8_e4m3fn' is refused"),
        (torch.eye(2).to_sparse(), "global 'torch._utils._rebuild_sparse_tensor' is refused"),
        (torch._neg_view(torch.ones(2)), "a negated or conjugate view of a tensor is refused"),
        (torch.ones(2).untyped_storage(), "a TypedStorage is refused where data is expected"),
        (torch.ones(2, device="meta"), "global 'torch._utils._rebuild_meta_tensor_no_storage'"),
        ({"x": np.float64(1)}, "global 'numpy.*scalar' is refused"),
        ({"x": {1, 2}}, "global '__builtin__.set' is refused"),
        ({"x": torch.device("cpu")}, "global 'torch.device' is refused"),
    ],
)
def test_what_is_refused(value, message):
    with pytest.raises(ValueError, match=f"^load: .* cannot be read as a torch file: {message}"):
        load_arrays(saved(value))


def test_other_formats_of_torch_are_named(tmp_path):
    with pytest.raises(ValueError, match="in the format of torch.save before PyTorch 1.6"):
        load_arrays(saved({"w": torch.ones(3)}, _use_new_zipfile_serialization=False))
    with pytest.raises(ValueError, match="pickle protocol 4 is refused"):
        load_arrays(saved({"w": torch.ones(3)}, pickle_protocol=4))


@pytest.mark.parametrize("alignment", [1, 4096])
def test_other_alignments_of_the_records(alignment):
    from torch.utils.serialization import config

    value = {"x": torch.arange(5.0), "y": torch.ones(3, dtype=torch.int8)}
    with config.patch({"save.storage_alignment": alignment}):
        file = saved(value)
    check_equal(load_arrays(file), value)


def test_safetensors_of_a_model(tmp_path):
    model, _ = trained()
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file(model.state_dict(), path, metadata={"format": "pt", "note": '"}{'})
    state = dict(model.state_dict())
    found = load_arrays(path)
    check_equal({name: found[name] for name in state}, state)
    fl.save(found, path)
    for name, value in safetensors_torch.load_file(path).items():
        check_equal(found[name], value)
