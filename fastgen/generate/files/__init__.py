"""Samplers and states as files, read as nothing but data."""
