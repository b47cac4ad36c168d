"""Monotone maps of one number at a time."""
