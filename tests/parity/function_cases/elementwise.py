"""Functions of elements."""

from parity.functions_harness import ALL, FLOATS, Arguments, Draw, Row


def _one(draw: Draw) -> Arguments:
    return (draw.tensor(),), {}


ROWS = [Row("exp", _one), Row("abs", _one), Row("neg", _one)]
