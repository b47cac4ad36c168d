"""Invertible residual blocks, and networks of bounded Lipschitz constant."""
