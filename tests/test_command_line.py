"""``python -m fastlayers train``; `warmup` and `info` are with what they show."""

import json
import os
import subprocess
import sys

import pytest

import fastlayers as fl
from fastlayers import __main__ as cli

TIMES = ("seconds", "images_per_second")


def train(folder, *options, epochs=3):
    given = ["--model", "mlp", "--batch-size", "256", "--epochs", str(epochs), "--seed", "5"]
    return cli.main(["train", *given, "--out", str(folder), *options])


def results(folder):
    """The best state to the bit, and the history but for its times."""
    history = json.loads((folder / "history.json").read_text())
    for figures in history["epochs"]:
        for name in TIMES:
            figures.pop(name)
    (model,) = folder.glob("model.*")
    return model.read_bytes(), history["best_epoch"], history["epochs"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder) == 0
    return folder


def test_train(whole, capsys):
    assert sorted(os.listdir(whole)) == ["curves.png", "history.json", "model.safetensors"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_resume(whole, suffix, tmp_path, monkeypatch, capsys):
    """After an interrupt in the second epoch; then the training is over."""
    monkeypatch.setattr(cli, "SUFFIX", suffix)
    shown, print_epoch = [], cli._print_epoch

    def interrupted(figures):
        shown.append(figures["epoch"])
        if shown == [1, 2]:
            raise KeyboardInterrupt
        print_epoch(figures)

    monkeypatch.setattr(cli, "_print_epoch", interrupted)
    assert train(tmp_path, "--resume") == 130
    assert sorted(os.listdir(tmp_path)) == [f"last{suffix}", f"model{suffix}"]
    if suffix == ".npz":  # as of an earlier release
        monkeypatch.undo()
        monkeypatch.setattr(cli, "_print_epoch", interrupted)
        (tmp_path / "model.npz").unlink()
    fl.manual_seed(1)
    for told in ([1, 2, 2, 3], [1, 2, 2, 3]):
        assert train(tmp_path, "--resume") == 0
        assert shown == told
        assert f"resuming from {tmp_path / f'last{suffix}'}" in capsys.readouterr().out
        assert results(tmp_path) == results(whole)


def test_resume_of_other_options(tmp_path, capsys):
    assert train(tmp_path, "--resume", epochs=1) == 0
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for other in (["--epochs", "2"], ["--seed", "6"], ["--model", "cnn"], ["--lr", "0.1"]):
        assert train(tmp_path, "--resume", *other, epochs=1) == 1
        error = "fastlayers: fit: resume must be the state of this training, got "
        assert error in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content


def test_resume_without_a_folder(capsys):
    assert cli.main(["train", "--resume"]) == 1
    assert "--resume needs --out, the folder of the training, got none" in capsys.readouterr().err


def test_as_a_program(tmp_path):
    command = [sys.executable, "-m", "fastlayers", "train", "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "--resume needs --out" in done.stderr
    assert os.listdir(tmp_path) == []
