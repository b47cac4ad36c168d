"""What the benchmarks share: floors, interleaved timing, reports and workloads."""
