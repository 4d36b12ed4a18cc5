import hashlib
import io
import os
import tarfile

import numpy as np
import pytest

from fastlayers.data import CIFAR10

FOLDER = "cifar-10-batches-bin"
NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(CIFAR10, "_url", "file:///nowhere/cifar-10-binary.tar.gz")


def records(count, seed=0):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
    array[:, 0] %= 10
    return array


@pytest.fixture
def root(tmp_path):
    (tmp_path / FOLDER).mkdir()
    for number, name in enumerate(NAMES):
        (tmp_path / FOLDER / name).write_bytes(records(number + 1, number).tobytes())
    return tmp_path


def pack(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                content = b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest()


def serve(monkeypatch, tmp_path, members):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    url, md5 = pack(mirror / "archive.tar.gz", members)
    monkeypatch.setattr(CIFAR10, "_url", url)
    monkeypatch.setattr(CIFAR10, "_md5", md5)


def members():
    return {f"{FOLDER}/{name}": records(2, i).tobytes() for i, name in enumerate(NAMES)}


def test_reads_binary_version(root):
    train, test = CIFAR10(root), CIFAR10(str(root), train=False)
    assert (len(train), len(test)) == (15, 6)
    assert train.images.shape == (15, 3, 32, 32) and train.images.dtype == np.float32
    assert train.labels.shape == (15,) and train.labels.dtype == np.int64
    source = records(6, 5)
    np.testing.assert_array_equal(test.labels, source[:, 0])
    np.testing.assert_array_equal(
        test.images, source[:, 1:].reshape(6, 3, 32, 32).astype(np.float32) / 255
    )
    np.testing.assert_array_equal(train.labels[1:3], records(2, 1)[:, 0])
    assert CIFAR10.classes[0] == "airplane" and CIFAR10.classes[9] == "truck"


def test_default_root(root, monkeypatch):
    monkeypatch.setenv("FASTLAYERS_DATA_DIR", str(root))
    assert len(CIFAR10(train=False)) == 6


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_wrong_size(root, size):
    (root / FOLDER / "test_batch.bin").write_bytes(bytes(size))
    message = rf"CIFAR10: .*test_batch.bin must hold records of 3073 bytes each, got {size} bytes"
    with pytest.raises(ValueError, match=message):
        CIFAR10(root, train=False)


def test_wrong_label(root):
    array = records(2)
    array[1, 0] = 10
    (root / FOLDER / "data_batch_3.bin").write_bytes(array.tobytes())
    message = r"CIFAR10: .*data_batch_3.bin \(6146 bytes\) must hold labels from 0 to 9, got 10"
    with pytest.raises(ValueError, match=message):
        CIFAR10(root)


def test_missing(root):
    (root / FOLDER / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        CIFAR10(root)
    message = str(caught.value)
    assert f"CIFAR10: did not find data_batch_4.bin in {root / FOLDER}" in message
    assert "download=True" in message and CIFAR10._url in message


def test_failed_download(tmp_path):
    with pytest.raises(FileNotFoundError, match="looked for cifar-10-binary.tar.gz"):
        CIFAR10(tmp_path, download=True)


def test_download_extracts_expected_members_only(tmp_path, monkeypatch):
    extra = {"../evil": b"x", f"{FOLDER}/readme.html": b"x", f"{FOLDER}/link": None}
    serve(monkeypatch, tmp_path, extra | members())
    root = tmp_path / "root"
    assert len(CIFAR10(root, download=True)) == 10
    assert sorted(os.listdir(root / FOLDER)) == sorted(NAMES)
    assert not (tmp_path / "evil").exists()
    assert len(CIFAR10(root, train=False)) == 2


def test_download_is_skipped_if_files_are_there(root):
    assert len(CIFAR10(root, download=True)) == 15


def test_link_in_place_of_a_file(tmp_path, monkeypatch):
    serve(monkeypatch, tmp_path, members() | {f"{FOLDER}/data_batch_1.bin": None})
    with pytest.raises(ValueError, match="must hold the regular file .*data_batch_1.bin, got"):
        CIFAR10(tmp_path / "root", download=True)
    assert not list((tmp_path / "root" / FOLDER).iterdir())
