"""Flows as stacks of layers."""
