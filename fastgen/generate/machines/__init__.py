"""Machines run step programs."""
