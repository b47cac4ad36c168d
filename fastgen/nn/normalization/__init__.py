"""Layers and parametrisations that set the scale of activations."""
