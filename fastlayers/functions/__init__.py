"""The tensor functions that PyTorch has in its own namespace, and its tensors as methods.

NumPy computes them; convolutions, pooling and the like, which need more, are in
`fastlayers.nn.functional`. They are the names of `fastlayers` itself.
"""

from fastlayers.functions import (
    arithmetic,
    arrangement,
    axes,
    compare,
    conversion,
    creation,
    division,
    dlpack,
    einstein,
    elementwise,
    expansion,
    facts,
    filling,
    gathering,
    indexing,
    joining,
    masks,
    matrices,
    norms,
    numpy_protocol,
    order,
    padding,
    pairs,
    products,
    ranges,
    reduction,
    running,
    sampling,
    selection,
    shape,
    splitting,
    variance,
)
from fastlayers.functions.arithmetic import *
from fastlayers.functions.arrangement import *
from fastlayers.functions.axes import *
from fastlayers.functions.compare import *
from fastlayers.functions.conversion import *
from fastlayers.functions.creation import *
from fastlayers.functions.division import *
from fastlayers.functions.dlpack import *
from fastlayers.functions.einstein import *
from fastlayers.functions.elementwise import *
from fastlayers.functions.expansion import *
from fastlayers.functions.facts import *
from fastlayers.functions.gathering import *
from fastlayers.functions.indexing import *
from fastlayers.functions.joining import *
from fastlayers.functions.masks import *
from fastlayers.functions.matrices import *
from fastlayers.functions.norms import *
from fastlayers.functions.order import *
from fastlayers.functions.pairs import *
from fastlayers.functions.products import *
from fastlayers.functions.ranges import *
from fastlayers.functions.reduction import *
from fastlayers.functions.running import *
from fastlayers.functions.sampling import *
from fastlayers.functions.selection import *
from fastlayers.functions.shape import *
from fastlayers.functions.splitting import *
from fastlayers.functions.variance import *

__all__: list[str] = []  # `padding.pad` is a function of `nn.functional`
__all__ += arithmetic.__all__
__all__ += arrangement.__all__
__all__ += axes.__all__
__all__ += compare.__all__
__all__ += conversion.__all__
__all__ += creation.__all__
__all__ += division.__all__
__all__ += dlpack.__all__
__all__ += einstein.__all__
__all__ += elementwise.__all__
__all__ += expansion.__all__
__all__ += facts.__all__
__all__ += gathering.__all__
__all__ += indexing.__all__
__all__ += joining.__all__
__all__ += masks.__all__
__all__ += matrices.__all__
__all__ += norms.__all__
__all__ += order.__all__
__all__ += pairs.__all__
__all__ += products.__all__
__all__ += ranges.__all__
__all__ += reduction.__all__
__all__ += running.__all__
__all__ += sampling.__all__
__all__ += selection.__all__
__all__ += shape.__all__
__all__ += splitting.__all__
__all__ += variance.__all__
