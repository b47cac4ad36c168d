"""When every cell of the graph is computed, and which memory it takes."""
