"""Explains a compiled network to people."""
