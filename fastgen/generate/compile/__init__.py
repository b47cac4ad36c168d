"""The pipeline from a module to its step program."""
