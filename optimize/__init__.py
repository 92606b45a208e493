"""Search by slopes under limits: optima of deployments, layouts, overlap and chips.

`optima.solve` answers a `problems.Problem`; `exploring` in the package compares grids.
"""
