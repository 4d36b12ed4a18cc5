"""The house's order: who may import whom, that imports make no circle, and what stays private."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fastlayers
from fastlayers import ops

PACKAGE = Path(fastlayers.__file__).parent
# From the top to the bottom; what is not here, such as `optim`, may import all of them.
ORDER = ["nn", "functions", "autograd", "ops", "kernels", "runtime"]
# What a lower floor needs of a higher one all the same, by file and module, with the reason.
EXCEPTIONS = {
    ("autograd/__init__.py", "fastlayers.functions"): "gives tensors their methods",
    (
        "functions/elementwise.py",
        "fastlayers.nn.functional",
    ): "x.relu() joins a chain of layers; imported when it is called",
}


class Import(NamedTuple):
    """A module, or a name of it, that a file imports."""

    file: str
    line: int
    module: str
    name: str | None
    is_inner: bool  # within a function, so that it may close a circle

    def __str__(self) -> str:
        what = self.module if self.name is None else f"{self.module}.{self.name}"
        return f"{self.file}:{self.line} imports {what}"

    @property
    def targets(self) -> list[str]:
        """Modules that it may stand for: ``from a import b`` names a module or a name in it."""
        return [self.module] if self.name is None else [f"{self.module}.{self.name}", self.module]


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _imports(file: str, body: list[ast.stmt], is_inner: bool = False) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, None, is_inner)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} imports by dots"
            for alias in node.names:
                yield Import(file, node.lineno, str(node.module), alias.name, is_inner)
        elif not _is_typing(node):
            inner = is_inner or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from _imports(file, getattr(node, field, []), inner)
        else:
            yield from _imports(file, node.orelse, is_inner)  # type: ignore[attr-defined]


def _name(file: str) -> str:
    return ".".join(("fastlayers", *Path(file).with_suffix("").parts)).removesuffix(".__init__")


FILES = {str(p.relative_to(PACKAGE)): ast.parse(p.read_text()) for p in PACKAGE.rglob("*.py")}
MODULES = {_name(file): file for file in FILES}
IMPORTS = [
    i
    for file, tree in FILES.items()
    for i in _imports(file, tree.body)
    if i.module.partition(".")[0] == "fastlayers"
]


def _floor(module: str) -> int | None:
    parts = module.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 and parts[1] in ORDER else None


def test_lower_floors_never_import_higher_ones() -> None:
    wrong, used = [], set()
    for i in IMPORTS:
        home, floors = _floor(_name(i.file)), [_floor(target) for target in i.targets]
        floor = next((floor for floor in floors if floor is not None), None)
        if home is None or floor is None or floor >= home:
            continue
        reason = next((t for t in i.targets if (i.file, t) in EXCEPTIONS), None)
        if reason is None:
            wrong.append(str(i))
        used.add((i.file, reason))
    assert not wrong
    assert set(EXCEPTIONS) <= used, "an exception is needed no more"


def _needed(i: Import) -> Iterator[str]:
    """The modules that an import runs first: the packages around a module come before it."""
    target = next((t for t in i.targets if t in MODULES), None)
    assert target is not None, f"{i}, which is no module"
    yield target


def test_imports_make_no_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for i in IMPORTS:
        home = _name(i.file)
        # A package's own module is imported while the package is: that is no circle by itself.
        graph[home] |= {t for t in _needed(i) if not i.is_inner and t != home}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for below in sorted(graph[module]):
                visit(below, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])


def _package(module: str) -> str:
    """The part of the house that a module belongs to."""
    return ".".join(module.split(".")[:2])


def _private(i: Import) -> bool:
    names = [*i.module.split("."), i.name or ""]
    return any(name.startswith("_") and not name.endswith("__") for name in names)


def test_nobody_imports_private_names_of_another_package() -> None:
    wrong = []
    for i in IMPORTS:
        home = _package(_name(i.file))
        if _private(i) and home != _package(next(t for t in i.targets if t.count("."))):
            wrong.append(str(i))
    assert not wrong


def test_nobody_reads_private_names_of_another_packages_modules() -> None:
    """As ``from fastlayers.ops import linear`` and then ``linear._rows``."""
    wrong = []
    for file, tree in FILES.items():
        home = _package(_name(file))
        modules = {
            (i.name or i.module).split(".")[-1]
            for i in IMPORTS
            if i.file == file and i.targets[0] in MODULES and _package(i.targets[0]) != home
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                base = node.value.id if isinstance(node.value, ast.Name) else ""
                if base in modules and not node.attr.endswith("__"):
                    wrong.append(f"{file}:{node.lineno} reads {base}.{node.attr}")
    assert not wrong


def test_nn_has_one_door_into_ops() -> None:
    """What `nn` uses of ops is `fastlayers.ops` itself, its checks, and `ops.prepared`."""
    doors = {"fastlayers.ops", "fastlayers.ops.check", "fastlayers.ops.prepared"}
    wrong = [
        str(i)
        for i in IMPORTS
        if i.file.startswith("nn/")
        and _floor(i.module) == ORDER.index("ops")
        and next(t for t in i.targets if t in MODULES) not in doors
    ]
    for file, tree in FILES.items():  # and not as ``ops.conv.prepare``
        for node in ast.walk(tree) if file.startswith("nn/") else ():
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            name = node.attr if node.value.id == "ops" else ""
            if f"fastlayers.ops.{name}" in MODULES and name not in ops.__all__:
                wrong.append(f"{file}:{node.lineno} reads ops.{name}")
    assert not wrong
