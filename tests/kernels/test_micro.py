"""The machine code of the register tiles: all sums of a tile stay in registers."""

import platform

import llvmlite.binding as llvm
import pytest
from assembly import tile_loops
from numba import types

from fastlayers.kernels.gemm.gemm import gemm_batch
from fastlayers.kernels.gemm.operands import Bias, Block, Epilogue, Left, Right, Target
from fastlayers.kernels.gemm.tile import gemm_tile
from fastlayers.kernels.ir.named import type_of
from fastlayers.runtime import cpu
from fastlayers.runtime.compiler import Kernel

ELEMENTS = (types.float32, types.float64)
# Bytes of the widest vectors and rows of the tallest tile, as `runtime.cpu` has them.
MACHINES = {
    ("x86_64-unknown-linux-gnu", "skylake-avx512"): (64, 12),
    ("x86_64-unknown-linux-gnu", "haswell"): (32, 6),
    ("aarch64-unknown-linux-gnu", "neoverse-n1"): (16, 12),
}


def check_loops(assembly: str, vector_bytes: int, rows: int) -> None:
    """Assert that the tiles of `gemm` are there, on full vectors and in registers."""
    found = set()
    for size, spills in tile_loops(assembly):
        found.add(size)
        assert not spills, size
    widths = ((2, 1), (1, 1), (1, 2))  # vectors, and the part of each
    assert found == {
        (max(16, vector_bytes // part), height * vectors)
        for height in (rows, 4, 1)
        for vectors, part in widths
    }


def tiles(element, rows, part):
    """Compile the tiles that `gemm` uses, of vectors `part` times narrower than the CPU's."""
    half = 2 * part

    def function(block, left, right, bias, target, last):
        gemm_tile((rows, 2, part), block, left, right, bias, target, last)
        gemm_tile((4, 2, part), block, left, right, bias, target, last)
        gemm_tile((1, 2, part), block, left, right, bias, target, last)
        gemm_tile((rows, 1, part), block, left, right, bias, target, last)
        gemm_tile((4, 1, part), block, left, right, bias, target, last)
        gemm_tile((1, 1, part), block, left, right, bias, target, last)
        gemm_tile((rows, 1, half), block, left, right, bias, target, last)
        gemm_tile((4, 1, half), block, left, right, bias, target, last)
        gemm_tile((1, 1, half), block, left, right, bias, target, last)

    return compiled(function, tile_signature(element))


def tile_signature(element):
    return tuple(type_of(kind, element) for kind in (Block, Left, Right, Bias, Target, Epilogue))


def compiled(function, signature):
    """Compile as `runtime.cache.kernel` does, but keep no copy on the disk: it has no assembly."""
    options = {"error_model": "numpy", "nogil": True, "fastmath": {"contract"}, "opt": 1}
    dispatcher = Kernel(function, options)
    dispatcher.compile(signature)
    return dispatcher


def assembly_for(dispatcher, triple, name):
    """Compile a function's optimised intermediate code for another CPU."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip(f"llvmlite was built without {triple}")
    machine = target.create_target_machine(cpu=name, opt=3)
    (code,) = dispatcher.inspect_llvm().values()
    module = llvm.parse_assembly(code)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return machine.emit_assembly(module)


def part_for(vector_bytes):
    """Give the `part` of a tile that has vectors of so many bytes on this CPU."""
    if vector_bytes > cpu.vector_bytes():
        pytest.skip(f"vectors of {vector_bytes} bytes are wider than this CPU's")
    return cpu.vector_bytes() // vector_bytes


@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_no_tile_of_gemm_spills(element):
    if platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
        pytest.skip(f"the assembly of {platform.machine()} is not read")
    gemm = gemm_batch.body.py_func
    (assembly,) = compiled(gemm, gemm_batch.signature(element)).inspect_asm().values()
    check_loops(assembly, cpu.vector_bytes(), cpu.tile_rows())


on_machines = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine[1])


@on_machines
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_no_tile_spills_on_other_cpus(element, machine):
    vector_bytes, rows = MACHINES[machine]
    dispatcher = tiles(element, rows, part_for(vector_bytes))
    check_loops(assembly_for(dispatcher, *machine), vector_bytes, rows)


@on_machines
def test_spills_of_a_tile_too_large_are_found(machine):
    part = part_for(MACHINES[machine][0])

    def function(block, left, right, bias, target, last):
        gemm_tile((16, 2, part), block, left, right, bias, target, last)

    assembly = assembly_for(compiled(function, tile_signature(types.float32)), *machine)
    ((size, spills),) = tile_loops(assembly)
    assert size == (MACHINES[machine][0], 32)
    assert spills
