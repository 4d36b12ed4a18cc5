import os

# Threads that spin at a barrier use up their share of a busy machine: 70 s instead of 6 for the
# small convolutions of `test_conv_exact.py`. Read when the first parallel region is launched.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
