"""Measurements of gsync beside other programs, on the same workloads: `scripts/bench`."""
