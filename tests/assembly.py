"""Reads the assembly of kernels: loops, multiply-adds, and vectors that leave their registers.

``python tests/assembly.py FILE [--long]`` compiles all kernels, in a process whose environment says
for which CPU and where, and writes their assembly, by kernel and signature, into a JSON file. With
``--long`` those are the kernels of all calls in `guards`, and in float64 too.
"""

import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

COMMENT = re.compile(r"\s+(?://|;|##? )")
LABEL = re.compile(r"^([\w.$]+):")
JUMP = re.compile(r"^\s+(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?([\w.$]+)$")
MULTIPLY_ADD = re.compile(r"^\s+(?:vfn?m(?:add|sub)\w+|fmadd|fmla)\s")
X86_VECTOR, X86_BYTES = re.compile(r"%([xyz])mm\d+"), {"x": 16, "y": 32, "z": 64}
ARM_VECTOR = re.compile(r"\b(?:v\d+\.|[qds]\d+\b)")
# AVX2's store of some lanes.
MASKED_STORE = re.compile(r"^\s+vp?maskmov\w+\s+%[xy]mm\d+, %[xy]mm\d+, \S*\(")
# Calls of `guards` for what `fastlayers.precompile.everything` does not need.
MORE_CALLS = ("arithmetic", "conv2d-2x3x5x6", "im2col", "linear-large", "linear-relu", "Adadelta")


def functions(assembly: str) -> list[str]:
    """The functions of a module."""
    return re.split(r"\.(?:cfi|seh)_endproc|\.Lfunc_end\d+:", assembly)


def loops(function: str) -> Iterator[list[str]]:
    """Give the lines of each loop of one block, which ends with a jump to its label."""
    block: list[str] = []
    label = None
    for line in function.splitlines():
        line = COMMENT.split(line.rstrip())[0]
        if found := LABEL.match(line):
            label, block = found[1], []
        elif jump := JUMP.match(line):
            if jump[1] == label:
                yield block
            label = None
        else:
            block.append(line)


def multiply_adds(block: list[str]) -> tuple[int, int]:
    """Bytes of the widest vector of a loop's multiply-adds, and how many there are."""
    lines = [line for line in block if MULTIPLY_ADD.match(line)]
    names = {name for line in lines for name in X86_VECTOR.findall(line)}
    return max((X86_BYTES[name] for name in names), default=16), len(lines)


def vector_spills(function: str, block: list[str]) -> list[str]:
    """Instructions of a loop that move a vector, or an element of one, to or from the stack."""
    # %rbp and x29 are general registers like any other where they do not hold the frame's base.
    base = "%r[sb]p" if re.search(r"movq\s+%rsp, %rbp", function) else "%rsp"
    arm_base = "(?:sp|x29)" if re.search(r"(?:mov|add)\s+x29, sp", function) else "sp"
    stack = re.compile(rf"\({base}|\[{arm_base}\b")
    moves = (line for line in block if stack.search(line))
    return [line for line in moves if X86_VECTOR.search(line) or ARM_VECTOR.search(line)]


def tile_loops(assembly: str) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """Give the size of each loop with multiply-adds, as `multiply_adds` does, and its spills."""
    for function in functions(assembly):
        for block in loops(function):
            size = multiply_adds(block)
            if size[1]:
                yield size, vector_spills(function, block)


def masked_stores(assembly: str) -> list[str]:
    """AVX2's instructions that store some lanes of a vector."""
    return [line for line in assembly.splitlines() if MASKED_STORE.match(line)]


def highest_register(assembly: str) -> int:
    """The highest number of a vector register."""
    return max((int(number) for number in re.findall(r"%[xyz]mm(\d+)", assembly)), default=0)


def _compile_all(long: bool) -> None:
    from guards import CALLS

    from fastlayers import precompile

    if not long:
        for model, shape in precompile.everything(np.float32):
            precompile._use(model, shape)
    for dtype in (np.float32, np.float64)[: 1 + long]:
        for name, call in CALLS.items():
            if long or name.startswith(MORE_CALLS):
                call(np.copy, dtype)


def _compiled() -> dict[str, dict[str, str]]:
    """Assembly of all kernels that this process has compiled, by name and signature."""
    from fastlayers import kernels
    from fastlayers.runtime.compiler import InnerKernel, Kernel

    found = {}
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        home = importlib.import_module(module.name)
        for name, value in vars(home).items():
            kernel = getattr(value, "body", value)  # of what is shared
            if not isinstance(kernel, Kernel) or isinstance(kernel, InnerKernel):
                continue
            if kernel.py_func.__module__ == home.__name__:
                place = home.__name__.removeprefix(f"{kernels.__name__}.")
                codes = kernel.inspect_asm()
                found[f"{place}.{name}"] = {str(kinds): code for kinds, code in codes.items()}
    return found


if __name__ == "__main__":
    _compile_all("--long" in sys.argv)
    Path(sys.argv[1]).write_text(json.dumps(_compiled()))
