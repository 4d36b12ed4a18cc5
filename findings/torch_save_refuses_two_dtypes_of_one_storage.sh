#!/usr/bin/env bash
# PyTorch 2.13.0, torch.save of two tensors that view one storage as different dtypes.
#
# x.view(torch.int32) is the documented way to look at the bits of a float tensor, and views of one
# dtype that share a storage are saved once and share it again after loading. The good guess: views
# of different dtypes are saved too, as load has an untyped storage anyway. Seen: RuntimeError, so a
# checkpoint that keeps such a view beside its tensor cannot be written; clone() one of the two.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" - <<'PYTHON'
import io

import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__
x = torch.ones(4)

file = io.BytesIO()
torch.save({"a": x, "b": x[:2]}, file)
file.seek(0)
loaded = torch.load(file, weights_only=True)
shared = loaded["a"].untyped_storage().data_ptr() == loaded["b"].untyped_storage().data_ptr()
print("views of one dtype share their storage after loading:", shared)
assert shared

try:
    torch.save({"values": x, "bits": x.view(torch.int32)}, io.BytesIO())
except RuntimeError as error:
    print("views of two dtypes:", error)
    assert "as different types" in str(error)
else:
    raise SystemExit("views of two dtypes are saved now")
torch.save({"values": x, "bits": x.view(torch.int32).clone()}, io.BytesIO())
print("as described")
PYTHON
