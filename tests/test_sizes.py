"""Files, functions and lists of arguments stay small enough to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import fastlayers

PACKAGE = Path(fastlayers.__file__).parent
LINES, FUNCTION, ARGUMENTS = 400, 60, 8


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions, with the file of each."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield str(path.relative_to(PACKAGE)), node


def length(function: ast.FunctionDef) -> int:
    """Lines without those of the docstring."""
    lines, first = (function.end_lineno or 0) - function.lineno + 1, function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def is_compiled(function: ast.FunctionDef) -> bool:
    """Whether Numba compiles it, or it emits code of its own."""
    decorators = map(ast.unparse, function.decorator_list)
    return any(name.startswith(("kernel", "intrinsic", "shared_kernel")) for name in decorators)


def test_files():
    sizes = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {path: lines for path, lines in sizes.items() if lines > LINES}


def test_functions():
    sizes = {(file, f.name): length(f) for file, f in functions()}
    assert not {name: lines for name, lines in sizes.items() if lines > FUNCTION}


def test_arguments_of_kernels():
    compiled = [
        (file, f) for file, f in functions() if file.startswith("kernels") and is_compiled(f)
    ]
    counts = {
        (file, f.name): len([a for a in f.args.args if a.arg != "typingctx"])
        for file, f in compiled
    }
    assert len(counts) > 200
    assert not {name: count for name, count in counts.items() if count > ARGUMENTS}
