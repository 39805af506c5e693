"""Measures gsync beside other programs, on the same workloads: `scripts/bench`."""
