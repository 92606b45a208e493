"""Few-coefficient formulas for kernels and collectives, fitted on measured op tables."""

from jaxlens.calibration.kernels.calibrating import fit_kernels
from jaxlens.calibration.kernels.fitting import Options
from jaxlens.calibration.kernels.kernel_fits import KernelFits, load_kernel_fits
from jaxlens.calibration.kernels.powers import trustworthy_power
from jaxlens.calibration.kernels.predicting import predict_table

__all__ = [
    "KernelFits",
    "Options",
    "fit_kernels",
    "load_kernel_fits",
    "predict_table",
    "trustworthy_power",
]
