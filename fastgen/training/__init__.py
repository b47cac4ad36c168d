"""Training by maximum likelihood, on Lightning Fabric, and what is done with a finished run."""
