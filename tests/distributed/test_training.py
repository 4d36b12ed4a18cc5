"""`fit` and the command line under ``mpiexec``, beside one process."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from distributed import fit_program
from distributed.test_parallel import furthest

import fastlayers as fl

PROGRAM = Path(fit_program.__file__).read_text()
TIMES = {"images_per_second", "seconds"}


def figures(path):
    """What a history says but for the times."""
    record = json.loads(path.read_text())
    return [{k: v for k, v in epoch.items() if k not in TIMES} for epoch in record]


@pytest.mark.parametrize("number, options", [(2, {}), (3, {"sampler": True})], ids=str)
def test_fit_gives_what_one_process_gives(ranks, tmp_path, number, options):
    options = fit_program.OPTIONS | {"dropout": 0.0} | options
    output = ranks(number, PROGRAM, json.dumps(options), tmp_path / "ranks")
    assert output.count("epoch") == options["epochs"]  # rank 0 alone calls on_epoch
    if options["sampler"]:  # of other batches than one process has
        return
    fit_program.main(options, tmp_path / "alone")
    states = [fl.load(tmp_path / name / "best.npz") for name in ("ranks", "alone")]
    assert furthest(*states) <= 1e-5
    for a, b in zip(
        *(figures(tmp_path / n / "history.json") for n in ("ranks", "alone")), strict=True
    ):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_killed_training_goes_on_to_the_same_end(ranks, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = fit_program.OPTIONS | {"kill": None}
    ranks(2, PROGRAM, json.dumps(options), whole)
    first = ranks.start(2, PROGRAM, json.dumps(options | {"kill": 4}), killed)
    _, err = first.communicate(timeout=60)
    assert first.returncode != 0, err
    assert not (killed / "history.json").exists()
    ranks(2, PROGRAM, json.dumps(options), killed)
    assert figures(killed / "history.json") == figures(whole / "history.json")
    for name in ("best.npz", "last.npz"):
        a, b = fl.load(whole / name), fl.load(killed / name)
        for key in (key for key in a if name == "best.npz" or key.startswith(("model", "opt"))):
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_the_command_trains_on_all_ranks(ranks, tmp_path):
    command = ["-m", "fastlayers", "train", "--epochs", "2", "--out", tmp_path / "out"]
    process = ranks.start(2, "", *command)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert len(re.findall(r"^epoch ", out, re.MULTILINE)) == 2
    assert "on each of 2 ranks" in out
    assert {"model.safetensors", "history.json", "curves.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    bad = ranks.start(2, "", *command[:3], "--data", "mnist", "--data-dir", tmp_path)
    _, err = bad.communicate(timeout=30)
    assert bad.returncode != 0
    assert re.search(r"fastlayers: rank [01] of 2 on .* failed, so all ranks end: ", err)
    assert not re.search(r"^fastlayers: (?!rank)", err, re.MULTILINE)  # said once


def test_the_page_s_program_runs(ranks):
    page = Path(__file__).parents[2] / "docs" / "distributed.md"
    [program] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ranks(2, program)
    assert fl.load(ranks.folder / "model.npz")
