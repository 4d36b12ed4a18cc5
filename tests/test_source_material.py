"""Programs as teaching material has them for PyTorch, with other imports."""

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn, optim
from fastlayers.data import DataLoader, TensorDataset

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
