"""Benchmarks: the asv suite, and the comparison with other frameworks."""
