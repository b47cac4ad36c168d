"""The schedule: the steps at which cells are computed, and the memory that they take."""
