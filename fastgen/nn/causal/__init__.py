"""Causal and masked convolutions, and the recurrent layers of PixelRNN."""
