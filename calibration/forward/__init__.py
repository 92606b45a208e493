"""Fits chips and eager execution to measured forward passes."""
