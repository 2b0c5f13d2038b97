"""Online DPO against offline DPO in the laboratory: the same start and labels of the same noisy gold.

    python -m benchmarks.laboratory_rounds [--model ../shared/models/stories260k] [--seeds 0 1 2 3 4 5] [--out runs/laboratory]

As many pairs are asked of all. Offline has all labels on answers of the start; in stages, it learns from them in as many parts as
online has rounds, each part from the model before and with it for its reference, so that what is left between the two is whose
answers were labelled. Equal answers get no label, and online's grow alike, so it ends with fewer; `ALIKE` is offline with as few.
Gold is measured on beginnings of stories that nobody was trained on. The same command continues. Prints a Markdown table; writes
benchmarks/results/laboratory_rounds.json.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.laboratory import RESULTS, Laboratory
from benchmarks.laboratory_curves import cell, root
from benchmarks.laboratory_gold import gold, prompts, unseen
from benchmarks.laboratory_model import write_rows
from benchmarks.machine import machine
from truing.data.chat import ChatTokenizer
from truing.judges.ordering import Answered, Ordered
from truing.models.load import load_tokenizer
from truing.recipes.fit import load_policy, model_path
from truing.recipes.held_out_gain import HELD_OUT, HeldOut, Measured
from truing.rollouts.sampler import Decoding
from truing.statistics import mean_and_deviation

ROUNDS = 4
REPEATED = 4
"""How often each of the 64 prompts is asked in a round; each time two answers make a pair."""
LEARNT = ("batch_size=32", "optimizer.schedule=constant", "optimizer.warmup=0.0", "optimizer.lr=3e-4", "loss.beta=0.1", "epochs=2")
ALIKE = "offline, as many labels as online"
WAYS = ("offline", ALIKE, "offline in stages", "online")
DRAWN = 16
"""Answers to each of the 16 unseen beginnings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one way came to on one seed."""

    way: str
    seed: int
    labels: int
    gold: float
    kl: float


def compared(lab: Laboratory, start: Path) -> list[Found]:
    """All ways and seeds."""
    found: list[Found] = []
    for seed in lab.seeds:
        found.append(_measured(lab, start, start, "start", seed, 0))
        single = _rounds(lab, start, seed, "offline", rounds=1, repeated=ROUNDS * REPEATED)
        several = _rounds(lab, start, seed, "online", rounds=ROUNDS, repeated=REPEATED)
        pairs = _labelled(single, 1)
        few = len(_labelled(several, ROUNDS))
        for way, folder, labels in (
            ("offline", single, len(pairs)),
            (ALIKE, _trained(lab, start, f"offline-alike-{seed}", pairs[:few], seed), min(few, len(pairs))),
            ("offline in stages", _stages(lab, start, seed, pairs), len(pairs)),
            ("online", several, few),
        ):
            found.append(_measured(lab, start, folder, way, seed, labels))
    return found


def _labelled(folder: Path, rounds: int) -> list[dict[str, str]]:
    """All pairs that the rounds of a run got labels for, without their provenance."""
    files = [folder / f"round-{number}" / "pairs.jsonl" for number in range(1, rounds + 1)]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]


def _rounds(lab: Laboratory, start: Path, seed: int, name: str, *, rounds: int, repeated: int) -> Path:
    """`truing train online`; with one round all labels are on answers of the start."""
    rows = [
        {"prompt": prompt.messages[0].content, "seed": str(seed), "time": str(time)}
        for time in range(repeated)
        for prompt in prompts(seed)
    ]
    path = write_rows(lab.out / f"{name}-prompts-{seed}.jsonl", rows)
    rule = Path(__file__).parent / "laboratory_gold.py"
    return lab.train(
        "online",
        lab.out / f"{name}-{seed}",
        *("dtype=fp32", "micro_tokens=8192", "save_every=0", "data.template=plain", "data.held_out_share=0", f"seed={seed}"),
        *(f"data.path={path}", f"model={start}", "answers.max_tokens=48", "samples=2", "earlier_share=0", "patience=null"),
        *("by=reward", "by.parts.label=python", f"by.parts.label.file={rule}", "by.parts.label.function=noisy_rule"),
        *(f"rounds={rounds}", *LEARNT),
    )


def _stages(lab: Laboratory, start: Path, seed: int, pairs: Sequence[dict[str, str]]) -> Path:
    """DPO on one part of the offline pairs after the other."""
    model = start
    for stage in range(ROUNDS):
        model = _trained(lab, model, f"offline-stage-{seed}-{stage}", pairs[stage::ROUNDS], seed)
    return model


def _trained(lab: Laboratory, model: Path, name: str, pairs: Sequence[dict[str, str]], seed: int) -> Path:
    """DPO on these pairs."""
    path = write_rows(lab.out / f"{name}.jsonl", list(pairs))
    settings = ("dtype=fp32", "micro_tokens=8192", "save_every=0", "evaluate_every=0", "data.template=plain", *LEARNT)
    own = (f"data.path={path}", f"model={model}", f"seed={seed}", "data.held_out_share=0")
    return lab.train("dpo", lab.out / name, *settings, *own)


def _measured(lab: Laboratory, start: Path, folder: Path, way: str, seed: int, labels: int) -> Found:
    """The gold of answers to unseen beginnings, with the same draws for all models, and their KL from the start."""
    there = lab.out / f"worth-{way.replace(',', '').replace(' ', '-')}-{seed}"
    if not (there / HELD_OUT).is_file():
        there.mkdir(exist_ok=True)
        chat = ChatTokenizer.of(load_tokenizer(model_path(start)), template="plain")
        measure = HeldOut(
            prompts=[prompt for prompt in unseen(seed) for _ in range(DRAWN)],
            chat=chat,
            decoding=Decoding(max_tokens=48, temperature=1.0),
            values="none",
            budget=8192,
            seed=seed + 5000,
        )
        policy, begun = (load_policy(model_path(place), torch.float32)[0] for place in (folder, start))
        measure.measure(there, policy, begun, _nobody)
    measured = Measured.read(there / HELD_OUT)
    worth = mean_and_deviation([gold(text) for text in measured.answers])[0]
    return Found(way=way, seed=seed, labels=labels, gold=worth, kl=mean_and_deviation(measured.kl)[0])


def _nobody(items: Sequence[Answered]) -> list[Ordered]:
    raise AssertionError("gold is computed from the answers, and nothing is ordered")


def _table(found: Sequence[Found]) -> str:
    of = {way: [one for one in found if one.way == way] for way in ("start", *WAYS)}
    heads = ("way", "labels", "gold", "more than the start", "more than offline", f"more than {ALIKE}", "sqrt(KL) from the start")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for way, rows in of.items():
        labels = ", ".join(str(row.labels) for row in rows)
        over = [
            "" if way in without else cell([a.gold - b.gold for a, b in zip(rows, of[other], strict=True)])
            for other, without in (("start", ("start",)), ("offline", ("start", "offline")), (ALIKE, ("start", *WAYS[:-1])))
        ]
        worth, far = cell([row.gold for row in rows]), cell([root(row.kl) for row in rows])
        lines.append(f"| {way} | {labels} | {worth} | {' | '.join(over)} | {far} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("../shared/models/stories260k"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(6)))
    parser.add_argument("--out", type=Path, default=Path("runs/laboratory"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    began, about = time.process_time(), machine("cpu")
    lab = Laboratory(out=args.out, model=args.model, seeds=tuple(args.seeds), rounds=0, methods=(), settings=())
    found = compared(lab, lab.start())
    result = {
        "machine": about,
        "seeds": args.seeds,
        "cpu_seconds_of_this_command": round(time.process_time() - began, 1),
        "ways": [asdict(one) for one in found],
    }
    (RESULTS / "laboratory_rounds.json").write_text(json.dumps(result, indent=1) + "\n")
    print(_table(found))


if __name__ == "__main__":
    main()
