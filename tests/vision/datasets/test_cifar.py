import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from fastlayers.data import DataLoader
from fastlayers.vision.datasets import CIFAR10, CIFAR100

FOLDER = "cifar-10-batches-bin"
NAMES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]


PYTHON = "cifar-10-batches-py"


def text(content):
    """A byte string as Python 2 pickled it: SHORT_BINSTRING or BINSTRING."""
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + len(content).to_bytes(4, "little") + content


def number(value):
    if value < 256:
        return b"K" + bytes([value])
    if value < 1 << 16:
        return b"M" + value.to_bytes(2, "little")
    return b"J" + value.to_bytes(4, "little")


def array(pixels):
    """An array of uint8 as NumPy pickled it under Python 2, by cPickle of protocol 2."""
    rows, columns = pixels.shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t"
        b"(K\x01" + number(rows) + number(columns) + b"\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87"
        b"Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(pixels.tobytes()) + b"tb"
    )  # fmt: skip


def batch(records, labels=b"labels"):
    """The file of some records, as the version for Python has it."""
    numbers = b"".join(number(value) for value in records[:, 0].tolist())
    names = b"".join(text(f"image_s_{i:06}.png".encode()) for i in range(len(records)))
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5")
        + b"q\x03" + text(labels) + b"q\x04]q\x05(" + numbers + b"e" + text(b"data") + b"q\x06"
        + array(records[:, 1:]) + text(b"filenames") + b"q\x0c]q\r(" + names + b"eu."
    )  # fmt: skip


def meta(key, names):
    listed = b"".join(text(name.encode()) for name in names)
    return (
        b"\x80\x02}q\x01("
        + text(key)
        + b"q\x02]q\x03("
        + listed
        + b"e"
        + text(b"num_vis")
        + b"M\x00\x0cu."
    )


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(CIFAR10, "_url", "file:///nowhere/cifar-10-python.tar.gz")


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
    stems = [name.removesuffix(".bin") for name in NAMES]
    files = {f"{PYTHON}/{stem}": batch(records(2, i)) for i, stem in enumerate(stems)}
    return files | {f"{PYTHON}/batches.meta": meta(b"label_names", CIFAR10.classes)}


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


def test_no_whole_version(root):
    (root / FOLDER / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        CIFAR10(root)
    message = str(caught.value)
    assert "CIFAR10: did not find data_batch_1, data_batch_2, data_batch_3" in message
    assert f"in {root / PYTHON}, nor data_batch_4.bin in {root / FOLDER}" in message
    assert "download=True" in message and CIFAR10._url in message


def test_failed_download(tmp_path):
    with pytest.raises(FileNotFoundError, match="looked for cifar-10-python.tar.gz"):
        CIFAR10(tmp_path, download=True)


def test_download_extracts_expected_members_only(tmp_path, monkeypatch):
    extra = {"../evil": b"x", f"{PYTHON}/readme.html": b"x", f"{PYTHON}/link": None}
    serve(monkeypatch, tmp_path, extra | members())
    root = tmp_path / "root"
    assert len(CIFAR10(root, download=True)) == 10
    expected = [*(name.removesuffix(".bin") for name in NAMES), "batches.meta"]
    assert sorted(os.listdir(root / PYTHON)) == sorted(expected)
    assert not (tmp_path / "evil").exists()
    assert len(CIFAR10(root, train=False)) == 2


def test_download_is_skipped_if_files_are_there(root):
    assert len(CIFAR10(root, download=True)) == 15


def test_link_in_place_of_a_file(tmp_path, monkeypatch):
    serve(monkeypatch, tmp_path, members() | {f"{PYTHON}/data_batch_1": None})
    with pytest.raises(ValueError, match="must hold the regular file .*data_batch_1, got"):
        CIFAR10(tmp_path / "root", download=True)
    assert not list((tmp_path / "root" / PYTHON).iterdir())


@pytest.fixture
def python_root(tmp_path):
    (tmp_path / "py" / PYTHON).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        path = tmp_path / "py" / PYTHON / name.removesuffix(".bin")
        path.write_bytes(batch(records(number + 1, number)))
    return tmp_path / "py"


def test_the_version_for_python_holds_the_same(root, python_root):
    for train in (True, False):
        ours, theirs = CIFAR10(root, train), CIFAR10(python_root, train)
        assert type(theirs.targets) is list and ours.targets == theirs.targets
        np.testing.assert_array_equal(ours.data, theirs.data)
        assert theirs.data.shape == (len(ours), 32, 32, 3) and theirs.data.dtype == np.uint8
        pickled = pickle.loads(batch(records(6, 5)), encoding="bytes")  # the test's own
    np.testing.assert_array_equal(
        theirs.data.transpose(0, 3, 1, 2).reshape(6, -1), pickled[b"data"]
    )
    assert theirs.targets == pickled[b"labels"]


def test_cifar100(tmp_path):
    names = [f"kind {i}" for i in range(100)]
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    source = records(5)
    source[:, 0] = [99, 0, 50, 7, 1]
    for name in ("train", "test"):
        (folder / name).write_bytes(batch(source, b"fine_labels"))
    with pytest.raises(FileNotFoundError, match="CIFAR100: did not find meta in"):
        CIFAR100(tmp_path)
    (folder / "meta").write_bytes(meta(b"fine_label_names", names))
    data = CIFAR100(tmp_path, train=False)
    assert data.targets == [99, 0, 50, 7, 1] and data.classes == tuple(names)
    assert data.class_to_idx["kind 7"] == 7
    (folder / "meta").write_bytes(meta(b"fine_label_names", names[:50]))
    with pytest.raises(ValueError, match="must hold labels from 0 to 49, got 99"):
        CIFAR100(tmp_path)
    (folder / "meta").write_bytes(meta(b"names", names))
    with pytest.raises(ValueError, match="CIFAR100: .*meta must hold fine_label_names, got"):
        CIFAR100(tmp_path)
    (folder / "meta").write_bytes(b"\x80\x02}" + text(b"fine_label_names") + b"K\x01s.")
    with pytest.raises(ValueError, match="CIFAR100: .*meta must hold a list of names, got 1"):
        CIFAR100(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "its pickle ends early: "),
        (
            lambda data: data.replace(b"cnumpy\ndtype", b"cposix\nsystem"),
            "'posix.system' is refused",
        ),
        (lambda data: data.replace(b"u1", b"i4"), "that is not uint8 is refused"),
        (lambda data: data.replace(b"K\x03M\x00\x0c", b"K\x04M\x00\x0c"), r"shape \(4, 3072\)"),
        (lambda data: data.replace(b"labels", b"lebals"), "must hold labels, got"),
        (
            lambda data: data.replace(b"e" + text(b"data"), b"K\x01e" + text(b"data")),
            "3 images, got 4",
        ),
        (lambda data: b"\x80\x03" + data[2:], "pickle protocol 3 is refused"),
    ],
)
def test_a_file_that_is_another(python_root, change, message):
    path = python_root / PYTHON / "test_batch"
    path.write_bytes(change(batch(records(3))))
    with pytest.raises(ValueError, match=f"^CIFAR10: .*test_batch must hold|be a .*{message}"):
        CIFAR10(python_root, train=False)
    with pytest.raises(ValueError, match=message):
        CIFAR10(python_root, train=False)


def test_loads_in_batches(python_root):
    data = CIFAR10(python_root)
    x, y = next(iter(DataLoader(data, batch_size=4)))
    assert x.shape == (4, 3, 32, 32) and np.asarray(y).tolist() == data.targets[:4]
