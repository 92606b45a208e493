"""Few-coefficient formulas for kernels and collectives, fitted on measured op tables."""
