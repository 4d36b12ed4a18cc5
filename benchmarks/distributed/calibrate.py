"""Measures the inputs of the cost model: steps layer by layer, and sums of two MPI processes.

    mpiexec -n 2 python -m benchmarks.distributed.calibrate FILE [--quick]

writes the sums, and the steps of models on both ranks, as JSON; `python -m benchmarks.distributed`
calls it, over shared memory and over TCP.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.cases import CASES, LR, MOMENTUM, Case, initial_value
from benchmarks.compare.harness import Contestant
from benchmarks.distributed.cost import MIB

__all__ = ["TRANSPORTS", "line", "measure_pair", "measure_work", "work_of"]

_TCP = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,tcp", "OMPI_MCA_btl_tcp_if_include": "lo"}
# How Open MPI's processes on one host communicate; other libraries ignore the variables.
TRANSPORTS: dict[str, dict[str, str]] = {
    "shared memory": {},
    "TCP loopback": _TCP,
    "1 Gbit/s": _TCP,
}
# A loopback of 1 Gbit/s each way, in its own namespace, which requires Linux and root. With such a
# slow network the cores are idle while they wait, as with a real one.
SLOW = """ip link set lo up mtu 1500 &&
tc qdisc add dev lo root tbf rate 2gbit burst 128kb latency 50ms && exec "$@" """
SIZES = [8 << 2 * i for i in range(12)] + [64 * MIB]
# For the validation: models, with the batch of a rank with one thread.
VALIDATED = [("CIFAR CNN", 4), ("MLP, batch norm, dropout", 64), ("VGG-small", 32)]
VALIDATED += [("ResNet-20", 32), ("ResNet-18", 4)]


def _times(work: Callable[[], Any], seconds: float, least: int = 5) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return found


def _model(case: Case) -> Any:
    import fastlayers as fl

    model = getattr(fl.vision.models, case.factory)(**case.options)
    state = model.state_dict()
    model.load_state_dict({k: initial_value(k, np.shape(v)) for k, v in state.items()})
    return model


def work_of(threads: int, case: Case) -> tuple[None, dict[str, Any]]:
    """`Contestant`'s preparation: the fields of `cost.Work`, in JSON types."""
    import fastlayers as fl
    from fastlayers import nn

    fl.set_num_threads(threads)
    model = _model(case)
    [(x, y)] = case.batches(1)
    rows = fl.profile(model, x, y, file=io.StringIO()).rows
    seconds = {
        way: sum(row.seconds for row in rows if row.direction == way)
        for way in ("forward", "backward")
    }
    backward = [row for row in rows if row.direction == "backward"]
    layers = [row for row in backward if row.name not in ("(rest)", "(sums of gradients)")]
    total, spent, ready = sum(row.seconds for row in layers), 0.0, {}
    for row in reversed(layers):
        spent += row.seconds
        ready |= dict.fromkeys(row.layers, spent / total)
    optimizer = fl.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    fl.nn.functional.cross_entropy(model(fl.tensor(x)), fl.tensor(y)).backward()
    seconds["update"] = statistics.median(_times(optimizer.step, 0.2))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    sizes: dict[str, int] = {}
    for buffer in model.buffers():
        sizes[buffer.dtype.str] = sizes.get(buffer.dtype.str, 0) + buffer.nbytes
    return None, {
        **seconds,
        "gradients": [
            [p.data.nbytes, round(ready[name.rpartition(".")[0]], 4)]
            for name, p in model.named_parameters()
        ],
        "buffers": list(sizes.values()),
        "norms": [norm.num_features for norm in norms],
    }


def measure_work(threads: int, quick: bool) -> list[dict[str, Any]]:
    """The work of each case of the comparison, each in its own process."""
    rows = []
    for case in CASES:
        if quick and case.shape[-1] > 100:
            continue
        contestant = Contestant(case.name, work_of, threads)
        try:
            contestant.prepare(case)
        finally:
            contestant.close()
        print(f"{case.name}, {case.batch}", flush=True)
        rows.append({"model": case.name, "batch": case.batch} | contestant.value)
    return rows


def line(times: dict[int, float]) -> tuple[float, float]:
    """Latency and seconds per byte, by least squares of relative errors."""
    n, t = np.array(list(times), float), np.array(list(times.values()))
    (latency, slope), *_ = np.linalg.lstsq(np.stack([1 / t, n / t], 1), np.ones(len(n)), rcond=None)
    return float(latency), float(slope)


def measure_pair(transport: str, quick: bool) -> dict[str, Any]:
    """Measurements of two ranks with one thread each, with this transport between them."""
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        raise FileNotFoundError("no mpiexec was found: pip install 'fastlayers[mpi]'")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        order = [mpiexec, "-n", "2", sys.executable, "-m", __spec__.name, str(path)]
        order += ["--quick"] if quick else []
        if transport == "1 Gbit/s":
            order = ["unshare", "--net", "sh", "-c", SLOW, "sh", *order]
        extra = TRANSPORTS[transport] | {"FASTLAYERS_NUM_THREADS": "1"}
        subprocess.run(order, env=os.environ | extra, check=True)
        return {"transport": transport} | json.loads(path.read_text())


def _sums(channel: Any, barrier: Callable[[], None], quick: bool) -> dict[int, float]:
    found = {}
    for size in SIZES[:-3] if quick else SIZES:
        array = np.zeros(size, np.uint8).view(np.float32)
        times = []
        for _ in range(max(9, min(2000, 2**28 // size // 64))):
            barrier()
            begin = time.perf_counter()
            channel.start_sum(array).wait()
            times.append(time.perf_counter() - begin)
        found[size] = statistics.median(times[2:])
    return found


def _host(channel: Any) -> dict[str, float]:
    """`cost.Host`'s fields: what DistributedDataParallel and MPI do with buckets, of 4 MiB here."""
    from mpi4py import MPI

    from fastlayers.distributed.buckets import Reducer
    from fastlayers.nn import Parameter

    bucket = np.ones(MIB, np.float32)
    other = np.ones_like(bucket)
    three = np.float32(3)

    def unpack() -> None:
        np.divide(bucket, three, out=other)
        bucket[...] = 0

    work = {
        "pack": lambda: np.multiply(other, three, out=bucket),
        "unpack": unpack,
        "add": lambda: MPI.SUM.Reduce_local(other, bucket),
    }
    found = {k: statistics.median(_times(w, 0.3)) / bucket.nbytes for k, w in work.items()}
    params = [Parameter(np.ones(1, np.float32)) for _ in range(64)]
    reducer = Reducer(params, MIB, channel)

    def average() -> None:
        reducer.expect(3, True)
        for p in reversed(params):
            reducer.ready(p, p.data)
        reducer.finish()
        for p in params:
            p.grad = None

    times = []
    for _ in range(200):
        begin = time.perf_counter()
        average()
        times.append(time.perf_counter() - begin)
    return found | {"call": statistics.median(times) / len(params)}


def _steps(case: Case, seconds: float) -> dict[str, Any]:
    """Steps of this rank alongside the other's, with and without DistributedDataParallel."""
    import fastlayers as fl
    from fastlayers import distributed

    plain = _model(case)
    loss = fl.nn.CrossEntropyLoss()
    batches = [(fl.tensor(x), fl.tensor(y)) for x, y in case.batches()]
    times: list[list[float]] = [[], []]
    models = [plain, distributed.DistributedDataParallel(_model(case))]
    optimizers = [fl.optim.SGD(m.parameters(), lr=LR, momentum=MOMENTUM) for m in models]

    def step(which: int, number: int) -> None:
        x, y = batches[number % len(batches)]
        optimizers[which].zero_grad()
        loss(models[which](x), y).backward()
        optimizers[which].step()

    step(0, 0)
    distributed.barrier()
    begin = time.perf_counter()
    step(0, 1)
    count = np.array([seconds / 2 / (time.perf_counter() - begin)])
    distributed.group.Channel().sum(count)  # both ranks make the same number of steps
    for number in range(int(max(10, min(400, count[0] / 2)))):
        for which in range(2):
            distributed.barrier()
            begin = time.perf_counter()
            step(which, number)
            times[which].append(time.perf_counter() - begin)
    alone, together = (statistics.median(t[3:]) for t in times)
    return {"alone": alone, "together": together}


def main() -> None:
    """Both ranks measure, and rank 0 writes."""
    from fastlayers import distributed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    distributed.init()
    from mpi4py import MPI

    channel = distributed.group.Channel()
    sums = _sums(channel, distributed.barrier, options.quick)
    found: dict[str, Any] = {"library": MPI.Get_library_version().split(",")[0], "sums": sums}
    found["host"] = _host(channel)
    known = {case.name: case for case in CASES}
    found["steps"] = [
        {"model": name, "batch": batch} | _steps(known[name].at(batch), 3.0)
        for name, batch in VALIDATED[:: 3 if options.quick else 1]
    ]
    if distributed.rank() == 0:
        options.file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
