"""Measures, never asserts. `make bench` prints tables of ratios; run nothing else on the machine meanwhile."""
