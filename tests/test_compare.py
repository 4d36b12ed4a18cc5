"""The comparisons of `benchmarks/compare`: same work everywhere, and no row lost."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastlayers as fl

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.compare import curve, load, models, record, regions, sections, start
from benchmarks.compare.__main__ import main, publish
from benchmarks.compare.cases import CASES, initial_value
from benchmarks.compare.contestants import Start
from benchmarks.compare.harness import Contestant
from benchmarks.compare.torch_models import torch_source

# Those of 224x224 pixels take gigabytes.
SMALL = list({c.factory + str(c.options): c for c in CASES if c.shape[-1] < 224}.values())


def shapes(model):
    return {name: tuple(np.shape(value)) for name, value in model.state_dict().items()}


def ours(case):
    model = getattr(fl.vision.models, case.factory)(**case.options)
    model.load_state_dict({name: initial_value(name, s) for name, s in shapes(model).items()})
    return model


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_torch_models_are_those_of_the_library(case):
    pytest.importorskip("torch")
    from benchmarks.compare.torch_models import torch_models

    theirs = torch_models()[case.factory](**case.options)
    assert shapes(theirs) == shapes(ours(case))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_jax_models_have_the_library_s_losses(case):
    jax = pytest.importorskip("jax")
    from benchmarks.compare import jax_models

    def apply(net, x):
        return jax_models.MODELS[case.factory](net, x, case.classes, **case.options)

    [(x, y)] = case.at(4).batches(1)
    images = np.moveaxis(x, 1, -1)
    values, buffers = jax_models.initial_values(apply, images)
    loss, _ = jax.jit(jax_models.loss_function, static_argnums=0)(
        apply, values, buffers, None, images, y
    )
    model = ours(case)
    parameters = {name for name, _ in model.named_parameters()}
    assert set(values) == parameters
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    expected = fl.nn.CrossEntropyLoss()(model(fl.tensor(x)), fl.tensor(y)).item()
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_failures_name_the_contestant():
    contestants = [Contestant("divider", divmod, 7), Contestant("ender", os._exit, 3)]
    contestants[0].prepare(2)
    assert contestants[0].value == 1
    with pytest.raises(RuntimeError, match="divider failed: ZeroDivisionError"):
        contestants[0].prepare(0)
    with pytest.raises(RuntimeError, match="ender failed: its process ended, code 3"):
        contestants[1].prepare()
    for contestant in contestants:
        contestant.close()


class Told:
    def __init__(self, name, losses, parameters=7):
        self.name, self.value = name, Start(losses, parameters, 0)


def test_other_work_is_taken_out():
    right = [Told("fastlayers", [2.0, 1.5]), Told("torch", [2.00001, 1.5005])]
    wrong = [Told("compile", [2.0, 1.6]), Told("jax", [2.0, np.nan]), Told("x", [2.0, 1.5], 8)]
    contestants, errors = [*right, *wrong, Told("bfloat16", [2.02, 1.48])], {}
    models.check(contestants, errors)
    assert [c.name for c in contestants] == ["fastlayers", "torch", "bfloat16"]
    assert set(errors) == {"compile", "jax", "x"}


def test_tables_keep_a_row_of_failures():
    record = {"seconds": 0.002, "spread": 0.1, "images_per_second": 2000.0}
    record |= {"peak_bytes": 3e8, "bytes_before": 1e8}
    row = {"model": "M", "batch": 4, "threads": 1, "errors": {"jax": "no jax"}}
    row["contestants"] = {"fastlayers": record, "torch": record | {"seconds": 0.006}}
    text = models.report([row], ["fastlayers", "torch", "jax"])
    assert "| M | 4 | 1 | 2 (10%) | 6 (10%) | failed | 2000 | 3.00 |" in text
    assert "| M | 4 | 1 | 300 (200) | 300 (200) | failed |" in text
    assert "jax: no jax" in text


def test_curves_are_judged_by_torch_s_own_spread():
    base = np.linspace(2, 1, 50)
    runs = {"fastlayers": base, "torch a": base + 0.02, "torch b": base - 0.01}
    lines, follows = curve.judge(runs)
    assert follows
    assert len(lines) == 3
    assert not curve.judge(runs | {"fastlayers": base + 0.1})[1]
    assert curve.gap(base, base + 0.5) == pytest.approx((0.5, 0.5))
    assert curve.agreement(base, base) == 50
    assert curve.agreement(base, base + np.arange(50) * 1e-4) == 11


def test_batches_of_digits():
    batches = curve.make_batches("digits", 50, 0)
    assert len(batches) == 50
    assert {x.shape for x, _ in batches} == {(32, 3, 32, 32)}


def test_processes_are_started_as_a_user_s(monkeypatch):
    for name in (*start.DROPPED, "FASTLAYERS_BACKEND"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("PYTHONPATH", "others")
    variables = start.environment("kernels")
    assert not {*start.DROPPED, "FASTLAYERS_BACKEND"} & set(variables)
    assert variables["FASTLAYERS_CACHE_DIR"] == "kernels"
    assert variables["PYTHONPATH"] == f"{start.ROOT}{os.pathsep}others"
    assert variables["PATH"] == os.environ["PATH"]


def write_distribution(folder, name, files, requires=()):
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    lines = [f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {line}" for line in requires)]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
    for file, size in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"#" * size)
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_sizes_count_each_dependency_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    requires = ["size_b>=1", "size.c; python_version > '3'", "size-d; python_version < '3'"]
    write_distribution(tmp_path, "size_a", {"size_a/__init__.py": 1000}, requires)
    write_distribution(tmp_path, "size_b", {"size_b.py": 200}, ["size-c", "size-d; extra == 'x'"])
    write_distribution(tmp_path, "size_c", {"size_c.py": 30, "gone.py": 0}, ["size-a", "missing"])
    write_distribution(tmp_path, "size_d", {"size_d.py": 4})
    (tmp_path / "gone.py").unlink()
    found = start.facts(["size_a", "size_b", "size_z"])
    assert found["size_a"] == {"version": "1.0", "bytes": 1000, "all": 1230}
    assert set(found) == {"size_a", "size_b"}


def test_a_package_that_runs_from_its_source_has_a_size_too():
    package = Path(fl.__file__).parent
    size = sum(p.stat().st_size for p in package.rglob("*.py"))
    assert start.facts(["fastlayers"])["fastlayers"]["bytes"] >= size


def test_cold_programs_find_an_empty_folder_each_time(tmp_path):
    code = """
import os, pathlib
folder = pathlib.Path(os.environ["FASTLAYERS_CACHE_DIR"])
assert not folder.exists() or not list(folder.iterdir()), "kernels of another process"
folder.mkdir(exist_ok=True)
(folder / "kernel").touch()
"""
    cold = start.Probe("row", "fastlayers", code, sys.executable, cold=True)
    warm = start.Probe("row", "fastlayers", code, sys.executable)
    for _ in range(2):
        assert cold.run(tmp_path, tmp_path / "kernels") > 0
    warm.run(tmp_path, tmp_path / "kernels")
    with pytest.raises(RuntimeError, match="kernels of another process"):
        warm.run(tmp_path, tmp_path / "kernels")


def test_programs_that_fail_are_told_and_not_timed():
    programs = {"good": "print(2.3)", "wrong": "print('nan')", "bad": "raise OSError('gone')"}
    probes = [start.Probe("row", name, code, sys.executable) for name, code in programs.items()]
    start.measure(probes, 2)
    assert [len(probe.times) for probe in probes] == [2, 0, 0]
    assert [probe.error for probe in probes] == ["", "the result is nan", "OSError: gone"]


def probe(row, library, *times, error=""):
    return start.Probe(row, library, "", "", times=list(times), error=error)


def test_start_s_table_has_ratios_and_says_what_is_missing():
    probes = [
        probe(start.IMPORT, "fastlayers", 0.03, 0.05, 0.04),
        probe(start.IMPORT, "numpy", 0.1, 0.1, 0.1),
        probe(start.WARM, "fastlayers", 0.5),
        probe(start.WARM, "torch", 2.0),
        probe(start.COLD, "fastlayers", error="no space left"),
    ]
    found = {"fastlayers": {"version": "1.0", "bytes": 1.2e6, "all": 2.4e8}}
    found["torch"] = {"version": "2.9", "bytes": 7e8, "all": 8e8}
    text = start.report(probes, found)
    header = "|  | python | fastlayers 1.0 | numpy | numba | torch 2.9 | jax |"
    assert header in text
    assert "| import, ms | - | 40 (25%) | 100 (0%) | - | - | not installed |" in text
    assert "| the same, empty cache, ms | - | failed | - | - | - | not installed |" in text
    assert "| - | 240 | - | - | 800 | - |" in text
    assert "import fastlayers / import numpy: 0.40" in text
    assert "first step / torch's: 0.25" in text
    assert "empty cache / torch's: nan" in text
    assert "fastlayers: no space left" in text


@pytest.mark.parametrize("library", start.STEPS)
def test_programs_of_a_first_step(library, tmp_path):
    pytest.importorskip(library)
    (tmp_path / "torch_network.py").write_text(torch_source("cnn"))
    script = tmp_path / "program.py"
    script.write_text(start.STEPS[library])
    # the references need no compilation
    variables = start.environment(str(tmp_path)) | {"FASTLAYERS_BACKEND": "numpy"}
    process = subprocess.run(
        [sys.executable, script], env=variables, capture_output=True, text=True, check=False
    )
    assert 1.5 < float(process.stdout) < 4, process.stderr


def op_row(group, which, ratio, **more):
    row = {"group": group, "shape": "2x3", "pass": which, "threads": 1, "ratio": ratio}
    row |= {"seconds": {"fastlayers": 1e-3, "torch": 1e-3 * ratio}, "bytes": 4e6}
    return row | more


def model_row(batch, seconds):
    contestants = {
        name: {"seconds": s, "spread": 0.1, "images_per_second": batch / s}
        | {"peak_bytes": 3e8, "bytes_before": 1e8}
        for name, s in seconds.items()
    }
    row = {"model": "MLP", "batch": batch, "threads": 2, "errors": {}}
    return row | {"contestants": contestants}


def load_rows():
    row = {"model": "M", "batch": 4, "threads": 2, "cores": 2, "errors": {"torch": "gone"}}
    quiet = {"quiet": 0.002, "median": 0.002, "p90": 0.003, "steps": 50}
    late = quiet | {"median": 0.003, "p90": 0.006}
    alone = {"model": "M", "threads": 2, "neighbour": {"fastlayers": 1.1}, "launch": {}}
    return [
        row | {"beside": "nothing", "fair": 1.0, "contestants": {"fastlayers": quiet}},
        row | {"beside": "1 busy process", "fair": 1.5, "contestants": {"fastlayers": late}},
        alone | {"launch": {"fastlayers": 2.9e-6}},
    ]


def test_sections_show_what_was_recorded(tmp_path):
    rows = {
        "ops": [
            op_row("3x3", "forward", 2.0, flops=2e8, peak=1e11),
            op_row("3x3", "forward", 8.0, flops=2e8, peak=1e11),
            op_row("relu", "backward", 0.5, copy_seconds=4e-4),
        ],
        "models": [model_row(4, {"fastlayers": 1e-3, "torch": 3e-3, "channels_last": 2e-3})],
        "memory": [model_row(4, {"fastlayers": 1e-3})],
        "load": load_rows(),
        "start": [{"facts": {}, "probes": []}],
    }
    shown = {
        "ops": ("| 3x3 | 4.00 (2.00) | - |", "200.0 GFLOP/s (200% of the peak)", "4.0 GB/s"),
        "models": ("| MLP | 4 | 2 | 1 (10%) | 3 (10%) | 2 (10%) | 4000 | 2.00 |",),
        "memory": ("| MLP | 4 | 2 | 300 (200) |",),
        "load": ("| M, batch 4 | 2 | 1 busy process | 1.5 | 1.50 (3.00) | failed |", "torch: gone"),
        "start": ("of 0 processes",),
    }
    assert set(rows) == set(sections.SECTIONS)
    for name, section in sections.SECTIONS.items():
        record.save(tmp_path, name, record.conditions("the command") | {"rows": rows[name]})
        found = record.read(tmp_path, name)
        report = section.report(found)
        for text in shown[name]:
            assert text in report
        assert "`the command`" in section.summary(found)
        section.draw(found, tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"models.png", "ops.png", "roofline.png"}


def test_busy_processes_are_gone_after_an_error():
    with pytest.raises(KeyboardInterrupt), load.busy(2) as processes:
        assert [process.poll() for process in processes] == [None, None]
        raise KeyboardInterrupt
    assert all(process.returncode for process in processes)


def test_busy_processes_end_with_the_one_that_started_them():
    with load.busy(1) as [process]:
        process.stdin.close()
        assert process.wait(30) == 0


def test_fair_is_an_equal_share_of_the_cores():
    assert [load.fair(2, others, 2) for others in (0, 1, 2)] == [1.0, 1.5, 2.0]
    assert load.fair(4, 4, 16) == 1.0
    names = [company.name for company in load._companies(16, load._busy_counts(16), 16)]
    assert names == ["nothing", "4 busy processes", "8 busy processes", "a second training"]


def test_load_is_measured_in_every_company(monkeypatch):
    monkeypatch.setattr(load, "SETTLE", 0.0)
    monkeypatch.setitem(load.CONTESTANTS, "torch", ("fastlayers", {"FASTLAYERS_BACKEND": "none"}))
    before = dict(os.environ)
    case = next(case.at(4) for case in CASES if case.factory == "MLP")
    effort = load.Effort(1, 0.0, 0.0)
    rows = list(load.measure(2, True, ["fastlayers", "torch"], [case], [1], effort))
    assert [row.get("beside") for row in rows] == [
        "nothing",
        "1 busy process",
        "a second training",
        None,
    ]
    for row in rows[:-1]:
        assert "FASTLAYERS_BACKEND" in row["errors"]["torch"]
        assert row["contestants"]["fastlayers"]["steps"] == 1
    assert rows[-1]["neighbour"]["fastlayers"] > 0
    assert rows[-1]["launch"]["fastlayers"] > 0
    assert dict(os.environ) == before


def test_regions_are_recorded_chunk_by_chunk():
    x, threads = np.linspace(-1, 1, 1 << 20, dtype=np.float32), fl.get_num_threads()
    fl.ops.relu(x)  # compiled
    fl.set_num_threads(2)
    try:
        with regions.recorded() as calls:
            y = fl.ops.relu(x)
    finally:
        fl.set_num_threads(threads)
    assert np.array_equal(y, np.maximum(x, 0))
    [call] = calls
    assert call.name == f"relu {x.size}"
    [chunks] = call.regions
    assert len(chunks) > 8
    assert (chunks > 0).all()
    assert call.seconds >= chunks.sum()
    assert np.array_equal(fl.ops.relu(x), y)


def test_time_of_a_region_on_threads():
    launch = regions.LAUNCH
    assert regions.on_threads(np.full(8, 1.0), 1) == 8
    assert regions.on_threads(np.full(8, 1.0), 3) == 3 + 3 * launch
    assert regions.on_threads(np.full(2, 1.0), 64) == 1 + 2 * launch
    # The second worker takes what the first, held up by a long chunk, has left.
    assert regions.on_threads(np.array([5.0, 1, 1, 1, 1, 1]), 2) == 5 + 2 * launch
    call = regions.Call("", 9.0, [np.full(8, 1.0)])
    assert regions.predicted([call], 8) == pytest.approx(2 + 8 * launch)


def test_publish_replaces_what_is_between_the_marks():
    page = "a\n<!-- ops -->\nold\n<!-- end ops -->\nb\n<!-- models -->\n<!-- end models -->\n"
    new = publish(page, {"ops": "| 1 |", "models": "2"})
    assert new == page.replace("old", "| 1 |").replace("<!-- models -->\n", "<!-- models -->\n2\n")
    assert publish(new, {"ops": "old"}) == page.replace("<!-- models -->\n", "<!-- models -->\n2\n")
    with pytest.raises(ValueError, match="expected one pair of <!-- start --> and <!-- end start"):
        publish(page, {"start": ""})


def test_readme_has_a_place_for_every_section():
    page = (Path(__file__).parents[1] / "README.md").read_text()
    publish(page, dict.fromkeys(sections.SECTIONS, ""))


def test_command_refuses_what_it_does_not_know(tmp_path, capsys):
    for arguments, text in (
        (["speed"], "a section is one of models, ops, memory, load, start, got speed"),
        (["ops", "--render", "--results", str(tmp_path)], "ops.json does not exist"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert text in capsys.readouterr().err
