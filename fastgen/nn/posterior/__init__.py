"""Flows of approximate posteriors."""
