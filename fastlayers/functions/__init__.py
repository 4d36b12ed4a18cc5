"""The functions of tensors that PyTorch has in its own namespace, and its tensors as methods.

NumPy computes them; convolutions, pooling and the like, which need more, are in
`fastlayers.nn.functional`. They are the names of `fastlayers` itself.
"""

from fastlayers.functions import (
    arithmetic,
    arrangement,
    compare,
    conversion,
    creation,
    division,
    dlpack,
    elementwise,
    indexing,
    joining,
    masks,
    norms,
    numpy_protocol,
    order,
    padding,
    pairs,
    products,
    reduction,
    running,
    sampling,
    selection,
    shape,
    variance,
)
from fastlayers.functions.arithmetic import *
from fastlayers.functions.arrangement import *
from fastlayers.functions.compare import *
from fastlayers.functions.conversion import *
from fastlayers.functions.creation import *
from fastlayers.functions.division import *
from fastlayers.functions.dlpack import *
from fastlayers.functions.elementwise import *
from fastlayers.functions.joining import *
from fastlayers.functions.masks import *
from fastlayers.functions.norms import *
from fastlayers.functions.order import *
from fastlayers.functions.pairs import *
from fastlayers.functions.products import *
from fastlayers.functions.reduction import *
from fastlayers.functions.running import *
from fastlayers.functions.sampling import *
from fastlayers.functions.selection import *
from fastlayers.functions.shape import *
from fastlayers.functions.variance import *

# `masks.one_hot` and `padding.pad` are functions of `nn.functional`.
__all__ = [
    *arithmetic.__all__,
    *arrangement.__all__,
    *compare.__all__,
    *conversion.__all__,
    *creation.__all__,
    *division.__all__,
    *dlpack.__all__,
    *elementwise.__all__,
    *joining.__all__,
    *masks.__all__,
    *norms.__all__,
    *running.__all__,
    *variance.__all__,
    *order.__all__,
    *pairs.__all__,
    *products.__all__,
    *reduction.__all__,
    *sampling.__all__,
    *selection.__all__,
    *shape.__all__,
]
