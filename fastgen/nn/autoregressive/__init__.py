"""Masked networks, and the autoregressive flow layers built on them."""
