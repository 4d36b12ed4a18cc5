"""The gain from more ranks: the cost model, calibrated here, at 2 to 1024 ranks on two networks.

    python -m benchmarks.distributed [--render] [--publish] [--quick] [--results FOLDER]
        [--speed 16] [--algorithm tree]

measures the parts of a step of each model of the comparison and the sums of two MPI processes,
checks the model on steps of these two, and writes distributed.json into the folder of results.
``--render`` measures nothing; ``--publish`` puts the tables into docs/distributed.md, between the
comments that name them, and the chart into docs/figures.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.compare import record
from benchmarks.compare.__main__ import RESULTS, ROOT, publish
from benchmarks.compare.harness import table
from benchmarks.compare.record import Record
from benchmarks.distributed import calibrate
from benchmarks.distributed.cost import ALGORITHMS, Host, Network, Work, step, sum_cost

__all__ = ["PAGE", "main", "parts"]

PAGE = ROOT / "docs" / "distributed.md"
PACKAGES = ("fastlayers", "numpy", "numba", "mpi4py")
COLUMNS = (2, 8, 32, 128, 1024)
CURVE = tuple(2**i for i in range(11))
# The published steps are of hosts with two cores.
THREADS = 2
# TCP over Ethernet carries 1448 bytes of data per 1538; RDMA 4096 per 4154.
ETHERNET, RDMA = 1448 / 1538, 4096 / 4154
FASTER = 16


def measure(quick: bool, command: str) -> Record:
    """All that is measured."""
    found = record.conditions(command)
    found["versions"]["mpi4py"] = importlib.metadata.version("mpi4py")
    found["pairs"] = []
    for name in calibrate.TRANSPORTS:
        try:
            found["pairs"].append(calibrate.measure_pair(name, quick))
        except subprocess.CalledProcessError:
            if name != "1 Gbit/s":
                raise
            print("no link of 1 Gbit/s was made, which takes Linux and root", flush=True)
    found["work"] = calibrate.measure_work(THREADS, quick)
    return found


# The model's parts


def local(found: Record) -> dict[str, tuple[Network, Host]]:
    """How two ranks of this machine are connected: lines fitted to their sums.

    The slow link's is TCP's, with the rate that was set.
    """
    ways: dict[str, tuple[Network, Host]] = {}
    one = ALGORITHMS["halving"](1, 2)
    for pair in found["pairs"]:
        name, host = pair["transport"], Host(**pair["host"])
        latency, slope = calibrate.line({int(n): t for n, t in pair["sums"].items()})
        handling = max(slope - one.added * host.add, 0.0) / one.handled
        network = Network(name, latency / one.messages, math.inf, handling)
        if name == "1 Gbit/s":
            network = replace(ways["TCP loopback"][0], name=name, bandwidth=ETHERNET * 1e9 / 8)
        ways[name] = network, host
    return ways


def networks(found: Record) -> list[Network]:
    """The networks of the prediction; a byte through TCP takes the cores as long as it did here."""
    tcp, _ = local(found)["TCP loopback"]
    return [
        Network("10 Gbit/s", 30e-6, ETHERNET * 10e9 / 8, tcp.handling),
        Network("100 Gbit/s", 3e-6, RDMA * 100e9 / 8),
    ]


def _host(found: Record) -> Host:
    return local(found)["shared memory"][1]


def works(found: Record, steps: Record) -> list[tuple[dict[str, Any], Work]]:
    """Each case, its parts measured and its whole that of the comparison."""
    published = {
        (row["model"], row["batch"]): row["contestants"]["fastlayers"]["seconds"]
        for row in steps["rows"]
        if row["threads"] == THREADS
    }
    rows = []
    for row in found["work"]:
        seconds = published[row["model"], row["batch"]]
        rows.append((row, _work(row).taking(seconds)))
    return rows


def _work(row: dict[str, Any]) -> Work:
    return Work(**{name: value for name, value in row.items() if name not in ("model", "batch")})


def both(work: Work, ranks: int, network: Network, host: Host, **options: Any) -> list[float]:
    """A step that waits for no sum while it computes, and one that waits for each."""
    return [step(work, ranks, network, host, overlap=o, **options) for o in (True, False)]


# Tables


def _span(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else " - ".join(values)


def _cell(work: Work, times: list[float]) -> str:
    efficiency = [f"{work.seconds / t:.0%}" for t in times]
    return f"{_span([f'{1e3 * t:.3g}' for t in times])} ({_span(efficiency)})"


def prediction(
    found: Record, steps: Record, network: Network, speed: float = 1, algorithm: str = "halving"
) -> str:
    """Steps and efficiencies of all models on a network."""
    host = _host(found)
    lines = []
    for case, whole in works(found, steps):
        work = whole.taking(whole.seconds / speed)
        size = sum(nbytes for nbytes, _ in work.gradients) / 1e6
        line = [case["model"], str(case["batch"]), f"{size:.3g}", f"{1e3 * work.seconds:.3g}"]
        lines.append(
            line + [_cell(work, both(work, p, network, host, algorithm=algorithm)) for p in COLUMNS]
        )
    header = ["model", "batch of a rank", "gradients MB", "1 rank ms"]
    return table([*header, *(f"{p} ranks ms (efficiency)" for p in COLUMNS)], lines)


def norms(found: Record, steps: Record) -> str:
    """What SyncBatchNorm adds to a step."""
    host = _host(found)
    lines = []
    for case, work in works(found, steps):
        if not work.norms:
            continue
        cells = []
        for network in networks(found):
            for p in COLUMNS[1::2]:
                without, synced = (both(work, p, network, host, sync_norms=s) for s in (0, 1))
                more = synced[0] - without[0]
                cells.append(f"{1e3 * more:.2g} ({work.seconds / synced[0]:.0%})")
        lines.append([case["model"], str(case["batch"]), str(len(work.norms)), *cells])
    header = [f"{n.name}, {p} ranks" for n in networks(found) for p in COLUMNS[1::2]]
    return table(["model", "batch of a rank", "layers", *header], lines)


def validation(found: Record) -> str:
    """Steps of two ranks of this machine compared with the model's."""
    lines, ways = [], local(found)
    for pair in found["pairs"]:
        network, host = ways[pair["transport"]]
        for row in pair["steps"]:
            parts = next(w for w in found["work"] if w["model"] == row["model"])
            times = both(_work(parts).taking(row["alone"]), 2, network, host)
            if network.bandwidth == math.inf:  # the cores are the network
                times = times[1:]
            shown = [f"{1e3 * row['alone']:.4g}", _span([f"{1e3 * t:.4g}" for t in times])]
            shown += [f"{1e3 * row['together']:.4g}"]
            shown += [_span([f"{row['together'] / t:.2f}" for t in times])]
            lines.append([network.name, row["model"], str(row["batch"]), *shown])
    header = ["2 ranks joined by", "model", "batch of a rank", "without sums ms", "predicted ms"]
    return table([*header, "measured ms", "measured / predicted"], lines)


def calibration(found: Record) -> str:
    """The constants, and how well they fit the measured sums."""
    lines, ways = [], local(found)
    for pair in found["pairs"]:
        network, host = ways[pair["transport"]]
        errors = [
            abs(sum(sum_cost(int(n), 2, network, host.add)) / t - 1)
            for n, t in pair["sums"].items()
        ]
        rate = 1e-9 / (network.handling + 1 / network.bandwidth)
        cells = [f"{1e6 * network.latency:.2g}", f"{rate:.2g}"]
        cells += [f"{statistics.median(errors):.0%} ({max(errors):.0%})"]
        cells += [f"{1e-9 / getattr(host, n):.2g}" for n in ("pack", "unpack", "add")]
        lines.append([network.name, *cells, f"{1e6 * host.call:.2g}"])
    header = ["2 ranks joined by", "latency us", "GB/s", "median (largest) error of the sums"]
    header += ["pack GB/s", "unpack GB/s", "add GB/s", "calls for a parameter us"]
    machine, versions = found["machine"], found["versions"]
    names = ", ".join(f"{n} {versions[n]}" for n in PACKAGES if versions[n])
    about = (
        f"{found['date']}, {machine['cpu']}, {machine['cores']} cores, {names}, "
        f"{found['pairs'][0]['library']}, commit {found['commit']}, `{found['command']}`."
    )
    return f"{table(header, lines)}\n\n{about}"


def parts(found: Record, steps: Record) -> dict[str, str]:
    """What stands between each pair of comments."""
    slow, fast = networks(found)
    return {
        "calibration": calibration(found),
        "validation": validation(found),
        "10 Gbit/s": prediction(found, steps, slow),
        "100 Gbit/s": prediction(found, steps, fast),
        "sync": norms(found, steps),
    }


# The chart


def draw(found: Record, steps: Record, path: Path) -> None:
    """Efficiency over ranks: bands from steps that wait for no sum to steps that wait for all."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    host = _host(found)
    figure, grid = pyplot.subplots(2, 2, figsize=(9, 7), sharey=True, layout="constrained")
    largest = {case["model"]: (case, work) for case, work in works(found, steps)}
    for axes, (speed, network) in zip(
        grid.flat, [(s, n) for s in (1, FASTER) for n in networks(found)], strict=True
    ):
        for i, (case, whole) in enumerate(largest.values()):
            work = whole.taking(whole.seconds / speed)
            times = [both(work, p, network, host) for p in CURVE]
            high, low = ([100 * work.seconds / t for t in ts] for ts in zip(*times, strict=True))
            axes.fill_between(CURVE, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
            label = f"{case['model']}, batch {case['batch']}"
            axes.plot(CURVE, high, color=f"C{i}", linewidth=1, label=label)
        hosts = "hosts as this one" if speed == 1 else f"hosts {speed} times as fast"
        axes.set_title(f"{network.name}, {hosts}", fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xticks(CURVE[::2], [str(p) for p in CURVE[::2]])
        axes.set_ylim(0, 103)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("ranks, one a host", fontsize=9)
    figure.supylabel("efficiency, %; lower edge: no sum while the cores compute", fontsize=9)
    grid[0][1].legend(fontsize=7, frameon=False, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure or read, print, and publish."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--render", action="store_true", help="measure nothing")
    add("--publish", action="store_true", help="write docs/distributed.md's tables and chart")
    add("--quick", action="store_true", help="small models and sums, a minute")
    add("--speed", type=float, default=1, help="print predictions for hosts so much faster")
    add("--algorithm", choices=ALGORITHMS, default="halving", help="print those of another sum")
    add("--results", type=Path, default=ROOT / RESULTS, help="folder of the records")
    options = parser.parse_args(arguments)
    command = "python -m benchmarks.distributed " + " ".join(
        sys.argv[1:] if arguments is None else arguments
    )
    if not options.render:
        record.save(options.results, "distributed", measure(options.quick, command.strip()))
    found, steps = (record.read(options.results, n) for n in ("distributed", "models"))
    if found is None or steps is None:
        parser.error(f"{options.results} must hold distributed.json and models.json")
    texts = parts(found, steps)
    if options.publish:
        PAGE.write_text(publish(PAGE.read_text(), texts))
        draw(found, steps, ROOT / "docs" / "figures" / "distributed.png")
    if options.speed != 1 or options.algorithm != "halving":
        other = options.speed, options.algorithm
        texts = {n.name: prediction(found, steps, n, *other) for n in networks(found)}
    for name, text in texts.items():
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    main()
