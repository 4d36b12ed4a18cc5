"""The functions of tensors that PyTorch has in its own namespace, and its tensors as methods.

NumPy computes them; convolutions, pooling and the like, which need more, are in
`fastlayers.nn.functional`. They are the names of `fastlayers` itself.
"""

from fastlayers.functions import arithmetic, compare, division, elementwise, indexing, numpy_protocol
from fastlayers.functions import norms, order, pairs, reduction, shape
from fastlayers.functions.arithmetic import *
from fastlayers.functions.compare import *
from fastlayers.functions.division import *
from fastlayers.functions.elementwise import *
from fastlayers.functions.norms import *
from fastlayers.functions import running, variance
from fastlayers.functions.running import *
from fastlayers.functions.variance import *
from fastlayers.functions.order import *
from fastlayers.functions.pairs import *
from fastlayers.functions.reduction import *
from fastlayers.functions.shape import *

__all__ = [
    *arithmetic.__all__,
    *compare.__all__,
    *division.__all__,
    *elementwise.__all__,
    *norms.__all__,
    *running.__all__,
    *variance.__all__,
    *order.__all__,
    *pairs.__all__,
    *reduction.__all__,
    *shape.__all__,
]
