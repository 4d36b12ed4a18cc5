import pytest
from llvmlite import ir

from fastlayers.kernels.ir.vectors import Vectors


@pytest.mark.parametrize(
    ("element", "name", "size"),
    [(ir.FloatType(), "f32", 4), (ir.DoubleType(), "f64", 8), (ir.IntType(32), "i32", 4)],
    ids=str,
)
def test_vectors_need_the_alignment_of_their_elements(element, name, size):
    # Another one may be right by chance, on CPUs that take any.
    kind = ir.FunctionType(ir.VoidType(), [element.as_pointer()])
    function = ir.Function(ir.Module(), kind, "move")
    vectors = Vectors(ir.IRBuilder(function.append_basic_block()), element, 4)
    value, mask = vectors.load_vector(function.args[0]), vectors.first_lanes(ir.IntType(64)(3))
    vectors.store_vector(value, function.args[0])
    vectors.store_vector(value, function.args[0], mask=mask)
    text = str(function)
    assert text.count(f", align {size}\n") == 2
    assert f'@"llvm.masked.store.v4{name}.p0"' in text and f"i32 {size}, " in text
