"""Kernels in NumPy, which stand in for the compiled ones where there is no Numba.

A module here is what `fastlayers.kernels` gives for the one of the same name then: its functions
have the names and arguments of the kernels that ops call, and write into the same arrays. So an op
that calls them has no branch for the backend.
"""
