"""Benchmarks against peers, run from a checkout; never by the tests."""
