"""What a library costs before it works: its import, the first training step, its size on disk.

    python -m benchmarks.compare.start [--processes N] [--python INTERPRETERS] [--quick]
        [--markdown FILE] [--json FILE]

Wall time of whole processes, in turn: each imports one library, or trains the CIFAR CNN with batch
norm for one step of 32 images, or calls one op. Every program has run once before, unmeasured, so
that bytecode is written and files are in memory. fastlayers has its kernels on disk, or a new,
empty folder in each process; torch and JAX keep nothing between processes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.compare.harness import spread, table
from benchmarks.compare.torch_models import torch_source

__all__ = ["Probe", "environment", "facts", "main", "measure", "read", "record", "report"]

ROOT = Path(__file__).parents[2]
LIBRARIES = ("fastlayers", "numpy", "numba", "torch", "jax")
IMPORT, WARM, COLD = "import", "first training step", "the same, empty cache"
CONVOLUTIONS = {  # the second uses Winograd
    "conv2d 8x3x32x32 -> 16, empty cache": ((8, 3, 32, 32), (16, 3, 3, 3)),
    "conv2d 32x64x16x16 -> 64, empty cache": ((32, 64, 16, 16), (64, 64, 3, 3)),
}

# Variables that would slow Python, NumPy or a library down, or leave it without bytecode.
DROPPED = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPROFILEIMPORTTIME",
)

# Dependencies of a library that runs from its source.
_UNINSTALLED = {"fastlayers": ["numba", "numpy"]}

# Literally the same program, except for the imports and the arrays.
_STEP = """
optimizer = optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
optimizer.zero_grad()
loss = nn.CrossEntropyLoss()(model(images), targets)
loss.backward()
optimizer.step()
print(loss.item())
"""
STEPS = {
    "fastlayers": """
import numpy as np

import fastlayers as fl
from fastlayers import nn, optim
from fastlayers.vision.models import CifarCNN

model = CifarCNN(batch_norm=True)
images = fl.tensor(np.random.default_rng(0).standard_normal((32, 3, 32, 32), np.float32))
targets = fl.tensor(np.arange(32) % 10)
"""
    + _STEP,
    "torch": """
import torch
from torch import nn, optim
from torch_network import CifarCNN

model = CifarCNN(batch_norm=True)
images = torch.randn(32, 3, 32, 32)
targets = torch.arange(32) % 10
"""
    + _STEP,
    "jax": """
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compare import jax_models


def network(net, x):
    return jax_models.MODELS["CifarCNN"](net, x, 10, batch_norm=True)


@jax.jit
def update(parameters, momenta, buffers, x, y):
    (loss, buffers), gradients = jax.value_and_grad(jax_models.loss_function, 1, has_aux=True)(
        network, parameters, buffers, None, x, y
    )
    momenta = jax.tree.map(lambda v, g: 0.9 * v + g, momenta, gradients)
    parameters = jax.tree.map(lambda p, v: p - 1e-4 * v, parameters, momenta)
    return parameters, momenta, buffers, loss


images = jnp.array(np.random.default_rng(0).standard_normal((32, 32, 32, 3), np.float32))
targets = jnp.arange(32) % 10
parameters, buffers = jax_models.initial_values(network, images)
momenta = jax.tree.map(jnp.zeros_like, parameters)
parameters, momenta, buffers, loss = update(parameters, momenta, buffers, images, targets)
jax.block_until_ready(parameters)
print(float(loss))
""",
}
_CONVOLUTION = """
import numpy as np

from fastlayers import ops

x, weight = np.ones({}, np.float32), np.ones({}, np.float32)
print(ops.conv2d(x, weight, padding=1).mean())
"""


@dataclass
class Probe:
    """A program of one library, and how long its processes took.

    Attributes
    ----------
    row, library : str
        Its place in the table.
    code : str
    python : str
        The interpreter.
    cold : bool
        Whether the kernels' folder is empty.
    times : list of float
        Seconds of each process.
    error : str
        Why it could not be measured.
    """

    row: str
    library: str
    code: str
    python: str
    cold: bool = False
    times: list[float] = field(default_factory=list)
    error: str = ""

    def run(self, folder: Path, warm: Path) -> float:
        """Seconds of a process that runs the program in this folder."""
        script = folder / "program.py"
        script.write_text(self.code)
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            variables = environment(empty if self.cold else str(warm))
            begin = time.perf_counter()
            process = subprocess.run(
                [self.python, str(script)],
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.perf_counter() - begin
        if process.returncode:
            raise RuntimeError((process.stderr.strip().splitlines() or ["no message"])[-1])
        if process.stdout and not math.isfinite(float(process.stdout)):
            raise RuntimeError(f"the result is {process.stdout.strip()}")
        return seconds


def environment(cache: str) -> dict[str, str]:
    """The variables of a user's process that keeps kernels in this folder."""
    kept = {
        k: v for k, v in os.environ.items() if k not in DROPPED and not k.startswith("FASTLAYERS")
    }
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "FASTLAYERS_CACHE_DIR": cache,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
    }


def facts(libraries: Iterable[str]) -> dict[str, dict[str, Any]]:
    """For each library of this interpreter: version, bytes, bytes with its dependencies."""
    found = {}
    for name in libraries:
        if importlib.util.find_spec(name):
            distribution = _distribution(name)
            found[name] = {
                "version": distribution.version if distribution else "",
                "bytes": _bytes(name),
                "all": sum(map(_bytes, _with_dependencies(name))),
            }
    return found


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _with_dependencies(name: str) -> set[str]:
    """Names of a distribution and of all its dependencies on this platform, without extras."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        from pip._vendor.packaging.requirements import Requirement
    found, asked = set(), [name]
    while asked:
        name = re.sub("[._]", "-", asked.pop().lower())
        if name in found:
            continue
        found.add(name)
        distribution = _distribution(name)
        lines = distribution.requires if distribution else _UNINSTALLED.get(name)
        for line in lines or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                asked.append(requirement.name)
    return found


def _bytes(name: str) -> int:
    """Size of a distribution's files, or of the package's folder if it runs from its source."""
    distribution = _distribution(name)
    recorded = (distribution and distribution.files) or []
    files = {Path(str(file.locate())).resolve() for file in recorded}
    spec = importlib.util.find_spec(name) if name in LIBRARIES else None
    if spec and spec.origin and Path(spec.origin).resolve() not in files:
        ours = f".{sys.implementation.cache_tag}.pyc"
        paths = Path(spec.origin).resolve().parent.rglob("*")
        files |= {path for path in paths if path.suffix != ".pyc" or path.name.endswith(ours)}
    return sum(path.stat().st_size for path in files if path.is_file())


def _ask(python: str) -> dict[str, dict[str, Any]]:
    """The facts of another interpreter."""
    code = (
        "import json; from benchmarks.compare.start import LIBRARIES, facts; "
        "print(json.dumps(facts(LIBRARIES)))"
    )
    variables = environment("")
    answer = subprocess.run(
        [python, "-c", code], env=variables, capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


def _probes(homes: dict[str, str]) -> list[Probe]:
    """All programs of the available libraries."""
    probes = [Probe(IMPORT, "python", "", sys.executable)]
    probes += [Probe(IMPORT, n, f"import {n}\n", homes[n]) for n in LIBRARIES if n in homes]
    probes += [Probe(WARM, n, code, homes[n]) for n, code in STEPS.items() if n in homes]
    if "fastlayers" in homes:
        ours = homes["fastlayers"]
        probes.append(Probe(COLD, "fastlayers", STEPS["fastlayers"], ours, cold=True))
        probes += [
            Probe(row, "fastlayers", _CONVOLUTION.format(*shapes), ours, cold=True)
            for row, shapes in CONVOLUTIONS.items()
        ]
    return probes


def measure(probes: list[Probe], processes: int) -> None:
    """Run all in turn, once unmeasured and then so many times."""
    with tempfile.TemporaryDirectory() as work:
        folder, warm = Path(work), Path(work) / "kernels"
        if any(probe.library == "torch" for probe in probes):
            (folder / "torch_network.py").write_text(torch_source("cnn"))
        for turn in range(processes + 1):
            for probe in probes:
                if probe.error:
                    continue
                try:
                    seconds = probe.run(folder, warm)
                except (OSError, RuntimeError, ValueError) as error:
                    probe.error = str(error)
                    continue
                if turn:
                    probe.times.append(seconds)
            print(f"{turn} of {processes} processes each", file=sys.stderr, flush=True)


def _cell(probe: Probe | None) -> str:
    if probe is None:
        return "-"
    if probe.error or not probe.times:
        return "failed"
    return f"{1e3 * statistics.median(probe.times):.0f} ({spread(probe.times):.0%})"


def report(probes: list[Probe], found: dict[str, dict[str, Any]]) -> str:
    """The table, the main ratios, and why programs failed."""
    by_place = {(probe.row, probe.library): probe for probe in probes}
    lines = []
    for row in dict.fromkeys(probe.row for probe in probes):
        line = [f"{row}, ms"]
        for name in ("python", *LIBRARIES):
            probe = by_place.get((row, name))
            missing = name not in found and name in {"torch", "jax"}
            line.append("not installed" if missing else _cell(probe))
        lines.append(line)
    sizes = [f"{found[name]['all'] / 1e6:.0f}" if name in found else "-" for name in LIBRARIES]
    lines.append(["installed with dependencies, MB", "-", *sizes])
    own = [f"{found[name]['bytes'] / 1e6:.1f}" if name in found else "-" for name in LIBRARIES]
    lines.append(["own size, MB", "-", *own])
    names = [f"{n} {found[n]['version']}".strip() if n in found else n for n in LIBRARIES]
    header = ["", "python", *names]
    ratios = [
        f"- {text}: {_ratio(by_place.get(one), by_place.get(other)):.2f}"
        for text, one, other in (
            ("import fastlayers / import numpy", (IMPORT, "fastlayers"), (IMPORT, "numpy")),
            ("first step / torch's", (WARM, "fastlayers"), (WARM, "torch")),
            ("first step with an empty cache / torch's", (COLD, "fastlayers"), (WARM, "torch")),
            ("first step / JAX's", (WARM, "fastlayers"), (WARM, "jax")),
        )
    ]
    errors = [f"- {p.row}: {p.library}: {p.error}" for p in probes if p.error]
    count = max((len(probe.times) for probe in probes), default=0)
    parts = [
        f"Median milliseconds of {count} processes each (interquartile range), Python "
        f"{platform.python_version()}:",
        table(header, lines),
        "\n".join(ratios),
        *(["Failed:", "\n".join(errors)] if errors else []),
    ]
    return "\n\n".join(parts) + "\n"


def _ratio(one: Probe | None, other: Probe | None) -> float:
    """Quotient of the medians, NaN if one is missing."""
    if not (one and other and one.times and other.times):
        return math.nan
    return statistics.median(one.times) / statistics.median(other.times)


def record(pythons: list[str], processes: int) -> dict[str, Any]:
    """Measure all that these interpreters have: ``{"facts": of libraries, "probes": times}``."""
    homes: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    for python in pythons:
        for name, fact in _ask(python).items():
            if name not in found:
                homes[name], found[name] = python, fact
    probes = _probes(homes)
    measure(probes, processes)
    kept = ("row", "library", "times", "error")  # not the paths of this machine
    return {"facts": found, "probes": [{k: vars(p)[k] for k in kept} for p in probes]}


def read(measured: dict[str, Any]) -> tuple[list[Probe], dict[str, dict[str, Any]]]:
    """The programs and facts of a `record`, for `report`."""
    return [Probe(code="", python="", **p) for p in measured["probes"]], measured["facts"]


def main() -> None:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--processes", type=int, default=10)
    add("--python", nargs="+", default=[], help="interpreters that have torch or JAX")
    add("--quick", action="store_true", help="two processes each")
    add("--markdown", type=Path, help="a file for the table")
    add("--json", type=Path, help="a file for all that was measured")
    options = parser.parse_args()
    measured = record([sys.executable, *options.python], 2 if options.quick else options.processes)
    text = report(*read(measured))
    print(text, end="")
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
