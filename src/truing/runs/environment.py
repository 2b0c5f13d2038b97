"""What a run's last bits may depend on beside its own settings: versions, processor, threads, ranks."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import truing

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "numpy")
CPU_FLAGS = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")


def environment(seed: object) -> dict[str, object]:
    """As it is written down with each run."""
    versions = {"python": platform.python_version(), "truing": truing.__version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_flags": " ".join(_cpu_flags()),
        "threads": os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count()),
        "ranks": os.environ.get("WORLD_SIZE", "1"),
        "seed": seed,
    }


def _cpu_flags() -> list[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                present = set(line.partition(":")[2].split())
                return [flag for flag in CPU_FLAGS if flag in present]
    return []
