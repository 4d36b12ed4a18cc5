"""Mutation testing: the source is changed in one place, and some test has to fail.

    pip install -e ".[test,dev]"
    python -m tests.mutation [MODULE ...] [--mutants N] [--seed S] [--workers N] [--results FILE]

Mutants are drawn from all places of ops and kernels at which cosmic-ray's operators can change
something, one operator a place. Those whose syntax tree without annotations is that of the original
are not drawn. Each runs in a copy of the tree with the tests of its module, the short form, and a
compile cache of its own where its module decides kernels. A mutant of ``EQUIVALENT`` computes the
same with another speed, or the same at all, and is counted apart.

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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

__all__ = ["Mutant", "main", "mutants"]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "ops")
# Seconds after which a mutant that does not come to an end is killed, as one that loops.
TIMEOUT = 400
# Operators that need a configuration, and one that changes nothing.
NOT_USED = ("variable", "no-op")

# Tests of modules that have none of their stem, or more than these; in tests/.
TESTS = {
    "kernels/avg_pool.py": "ops/test_pool.py",
    "kernels/batchnorm_rows.py": "ops/test_batchnorm.py ops/test_batchnorm_pool.py",
    "kernels/conv.py": "kernels/test_conv.py trust/test_exactness.py",
    "kernels/conv_planar.py": "ops/test_conv.py trust/test_exactness.py",
    "kernels/filter_transform.py": "ops/test_winograd.py ops/test_winograd_rows.py",
    "kernels/gemm.py": "trust/test_exactness.py ops/test_linear.py",
    "kernels/grouped_tile.py": "trust/test_exactness.py",
    "kernels/layout.py": "kernels/test_layout.py ops/test_conv.py ops/test_flatten.py",
    "kernels/linear_small.py": "ops/test_linear.py",
    "kernels/linear_tile.py": "ops/test_linear.py",
    "kernels/micro.py": "kernels/test_micro.py ops/test_linear.py trust/test_exactness.py",
    "kernels/optimizer.py": "optim",
    "kernels/philox.py": "kernels/test_philox.py ops/test_dropout.py",
    "kernels/reduce.py": "ops/test_batchnorm.py ops/test_conv.py ops/test_linear.py",
    "kernels/runs.py": "ops/test_pool.py ops/test_batchnorm.py ops/test_batchnorm_pool.py",
    "kernels/speed.py": "test_profiling.py",
    "kernels/toom_cook.py": "ops/test_winograd.py ops/test_winograd_rows.py",
    "kernels/transform.py": "ops/test_winograd.py",
    "kernels/unfold.py": "test_kernels.py trust/test_exactness.py",
    "kernels/vectors.py": "kernels/test_micro.py ops/test_pool.py ops/test_batchnorm.py",
    "kernels/window_loops.py": "ops/test_pool.py",
    "kernels/windows.py": "ops/test_pool.py",
    "kernels/windows_gradient.py": "ops/test_pool.py",
    "kernels/windows_mean.py": "ops/test_pool.py",
    "kernels/winograd_gradient.py": "ops/test_winograd.py",
    "kernels/winograd_rows_tiles.py": "ops/test_winograd_rows.py",
    "kernels/winograd_tiles.py": "ops/test_winograd.py",
    "ops/_check.py": "ops/test_conv.py ops/test_pool.py ops/test_loss.py trust/test_errors.py",
    "ops/avg_pool.py": "ops/test_pool.py",
    "ops/batchnorm_form.py": "ops/test_batchnorm.py ops/test_batchnorm_pool.py",
    "ops/batchnorm_parts.py": "nn/test_sync_batchnorm.py",
    "ops/conv_plan.py": "ops/test_conv.py trust/test_exactness.py ops/test_winograd.py",
    "ops/conv_pool_plan.py": "ops/test_conv_pool.py",
    "ops/conv_shape.py": "ops/test_conv.py trust/test_exactness.py",
    "ops/direct.py": "trust/test_exactness.py",
    "ops/layout.py": "kernels/test_layout.py ops/test_conv.py ops/test_pool.py",
    "ops/planar.py": "ops/test_conv.py trust/test_exactness.py",
    "ops/reduce.py": "ops/test_batchnorm.py ops/test_linear.py",
    "ops/window.py": "ops/test_pool.py",
}

# (module, source line, what it decides): changes of these lines change the speed alone.
EQUIVALENT: tuple[tuple[str, str, str], ...] = ()


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
    """What became of a mutant: killed, survived, timeout or equivalent."""

    mutant: Mutant
    outcome: str
    diff: str
    seconds: float


class _Bare(ast.NodeTransformer):
    """Removes what is never run: annotations."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
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


def tests_of(module: str) -> list[str]:
    """Paths in tests/: those of the table, or of the module's stem."""
    stem = Path(module).stem
    named = TESTS.get(module, f"kernels/test_{stem}.py ops/test_{stem}.py").split()
    paths = [Path("tests", name) for name in named]
    return [str(path) for path in paths if (ROOT / path).exists()]


def _equivalent(mutant: Mutant, source: str) -> bool:
    line = source.splitlines()[mutant.line - 1]
    return any(mutant.module == m and re.search(p, line) for m, p, _ in EQUIVALENT)


def run(mutant: Mutant, tree: Path, warm: Path) -> Outcome:
    """Test the mutant in a copy of the tree."""
    path = tree / "fastlayers" / mutant.module
    source = path.read_text()
    mutated = mutant.apply(source)
    lines = difflib.unified_diff(source.splitlines(), mutated.splitlines(), lineterm="", n=0)
    diff = "\n".join(list(lines)[2:])
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as cold:
        cache = cold if mutant.module.startswith("kernels") else str(warm)
        variables = os.environ | {"PYTHONPATH": str(tree), "FASTLAYERS_CACHE_DIR": cache}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        path.write_text(mutated)
        try:
            code = subprocess.run(
                [*command, *tests_of(mutant.module)],
                cwd=tree,
                env=variables | {"FASTLAYERS_QUIET": "1", "PYTHONDONTWRITEBYTECODE": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT,
            ).returncode
            outcome = "survived" if code == 0 else "killed"
        except subprocess.TimeoutExpired:
            outcome = "killed"
        finally:
            path.write_text(source)
    if outcome == "survived" and _equivalent(mutant, source):
        outcome = "equivalent"
    return Outcome(mutant, outcome, diff, time.monotonic() - begin)


def main() -> None:
    """Draw, run, and say which survived."""
    known = sorted(
        f"{package}/{path.name}"
        for package in PACKAGES
        for path in (ROOT / "fastlayers" / package).glob("*.py")
        if path.name != "__init__.py"
    )
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("modules", nargs="*", metavar="module", help="such as kernels/pool.py")
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, help="a JSON file for the outcomes")
    options = parser.parse_args()
    if unknown := set(options.modules) - set(known):
        parser.error(f"a module is one of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    chosen = draw(options.modules or known, options.mutants, options.seed)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for worker in range(options.workers):
            tree = Path(folder, str(worker))
            for name in ("fastlayers", "tests", "benchmarks"):
                shutil.copytree(ROOT / name, tree / name)
            shutil.copy(ROOT / "pyproject.toml", tree)
            trees.put(tree)

        def work(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                return run(mutant, tree, Path(folder, "cache"))
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(options.workers) as pool:
            for number, outcome in enumerate(pool.map(work, chosen), 1):
                outcomes.append(outcome)
                mutant = outcome.mutant
                place = f"{mutant.module}:{mutant.line}"
                print(f"{number}/{len(chosen)} {outcome.outcome} {place} {outcome.seconds:.0f} s")
                if outcome.outcome == "survived":
                    print(outcome.diff)
                sys.stdout.flush()
    if options.results:
        options.results.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    counts = {name: sum(o.outcome == name for o in outcomes) for name in ("killed", "survived")}
    told = sum(counts.values())
    print(
        f"{counts['killed']} of {told} killed ({counts['killed'] / max(told, 1):.1%}), "
        f"{len(outcomes) - told} equivalent"
    )


if __name__ == "__main__":
    main()
