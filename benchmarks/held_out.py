"""DPO and reward models on human and machine preferences, full and LoRA: held-out accuracy before and after.

    python -m benchmarks.held_out [--data ../shared/data] [--out runs/held_out] [NAME ...]

Each line is one `truing train` command, in a process of its own. Prints a Markdown table; writes benchmarks/results/held_out.json.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
HH = (
    "data.path={data}/hh_rlhf/harmless-base.jsonl.gz",
    "data.on_bad_row=skip",
    "data.rows=160",
    "data.held_out_share=0.06",
    "data.truncate=prompt",
    "batch_size=8",
)
RASBT = (
    "data.path={data}/rasbt_instruction/instruction-data-with-preference.json",
    "data.on_bad_row=skip",
    "data.rows=240",
    "batch_size=8",
)
LORA = ("lora.rank=16",)
RUNS: dict[str, tuple[str, ...]] = {
    "hh-dpo-full": ("dpo", *HH, "optimizer.lr=5e-6"),
    "hh-dpo-lora": ("dpo", *HH, *LORA, "optimizer.lr=2e-4"),
    "hh-reward-full": ("reward_model", *HH, "optimizer.lr=2e-5"),
    "hh-reward-lora": ("reward_model", *HH, *LORA, "optimizer.lr=3e-4"),
    "rasbt-dpo-full": ("dpo", *RASBT, "optimizer.lr=5e-6"),
    "rasbt-dpo-lora": ("dpo", *RASBT, *LORA, "optimizer.lr=5e-4"),
    "rasbt-reward-full": ("reward_model", *RASBT, "optimizer.lr=2e-5"),
    "rasbt-reward-lora": ("reward_model", *RASBT, *LORA, "optimizer.lr=3e-4"),
}


def one(name: str, data: Path, out: Path) -> dict[str, object]:
    settings = [part.format(data=data) for part in RUNS[name]]
    folder = out / name
    arguments = ["train", *settings, "evaluate_every=0", "save_every=0", f"run={folder}"]
    began = time.monotonic()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "truing.cli", *arguments], os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{name} ended with status {os.waitstatus_to_exitcode(status)}")
    result: dict[str, object] = json.loads((folder / "result.json").read_bytes())
    return {
        "name": name,
        "command": "truing " + " ".join(arguments),
        "seconds": round(time.monotonic() - began, 1),
        "peak_gb": round(usage.ru_maxrss / 1e6, 2),
        **result,
    }


def table(rows: list[dict[str, object]]) -> str:
    def rate(row: dict[str, object], key: str) -> str:
        e = row[key]
        assert isinstance(e, dict)
        return f"{100 * e['value']:.1f} [{100 * e['low']:.1f}, {100 * e['high']:.1f}]"

    lines = ["| run | pairs | held out | accuracy before | after | gain | seconds | peak GB |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        rates = " | ".join(rate(row, key) for key in ("accuracy_before", "accuracy_after", "accuracy_gain"))
        lines.append(f"| {row['name']} | {row['train']} | {row['held_out']} | {rates} | {row['seconds']} | {row['peak_gb']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/held_out"))
    args = parser.parse_args()
    rows = [one(name, args.data, args.out) for name in args.names or RUNS]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "held_out.json"
    known = {row["name"]: row for row in json.loads(path.read_text())} if path.is_file() else {}
    known.update({row["name"]: row for row in rows})
    ordered = [known[name] for name in RUNS if name in known]
    path.write_text(json.dumps(ordered, indent=2) + "\n")
    print(table(ordered))


if __name__ == "__main__":
    main()
