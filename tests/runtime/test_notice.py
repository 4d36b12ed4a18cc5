import contextlib
import sys
import warnings
from types import SimpleNamespace

import pytest

from fastlayers.runtime import notice


class WithoutFlush:
    """A logger that only writes."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


class Raising:
    """A stream of which every use fails."""

    def write(self, text):
        raise LookupError("logger")

    flush = write


@pytest.fixture(params=["missing", "closed", "full", "raising", "empty"])
def broken(request, tmp_path):
    """Give a stream that takes no text; pytest itself replaces sys.stderr as the test begins."""
    if request.param == "full" and not sys.platform.startswith("linux"):
        pytest.skip("needs /dev/full")
    stream = {"missing": None, "raising": Raising(), "empty": object()}.get(request.param)
    if request.param in ("closed", "full"):
        path = tmp_path / "file" if request.param == "closed" else "/dev/full"
        stream = open(path, "w", buffering=1)  # noqa: SIM115 (it is closed below, or for the test)
    if request.param == "closed":
        stream.close()
    yield stream
    if request.param == "full":
        with contextlib.suppress(OSError):
            stream.close()


@pytest.mark.parametrize("bars", [False, True])
def test_a_broken_stderr_is_no_failure(monkeypatch, capsys, broken, bars):
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    if bars:
        pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr", broken)
    notice.tell("a line")
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("always")
def test_a_warning_that_cannot_be_shown_is_no_failure(monkeypatch, broken):
    shown = []

    def show(message, category, filename, lineno, file=None, line=None):
        shown.append(str(message))
        sys.stderr.write(str(message))

    monkeypatch.setattr("sys.stderr", broken)
    monkeypatch.setattr(warnings, "showwarning", show)
    notice.warn("a warning")
    assert shown == ["a warning"]


def test_what_can_be_written_is(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    notice.tell("a line")
    assert capsys.readouterr().err == "a line\n"
    stream = WithoutFlush()
    monkeypatch.setattr("sys.stderr", stream)
    notice.tell("another")
    assert stream.text == "another\n"


def test_bars_that_are_half_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace())
    notice.tell("a line")


def test_warnings_show_who_called_and_can_be_errors():
    with pytest.warns(RuntimeWarning, match="^text$") as found:
        notice.warn("text")
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="text"):
            notice.warn("text")
