"""Whole flows against those of other libraries, and those with fastgen's kernels in them."""
