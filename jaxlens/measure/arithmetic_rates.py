"""How much NVIDIA's SMs compute in a clock, by compute capability.

FLOPs per clock and SM, dense, a fused multiply-add as two. Tensor rates are those with fp32
accumulation. GeForce parts have the silicon of the workstation parts and half of their rate
with fp32 accumulation, except in fp4.

Source: NVIDIA, CUDA C++ Programming Guide, "Arithmetic Instructions", 2025,
https://docs.nvidia.com/cuda/cuda-c-programming-guide/; tensor rates from the whitepapers that
each entry names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one SM does in a clock, and what else the architecture fixes."""

    architecture: str
    formats: tuple[str, ...]  # of bf16, fp8, fp4: units that there are
    fp32: float
    tf32: float  # the fp32 rate where there is no such unit
    bf16: float  # fp16 where there is no bf16 unit
    fp8: float  # the bf16 rate where there is no such unit
    fp4: float
    # Share of the highest SM clock at which the datasheet's tensor peaks hold.
    peak_share: float = 1.0
    link_bytes_per_s: float = 25e9  # one NVLink, one direction
    halved: bool = False  # in GeForce parts, with fp32 accumulation
    relatives: tuple[str, ...]  # catalogue chips to scale priors from
    source: str


HOPPER_SHARE = 1830.0 / 1980.0  # H100 SXM: 989 TFLOP/s of bf16 at 1830 MHz
BLACKWELL_SHARE = 1855.0 / 1965.0  # B200: 2.25 PFLOP/s of bf16 at 1855 MHz
ULTRA_SHARE = 1855.0 / 2032.0  # B300: the same peak under a higher top clock

RATES: Mapping[Capability, Rates] = MappingProxyType(
    {
        (7, 0): Rates(
            architecture="Volta",
            formats=(),
            fp32=128.0,
            tf32=128.0,
            bf16=1024.0,
            fp8=1024.0,
            fp4=1024.0,
            relatives=("v100-sxm-32gb",),
            source="NVIDIA, Tesla V100 GPU Architecture whitepaper, 2017",
        ),
        (7, 5): Rates(
            architecture="Turing",
            formats=(),
            fp32=128.0,
            tf32=128.0,
            bf16=1024.0,
            fp8=1024.0,
            fp4=1024.0,
            halved=True,
            relatives=("v100-sxm-32gb", "a10"),
            source="NVIDIA, Turing GPU Architecture whitepaper, 2018",
        ),
        (8, 0): Rates(
            architecture="Ampere",
            formats=("bf16",),
            fp32=128.0,
            tf32=1024.0,
            bf16=2048.0,
            fp8=2048.0,
            fp4=2048.0,
            relatives=("a100-pcie-40gb", "a100-sxm-40gb", "a100-sxm-80gb"),
            source="NVIDIA, A100 Tensor Core GPU Architecture whitepaper, 2020",
        ),
        (8, 6): Rates(
            architecture="Ampere",
            formats=("bf16",),
            fp32=256.0,
            tf32=512.0,
            bf16=1024.0,
            fp8=1024.0,
            fp4=1024.0,
            link_bytes_per_s=14.0625e9,
            halved=True,
            relatives=("a10",),
            source="NVIDIA, Ampere GA102 GPU Architecture whitepaper, 2021",
        ),
        (8, 9): Rates(
            architecture="Ada Lovelace",
            formats=("bf16", "fp8"),
            fp32=256.0,
            tf32=512.0,
            bf16=1024.0,
            fp8=2048.0,
            fp4=1024.0,
            halved=True,
            relatives=("l40s", "rtx-4090"),
            source="NVIDIA, Ada GPU Architecture whitepaper, 2022",
        ),
        (9, 0): Rates(
            architecture="Hopper",
            formats=("bf16", "fp8"),
            fp32=256.0,
            tf32=2048.0,
            bf16=4096.0,
            fp8=8192.0,
            fp4=4096.0,
            peak_share=HOPPER_SHARE,
            relatives=("h100-sxm", "h100-pcie", "h100-nvl", "h200-sxm"),
            source="NVIDIA, H100 Tensor Core GPU Architecture whitepaper, 2022",
        ),
        (10, 0): Rates(
            architecture="Blackwell",
            formats=("bf16", "fp8", "fp4"),
            fp32=256.0,
            tf32=4096.0,
            bf16=8192.0,
            fp8=16384.0,
            fp4=32768.0,
            peak_share=BLACKWELL_SHARE,
            link_bytes_per_s=50e9,
            relatives=("b200-sxm", "gb200"),
            source="NVIDIA, Blackwell datasheet, 2024, over SMs and clock",
        ),
        (10, 3): Rates(
            architecture="Blackwell Ultra",
            formats=("bf16", "fp8", "fp4"),
            fp32=256.0,
            tf32=4096.0,
            bf16=8192.0,
            fp8=16384.0,
            fp4=49152.0,
            peak_share=ULTRA_SHARE,
            link_bytes_per_s=50e9,
            relatives=("b300-sxm", "gb300"),
            source="NVIDIA, Blackwell Ultra datasheet, 2025, over SMs and clock",
        ),
        (12, 0): Rates(
            architecture="Blackwell",
            formats=("bf16", "fp8", "fp4"),
            fp32=256.0,
            tf32=512.0,
            bf16=1024.0,
            fp8=2048.0,
            fp4=4096.0,
            halved=True,
            relatives=("rtx-pro-6000",),
            source="NVIDIA, RTX Blackwell GPU Architecture whitepaper, 2025",
        ),
    }
)


def rates(capability: Capability) -> Rates:
    """Returns the entry of `capability`, else of the nearest one below it.

    >>> rates((12, 1)).architecture, rates((9, 0)).bf16
    ('Blackwell', 4096.0)
    """
    known = [entry for entry in RATES if entry <= capability]
    if not known:
        low, high = min(RATES), max(RATES)
        raise ValueError(
            f"GPU: expected compute capability {low[0]}.{low[1]} or later (known to "
            f"{high[0]}.{high[1]}), got {capability[0]}.{capability[1]}; write a chip "
            "file by hand."
        )
    return RATES[max(known)]


def accumulation_share(name: str, entry: Rates) -> float:
    """Returns the share of tensor rates that the part called `name` has with fp32 sums.

    Source: NVIDIA, Ada GPU Architecture whitepaper, 2022, appendix A: GeForce RTX 4090, 165.2
    TFLOP/s with fp32 accumulation and 330.3 with fp16; RTX 6000 Ada the same for both.
    """
    return 0.5 if entry.halved and "geforce" in name.casefold() else 1.0
