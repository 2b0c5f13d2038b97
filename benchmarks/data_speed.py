"""A million rows looked at: seconds and memory of `truing check FILE`.

    python -m benchmarks.data_speed [--rows 1000000] [--folder FOLDER]

Writes a file of made-up pairs (a prompt of about 30 words, two answers of about 70), with 1% of repeats, and checks it in a process
of its own. Prints rows, bytes, seconds (wall and processor) and peak memory, and writes benchmarks/results/data_speed.json.
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
VOCABULARY = 20_000


def write(path: Path, rows: int) -> None:
    """The file, the same for the same number of rows."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfw"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(VOCABULARY)]
    common = ["the", "of", "and", "to", "in", "is", "that", "it", "for", "with"]
    pool = words + common * 2000
    with path.open("w") as stream:
        kept = ""
        for row in range(rows):
            if row % 100 or not kept:
                texts = [" ".join(draw.choices(pool, k=draw.randint(*span))) for span in ((10, 50), (40, 100), (40, 100))]
                kept = json.dumps({"prompt": texts[0] + "?", "chosen": texts[1] + ".", "rejected": texts[2] + "."})
            stream.write(kept + "\n")


def main() -> None:
    """Writes, checks, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/data_speed"))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    path, found = asked.folder / f"{asked.rows}.jsonl", asked.folder / "found.json"
    if not path.is_file():
        write(path, asked.rows)
    began = time.monotonic()
    argv = [sys.executable, "-m", "truing.cli", "check", str(path), f"json={found}"]
    _, status, usage = os.wait4(os.posix_spawn(sys.executable, argv, os.environ), 0)
    result = {
        "command": f"truing check {path.name}",
        "rows": asked.rows,
        "gigabytes": round(path.stat().st_size / 1e9, 2),
        "seconds": round(time.monotonic() - began),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime),
        "peak_gb": round(usage.ru_maxrss / 1e6, 2),
        "load": round(os.getloadavg()[0], 1),
        "duplicates": next(len(f["rows"]) for f in json.loads(found.read_bytes())["findings"] if f["name"] == "duplicates"),
    }
    if status:
        raise SystemExit(f"truing check ended with status {os.waitstatus_to_exitcode(status)}")
    print(json.dumps(result, indent=1))
    (RESULTS / "data_speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
