"""Benchmarks, each a module that `python -m benchmarks.NAME` runs."""
