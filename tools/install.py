"""Install the package into the environment that runs this file, without gigabytes of CUDA libraries on a machine that has no GPU.

    python tools/install.py [--tests | --torch-only]

The package index's own Linux build of torch asks for CUDA packages. So on Linux without an NVIDIA driver the CPU build is
installed: by pip where its indexes offer that build, else by uv, which knows where to find it.
"""

import shutil
import subprocess
import sys

TORCH = "2.13.0"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def pip_offers(version: str) -> bool:
    """Whether pip's indexes have this build of torch. A dry run would tell too, but older pips download everything for it."""
    listing = subprocess.run([*PIP, "index", "versions", "torch"], check=True, capture_output=True, text=True).stdout
    return version in listing.replace(",", " ").split()


def main() -> None:
    if sys.platform != "linux" or shutil.which("nvidia-smi"):
        run(*PIP, "install", "-q", f"torch=={TORCH}")
    elif pip_offers(f"{TORCH}+cpu"):
        run(*PIP, "install", "-q", f"torch=={TORCH}+cpu")
    else:
        run(*PIP, "install", "-q", "uv")
        run(
            sys.executable,
            "-m",
            "uv",
            "pip",
            "install",
            "-q",
            "--python",
            sys.executable,
            "--torch-backend",
            "cpu",
            f"torch=={TORCH}",
        )
    if "--torch-only" not in sys.argv[1:]:
        run(*PIP, "install", "-q", "-e", ".[test]" if "--tests" in sys.argv[1:] else ".")


if __name__ == "__main__":
    main()
