"""Models: loading, anatomy, forward passes, decoding."""
