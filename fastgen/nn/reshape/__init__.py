"""Layers that move numbers about."""
