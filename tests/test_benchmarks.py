"""The table of `benchmarks/cases.py`: it has every op, right work, and asv follows all of it."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import Case as OpCase
from cases import compare, like

from fastlayers import manual_seed, ops, reference

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import gate
from benchmarks.cases import CASES, NEEDS, OPTIMIZERS
from benchmarks.compare.memory_bound import OPS
from benchmarks.compare.ops import SETS
from benchmarks.suite import Pass

BATCH = 2
NAMES = ("dinput", "dweight", "dbias")
SMALL = {f"{case.op} {case.name(BATCH)}": case.small() for case in CASES}


def of_reference(case, arrays):
    """Output and gradients of an op with a gradient, by name."""
    x, o = arrays["input"], dict(case.options)
    match case.op:
        case "flatten":
            y = reference.flatten(x, **o)
            gradients = (reference.flatten_backward(like(y), x.shape),)
        case "conv2d_max_pool2d":
            pool = o.pop("pool")
            del o["activation"]
            z = reference.relu(reference.conv2d(x, arrays["weight"], arrays["bias"], **o))
            y, offsets = reference.max_pool2d_forward(z, *pool)
            dz = np.where(y > 0, like(y), 0)
            dz = reference.max_pool2d_backward(dz, offsets, z.shape, *pool[:4])
            gradients = reference.conv2d_backward(dz, x, arrays["weight"], **o)
        case "batch_norm_max_pool2d":
            mean, invstd, weight, bias = (arrays[n] for n in ("mean", "invstd", "weight", "bias"))
            z = reference.batch_norm_apply(x, mean, invstd, weight, bias)
            y, offsets = reference.max_pool2d_forward(z, **o)
            dz = reference.max_pool2d_backward(like(y), offsets, z.shape, **o)
            gradients = reference.batch_norm_backward(dz, x, weight, mean, invstd, True)
        case _:
            shapes = {name: array.shape for name, array in arrays.items()}
            found = OpCase(case.op, shapes, o).run(reference, arrays)
            return {name: found[name] for name in ("y", *NAMES) if name in found}
    return {"y": y, **dict(zip(NAMES, gradients, strict=False))}


@pytest.mark.parametrize("name", [n for n, c in SMALL.items() if "forward" in c.passes])
def test_agrees_with_reference(name):
    case = SMALL[name]
    arrays = case.arrays(BATCH)
    manual_seed(0)
    given = case.forward(arrays)()
    y = given[0] if isinstance(given, tuple) else given
    assert y.shape == case.output(BATCH)
    if case.passes == ("forward",):
        if case.op == "add":
            want = arrays["input"] + arrays["other"]
        else:
            want = reference.batch_norm(**arrays, **case.options)
        return compare({"y": y}, {"y": want})
    want = of_reference(case, arrays)
    for which in dict.fromkeys((*case.passes[1:], "backward")):
        manual_seed(0)
        gradients = case.backward(arrays, which, like(y))()
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        needed = [n for n, needs in zip(NAMES, NEEDS[which], strict=True) if needs and n in want]
        if case.op == "conv2d" and which != "backward_input":
            assert "dbias" in needed  # of the reference, whether there is a bias or not
        got = {n: g for n, g in zip(NAMES, gradients, strict=False) if g is not None}
        compare({"y": y, **got}, {"y": want["y"], **{n: want[n] for n in needed}})


@pytest.mark.parametrize("case", [c for c in CASES if c.op in OPTIMIZERS], ids=lambda c: c.op)
def test_updates_change_all_parameters(case):
    arrays = case.arrays(1)
    step = case.forward(arrays)
    step()
    parameters = step.__self__.param_groups[0]["params"]
    names = [name for name in arrays if not name.endswith(".grad")]
    of_element = case.bytes(1, "step") / sum(p.array().size for p in parameters)
    assert of_element == 4 * {"SGD": 5}.get(case.op, 7)
    for name, parameter in zip(names, parameters, strict=True):
        before, d = arrays[name], arrays[f"{name}.grad"]
        change = d if case.op == "SGD" else d / (np.abs(d) + 1e-8)
        if case.op == "Adadelta":
            change = d * np.sqrt(1e-6 / (0.1 * d * d + 1e-6))
        decay = 1e-2 * before if case.op == "AdamW" else 0
        want = before - np.float32(1e-4) * (change + decay)
        np.testing.assert_allclose(parameter.array(), want, 1e-5, 1e-7)


def test_table_has_every_public_op_forward_and_backward():
    gradients = {name for name in ops.__all__ if name.endswith("_backward")}
    table = {case.op for case in CASES}
    assert {name.removesuffix("_backward") for name in gradients} <= table
    for op in table - set(OPTIMIZERS) - {"add"}:
        passes = {which for case in CASES if case.op == op for which in case.passes}
        assert "forward" in passes
        assert passes & {"backward", "backward_input"}


def test_asv_follows_every_pass_of_the_table():
    root = Path(__file__).parents[1] / "benchmarks"
    for path in root.glob("bench_*.py"):
        importlib.import_module(f"benchmarks.{path.stem}")
    classes = Pass.__subclasses__()
    assert {(c.op, c.which) for c in classes} == {(c.op, w) for c in CASES for w in c.passes}
    for found in classes:
        [layers] = found.params
        assert layers and found.marked, found.__name__
        assert set(found.marked) <= set(layers)


def test_names_tell_cases_apart():
    names = [(case.op, case.name(batch)) for case in CASES for batch in case.batches]
    assert len(set(names)) == len(names)


def test_work_and_traffic():
    conv, linear = (next(c for c in CASES if c.op == op) for op in ("conv2d", "linear"))
    (n, *_), pixels = (1, 32), 16 * 16
    assert conv.flops(n, "forward") == 2 * pixels * 32 * 32 * 9 == conv.flops(n, "backward_input")
    assert conv.bytes(n, "forward") == 4 * (2 * 32 * pixels + 32 * 32 * 9)
    assert linear.flops(4, "backward") == 2 * linear.flops(4, "forward") == 2 * 2 * 4 * 400 * 120
    relu = next(case for case in CASES if case.op == "relu")
    size = 4 * math.prod(relu.input)
    assert (relu.bytes(3, "forward"), relu.bytes(3, "backward")) == (3 * 2 * size, 3 * 3 * size)
    assert relu.flops(3, "forward") == 0


def test_comparisons_take_their_rows_from_the_table():
    assert {name: len(rows) for name, rows in SETS.items()} == {
        "conv3x3": 14,
        "conv": 20,
        "linear": 12,
    }
    for row in (row for rows in SETS.values() for row in rows):
        [case] = [
            c
            for c in CASES
            if (c.op, c.weight, c.input) == (row.op, row.weight, row.input[1:])
            and row.input[0] in c.batches
            and row.output == c.output(row.input[0])
        ]
        assert row.flops == case.flops(row.input[0], "forward")
    assert {op.label() for op in OPS} >= {"relu", "max_pool2d kernel_size 2", "dropout2d p 0.5"}


RELU, TANH = (gate.Benchmark(f"bench.{n}.time_run", 0, (n,), True) for n in ("relu", "tanh"))


def result(benchmark, head, again=1.0):
    return gate.Result(benchmark, 1e-3, again, (head, head))


def test_gate_reports_what_is_slower_in_three_groups_of_processes():
    verdict = gate.Verdict(1.2)
    verdict.add([result(RELU, 1.3), result(TANH, 1.25)])
    assert verdict.suspects == [RELU, TANH]
    verdict.add([result(RELU, 1.4), result(TANH, 1.1)])  # once was not enough
    assert verdict.suspects == [RELU]
    assert not verdict.slower
    verdict.add([result(RELU, 1.35)])
    assert [found.benchmark for found in verdict.slower] == [RELU]
    assert not verdict.suspects


def test_gate_measures_again_what_its_base_disagrees_about():
    verdict = gate.Verdict(1.2)
    verdict.add([result(RELU, 2.0, again=1.7), result(TANH, 1.0, again=0.7)])
    assert verdict.suspects == [RELU, TANH]  # neither slower nor cleared
    verdict.add([result(RELU, 1.3), result(TANH, 1.0)])
    verdict.add([result(RELU, 1.3)])
    assert not verdict.slower
    verdict.add([result(RELU, 1.3)])
    assert [found.benchmark for found in verdict.slower] == [RELU]


def test_gate_compares_the_faster_process_with_the_slower_one_of_its_base():
    assert gate.Result(RELU, 1e-3, 1.0, (1.3, 1.0)).ratio == 1
    assert result(RELU, 1.3, again=1.3).ratio == 1
    assert result(RELU, 1.3, again=0.8).ratio == 1.3
    assert result(RELU, 1.0, again=0.8).noise == pytest.approx(0.25)


def test_gate_factor_follows_the_noise():
    quiet = [result(RELU, 1.0, 1.001)] * 9
    assert gate.factor_of(quiet) == gate.LEAST
    noisy = [result(RELU, 1.0, 1.05)] * 5 + [result(RELU, 1.0, 3.0)] * 4
    assert gate.factor_of(noisy) == pytest.approx(1.3)


class Scripted:
    """A contestant whose turns take the times that are told, beginning with a slow call."""

    def __init__(self, clock, share, error=""):
        self.clock, self.share, self.value, self.times = clock, share, error, []

    def prepare(self, *work):
        self.times.clear()

    def run(self, repetitions, seconds):
        self.clock[0] *= 1.1  # the host slows down
        self.times += [100.0] + [self.clock[0] * self.share] * repetitions


def test_gate_is_not_misled_by_a_host_that_slows_down():
    clock = [1.0]
    found = gate.measure([Scripted(clock, share) for share in (1.0, 1.5, 1.0, 1.5)], RELU, 10)
    assert found.again == pytest.approx(1, rel=0.05)
    assert found.ratio == pytest.approx(1.5, rel=0.05)


def test_gate_tells_new_benchmarks_from_broken_ones():
    clock = [1.0]
    new = [Scripted(clock, 1.0, error) for error in ("no such op", "", "no such op", "")]
    broken = [Scripted(clock, 1.0, error) for error in ("", "TypeError", "", "TypeError")]
    assert gate.measure(new, RELU, 3) == "not in BASE: no such op"
    assert gate.measure(broken, RELU, 3) == "failed in HEAD: TypeError"


def test_gate_goes_on_behind_a_crash(monkeypatch, tmp_path):
    started, closed = [], []

    class Process:
        def __init__(self, name, *rest):
            started.append(name)

        def close(self):
            closed.append(self)

    def measure(contestants, benchmark, rounds):
        if benchmark is RELU:
            raise RuntimeError("HEAD failed: its process ended, code -11")
        return result(benchmark, 1.0)

    monkeypatch.setattr(gate, "Contestant", Process)
    monkeypatch.setattr(gate, "measure", measure)
    results, failed = gate._run([RELU, TANH], tmp_path, tmp_path, 1, 1)
    assert failed == [str(RELU)]
    assert [found.benchmark for found in results] == [TANH]
    assert started == ["BASE", "HEAD"] * 4  # two of each, and anew
    assert len(closed) == len(started)


@pytest.mark.parametrize(
    ("groups", "code", "told"),
    [
        ([[1.0, 1.05]], 0, "no benchmark is slower"),
        ([[1.4, 1.0], [1.3], [1.35]], 1, "SLOWER: bench.relu.time_run(relu): 1.35 times"),
        ([[1.4, 1.0], [1.05]], 0, "no benchmark is slower"),
    ],
)
def test_gate_s_exit_code(monkeypatch, capsys, groups, code, told):
    groups = iter(groups)

    def run(benchmarks, *rest):
        return [result(b, head) for b, head in zip(benchmarks, next(groups), strict=True)], []

    monkeypatch.setattr(gate, "_run", run)
    monkeypatch.setattr(gate, "_export", lambda commit, folder: None)
    monkeypatch.setattr(gate, "find", lambda pattern: [RELU, TANH])
    monkeypatch.setattr(sys, "argv", ["gate", "main"])
    assert gate.main() == code
    assert told in capsys.readouterr().out
    assert next(groups, None) is None


def test_gate_does_not_clear_a_commit_on_a_busy_machine(monkeypatch, capsys):
    noisy = [result(RELU, 1.0, 1.5), result(TANH, 1.0, 0.7)]
    monkeypatch.setattr(gate, "_run", lambda *rest: (noisy, []))
    monkeypatch.setattr(gate, "_export", lambda commit, folder: None)
    monkeypatch.setattr(gate, "find", lambda pattern: [RELU, TANH])
    monkeypatch.setattr(sys, "argv", ["gate", "main"])
    assert gate.main() == 2
    assert "too noisy" in capsys.readouterr().out


def test_gate_finds_benchmarks_as_asv_does():
    pytest.importorskip("asv_runner")
    marked, every = gate.find(None), gate.find("")
    assert set(marked) < set(every)
    assert {b.name.split(".")[0] for b in marked} >= {"bench_conv", "bench_models", "bench_pool"}
    assert all("ReLUForward" in str(b) for b in gate.find(r"\.ReLUForward\."))
