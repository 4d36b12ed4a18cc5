import gzip
import hashlib
import struct

import numpy as np
import pytest

from fastlayers.autograd import Tensor
from fastlayers.data import DataLoader
from fastlayers.vision.datasets import MNIST, FashionMNIST, VisionDataset

KINDS = [MNIST, FashionMNIST]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(MNIST, "_address", "file:///nowhere/")
    monkeypatch.setattr(FashionMNIST, "_address", "file:///nowhere/")
    monkeypatch.setenv("FASTLAYERS_DATA_DIR", str(tmp_path / "default"))


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def arrays(count, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, rng.integers(0, 10, count, dtype=np.uint8)


def write(folder, part, images, labels, suffix=""):
    pack = gzip.compress if suffix else bytes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx_bytes(images)))
    (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("nested", [False, True])
def test_reads_both_layouts(tmp_path, kind, suffix, nested):
    folder = tmp_path / kind.__name__ / "raw" if nested else tmp_path
    images, labels = arrays(7)
    write(folder, "train", images, labels, suffix)
    write(folder, "t10k", *arrays(3, seed=1), suffix)
    train, test = kind(tmp_path), kind(str(tmp_path), train=False)
    assert isinstance(train, VisionDataset)
    assert (len(train), len(test)) == (7, 3)
    assert train.images.shape == (7, 1, 28, 28) and train.images.dtype == np.float32
    assert train.labels.shape == (7,) and train.labels.dtype == np.int64
    np.testing.assert_array_equal(train.images[:, 0], images.astype(np.float32) / 255)
    np.testing.assert_array_equal(train.labels, labels)
    for name, expected in (("data", images), ("targets", labels)):
        held = getattr(train, name)
        assert isinstance(held, Tensor) and held.dtype == (np.uint8 if name == "data" else np.int64)
        np.testing.assert_array_equal(np.asarray(held), expected)
    assert len(kind.classes) == 10


def test_classes():
    assert MNIST.classes[3] == "3 - three"
    assert FashionMNIST.classes[9] == "Ankle boot"


def test_extremes_scale_to_unit_interval(tmp_path):
    images = np.zeros((1, 28, 28), np.uint8)
    images[0, 0, 0] = 255
    write(tmp_path, "train", images, np.zeros(1, np.uint8))
    pixels = MNIST(tmp_path).images
    assert pixels.max() == 1 and pixels.min() == 0


def test_default_root(tmp_path):
    write(tmp_path / "default", "train", *arrays(2))
    assert len(MNIST()) == 2


def test_own_folder_comes_before_root(tmp_path):
    write(tmp_path, "train", *arrays(2))
    write(tmp_path / "FashionMNIST" / "raw", "train", *arrays(5))
    assert len(MNIST(tmp_path)) == 2
    assert len(FashionMNIST(tmp_path)) == 5


def test_loads_in_batches(tmp_path):
    write(tmp_path, "train", *arrays(5))
    x, y = next(iter(DataLoader(MNIST(tmp_path), batch_size=4)))
    assert isinstance(x, Tensor) and x.shape == (4, 1, 28, 28) and y.shape == (4,)


@pytest.mark.parametrize("kind", KINDS)
def test_missing(tmp_path, kind):
    with pytest.raises(FileNotFoundError) as caught:
        kind(tmp_path)
    message = str(caught.value)
    raw = tmp_path / kind.__name__ / "raw"
    assert f"{kind.__name__}: found neither train-images-idx3-ubyte nor" in message
    assert f"{raw} or {tmp_path}" in message
    assert "download=True" in message and "file:///nowhere/train-images" in message


def test_failed_download(tmp_path):
    with pytest.raises(FileNotFoundError, match="looked for t10k-images-idx3-ubyte.gz"):
        MNIST(tmp_path, train=False, download=True)
    assert not list((tmp_path / "MNIST" / "raw").iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_download(tmp_path, monkeypatch, kind):
    mirror, root = tmp_path / "mirror", tmp_path / "root"
    write(mirror, "train", *arrays(4), ".gz")
    sums = {path.stem: hashlib.md5(path.read_bytes()).hexdigest() for path in mirror.iterdir()}
    monkeypatch.setattr(kind, "_address", mirror.as_uri() + "/")
    monkeypatch.setattr(kind, "_md5", sums)
    assert len(kind(root, download=True)) == 4
    assert len(list((root / kind.__name__ / "raw").iterdir())) == 2
    assert len(kind(root)) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_all_four_files_have_checksums(kind):
    assert len(set(kind._md5.values())) == 4
    assert set(kind._md5) == {
        f"{part}-{content}"
        for part in ("train", "t10k")
        for content in ("images-idx3-ubyte", "labels-idx1-ubyte")
    }


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((4, 28, 27), [0] * 4, r"images-.* uint8 of shape \(N, 28, 28\), got .*\(4, 28, 27\)"),
        ((4, 784), [0] * 4, r"images-.* uint8 of shape \(N, 28, 28\), got .*\(4, 784\)"),
        ((4, 28, 28), [[0]] * 4, r"labels-.* uint8 of shape \(N\), got .*\(4, 1\)"),
        ((4, 28, 28), [0] * 5, r"labels-.* one label for each image of .*, got 5 for 4"),
        ((4, 28, 28), [0, 1, 10, 3], r"labels-.* labels from 0 to 9, got 10"),
    ],
)
def test_wrong_content(tmp_path, images, labels, message):
    write(tmp_path, "train", np.zeros(images, np.uint8), np.array(labels, np.uint8))
    with pytest.raises(ValueError, match=f"^MNIST: .*{message}"):
        MNIST(tmp_path)


def test_truncated_file(tmp_path):
    write(tmp_path, "train", *arrays(2))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="expected 1568 bytes .* got 1567"):
        MNIST(tmp_path)
