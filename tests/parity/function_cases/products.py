"""Products of vectors, matrices and tensors."""

from typing import Any

from parity.functions_harness import FLOATS, Arguments, Draw, Row


def _of(draw: Draw, *shapes: tuple[int, ...]) -> Arguments:
    dtype = (draw.pick(*FLOATS, "int64"),)
    return tuple(draw.tensor(shape, dtypes=dtype) for shape in shapes), {}


def _sizes(draw: Draw, count: int) -> list[int]:
    return [int(n) for n in draw.rng.integers(0 if draw.rng.random() < 0.15 else 1, 5, count)]


def _outer(draw: Draw) -> Arguments:
    n, m = _sizes(draw, 2)
    return (draw.tensor((n,)), draw.tensor((m,))), {}


def _dot(draw: Draw) -> Arguments:
    (n,) = _sizes(draw, 1)
    return _of(draw, (n,), (n + int(draw.rng.random() < 0.05),))


def _mv(draw: Draw) -> Arguments:
    n, m = _sizes(draw, 2)
    return _of(draw, (n, m), (m,))


def _mm(draw: Draw) -> Arguments:
    n, k, m = _sizes(draw, 3)
    return _of(draw, draw.pick((n, k), (n, k), (1, n, k)), (k, m))


def _bmm(draw: Draw) -> Arguments:
    b, n, k, m = _sizes(draw, 4)
    return _of(draw, (b, n, k), draw.pick((b, k, m), (b, k, m), (k, m), (b + 1, k, m)))


def _factors(draw: Draw) -> dict[str, Any]:
    return {} if draw.rng.random() < 0.4 else {"beta": draw.pick(0, 1, 2), "alpha": draw.pick(1, 3)}


def _addmm(draw: Draw) -> Arguments:
    n, k, m = _sizes(draw, 3)
    args, _ = _of(draw, draw.pick((n, m), (m,), (1, m), (n, 1), ()), (n, k), (k, m))
    return args, _factors(draw)


def _baddbmm(draw: Draw) -> Arguments:
    b, n, k, m = _sizes(draw, 4)
    args, _ = _of(draw, draw.pick((b, n, m), (n, m), (m,), (b, 1, m)), (b, n, k), (b, k, m))
    return args, _factors(draw)


EQUATIONS = (
    ("ij,jk->ik", "ij", "jk"),
    ("ij,jk", "ij", "jk"),
    ("bij, bjk -> bik", "bij", "bjk"),
    ("ij->ji", "ij"),
    ("ij->", "ij"),
    ("ba", "ba"),
    ("ii->i", "ii"),
    ("ii", "ii"),
    ("iij->j", "iij"),
    ("i,j->ij", "i", "j"),
    ("i,j,k->", "i", "j", "k"),
    ("ij,ik->i", "ij", "ik"),
    ("ijk,k->j", "ijk", "k"),
    ("...ij,...jk->...ik", "xij", "yxjk"),
    ("...i->...", "xyi"),
    ("i...->...", "ixy"),
    ("...,...", "xy", "y"),
    ("bhid,bhjd->bhij", "bhid", "bhjd"),
    ("aB,Bc->ca", "aB", "Bc"),
    ("ij,jk,kl->il", "ij", "jk", "kl"),
    ("iijj->ij", "iijj"),
    ("ij,ij->ij", "ij", "ij"),
    ("...ii->...i", "xii"),
    ("ij...->ij", "ijx"),
)


def _einsum(draw: Draw) -> Arguments:
    equation, *terms = draw.pick(*EQUATIONS)
    lengths = {a: int(draw.rng.integers(1, 4)) for a in "".join(terms)}
    if draw.rng.random() < 0.1:
        lengths[terms[0][0]] = 0
    arrays = []
    for term in terms:
        once = {a: 1 if draw.rng.random() < 0.1 else lengths[a] for a in term}
        arrays.append([once[a] for a in term])
    args, _ = _of(draw, *(tuple(shape) for shape in arrays))
    return (equation, *draw.pick(args, (list(args),))), {}


def _einsum_lists(draw: Draw) -> Arguments:
    n, k, m = _sizes(draw, 3)
    (a, b), _ = _of(draw, (n, k), (k, m))
    return draw.pick(
        (a, [0, 1], b, [1, 2], [0, 2]), (a, [0, 1], b, [1, 2]), (a, [..., 1], [1, ...])
    ), {}


def _tensordot(draw: Draw) -> Arguments:
    i, j, k, m = _sizes(draw, 4)
    choices = (
        (((i, j), (j, k)), 1),
        (((i, j, k), (j, k, m)), 2),
        (((i,), (j, k)), 0),
        (((i, j, k), (k, m, i)), ([0, 2], [2, 0])),
        (((i, j), (j, i)), ([0, -1], [1, 0])),
    )
    shapes, dims = choices[int(draw.rng.integers(len(choices)))]
    args, _ = _of(draw, *shapes)
    return (*args, dims), {}


ROWS = [
    Row("outer", _outer),
    Row("ger", _outer, forms=("method",)),
    Row("dot", _dot),
    Row("mv", _mv),
    Row("mm", _mm),
    Row("bmm", _bmm),
    Row("addmm", _addmm),
    Row("baddbmm", _baddbmm),
    Row("einsum", _einsum),
    Row("einsum", _einsum_lists),
    Row("tensordot", _tensordot),
]
