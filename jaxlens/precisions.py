"""Number formats: bytes an element takes, and the arithmetic unit that multiplies it."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxtyping import Array, Float

from jaxlens.pytrees import pytree

Scalar = Float[Array, ""] | float

# Bytes per element with scales: MXFP4 stores one 8-bit scale per 32 elements, NVFP4 one
# per 16 (OCP Microscaling Formats v1.0, 2023; NVIDIA NVFP4 note, 2025); INT4 one 16-bit
# scale per 128 (the usual AWQ / GPTQ group).
FORMATS: Mapping[str, float] = MappingProxyType(
    {
        "fp32": 4.0,
        "tf32": 4.0,
        "bf16": 2.0,
        "fp16": 2.0,
        "fp8": 1.0,
        "int8": 1.0,
        "mxfp4": 4.25 / 8.0,
        "nvfp4": 4.5 / 8.0,
        "int4": 4.125 / 8.0,
    }
)

# The matrix unit that multiplies a format where the chip has one. INT8 and INT4 in today's
# serving engines are weight-only: they are expanded to bf16 before they are multiplied.
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "fp32": "fp32",
        "tf32": "tf32",
        "bf16": "bf16",
        "fp16": "bf16",
        "fp8": "fp8",
        "int8": "bf16",
        "mxfp4": "fp4",
        "nvfp4": "fp4",
        "int4": "bf16",
    }
)


@pytree
class Precision:
    """A mix of number formats: mean bytes per element and share of work per unit.

    The shares add up to one; a real-valued mix is how a search trades precision.
    """

    bytes_per_element: Scalar
    fp32_share: Scalar = 0.0
    tf32_share: Scalar = 0.0
    bf16_share: Scalar = 0.0
    fp8_share: Scalar = 0.0
    fp4_share: Scalar = 0.0


def precision(name: str, *, where: str = "precision") -> Precision:
    """Returns the format called `name` as a mix of one."""
    if name not in FORMATS:
        raise ValueError(
            f"{where}: expected one of {', '.join(FORMATS)}, got {name!r}."
        )
    return Precision(bytes_per_element=FORMATS[name], **{f"{UNITS[name]}_share": 1.0})
