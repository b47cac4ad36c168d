"""Invertible linear layers."""
