"""The machine that a figure was measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, instruction sets that matter, versions, load at the start, date. Example: `machine("cpu")["cores"]`."""
    fields = _cpuinfo()
    flags = set(fields.get("flags", "").split())
    return {
        "device": device,
        "cpu": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}),
        "load": round(os.getloadavg()[0], 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor, where the system tells them."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text().split("\n\n")[0]
    return {name.strip(): value.strip() for name, _, value in (text.partition(":") for text in first.splitlines())}
