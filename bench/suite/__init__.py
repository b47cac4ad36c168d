"""Shared parts of the benchmarks: floors, interleaved timing, reports and workloads."""
