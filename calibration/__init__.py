"""Fits the coefficients of chips and serving stacks to measurements."""
