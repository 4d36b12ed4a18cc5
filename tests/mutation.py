"""Mutation testing: the source is changed in one place, and some test has to fail.

    pip install -e ".[test,dev]"
    python -m tests.mutation [MODULE ...] [--mutants N] [--seed S] [--workers N]
        [--results FILE] [--resume]

Mutants are drawn from all places of ops and kernels at which cosmic-ray's operators can change
something, one operator a place. Those whose syntax tree without annotations is that of the original
are not drawn. Each runs in a copy of the tree with the tests of its module, and if it survives them
with those of its op in trust/, in the short form; and with a compile cache of its own where its
module decides kernels. A survivor of ``EQUIVALENT`` computes the same with another speed, or the
same at all, and is counted apart. FILE has what is known so far, with which ``--resume`` goes on.

https://cosmic-ray.readthedocs.io
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

__all__ = ["Mutant", "main", "mutants"]

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from specs import STEMS  # noqa: E402 - beside the tests

PACKAGES = ("kernels", "ops")
# Seconds after which a mutant that does not come to an end is killed, as one that loops: with the
# tests of its module, and with all the others, which no slow machine should fail.
TIMEOUTS = (400, 400, 1200, 1200)
# Operators that need a configuration, and one that changes nothing.
NOT_USED = ("variable", "no-op")

# Tests of modules that have none of their stem, or more than these; in tests/.
TESTS = {
    "kernels/conv/winograd/pixels.py": "ops/test_winograd.py",
    "kernels/ir/lanes.py": "kernels/test_vectors.py ops/test_conv.py",
    "ops/conv/algorithm.py": "ops/test_routes.py",
    "ops/conv/reference.py": "runtime/test_backend.py",
    "ops/linear/reference.py": "runtime/test_backend.py",
    "ops/pool/reference.py": "runtime/test_backend.py",
    "ops/routes.py": "ops/test_routes.py ops/test_linear.py",
    "ops/prepared.py": "nn/test_fusion.py",
    "kernels/conv/direct.py": "kernels/test_conv.py ops/test_conv.py",
    "kernels/conv/pooled.py": "ops/test_conv_pool.py",
    "kernels/conv/winograd/forward.py": "ops/test_winograd.py",
    "kernels/conv/winograd/rows.py": "ops/test_winograd_rows.py",
    "kernels/norm/pooled.py": "ops/test_batchnorm_pool.py",
    "kernels/pool/max_pool.py": "ops/test_pool.py",
    "ops/conv/pooled.py": "ops/test_conv_pool.py",
    "ops/norm/pooled.py": "ops/test_batchnorm_pool.py",
    "ops/pool/max_pool.py": "ops/test_pool.py",
    "kernels/pool/avg_pool.py": "ops/test_pool.py",
    "kernels/norm/matrix.py": "ops/test_batchnorm.py",
    "kernels/norm/rows.py": "ops/test_batchnorm.py",
    "kernels/norm/window_loops.py": "ops/test_batchnorm_pool.py",
    "kernels/norm/windows.py": "ops/test_batchnorm_pool.py",
    "kernels/conv/planar.py": "ops/test_conv.py ops/test_conv_pool.py",
    "kernels/conv/winograd/filters.py": "ops/test_winograd.py ops/test_winograd_rows.py",
    "kernels/gemm/gemm.py": "ops/test_linear.py ops/test_conv.py",
    "kernels/conv/grouped_tile.py": "ops/test_depthwise.py",
    "kernels/layout.py": "kernels/test_layout.py ops/test_conv.py ops/test_flatten.py",
    "kernels/linear/blocks.py": "ops/test_linear.py",
    "kernels/linear/dots.py": "ops/test_linear.py",
    "kernels/linear/products.py": "ops/test_linear.py",
    "kernels/linear/ranks.py": "ops/test_linear.py",
    "kernels/linear/small.py": "ops/test_linear.py",
    "kernels/linear/tile.py": "ops/test_linear.py",
    "ops/linear/algorithm.py": "ops/test_linear.py",
    "ops/linear/large.py": "ops/test_linear.py",
    "ops/linear/routes.py": "ops/test_linear.py",
    "ops/linear/small.py": "ops/test_linear.py",
    "kernels/gemm/tile.py": "kernels/test_micro.py ops/test_linear.py",
    "kernels/optimizer.py": "optim",
    "kernels/dropout/philox.py": "kernels/test_philox.py ops/test_dropout.py",
    "kernels/reduce.py": "ops/test_batchnorm.py ops/test_conv.py ops/test_linear.py",
    "kernels/gemm/operands.py": "ops/test_linear.py ops/test_conv.py",
    "kernels/ir/named.py": "kernels/test_shared.py ops/test_conv.py",
    "kernels/ir/shared.py": "kernels/test_shared.py ops/test_linear.py",
    "kernels/ir/runs.py": "kernels/test_layout.py ops/test_pool.py ops/test_batchnorm.py",
    "kernels/speed.py": "test_profiling.py",
    "kernels/conv/winograd/matrices.py": "ops/test_winograd.py ops/test_winograd_rows.py",
    "kernels/conv/winograd/transform.py": "ops/test_winograd.py",
    "kernels/conv/unfold.py": "test_kernels.py",
    "kernels/ir/vectors.py": "kernels/test_vectors.py kernels/test_layout.py ops/test_pool.py",
    "kernels/pool/loops.py": "ops/test_pool.py",
    "kernels/pool/windows.py": "ops/test_pool.py",
    "kernels/pool/windows_gradient.py": "ops/test_pool.py",
    "kernels/pool/windows_mean.py": "ops/test_pool.py",
    "kernels/conv/winograd/weight.py": "ops/test_winograd.py",
    "kernels/conv/winograd/rows_tiles.py": "ops/test_winograd_rows.py",
    "kernels/conv/winograd/tiles.py": "ops/test_winograd.py",
    "ops/check.py": "ops/test_conv.py ops/test_pool.py ops/test_loss.py",
    "ops/pool/avg_pool.py": "ops/test_pool.py",
    "ops/conv/convolution.py": "ops/test_conv.py",
    "ops/conv/gather.py": "ops/test_conv.py ops/test_conv_cuts.py",
    "ops/conv/slabs.py": "ops/test_conv.py ops/test_conv_cuts.py",
    "ops/conv/weight_gather.py": "ops/test_conv.py ops/test_conv_cuts.py",
    "kernels/conv/direct_weight.py": "ops/test_conv.py",
    "kernels/conv/slabs.py": "ops/test_conv.py ops/test_conv_cuts.py",
    "kernels/conv/padded.py": "ops/test_conv.py ops/test_conv_pool.py",
    "kernels/conv/pooled_tile.py": "ops/test_conv_pool.py",
    "ops/norm/layout.py": "ops/test_batchnorm.py ops/test_batchnorm_pool.py",
    "ops/norm/normalisation.py": "ops/test_batchnorm.py nn/test_batchnorm.py",
    "ops/norm/parts.py": "ops/test_batchnorm_parts.py nn/test_sync_batchnorm.py",
    "ops/conv/pooled_plan.py": "ops/test_conv_pool.py",
    "ops/conv/pooled_routes.py": "ops/test_conv_pool.py",
    "ops/conv/shape.py": "ops/test_conv.py",
    "ops/conv/direct.py": "ops/test_conv.py",
    "ops/layout.py": "kernels/test_layout.py ops/test_conv.py ops/test_pool.py",
    "ops/conv/planar.py": "ops/test_conv.py",
    "ops/reduce.py": "ops/test_batchnorm.py ops/test_linear.py",
    "ops/loss/binary_entropy.py": "ops/test_loss.py nn/test_loss.py",
    "ops/loss/common.py": "ops/test_loss.py nn/test_loss.py",
    "ops/loss/entropy.py": "ops/test_loss.py nn/test_loss.py",
    "ops/loss/mse.py": "ops/test_loss.py nn/test_loss.py",
    "ops/loss/nll.py": "ops/test_loss.py nn/test_loss.py",
    "ops/pool/avg_routes.py": "ops/test_pool.py",
    "ops/pool/max_routes.py": "ops/test_pool.py",
    "ops/pool/algorithm.py": "ops/test_pool.py",
    "ops/pool/window.py": "ops/test_pool.py",
}
# What passes those meets these, and then the tests in trust/ that name the module's op.
SHARED = {
    "kernels": "ops/test_plans.py",
    "ops": "ops/test_plans.py runtime/test_backend.py trust/test_errors.py",
}
# Of the many tests of convolutions, those that find most.
EXACT = "trust/test_exactness.py trust/test_memory_safety.py"
# By a part of a module's path, what its tests in trust/ and ops/test_specs.py are named by, as
# `pytest -k` takes it; "activation" stands for the ops of its specs.
NAMES = (
    ("/activation", "activation"),
    ("/arithmetic", "arithmetic"),
    ("/norm/", "norm or any_order"),
    ("/conv/pooled", "conv-pool or pooled"),
    ("/dropout", "dropout"),
    ("/flatten", "flatten"),
    ("/linear", "linear or any_order"),
    ("/loss", "loss or entropy"),
    ("/optimizer|/speed", "SGD or Adam"),
    ("/pool/", "pool or any_order"),
    ("/check|/layout|/reduce|/ir/", "linear or pool or norm or bounds or any_order"),
    ("", "conv or im2col or winograd"),
)

# (module, changed or original line of a diff, what it decides): such changes do not make a program
# that gives other results; the speed may be another.
EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    ("", r"^\+@kernel\(unroll=", "whether loops are unrolled"),
    ("", r"^\+.*lru_cache\(maxsize=", "how many results are remembered"),
    # Written otherwise.
    ("", r"^\+.*reshape\((- 2|~1)\b", "NumPy takes any negative number for the missing length"),
    ("", r"^\+.*strict=False", "the lists are as long as each other; Python checks it for us"),
    ("ops/arithmetic", r"^\+.*\.ndim <= 1 else", "a scalar was refused before"),
    ("ops/loss", r'^\+.*reduction <= "mean"', "in the alphabet mean is the first of the three"),
    (
        "ops/loss",
        r"^\+.*(dtype is np\.int64|shape < shape):",
        "never so: the checks in detail follow, and pass",
    ),
    ("ops/dropout", r"^\+ *return y\[ -1\]\.T", "the first of one sample is the last"),
    ("kernels", r"^\+ *move_run\( 2, ", "any literal but 0 goes past the caches"),
    (
        "kernels/toom_cook",
        r"^\+@dataclass\(frozen=False\)",
        "nothing is set, and no hash is asked for",
    ),
    ("ops/conv_plan", r"^\+.*lanes\) <= 0$", "a remainder is not negative"),
    ("ops/pool/avg_routes", r"^\+.*divisors\[ -1\]\) if divisors\.size == 1", "the last of one"),
    ("kernels/gemm", r"^\+@kernel\(inner=False\)", "as machine code of its own, for Python"),
    ("kernels/gemm", r"^-@kernel\(inner=True\)", "Python alone calls it, and as it is written"),
    # Which plan: the constants are measured, their neighbours as good; plans.txt has the outcome.
    (
        "ops/(conv_plan|conv_pool_plan|winograd|winograd_rows|planar|linear|batchnorm_form)",
        r"^-(?!LEAST_)[A-Z_, ]+ = ",
        "where a plan changes to another, by bytes or work",
    ),
    ("ops/winograd", r"^- +(return points|direct) (=|\*)", "costs by which the tile is chosen"),
    ("ops", r"^- +(self\.)?work = ", "from which work on a call is shared by threads"),
    ("ops", r"^-[A-Z]+_WORK = ", "from which work on a call is shared by threads"),
    ("ops/linear", r"^\+.*1025 // width", "the same number of panels as of 1024"),
    ("ops/winograd_rows", r"^\+.*i \| count < oh", "rows that end later reach other rows anyway"),
    # What is fetched ahead, or asked of the caches.
    ("kernels/depthwise", r"^- +(share|ahead|yahead|yshare) \+?= ", "what is fetched ahead"),
    ("kernels/depthwise", r"^- +if phase == 0:", "in which phase it is fetched ahead"),
    ("kernels/linear", r"^- +(part = |if ahead and tiles > 1)", "what is fetched ahead"),
    ("kernels", r"^- +prefetch_run\(", "what is fetched ahead"),
    # How many at a time, in which order.
    ("kernels/pool", r"^\+.*min\(count % k, ", "rows at a time: no more than count - k"),
    ("kernels/pool", r"^\+.*// depth \+ 0\)\)", "pixels at a time: the others are gathered"),
    (
        "kernels/pool/windows_gradient",
        r"^\+ +size, none = .*, _i64\( ?-?1\)\)$",
        "a jump behind the only row",
    ),
    (
        "kernels/winograd_rows",
        r"^\+    row, depth = at \+ starts\[ 0\],",
        "a place for a row that is read before it is used otherwise",
    ),
    ("kernels/pool/windows_mean", r"^\+.*\[builder.mul\(s, depth\)\]\), 1\)", "which of four sums"),
    ("kernels/toom_cook", r"^\+.*\(m \+ taps \| 1\)", "a factor of 0 more, which is passed over"),
    ("kernels/reduce", r"^-BLOCK = ", "columns of a task"),
    ("kernels/toom_cook", r"^\+.*key=lambda term: term\[0\] == 1", "the order of additions"),
    (
        "kernels/winograd",
        r"^\+    count = \(tiles \+ TRANSFORM_TILES( / 1| \*\* 1| - 0)\)",
        "one more task, which has no tiles",
    ),
)


@dataclass(frozen=True)
class Mutant:
    """One change: of which module, by which operator at which of its places."""

    module: str
    line: int
    operator: str
    occurrence: int

    def apply(self, source: str) -> str:
        """The source with the change."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        mutated = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        if mutated is None:
            raise ValueError(f"{self.module} has no place {self.occurrence} for {self.operator}")
        return str(mutated)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: killed, timeout (as good as killed), survived or equivalent."""

    mutant: Mutant
    outcome: str
    diff: str
    seconds: float


class _Bare(ast.NodeTransformer):
    """Removes what is never run: annotations, and the overloads that type checkers read."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        if any(getattr(name, "id", None) == "overload" for name in node.decorator_list):
            return None
        node.returns = None
        return self.generic_visit(node)


def _tree(source: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(source)))


def mutants(module: str, source: str) -> Iterator[list[Mutant]]:
    """For each place that can be changed, all mutants of it."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    places: dict[tuple[tuple[int, int], tuple[int, int]], list[Mutant]] = {}
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        if any(word in name.lower() for word in NOT_USED):
            continue
        operator = get_operator(name)()
        found = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, place in enumerate(found):
            mutant = Mutant(module, place[0][0], name, occurrence)
            places.setdefault(place, []).append(mutant)
    yield from places.values()


def draw(modules: list[str], number: int, seed: int) -> list[Mutant]:
    """So many mutants of different places."""
    sources = {module: (ROOT / "fastlayers" / module).read_text() for module in modules}
    trees = {module: _tree(source) for module, source in sources.items()}
    places = [place for m in modules for place in mutants(m, sources[m])]
    chance = random.Random(seed)
    chance.shuffle(places)
    chosen: list[Mutant] = []
    for place in places:
        mutant = chance.choice(place)
        try:
            changed = _tree(mutant.apply(sources[mutant.module])) != trees[mutant.module]
        except SyntaxError:
            continue
        chosen += [mutant] * changed
        if len(chosen) == number:
            break
    return chosen


def tests_of(module: str) -> list[list[str]]:
    """Arguments of pytest: for the tests of the module, then for those that it shares."""
    stem = Path(module).stem
    named = TESTS.get(module, f"kernels/test_{stem}.py ops/test_{stem}.py")
    names = next(names for pattern, names in NAMES if re.search(pattern, module))
    trust = EXACT if names == NAMES[-1][1] else "trust"
    if names == "activation":
        names = " or ".join(spec.op for spec in STEMS[names])
    rows = [
        [str(Path("tests", name)) for name in text.split() if (ROOT / "tests" / name).exists()]
        for text in (named, "ops/test_specs.py", SHARED[module.partition("/")[0]], trust)
    ]
    return [rows[0], [*rows[1], "-k", names], rows[2], [*rows[3], "-k", names]]


def _equivalent(module: str, diff: str) -> bool:
    return any(re.match(m, module) and re.search(p, diff, re.M) for m, p, _ in EQUIVALENT)


def run(mutant: Mutant, tree: Path, warm: Path) -> Outcome:
    """Test the mutant in a copy of the tree."""
    path = tree / "fastlayers" / mutant.module
    source = path.read_text()
    mutated = mutant.apply(source)
    lines = difflib.unified_diff(source.splitlines(), mutated.splitlines(), lineterm="", n=0)
    diff = "\n".join(list(lines)[2:])
    begin, outcome = time.monotonic(), "survived"
    with tempfile.TemporaryDirectory() as cold:
        cache = cold if mutant.module.startswith("kernels") else str(warm)
        variables = os.environ | {"PYTHONPATH": str(tree), "FASTLAYERS_CACHE_DIR": cache}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        path.write_text(mutated)
        try:
            for arguments, timeout in zip(tests_of(mutant.module), TIMEOUTS, strict=True):
                subprocess.run(
                    [*command, *arguments],
                    cwd=tree,
                    env=variables | {"FASTLAYERS_QUIET": "1", "PYTHONDONTWRITEBYTECODE": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=timeout,
                    check=True,
                )
        except subprocess.CalledProcessError:
            outcome = "killed"
        except subprocess.TimeoutExpired:
            outcome = "timeout"
        finally:
            path.write_text(source)
    if outcome == "survived" and _equivalent(mutant.module, diff):
        outcome = "equivalent"
    return Outcome(mutant, outcome, diff, time.monotonic() - begin)


def main() -> None:
    """Draw, run, and say which survived."""
    known = sorted(
        str(path.relative_to(ROOT / "fastlayers"))
        for package in PACKAGES
        for path in (ROOT / "fastlayers" / package).rglob("*.py")
        if path.name != "__init__.py"
    )
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "modules", nargs="*", metavar="module", help="such as kernels/pool/max_pool.py"
    )
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, help="a JSON file for the outcomes")
    parser.add_argument("--resume", action="store_true", help="run those that are not in the file")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(known):
        parser.error(f"a module is one of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    chosen = draw(options.modules or known, options.mutants, options.seed)
    outcomes: list[Outcome] = []
    known_already: dict[Mutant, Outcome] = {}
    if options.resume and options.results and options.results.exists():
        for record in json.loads(options.results.read_text()):
            mutant = Mutant(**record.pop("mutant"))
            known_already[mutant] = Outcome(mutant, **record)
    with tempfile.TemporaryDirectory() as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for worker in range(options.workers):
            tree = Path(folder, str(worker))
            for name in ("fastlayers", "tests", "benchmarks"):
                shutil.copytree(ROOT / name, tree / name)
            shutil.copy(ROOT / "pyproject.toml", tree)
            trees.put(tree)

        def work(mutant: Mutant) -> Outcome:
            if mutant in known_already:
                return known_already[mutant]
            tree = trees.get()
            try:
                return run(mutant, tree, Path(folder, "cache"))
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(options.workers) as pool:
            runs = [pool.submit(work, mutant) for mutant in chosen]
            for number, done in enumerate(as_completed(runs), 1):
                outcomes.append(outcome := done.result())
                mutant = outcome.mutant
                place = f"{mutant.module}:{mutant.line}"
                print(f"{number}/{len(chosen)} {outcome.outcome} {place} {outcome.seconds:.0f} s")
                if outcome.outcome == "survived":
                    print(outcome.diff)
                sys.stdout.flush()
                if options.results:
                    records = [asdict(outcome) for outcome in outcomes]
                    options.results.write_text(json.dumps(records, indent=1) + "\n")
    found = Counter(outcome.outcome for outcome in outcomes)
    killed = found["killed"] + found["timeout"]
    told = killed + found["survived"]
    print(
        f"{killed} of {told} killed ({killed / max(told, 1):.1%}), {found['timeout']} of them by "
        f"the time, {found['equivalent']} equivalent"
    )


if __name__ == "__main__":
    main()
