"""Directions: one unit vector per layer from the residuals of two prompt sets. Pure tensor code."""
