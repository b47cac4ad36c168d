"""What compiling found out about a network, for people to read."""
