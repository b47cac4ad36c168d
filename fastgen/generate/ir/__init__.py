"""The dependency graph, and the step program that comes of it."""
