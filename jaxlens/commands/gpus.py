"""Lines that lock the clock and limit the power of GPUs.

Source: nvidia-smi manual, 2024, https://docs.nvidia.com/deploy/nvidia-smi; ROCm SMI CLI
manual, 2024, https://rocm.docs.amd.com/projects/rocm_smi_lib.
"""

import math

from jaxlens.deployments import Deployment
from jaxlens.hardware import Chip


def gpu_commands(vendor: str, chip: Chip, deployment: Deployment) -> list[str]:
    """Returns the lines that set clock and power limit, none for what is the default.

    They are for the GPUs of one node, numbered from 0, and need administrator rights.
    """
    gpus = math.prod(
        float(degree)
        for degree in (
            deployment.tensor_parallel,
            deployment.pipeline_parallel,
            deployment.data_parallel,
        )
    )
    numbers = [str(n) for n in range(round(min(gpus, float(chip.node_gpus))))]
    clock, cap = float(deployment.clock_hz), float(deployment.power_cap_watts)
    lines = []
    if clock < float(chip.max_hz):
        megahertz = round(clock / 1e6)
        lines.append(
            f"sudo rocm-smi -d {' '.join(numbers)} --setperfdeterminism {megahertz}"
            if vendor == "AMD"
            else f"sudo nvidia-smi -i {','.join(numbers)} -lgc {megahertz},{megahertz}"
        )
    if cap < float(chip.tdp_watts):
        watts = math.floor(cap)
        lines.append(
            f"sudo rocm-smi -d {' '.join(numbers)} --setpoweroverdrive {watts}"
            if vendor == "AMD"
            else f"sudo nvidia-smi -i {','.join(numbers)} -pl {watts}"
        )
    return lines


def reset_commands(vendor: str, chip: Chip, deployment: Deployment) -> list[str]:
    """Returns the lines that undo `gpu_commands`."""
    undone = []
    for line in gpu_commands(vendor, chip, deployment):
        if vendor == "AMD":
            head, _, _ = line.partition(" --")
            clocks = "--setperfdeterminism" in line
            option = "--resetperfdeterminism" if clocks else "--resetpoweroverdrive"
            undone.append(f"{head} {option}")
        elif " -lgc " in line:
            undone.append(f"{line.partition(' -lgc ')[0]} -rgc")
        else:
            watts = math.floor(float(chip.tdp_watts))
            undone.append(f"{line.partition(' -pl ')[0]} -pl {watts}")
    return undone
