"""Room for gradient search over deployments; `jaxlens.exploring` compares grids."""
