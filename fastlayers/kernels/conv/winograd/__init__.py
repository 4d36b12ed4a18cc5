"""Winograd's convolutions: products of transformed tiles and rows.

To be read in this order:

- `matrices`: one-dimensional transforms, and the operations that they take.
- `pixels`: addresses of a square of pixels, inside of its image and out of it.
- `transform`: a tile's inputs to the points of its transform, and its products back to outputs.
- `tiles`: all tiles of the images or of a block, one after the other.
- `filters`: a filter to its points, and back to the weight gradient.
- `forward`: the convolution, which the input gradient is, too.
- `weight`: the weight gradient.
- `rows`: kernels 5 wide by transforms of rows, all passes; lanes are images instead of channels.
- `rows_tiles`: the vectors of `rows`.
"""

from fastlayers.runtime.modules import on_use

_MODULES = (
    "filters",
    "forward",
    "matrices",
    "pixels",
    "rows",
    "rows_tiles",
    "tiles",
    "transform",
    "weight",
)
__getattr__, __dir__ = on_use(__name__, _MODULES)
