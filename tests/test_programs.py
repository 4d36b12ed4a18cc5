"""Programs written for PyTorch and torchvision, whole, with other imports and nothing else changed.

They stand in `tests/programs` as PyTorch runs them.
"""

import contextlib
import io
import pickle
import re
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import fastlayers as fl

PROGRAMS = Path(__file__).parent / "programs"
README = Path(__file__).parent.parent / "README.md"
IMPORT = re.compile(r"(import|from) ")


def with_other_imports(program: str) -> str:
    """What a program's author would write instead of its import lines."""
    lines = []
    for line in program.splitlines():
        if IMPORT.match(line):
            line = re.sub(r"^import torch$", "import fastlayers as torch", line)
            line = re.sub(r"^import torchvision$", "import fastlayers.vision as torchvision", line)
            line = re.sub(r"\btorchvision\.", "fastlayers.vision.", line)
            line = re.sub(r"^from torchvision ", "from fastlayers.vision ", line)
            line = re.sub(r"\btorch\.", "fastlayers.", line)
        lines.append(line)
    return "\n".join(lines)


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a program prints."""
    source = (PROGRAMS / name).read_text()
    changed = with_other_imports(source)
    assert "torch" not in re.sub(
        r"fastlayers\S* as torch\S*",
        "",
        "\n".join(line for line in changed.splitlines() if IMPORT.match(line)),
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [name])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(changed, name, "exec"), {"__name__": "__main__"})
    return printed.getvalue().splitlines()


class Python2(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value.encode() if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def by_python_2(value) -> bytes:
    file = io.BytesIO()
    Python2(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def cifar10(tmp_path):
    """A folder of small files as torchvision has them: a class is a row of bright pixels."""
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = np.arange(20) % 10
        images = rng.integers(0, 100, (20, 3, 32, 32), np.uint8)
        images[np.arange(20), :, 3 * labels + 1] += 150
        content = {
            b"batch_label": name.encode(),
            b"labels": labels.tolist(),
            b"data": images.reshape(20, -1),
            b"filenames": [b"x.png"] * 20,
        }
        (folder / name).write_bytes(by_python_2(content))
    names = b"airplane automobile bird cat deer dog frog horse ship truck".split()
    meta = {b"label_names": names, b"num_cases_per_batch": 20, b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(by_python_2(meta))
    return tmp_path


@pytest.fixture
def mnist(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in [("train", 256), ("t10k", 64)]:
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 60, (count, 28, 28), np.uint8)
        images[np.arange(count), 2 * labels + 3] += 150
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, count)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return tmp_path


def test_batch_norm_by_hand(tmp_path, monkeypatch):
    lines = run("batch_norm_by_hand.py", tmp_path, monkeypatch)
    assert re.fullmatch(
        r"tensor\(\[\[(0\.\d{4}, ){7}0\.\d{4}\]\]\) torch\.Size\(\[1, 8\]\)", lines[0]
    )
    assert lines[1:] == [
        "True torch.Size([10])",
        "1d: True",
        "gradients: True",
        "torch.Size([8, 3, 6, 6]) 3",
        "2d: True",
        "running: True",
        "running: True",
        "evaluation: True",
        "trained: True",
        "torch.Size([4]) False",
    ]


def test_cifar10(cifar10, monkeypatch):
    lines = run("cifar10.py", cifar10, monkeypatch)
    assert "  (conv1): Conv2d(3, 6, kernel_size=(5, 5), stride=(1, 1))" in lines
    assert sum(line.startswith("Epoch: 00") for line in lines) == 3
    assert "loss went down: True" in lines
    assert any(re.match(r"Accuracy of the network on the 20 test images: \d+ %", x) for x in lines)
    assert lines[-1].split() == ["GroundTruth:", "plane", "car", "bird", "cat"]
    state = fl.load(cifar10 / "best_model.pt")
    assert state["conv1.weight"].shape == (6, 3, 5, 5)


def test_mnist(mnist, monkeypatch):
    lines = run("mnist.py", mnist, monkeypatch)
    assert re.fullmatch(r"Train Epoch: 1 \[0/256 \(0%\)\]\tLoss: \d\.\d{6}", lines[0])
    assert re.fullmatch(r"Test set: Average loss: \d\.\d{4}, Accuracy: \d+/64", lines[2])
    assert lines[-1] == "rate: [0.48999999999999994]"
    assert (mnist / "mnist_cnn.pt").exists()


def test_segmentation(tmp_path, monkeypatch):
    assert run("segmentation.py", tmp_path, monkeypatch) == [
        "trained: True, gradient: True",
        "IoU above a half: True",
        "focal of gamma 0: True",
        "by one-hot labels: True",
    ]
