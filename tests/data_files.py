"""Small data files of every type, for the tests of reading."""

import csv
import gzip
import io
import json
from pathlib import Path

import polars

Row = dict[str, object]
ROWS: list[Row] = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": f"No {i}."} for i in range(1, 6)]
TURNS: list[Row] = [
    {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Yes"}], "note": str(i)}
    for i in range(1, 6)
]
LABELS: list[Row] = [{"prompt": f"Hi {i}", "completion": "Yes", "label": i % 2} for i in range(1, 6)]
FAULTY = 3
"""Which row, counted from 1, the faults go into."""

FLAT = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl.gz", "json.gz", "csv.gz")
NESTED = ("jsonl", "json", "parquet", "arrow", "jsonl.gz")
TEXT = ("jsonl", "json", "csv", "tsv", "jsonl.gz", "json.gz", "csv.gz")
LOOSE = ("jsonl", "json", "jsonl.gz", "json.gz")


def written(path: Path, rows: list[Row]) -> Path:
    """The rows as a file of the type that the name tells."""
    name = path.name.removesuffix(".gz")
    data = b""
    if name.endswith(".jsonl"):
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif name.endswith(".json"):
        data = json.dumps(rows, indent=1).encode()
    elif name.endswith((".csv", ".tsv")):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    elif name.endswith(".parquet"):
        polars.DataFrame(rows).write_parquet(path)
        return path
    else:
        polars.DataFrame(rows).write_ipc(path)
        return path
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def line_of(row: int, extension: str) -> int:
    """The line that a row counted from 1 is reported at."""
    return row + 1 if extension.startswith(("csv", "tsv")) else row
