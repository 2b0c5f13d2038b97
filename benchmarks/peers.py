"""Environments of the peers, each made once, on demand, under .venv-peers; none of them is ever a dependency of the project."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-peers"
PEERS: dict[str, tuple[str, ...]] = {
    "trl": ("trl==1.16.0", "peft>=0.18"),
    "trl_ppo": ("trl==1.12.0", "peft>=0.18"),
    "soup": ("soup-cli==0.77.0", "trl==0.29.1", "peft>=0.20", "datasets", "accelerate", "transformers>=5.16"),
    "lm_eval": ("lm-eval==0.4.13", "transformers>=5.3", "accelerate>=1", "immutabledict", "langdetect"),
    "plots": ("matplotlib>=3.9",),
}
"""Environment -> what is installed in it. All but `plots` get the project's own version of torch first."""


def python(name: str) -> str:
    """The interpreter of an environment, which is made first if need be."""
    home = FOLDER / name
    interpreter = home / "bin" / "python"
    wanted = "\n".join(PEERS[name])
    stamp = home / "installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(interpreter)
    sys.stderr.write(f"making {home}: {', '.join(PEERS[name])}\n")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    if name != "plots":
        subprocess.run([str(interpreter), str(ROOT / "tools" / "install.py"), "--torch-only"], check=True)
    subprocess.run([str(interpreter), "-m", "pip", "--disable-pip-version-check", "install", "-q", *PEERS[name]], check=True)
    stamp.write_text(wanted)
    return str(interpreter)


def environment() -> Mapping[str, str]:
    """Variables of a peer's process: without this project's paths, without network, without telemetry."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return kept | quiet
