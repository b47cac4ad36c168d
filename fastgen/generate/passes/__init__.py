"""Rewritings of the dependency graph, each named by its effect."""
