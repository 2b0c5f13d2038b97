"""Install the package into the environment that runs this file, without gigabytes of CUDA libraries on a machine that has no GPU.

    python tools/install.py [--tests]

The package index's own Linux build of torch asks for CUDA packages. So without an NVIDIA driver pip is first asked, without
installing, what torch would bring; if that is CUDA, uv installs torch's CPU build instead.
"""

import json
import shutil
import subprocess
import sys

TORCH = "torch==2.13.0"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def brings_cuda() -> bool:
    """Whether pip would install CUDA packages for torch."""
    report = subprocess.run(
        [*PIP, "install", "--dry-run", "--report", "-", TORCH], check=True, capture_output=True, text=True
    ).stdout
    return any(item["metadata"]["name"].startswith(("nvidia-", "cuda-")) for item in json.loads(report)["install"])


def main() -> None:
    if shutil.which("nvidia-smi") is None and brings_cuda():
        run(*PIP, "install", "uv")
        run(sys.executable, "-m", "uv", "pip", "install", "-q", "--python", sys.executable, "--torch-backend", "cpu", TORCH)
    else:
        run(*PIP, "install", TORCH)
    run(*PIP, "install", "-e", ".[test]" if "--tests" in sys.argv[1:] else ".")


if __name__ == "__main__":
    main()
