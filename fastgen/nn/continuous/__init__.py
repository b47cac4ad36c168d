"""Continuous flows: vector fields, solvers and traces."""
