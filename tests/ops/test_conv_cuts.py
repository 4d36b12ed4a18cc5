"""The ways in which direct convolutions are cut into parts, and that exact cases reach each."""

import numpy as np
from cases import Case
from specs.conv_sizes import EXACT as CONVOLUTIONS

from fastlayers.kernels.gemm import gemm
from fastlayers.ops.conv import prepare
from fastlayers.ops.conv.direct import Direct


def cuts(case: Case) -> dict[str, bool]:
    """Say in which ways a case is cut into parts."""
    arrays = case.arrays(np.float32)
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | case.options
    given = arrays["input"], arrays["weight"]
    convolution = prepare("conv2d", *given, **options, algorithm="direct")[2]
    shape = convolution.shape
    plan = Direct(shape)
    gathers = {"output": plan.forward_gather, "dinput": plan.input_gather}
    weight = plan.weight_gather
    found = {
        "groups of few channels": convolution.algorithms.forward.name == "depthwise",
        "dinput of few channels": plan.columns is not None,
        "dweight of few channels": weight.few,
        "dinput in phases": len(gathers["dinput"].phases) > 1,
        "dinput in phases and bands": min(len(gathers["dinput"].phases), weight.slabs.bands) > 1,
        "dinput of a phase without taps": not gathers["dinput"].phases[:, 4].all(),
        "dweight in blocks": weight.tasks > weight.chunks,
        "dweight in chunks of a slab": weight.slabs.count == weight.chunks > 1,
        "dweight in chunks of slabs": weight.slabs.count > weight.chunks > 1,
        "dweight in a chunk of slabs": weight.slabs.count > weight.chunks == 1,
    }
    for name, gather in gathers.items():
        runs, length = gather.phases[:, 4].max(), gather.phases[:, 5].max()
        found |= {
            f"{name} in blocks": gather.blocks > 1,
            f"{name} in blocks and bands": min(gather.blocks, gather.slabs.bands) > 1,
            f"{name} in pieces of a run": length > gemm.BLOCK_K,
            f"{name} in pieces of several runs": runs * length > gemm.BLOCK_K > 2 * length,
        }
    for name, part in (gathers | {"dweight": weight}).items():
        slabs = part.slabs
        found |= {
            f"{name} from images in place": not slabs.copied,
            f"{name} from copied images": slabs.copied,
            f"{name} in slabs of images": slabs.per > 1,
            f"{name} in slabs of images and a smaller one": slabs.images % slabs.per > 0,
            f"{name} in bands": slabs.bands > 1,
            f"{name} in bands and a smaller one": slabs.rows.count % slabs.band > 0,
        }
    return found


def test_cases_reach_every_cut():
    found = [cuts(case) for case in CONVOLUTIONS]
    assert not {name for name in found[0] if not any(ways[name] for ways in found)}
