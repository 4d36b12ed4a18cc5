#!/usr/bin/env bash
# PyTorch 2.13.0, two CosineAnnealingLR on one optimizer.
#
# Schedulers are documented as chainable: each goes on from the group's present rate. The good
# guess: chained schedules multiply, so rates of two schedules that stay above 0 stay above 0. Seen:
# the recurrence subtracts eta_min before it scales and adds it again, and its factor grows without
# bound past T_max; with T_max 5 and 3 the rate is below 0 within 20 steps, from 1.0, and the
# optimizer climbs instead of descending, without an error or a warning.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" -W error - <<'PYTHON'
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

assert torch.__version__.startswith("2.13.0"), torch.__version__
parameter = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([parameter], lr=1.0)
schedules = [CosineAnnealingLR(optimizer, 5), CosineAnnealingLR(optimizer, 3, eta_min=0.1)]
rates = []
for _ in range(20):
    parameter.grad = torch.zeros(1)
    optimizer.step()
    for schedule in schedules:
        schedule.step()
    rates.append(optimizer.param_groups[0]["lr"])
print("rates:", [round(rate, 4) for rate in rates])
print("lowest:", min(rates))
assert min(rates) < -0.4, "the rates stay above"

# Each alone stays within its bounds.
for options, least in (({"T_max": 5}, 0.0), ({"T_max": 3, "eta_min": 0.1}, 0.1)):
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = CosineAnnealingLR(optimizer, **options)
    for _ in range(20):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] >= least - 1e-9
print("as described")
PYTHON
