"""Benchmarks of whole flows against other libraries, as they are and accelerated."""
