"""Benchmarks: run with `python -m benchmarks.<name> --json`; never part of the tests."""
