import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import kernels, lazy, nn
from fastlayers.nn import functional as F
from fastlayers.profiling import machine

X = np.linspace(-1, 1, 3 * 2 * 6 * 6, dtype=np.float32).reshape(3, 2, 6, 6)
LABELS = np.array([0, 4, 1])
LINEAR, ROWS = nn.Linear(6, 5), X[:, 0, 0].copy()


def profiled(model, x=X, target=LABELS, **options):
    return fl.profile(model, x, target, repeats=1, file=io.StringIO(), **options)


def layers(profile, direction="forward"):
    return [row.name for row in profile.rows if row.direction == direction]


def row_of(profile, name, direction="forward"):
    (row,) = (r for r in profile.rows if r.name == name and r.direction == direction)
    return row


class Net(nn.Module):
    """Ops of modules and of functions; layers are used in another order than they are listed."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4 * 3 * 3, 5)
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.block = Block()

    def forward(self, x):
        x = self.pool(F.relu(self.conv(x)))
        return self.fc(self.block(x).flatten(1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(F.relu(self.bn(self.conv(x)) + x))


@pytest.fixture(scope="module")
def found():
    fl.manual_seed(0)
    return profiled(Net())


REST = ["(loss)", "(rest)"]
CHAINS = ["conv + relu() + pool", "block.conv", "block.bn + add() + relu()", "block.drop"]


def test_rows_are_layers_in_the_order_of_their_calls(found):
    assert layers(found) == [*CHAINS, "view()", "fc", *REST]
    assert layers(found, "backward") == [
        *(*CHAINS, "view()", "fc"),
        *("(loss)", "(sums of gradients)", "(rest)"),
    ]
    assert row_of(found, CHAINS[0]).layers == ("conv", "relu()", "pool")
    assert row_of(found, CHAINS[0]).types == ("Conv2d", "relu", "MaxPool2d")
    assert row_of(found, CHAINS[2]).layers == ("block.bn", "block.add()", "block.relu()")
    assert all(row.calls == 1 for row in found.rows if row.name != "(rest)")
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert sum(row.seconds for row in found.rows) == pytest.approx(found.seconds)
    assert found.steps == 1


def test_layers_of_a_sequential():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    )
    assert layers(profiled(net)) == ["0 + 1", "2.0", "2.1", *REST]


def test_a_single_layer_goes_by_its_class():
    assert layers(profiled(LINEAR, ROWS)) == ["Linear", *REST]


def test_operations_of_direct_arithmetic(found):
    # pixels x weights x 2; the images need no gradient, so one of two is left of the first layer
    assert row_of(found, CHAINS[0]).flops == 2 * (3 * 6 * 6) * (4 * 2 * 3 * 3)
    assert row_of(found, CHAINS[0], "backward").flops == 2 * (3 * 6 * 6) * (4 * 2 * 3 * 3)
    assert row_of(found, "block.conv").flops == 2 * (3 * 3 * 3) * (4 * 4 * 3 * 3)
    assert row_of(found, "block.conv", "backward").flops == 4 * (3 * 3 * 3) * (4 * 4 * 3 * 3)
    assert row_of(found, "fc").flops == 2 * 3 * 36 * 5
    assert row_of(found, "fc", "backward").flops == 4 * 3 * 36 * 5
    assert sum(row.flops > 0 for row in found.rows) == 6


def test_operations_of_strides_groups_and_wanted_gradients():
    conv = nn.Conv2d(2, 4, (3, 1), stride=2, groups=2)
    flops = 2 * (3 * 2 * 3) * (4 * 1 * 3 * 1)
    net = nn.Sequential(conv, nn.Flatten())
    for x, frozen, gradients in (
        (X, False, 1),
        (fl.tensor(X, requires_grad=True), False, 2),
        (X, True, 0),
    ):
        conv.weight.requires_grad = not frozen
        profile = profiled(net, x)
        assert row_of(profile, "0").flops == flops
        assert row_of(profile, "0", "backward").flops == gradients * flops


def test_bytes_of_arrays_that_are_read_written_and_kept(found):
    small, large = 4 * 3 * 4 * 3 * 3, 4 * 3 * 5
    sigmoid = profiled(nn.Sequential(nn.Linear(6, 5), nn.Sigmoid()), ROWS)
    assert row_of(sigmoid, "1").nbytes == 2 * large
    assert row_of(sigmoid, "1", "backward").nbytes == 3 * large
    # x for the statistics; x, the residual and y; weight and bias
    assert row_of(found, CHAINS[2]).nbytes == 4 * small + 2 * 16
    assert row_of(found, "(sums of gradients)", "backward").nbytes == 3 * small
    net = nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 5))
    assert row_of(profiled(net, ROWS[None]), "0").nbytes == 0  # a view


def test_rates_follow_from_work_and_time(found):
    conv, drop = row_of(found, "block.conv"), row_of(found, "block.drop")
    assert conv.gflops == pytest.approx(conv.flops / conv.seconds / 1e9)
    assert conv.of_peak == pytest.approx(conv.gflops / found.machine["peak_gflops"])
    assert conv.gbs is conv.of_copy is drop.gflops is drop.of_peak is None
    assert drop.gbs == pytest.approx(drop.nbytes / drop.seconds / 1e9)
    assert drop.of_copy == pytest.approx(drop.gbs / found.machine["copies"]["65536"])


def test_without_fusion_each_op_is_a_row(found):
    fl.set_fusion_enabled(False)
    try:
        apart = profiled(Net())
    finally:
        fl.set_fusion_enabled(True)
    single = ["conv", "relu()", "pool", "block.conv", "block.bn", "block.add()", "block.relu()"]
    assert layers(apart) == [*single, "block.drop", "view()", "fc", *REST]
    assert sum(row.flops for row in apart.rows) == sum(row.flops for row in found.rows)


def test_an_output_that_is_held_parts_a_chain():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(64, 5)

        def forward(self, x):
            y = self.conv(x)
            z = self.relu(y)
            return self.fc((y + z).flatten(1))

    profile = profiled(Held())
    assert layers(profile) == ["conv", "relu", "add()", "view()", "fc", *REST]
    assert row_of(profile, "relu", "backward").calls == 1


def test_layers_that_are_used_twice_are_one_row():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), relu, nn.Sigmoid(), relu)
    profile = profiled(net, ROWS)
    assert layers(profile) == ["0", "1", "2", "3", *REST]
    assert row_of(profile, "2").calls == row_of(profile, "2", "backward").calls == 2


def test_without_gradients_there_is_no_backward():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    with fl.no_grad():
        profile = profiled(net)
    assert layers(profile) == ["0 + 1 + 2", "3", *REST]
    assert layers(profile, "backward") == ["(rest)"]
    assert "0 + 1 + 2 (Conv2d, BatchNorm2d, ReLU)" in str(profile)


def test_model_gradients_and_random_state_stay():
    fl.manual_seed(1)
    net, x = Net(), fl.tensor(X, requires_grad=True)
    net.fc.weight.grad = np.ones_like(net.fc.weight.array())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    expected = fl.random.numpy_generator().bit_generator.state, fl.random.dropout_stream()[1]
    profiled(net, x, loss=lambda y, t: F.cross_entropy(y, t) + (net.fc.weight * 1e-3).sum())
    assert fl.random.numpy_generator().bit_generator.state == expected[0]
    assert fl.random.dropout_stream()[1] == expected[1] + 1
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    np.testing.assert_array_equal(net.fc.weight.grad, 1)
    assert x.grad is None and [p.grad is None for p in net.parameters()].count(False) == 1
    assert net.training and net.block.training
    assert not any("forward" in vars(module) for module in net.modules())


def test_the_copy_is_trained_or_evaluated_as_the_model_is():
    seen = []

    class Spy(nn.Identity):
        def forward(self, x):
            seen.append(self.training)
            return x

    net = nn.Sequential(nn.Linear(6, 5), Spy())
    profiled(net, ROWS)
    assert all(seen) and len(seen) == 4  # to compile, to count, with the clock and without
    seen.clear()
    profiled(net.eval(), ROWS)
    assert seen and not any(seen)


def test_a_forward_that_is_an_attribute_stays_in_use():
    net, calls = nn.Sequential(nn.Linear(6, 5), nn.Identity()), []
    net._modules["1"].forward = lambda x: calls.append(1) or F.relu(x)
    assert layers(profiled(net, ROWS)) == ["0 + 1", *REST]
    assert len(calls) == 4 and "forward" in vars(net._modules["1"])


def test_losses():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    profiled(net, ROWS, LABELS, loss=nn.CrossEntropyLoss())
    profiled(net, ROWS, None)  # of the first class
    profiled(net, ROWS, None, loss=lambda y: y.mean())
    profiled(net, ROWS, np.zeros((3, 5), "f"), loss=nn.MSELoss())
    assert row_of(profiled(nn.Flatten(0), ROWS, None), "(loss)").calls == 1  # of an output (N,)


def test_other_threads_are_not_counted():
    other = nn.Sequential(nn.Linear(6, 5), nn.ReLU())

    def loss(y, t):
        thread = threading.Thread(target=lambda: other(ROWS).sum().backward())
        thread.start()
        thread.join()
        return F.cross_entropy(y, t)

    profile = profiled(LINEAR, ROWS, loss=loss)
    assert layers(profile) == ["Linear", *REST]
    assert row_of(profile, "(loss)").calls == row_of(profile, "(loss)", "backward").calls == 1


def test_table(found, capsys):
    lines = str(found).splitlines()
    head = " ".join(lines[0].split())
    assert head == "layer pass ms share GFLOP/s of peak GB/s of copy calls"
    assert lines[1].startswith("conv + relu() + pool") and "forward" in lines[1]
    assert lines[2].startswith("  Conv2d, relu, MaxPool2d") and "backward" in lines[2]
    assert next(line for line in lines if line.startswith("step")).split()[1] == "both"
    threads = f"{fl.get_num_threads()} thread"
    assert any(threads in line and "peak" in line and "GB/s" in line for line in lines)
    assert not any(line != line.rstrip() for line in lines)
    file = io.StringIO()
    profile = fl.profile(LINEAR, ROWS, repeats=1, file=file)
    assert file.getvalue() == f"{profile}\n"
    assert capsys.readouterr().out == ""
    profile = fl.profile(LINEAR, ROWS, repeats=2)
    assert capsys.readouterr().out == f"{profile}\n"
    assert profile.steps == 2
    assert repr(profile).startswith("<Profile: 6 rows, ")


def test_record_in_json(found):
    record = json.loads(json.dumps(found.to_dict()))
    assert record["machine"]["threads"] == fl.get_num_threads()
    first = record["rows"][0]
    assert first["name"] == CHAINS[0] and first["layers"] == ["conv", "relu()", "pool"]
    assert first["gflops"] == found.rows[0].gflops and first["direction"] == "forward"
    assert record["seconds"] == found.seconds and record["steps"] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operations_of_the_peak_are_done(dtype):
    speed, threads = kernels.speed, 2
    operations = machine.multiply_adds(threads, dtype)[1]
    width = 2 * fl.runtime.cpu.lanes(np.dtype(dtype).itemsize)
    factors, none = np.full(speed.DEPTH, 0.5, dtype), np.empty(0, np.int64)
    sums = np.zeros(threads * speed.ROWS * width, dtype)
    speed.multiply_adds(threads, factors, none, width, sums)
    assert sums.sum(dtype=np.float64) == operations / 2 * 0.25


def test_copies_are_whole_and_of_the_size_that_was_asked_for():
    source = np.random.default_rng(0).random(3 * kernels.speed.SPAN + 5, np.float32)
    out = np.zeros_like(source)
    kernels.speed.copy(source, 2, out)
    np.testing.assert_array_equal(out, source)
    sizes = [machine.copy_size(n) for n in (0, 1 << 16, (1 << 20) + 1, 1 << 21, 1 << 40)]
    assert sizes == [1 << 16, 1 << 16, 1 << 21, 1 << 21, 1 << 28]


class Two(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        (lambda x: x, {}, TypeError, "^profile: model must be a Module, got function$"),
        (LINEAR, {"loss": 1}, TypeError, "^profile: loss must be callable, got int 1$"),
        (LINEAR, {"loss": lambda y, t: 1.0}, TypeError, "loss must give a Tensor, got float"),
        (Two(), {}, TypeError, "model must give a Tensor where loss is None, got tuple"),
        (LINEAR, {"x": ["a"]}, TypeError, "^profile: x must hold numbers, got <U1 array"),
        (LINEAR, {"x": X[0, 0, :, :4]}, ValueError, "^linear: input must have a last dim"),
        (LINEAR, {"target": np.array([9, 0, 0])}, ValueError, "^cross_entropy: target"),
    ],
)
def test_errors_name_the_argument(model, options, error, text):
    with pytest.raises(error, match=text):
        profiled(model, **{"x": ROWS} | options)
    assert lazy.watcher is None


@pytest.mark.parametrize("repeats", [0, -1, 1.5, "2"])
def test_repeats_must_be_positive(repeats):
    with pytest.raises((TypeError, ValueError), match="^profile: repeats must be"):
        fl.profile(LINEAR, ROWS, repeats=repeats)


def test_file_must_be_one():
    with pytest.raises(TypeError, match="^profile: file must be a text file, got str 'table.txt'"):
        fl.profile(LINEAR, ROWS, file="table.txt")


def test_one_profile_at_a_time():
    def loss(y):
        profiled(LINEAR, ROWS)
        return y.sum()

    with pytest.raises(RuntimeError, match="^profile: another profile is running"):
        profiled(LINEAR, ROWS, None, loss=loss)
    assert lazy.watcher is None


def test_numpy_alone_has_times_without_peaks():
    code = (
        "import sys, numpy as np; sys.modules['numba'] = sys.modules['llvmlite'] = None\n"
        "import fastlayers as fl; from fastlayers import nn\n"
        "net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))\n"
        "profile = fl.profile(net, np.ones((3, 2, 6, 6), 'f'), repeats=1)\n"
        "assert profile.rows[0].flops == 2 * 3 * 4 * 4 * 4 * 2 * 9"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(fl.__file__).parents[1])}
    environment |= {"FASTLAYERS_BACKEND": "", "PYTHONWARNINGS": "error,ignore:fastlayers"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    head, first = result.stdout.splitlines()[:2]
    assert " ".join(head.split()) == "layer pass ms share GFLOP/s GB/s calls"
    assert first.startswith("0 + 1")
    assert "NumPy alone, float32" in result.stdout
