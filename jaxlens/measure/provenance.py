"""Where a row comes from: device, driver, libraries, modes and date."""

import datetime
import platform
import re
from dataclasses import asdict
from typing import Any

from jaxlens.measure.collectives import Ranks
from jaxlens.measure.devices import Device
from jaxlens.measure.nvml import Gpu
from jaxlens.profile_files import CHIPS, aliases, known_ids, normalised


def chip_id(name: str) -> str:
    """Returns the id of the chip that calls itself `name`: the catalogue's, else a slug.

    >>> chip_id("NVIDIA H200"), chip_id("cpu: some processor, 2 threads")
    ('h200-sxm', 'cpu-some-processor-2-threads')
    """
    plain = normalised(name)
    identifier = aliases(CHIPS).get(plain, plain)
    if identifier in known_ids(CHIPS):
        return identifier
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def provenance(device: Device, gpu: Gpu | None, which: Ranks) -> dict[str, Any]:
    """Returns the columns that all rows of a run share."""
    torch = device.torch
    version = str(torch.__version__).partition("+")[0]
    shared: dict[str, Any] = {
        "gpu": chip_id(device.name),
        "device_name": device.name,
        "backend": "torch",
        "version": version,
        "stack": f"torch-{version}",
        "ranks": which.count,
        "python": platform.python_version(),
        "host_processor": platform.machine(),
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(
            timespec="seconds"
        ),
    }
    if gpu is None:
        return shared
    modes = asdict(gpu.modes())
    return {
        **shared,
        "gpu_uuid": gpu.uuid,
        "driver": gpu.driver,
        "cuda": str(torch.version.cuda),
        "sms": device.sms,
        "power_cap_watts": modes["power_limit_watts"],
        "ecc": modes["ecc"],
        "mig": modes["mig"],
        "persistence": modes["persistence"],
    }
