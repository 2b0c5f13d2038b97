"""When two run folders are the same run: all their bytes, but for the clock, the process and the folder's own name."""

from pathlib import Path

CLOCKS = ("timing.jsonl", "labelled.json", "environment.json", "lock")


def files(folder: Path) -> dict[str, bytes]:
    """All that must be equal, by path."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if name not in CLOCKS}


def differences(run: Path, whole: Path) -> list[str]:
    """Files of one that the other lacks or has with other bytes."""
    mine, theirs = files(run), files(whole)
    own = {name: data.replace(str(run).encode(), str(whole).encode()) for name, data in mine.items()}
    return sorted(own.keys() ^ theirs.keys()) + [name for name in own.keys() & theirs.keys() if own[name] != theirs[name]]
