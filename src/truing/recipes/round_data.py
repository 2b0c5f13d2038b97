"""What one online round learns from: its prompts, the live policy's answers, their order, the records, what earlier rounds lend.

Each step leaves one file that appears whole, so a killed round goes on behind the last one, and all of them stay. What is drawn
depends on seed and round alone. Left out: training (`truing.recipes.online`) and what makes orders (`truing.recipes.writers`).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truing.constitution.conflicts import conflict_report
from truing.data.read import read
from truing.data.write import USUAL, write
from truing.judges.bias import biases, lines
from truing.judges.labels import Labelling, records_of
from truing.judges.ordering import Answer, Answered, Dropped, Ordered
from truing.randomness import counted_seed
from truing.recipes.label_report import decisions_of, judged_of
from truing.recipes.labelling import now
from truing.records import Demonstration, Preference, Prompt, Record
from truing.rollouts.writer import Writer
from truing.runs.canonical import to_json
from truing.runs.durable import write_file
from truing.runs.sinks import printable

ANSWERS, DROPPED, ACCOUNT, DATA = "answers.json", "dropped.json", "account.json", "data.jsonl"
LABELLED, JUDGE = "labelled.json", "judge.txt"
"""When the labels were made, which no row says, so that the same command ends at the same bytes; what the judge is biased by."""
PAIRS, BEST = "pairs.jsonl", "best.jsonl"
KINDS: Mapping[str, type[Record]] = {PAIRS: Preference, BEST: Demonstration}
"""File of labels -> what its records are."""
SHOWN = "shown"
"""The tag under which a prompt keeps the answer that its row shows."""
IN_LOG = ("position", "flips", "length")
"""Biases of a judge that each round's line of the log has."""

Order = Callable[[Sequence[Answered]], list[Ordered]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The answer that a row shows is better than the policy's own (self-play, SPIN; Chen et al. 2024, arXiv 2401.01335)."""


def against_shown(items: Sequence[Answered]) -> list[Ordered]:
    """The first answer, which is the shown one, above all others."""
    return [
        Ordered(
            answered=item,
            scores=tuple(float(place == 0) for place in range(len(item.answers))),
            by="the data",
            identity="",
        )
        for item in items
    ]


def asked_in(round: int, *, prompts: int, wanted: int | None, seed: int) -> list[int]:
    """Places of the prompts of a round, counted from 1: shuffled passes, so that each is asked before one is asked again."""
    count = min(wanted or prompts, prompts)
    places = range((round - 1) * count, round * count)
    return list(dict.fromkeys(int(_shuffled(prompts, seed, place // prompts)[place % prompts]) for place in places))


def _shuffled(count: int, seed: int, turn: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(counted_seed(seed, "prompts of a round", turn))).permutation(count)


@dataclass(frozen=True, kw_only=True)
class RoundData:
    """The files of one round. Example: `RoundData(folder=run / "round-1", round=1, prompts=prompts, samples=4, seed=0)`."""

    folder: Path
    round: int
    prompts: Sequence[Prompt]
    """Those that are asked in this round."""
    samples: int
    seed: int

    def answers(self, writer: Callable[[], Writer], *, shown: bool) -> list[Answered]:
        """The live policy's answers that can be compared; the writer is made where they are not there yet.

        `shown` puts each row's own answer before them.
        """
        path = self.folder / ANSWERS
        if not path.is_file():
            by = writer()
            said = by(self.prompts, samples=self.samples, seed=counted_seed(self.seed, "answers of a round", self.round))
            rows = [
                {"prompt": [asdict(turn) for turn in prompt.messages], "answers": [asdict(one) for one in group]}
                for prompt, group in zip(self.prompts, said, strict=True)
            ]
            write_file(path, to_json({"writer": by.name, "identity": by.identity, "rows": rows}, indent=1))
        kept: dict[str, Any] = json.loads(path.read_bytes())
        dropped, items = Dropped(), []
        for prompt, row in zip(self.prompts, kept["rows"], strict=True):
            own = [
                Answer(text=one["text"], finished=one["stop"] == "end", writer=kept["writer"], identity=kept["identity"])
                for one in row["answers"]
            ]
            first = [Answer(text=prompt.tags[SHOWN], writer="the data")] if shown else []
            item, left_out = Answered.of(prompt, [*first, *own])
            items.append(item)
            dropped += left_out
        write_file(self.folder / DROPPED, to_json({**asdict(dropped), "answers": len(self.prompts) * self.samples}, indent=1))
        return items

    def labels(self, items: Sequence[Answered], order: Order, forms: Mapping[str, Labelling]) -> dict[str, float]:
        """Orders the answers once and writes the records of each form into the file of that name; what became of them.

        Raises ValueError where no record came out.
        """
        path = self.folder / ACCOUNT
        if not path.is_file():
            ordered = order(items)
            write_file(self.folder / LABELLED, to_json({"labelled_at": now(), "by": ordered[0].by if ordered else ""}, indent=1))
            account: dict[str, float] = {"prompts": len(items), "answers": sum(len(item.answers) for item in items)}
            for name, labelling in forms.items():
                labelled = [records_of(one, labelling) for one in ordered]
                records = [record for one in labelled for record in one.records]
                if not records:
                    raise ValueError(self._nothing(items, ordered))
                account |= {"ties": sum(one.ties for one in labelled), "labels": len(records)}
                write(self.folder / name, records, USUAL[KINDS[name]])
            account |= {"missing": sum(one.missing for one in ordered), **self._judge(ordered)}
            write_file(path, to_json(account, indent=1))
        return {name: float(value) for name, value in json.loads(path.read_bytes()).items()}

    def _judge(self, ordered: Sequence[Ordered]) -> dict[str, float]:
        """What is measured of a judge on this round's answers: its file for people, the figures alone for the log."""
        judged, prompts = judged_of(ordered)
        if not judged:
            return {}
        figures, decisions = biases(judged, clusters=prompts, seed=self.seed), decisions_of(ordered)
        told = "\n".join(lines(figures)) + "\n" + (f"\n{conflict_report(decisions)}" if decisions else "")
        write_file(self.folder / JUDGE, printable(told).encode())
        found = {f"judge_{figure.name}": figure.value.value for figure in figures if figure.name in IN_LOG}
        torn = sum(bool(one.conflicts) for one in decisions)
        return found | ({"conflicts": float(torn)} if decisions else {})

    def _nothing(self, items: Sequence[Answered], ordered: Sequence[Ordered]) -> str:
        problems = "; ".join(dict.fromkeys(problem for one in ordered for problem in one.problems))
        return (
            f"{self.folder}: round {self.round} has nothing to learn from: {sum(len(item.answers) for item in items)} answers"
            f" could be compared ({self.folder / DROPPED} counts the others), and all tie or have no score"
            f"{f' ({problems})' if problems else ''}; let answers.max_tokens be larger, or take more samples"
        )

    def mixed(self, name: str, earlier: Sequence[Path], share: float) -> tuple[Path, int]:
        """The round's records with some of earlier rounds', which are then `share` of all or as many as there are; their number."""
        path, kind = self.folder / DATA, KINDS[name]
        fresh = read(self.folder / name, kind=kind).records
        old = [record for folder in earlier for record in read(folder / name, kind=kind).records] if share else []
        count = min(len(old), math.floor(share / (1 - share) * len(fresh) + 0.5))
        if not path.is_file():
            generator = np.random.Generator(np.random.PCG64(counted_seed(self.seed, "earlier rounds", self.round)))
            places = sorted(generator.permutation(len(old))[:count].tolist())
            write(path, [*fresh, *(old[place] for place in places)], USUAL[kind])
        return path, count
