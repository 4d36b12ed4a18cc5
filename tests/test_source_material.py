"""Programs as teaching material and examples have them for PyTorch, with other imports.

Whole programs stand in `tests/programs` as PyTorch runs them; nothing but their import lines is
changed. What follows them are the material's single steps.
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
from fastlayers import nn, optim
from fastlayers.data import DataLoader, TensorDataset

PROGRAMS = Path(__file__).parent / "programs"
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


X = np.arange(1, 13, dtype=np.float32).reshape(1, 1, 3, 4)


@pytest.fixture(autouse=True)
def _seeded():
    fl.manual_seed(0)


def test_convolution():
    conv = nn.Conv2d(1, 1, kernel_size=(2, 2), stride=(1, 2))
    conv.weight.data[...] = [[[[1, 2], [3, 4]]]]
    conv.bias.data[...] = 1
    x = fl.tensor(X, requires_grad=True)
    y = conv(x)
    # 1 + 1*1 + 2*2 + 3*5 + 4*6, 1 + 1*3 + 2*4 + 3*7 + 4*8, ...
    np.testing.assert_array_equal(y.array(), [[[[45, 65], [85, 105]]]])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [[[[1, 2, 1, 2], [4, 6, 4, 6], [3, 4, 3, 4]]]])
    np.testing.assert_array_equal(conv.weight.grad, [[[[16, 20], [32, 36]]]])
    np.testing.assert_array_equal(conv.bias.grad, [4])


def test_max_pooling():
    pool = nn.MaxPool2d(kernel_size=(2, 2), stride=(1, 2), return_indices=True)
    x = fl.tensor(X, requires_grad=True)
    y, indices = pool(x)
    np.testing.assert_array_equal(y.array(), [[[[6, 8], [10, 12]]]])
    np.testing.assert_array_equal(indices.array(), [[[[5, 7], [9, 11]]]])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [[[[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1]]]])


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 2)])
def test_batch_norm_by_its_four_lines(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 3 + 1
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(4)
    norm.weight.data[...], norm.bias.data[...] = [1, 2, 3, 4], [0, 1, 2, 3]
    axes, like = (0, 2, 3)[: len(shape) - 1], (4,) + (1,) * (len(shape) - 2)

    mean = x.mean(axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    x_hat = (x - mean) / np.sqrt(var + norm.eps)
    y = norm.weight.array().reshape(like) * x_hat + norm.bias.array().reshape(like)

    np.testing.assert_allclose(norm(x).array(), y, rtol=1e-4, atol=1e-5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.relu = nn.ReLU()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = self.relu(self.fc1(x))
        x = self.relu(self.fc2(x))
        x = self.fc3(x)
        return x


class RegularisedNet(Net):
    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(6)
        self.bn2 = nn.BatchNorm2d(16)
        self.bn3 = nn.BatchNorm1d(120)
        self.drop2d = nn.Dropout2d(0.1)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        x = self.drop2d(self.pool(self.relu(self.bn1(self.conv1(x)))))
        x = self.drop2d(self.pool(self.relu(self.bn2(self.conv2(x)))))
        x = x.view(-1, 16 * 5 * 5)
        x = self.drop(self.relu(self.bn3(self.fc1(x))))
        x = self.drop(self.relu(self.fc2(x)))
        x = self.fc3(x)
        return x


def images(count=64):
    """Give random images whose brightness in one of ten rows of pixels tells their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 10
    x = rng.standard_normal((count, 3, 32, 32)).astype(np.float32)
    x[np.arange(count), :, 3 * labels + 1] += 3
    return TensorDataset(x, labels)


def accuracy(model, loader):
    correct = total = 0
    model.eval()
    with fl.no_grad():
        for inputs, labels in loader:
            outputs = model(inputs)
            assert not outputs.requires_grad
            predicted = outputs.argmax(1)
            total += labels.size(0)
            correct += (predicted == labels).sum().item()
    model.train()
    return correct / total


@pytest.mark.parametrize("model", [Net, RegularisedNet])
def test_cifar_network(tmp_path, model):
    path = tmp_path / "cifar_net.pth"
    trainloader = DataLoader(images(), batch_size=4, shuffle=True)
    testloader = DataLoader(images(), batch_size=16)
    net = model()
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)

    losses, best = [], -1.0
    for _ in range(5):
        running_loss = 0.0
        for inputs, labels in trainloader:
            optimizer.zero_grad()
            outputs = net(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        losses.append(running_loss / len(trainloader))
        if (found := accuracy(net, testloader)) > best:
            best = found
            fl.save(net.state_dict(), path)

    assert losses[-1] < losses[0]
    assert net.training
    net = model()
    net.load_state_dict(fl.load(path))
    assert accuracy(net, testloader) == best


class MLP(nn.Module):
    def __init__(self, norm, dropout):
        super().__init__()

        def hidden(before, after):
            layers = [nn.Linear(before, after, bias=False), nn.ReLU()]
            layers.insert({"before": 1, "after": 2}[norm], nn.BatchNorm1d(after))
            return layers + [nn.Dropout(dropout)] * (dropout > 0)

        self.layers = nn.Sequential(*hidden(64, 32), *hidden(32, 16), nn.Linear(16, 10))

    def forward(self, x):
        return self.layers(x.view(x.size(0), -1))


@pytest.mark.parametrize("norm", ["before", "after"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_mlp(norm, dropout):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    x = rng.standard_normal((60, 1, 8, 8)).astype(np.float32) / 2
    x[np.arange(60), 0, labels // 2, labels % 2 * 4] += 3
    model, criterion = MLP(norm, dropout), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(10):
        for inputs, targets in DataLoader(TensorDataset(x, labels), batch_size=20, shuffle=True):
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) / 2
    biases = [name for name in model.state_dict() if name.endswith("bias")]
    assert len(biases) == 3  # of two normalisations and the last layer
