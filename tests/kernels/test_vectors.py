import ctypes

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from fastlayers.kernels.ir.vectors import Vectors
from fastlayers.runtime import cpu

ELEMENTS = [
    (ir.FloatType(), "f32", 4),
    (ir.DoubleType(), "f64", 8),
    (ir.IntType(32), "i32", 4),
    (ir.IntType(8), "i8", 1),
]


def emit_move(element, lanes, masked):
    """Emit ``out[:count] = source[:count]`` of one vector, masked or not."""
    pointer = element.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, ir.IntType(64)])
    function = ir.Function(ir.Module(), kind, "move")
    builder = ir.IRBuilder(function.append_basic_block())
    vectors = Vectors(builder, element, lanes)
    source, out, count = function.args
    mask = vectors.first_lanes(count) if masked else None
    vectors.store_vector(vectors.load_vector(source, mask=mask), out, mask=mask)
    builder.ret_void()
    return function


@pytest.mark.parametrize(("element", "name", "size"), ELEMENTS, ids=str)
def test_vectors_need_the_alignment_of_their_elements(monkeypatch, element, name, size):
    # Another one may be right by chance, on CPUs that take any.
    assert str(emit_move(element, 4, False)).count(f", align {size}\n") == 2
    for free in (False, True):
        monkeypatch.setattr(cpu, "masked_stores", lambda free=free: free)
        monkeypatch.setattr(cpu, "masked_loads", lambda free=free: free)
        text = str(emit_move(element, 4, True).module)
        assert (f'@"llvm.masked.store.v4{name}.p0"' in text) is free
        kinds = (" load ", " store ", "call") if free else (" load ", " store ")
        moves = [line for line in text.splitlines() if any(kind in line for kind in kinds)]
        assert moves
        for line in moves:
            assert f", align {size}" in line or f"i32 {size}, " in line


@pytest.mark.parametrize("free", [False, True], ids=["parts", "masks"])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("element", "name", "size"), ELEMENTS, ids=str)
def test_first_lanes(monkeypatch, element, name, size, lanes, free):
    monkeypatch.setattr(cpu, "masked_stores", lambda: free)
    monkeypatch.setattr(cpu, "masked_loads", lambda: free)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(str(emit_move(element, lanes, True).module))
    machine = llvm.Target.from_default_triple().create_target_machine()
    with llvm.create_mcjit_compiler(module, machine) as engine:
        engine.finalize_object()
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        move = kind(engine.get_function_address("move"))
        source = np.arange(1, 1 + lanes).astype(f"{name[0]}{size}")
        for count in (-1, *range(lanes + 2), 2**31, 2**40):
            out = np.full(lanes, 99, source.dtype)
            move(source.ctypes.data, out.ctypes.data, count)
            first = min(max(count, 0), lanes)
            assert out.tolist() == [*source[:first], *[99] * (lanes - first)], count
