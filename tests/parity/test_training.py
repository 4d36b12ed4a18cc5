"""Training against PyTorch: the same initial state and batches give the same losses."""

import numpy as np
import pytest

import fastlayers as fl

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 6, 5)
        self.bn1 = torch.nn.BatchNorm2d(6)
        self.conv2 = torch.nn.Conv2d(6, 16, 5)
        self.bn2 = torch.nn.BatchNorm2d(16)
        self.pool = torch.nn.MaxPool2d(2, 2)
        self.relu = torch.nn.ReLU()
        self.fc1 = torch.nn.Linear(16 * 5 * 5, 120)
        self.fc2 = torch.nn.Linear(120, 84)
        self.fc3 = torch.nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        x = x.view(-1, 16 * 5 * 5)
        x = self.relu(self.fc1(x))
        x = self.relu(self.fc2(x))
        return self.fc3(x)


@pytest.fixture
def nets():
    """Give a network of each library, with the weights of PyTorch's."""
    torch.manual_seed(0)
    theirs, ours = Net(), fl.vision.models.CifarCNN(batch_norm=True)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def batches(steps):
    """Give batches of noise over an image that depends on the class."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((10, 3, 32, 32))
    for _ in range(steps):
        labels = rng.integers(0, 10, 32)
        images = means[labels] + rng.standard_normal((32, 3, 32, 32))
        yield images.astype(np.float32), labels


def test_states_have_the_same_keys_shapes_and_dtypes(nets):
    ours, theirs = (
        [(key, np.asarray(a).shape, np.asarray(a).dtype) for key, a in net.state_dict().items()]
        for net in nets
    )
    assert sorted(ours) == sorted(theirs)


def test_states_load_both_ways(nets):
    ours, theirs = nets
    fl.manual_seed(1)
    ours.load_state_dict(fl.vision.models.CifarCNN(batch_norm=True).state_dict())
    ours(next(batches(1))[0])
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), ours.state_dict()[name])
    images, _ = next(batches(1))
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(images)).numpy()
    np.testing.assert_allclose(ours.eval()(images).array(), expected, rtol=1e-4, atol=1e-4)


def test_losses_are_those_of_torch(nets):
    ours, theirs = nets
    options = {"lr": 0.01, "momentum": 0.9}
    ours_step = fl.optim.SGD(ours.parameters(), **options)
    theirs_step = torch.optim.SGD(theirs.parameters(), **options)
    losses = []
    for images, labels in batches(50):
        ours_step.zero_grad()
        loss = fl.nn.CrossEntropyLoss()(ours(images), labels)
        loss.backward()
        ours_step.step()
        theirs_step.zero_grad()
        expected = torch.nn.CrossEntropyLoss()(theirs(torch.tensor(images)), torch.tensor(labels))
        expected.backward()
        theirs_step.step()
        losses.append((loss.item(), expected.item()))
    found, expected = np.transpose(losses)
    assert expected[-5:].mean() < expected[:5].mean() / 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
