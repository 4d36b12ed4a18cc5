import subprocess
import sys

PROGRAM = """
import sys
import fastlayers as torch
assert not {"numpy", "fastlayers.data", "fastlayers.vision"} & set(sys.modules)
from fastlayers.utils.data import DataLoader, random_split
import fastlayers.vision as torchvision
import fastlayers.vision.transforms as transforms
from fastlayers.utils.data.distributed import DistributedSampler

assert torch.utils.data.DataLoader is DataLoader is torch.data.DataLoader
assert torch.utils.data.distributed.DistributedSampler is DistributedSampler
assert torch.data.CIFAR10 is torchvision.datasets.CIFAR10
assert torch.models.resnet18 is torchvision.models.resnet18
steps = [transforms.RandomCrop(8, padding=2), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
data = torchvision.datasets.FakeData(10, (3, 8, 8), transform=transforms.Compose(steps))
train, test = random_split(data, [6, 4], generator=torch.Generator().manual_seed(42))
loader = torch.utils.data.DataLoader(train, batch_size=4, shuffle=True, num_workers=2)
for images, labels in loader:
    print(tuple(images.shape), tuple(labels.shape))
assert not {"numba", "multiprocessing.queues"} & set(sys.modules)
"""


def test_a_program_with_the_imports_changed():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert result.stderr == ""
    assert result.stdout == "(4, 3, 8, 8) (4,)\n(2, 3, 8, 8) (2,)\n"
