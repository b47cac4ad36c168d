"""What compiling works on: the dependency graph, and the step program that comes of it."""
