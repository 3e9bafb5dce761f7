"""Directions: from residuals of two prompt sets to one unit vector per layer. Pure tensor code."""
