#!/usr/bin/env bash
# OpenBLAS 0.3.31 in the wheel of NumPy 2.4.6, x86-64: CPU time that a program uses while it sleeps,
# after one product of two matrices.
#
# The good guess: the threads of a library that has nothing to do sleep, at the latest after the 2^26
# cycles that OpenBLAS's documentation names, some 25 ms. Seen: while the program sleeps for 20 ms
# its CPU clock goes on by 20 ms, and in 0.2 s by about 0.1 s (Zen 3, 2 cores): each other thread of
# the BLAS keeps its core busy, without giving way, and whatever the program does next in threads
# of its own finds one core less. With OPENBLAS_THREAD_TIMEOUT=4 the same sleep takes under a
# millisecond of CPU time.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6
cat >"$work/sleep.py" <<'PYTHON'
import sys
import time

import numpy as np

a = np.ones((800, 800), np.float32)
used = []
for _ in range(5):
    time.sleep(0.3)
    a @ a
    begin = time.process_time()
    time.sleep(0.02)
    used.append(1e3 * (time.process_time() - begin))
used = sorted(used)[2]
print(f"{sys.argv[1]:>24}: {used:.2f} ms of CPU time in 20 ms of sleep")
assert used > 10 if sys.argv[1] == "default" else used < 2, used
PYTHON
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE OPENBLAS_THREAD_TIMEOUT
export OPENBLAS_NUM_THREADS=2
"$work/venv/bin/python" "$work/sleep.py" default
OPENBLAS_THREAD_TIMEOUT=4 "$work/venv/bin/python" "$work/sleep.py" "a timeout of 2^4 cycles"
