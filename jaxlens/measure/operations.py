"""Which kernel each kind of case runs."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxlens.measure.cases import Case
from jaxlens.measure.devices import Device
from jaxlens.measure.kernels import Kernel
from jaxlens.measure.kernels_attention import attention_decode, attention_prefill
from jaxlens.measure.kernels_experts import experts
from jaxlens.measure.kernels_gemm import gemm
from jaxlens.measure.kernels_memory import copy, elementwise

KERNELS: Mapping[str, Callable[[Case, Device], Kernel]] = MappingProxyType(
    {
        "gemm": gemm,
        "attention_prefill": attention_prefill,
        "attention_decode": attention_decode,
        "moe": experts,
        "elementwise": elementwise,
        "copy": copy,
    }
)


def kernel(case: Case, device: Device) -> Kernel:
    """Returns the kernel of `case` on `device`."""
    return KERNELS[case.kind](case, device)
