"""A network is tried out for its owner: by changing its input, by compiling it, by generating from it."""
