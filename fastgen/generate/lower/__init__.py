"""From the scheduled graph to the instructions of a step program."""
