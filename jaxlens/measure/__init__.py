"""Measurements of kernels and transformer steps: time, energy and what disturbed them.

Needs the extra `measure` (torch, nvidia-ml-py) where something is run; importing the package
loads neither.
"""
