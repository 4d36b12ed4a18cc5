"""The ways in which direct convolutions are cut into parts, and that exact cases reach each."""

import numpy as np
import pytest
from cases import Case, compare, conv
from specs.conv_sizes import EXACT as CONVOLUTIONS

from fastlayers import ops
from fastlayers.kernels.gemm import gemm
from fastlayers.ops.conv import prepare
from fastlayers.ops.conv.direct import Direct
from fastlayers.runtime import cpu
from fastlayers.runtime.threads import set_num_threads

# So that small cases have many slabs; `tests/runtime/test_cpu.py` runs them so.
SMALL_L2 = 32 << 10


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
        "dinput in phases and bands": min(
            len(gathers["dinput"].phases), gathers["dinput"].slabs.bands
        )
        > 1,
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


def test_cases_reach_every_cut(monkeypatch):
    monkeypatch.setattr(cpu, "l2_bytes", lambda: SMALL_L2)
    found = [cuts(case) for case in CONVOLUTIONS]
    assert not {name for name in found[0] if not any(ways[name] for ways in found)}


# Few slabs of many channels, whose outputs are cut into more blocks for more threads; few channels.
@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        ((4, 72, 14, 14), (200, 72, 3, 3), {"padding": 1, "stride": 2}),
        ((4, 200, 9, 10), (136, 200, 1, 1), {"stride": 2}),
        ((40, 3, 17, 16), (32, 3, 3, 3), {"padding": 1}),
    ],
)
def test_threads_do_not_change_results(x, weight, options):
    case, results = conv(x, weight, **options, algorithm="direct"), []
    arrays = case.arrays(np.float32)
    for threads in (1, 2, 3, 16):
        set_num_threads(threads)
        results.append(case.run(ops, arrays))
    for other in results[1:]:
        compare(other, results[0], (0, 0))
