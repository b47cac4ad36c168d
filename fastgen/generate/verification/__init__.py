"""A sampler is compared with its module."""
