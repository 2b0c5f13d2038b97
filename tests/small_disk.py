"""What `test_wrong_use.py` runs where it may mount disks of its own: commands on a disk that is too small, or read-only."""

import json
import subprocess
import sys
from pathlib import Path

from truing import cli
from truing.runs.durable import inspect_folder
from truing.runs.read import read_status, step_folders


def command(argv: list[str]) -> int:
    sys.argv = ["truing", *argv]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def mount(disk: str, options: str) -> None:
    Path(disk).mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)


def full(report: str, disk: str, size: str, *argv: str) -> None:
    """The command on a disk of so many bytes: what it left there, all of it whole; then on the same disk made large enough."""
    mount(disk, f"size={size}")
    run = Path(disk) / "run"
    found: dict[str, object] = {"code": command([*argv, f"run={run}"])}
    if (run / "config.json").is_file():
        found["state"] = read_status(run).state
    for _, path in step_folders(run / "checkpoints"):
        inspect_folder(path)
    if (run / "model").exists():
        inspect_folder(run / "model")
    sys.stderr.write("now there is room\n")
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    found["again"] = command([*argv, f"run={run}"])
    found["left over"] = [path.name for path in run.rglob(".tmp-*")]
    logs = {name: (run / name).read_text() for name in ("metrics.jsonl", "result.json")}
    subprocess.run(["umount", disk], check=True)
    Path(report).write_text(json.dumps({**found, **logs}))


def read_only(report: str, disk: str, *argv: str) -> None:
    mount(disk, "ro")
    code = command([*argv, f"run={disk}/run"])
    subprocess.run(["umount", disk], check=True)
    Path(report).write_text(json.dumps({"code": code}))
