"""IFEval (Zhou et al. 2023, arXiv 2311.07911): instructions whose following a program can check, by prompt and by instruction.

Strict: the answer as it stands. Loose: any of eight readings of it, without its first line, its last line, and its asterisks. An
empty answer follows nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from truing.data.problems import DataError
from truing.evals.tasks.files import Files, Hub, Item
from truing.evals.tasks.ifeval_kinds import KINDS
from truing.evals.tasks.task import Asked, Figures, Row, Said, Sampling, Unique
from truing.statistics import bootstrap_mean, wilson

RELATIONS = ("less than", "at least")


@dataclass(frozen=True, kw_only=True)
class IFEval:
    """Strict and loose accuracy by prompt and by instruction; the score is strict by prompt."""

    max_tokens: Annotated[int, Field(gt=0)] = 1280
    """Longest answer."""

    def sampling(self) -> Sampling:
        """Greedy."""
        return Sampling(max_tokens=self.max_tokens)

    def prompts(self, files: Files) -> list[Asked]:
        """From input_data.jsonl."""
        unique = Unique("ifeval")
        found = []
        for item in files.items("ifeval/input_data.jsonl", hub=Hub(name="google/IFEval", split="train")):
            instructions = _instructions(item)
            key = unique(str(item.whole("key")), item.place)
            found.append(Asked(key=key, turns=(item.text("prompt"),), row={"instructions": instructions}))
        return found

    def judge(self, asked: Asked, said: Sequence[Said]) -> Row:
        """Whether each instruction was followed, strictly and loosely."""
        (answer,) = said[0].turns
        kinds = [kind for kind, _ in asked.row["instructions"]]
        strict, loose = follows(answer, asked.row["instructions"]), follows(answer, asked.row["instructions"], loose=True)
        return {
            "key": asked.key,
            "score": float(all(strict)),
            "kinds": kinds,
            "strict": strict,
            "loose": loose,
            "answer": answer,
            "finished": said[0].finished,
        }

    def figures(self, rows: Sequence[Row], seed: int) -> Figures:
        """By prompt, and by instruction with the prompts as clusters."""
        clusters = [row["key"] for row in rows for _ in row["kinds"]]
        n = len(rows)
        return Figures(
            figures={
                "prompts, strict": wilson(sum(all(row["strict"]) for row in rows), n),
                "prompts, loose": wilson(sum(all(row["loose"]) for row in rows), n),
                **{
                    f"instructions, {how}": bootstrap_mean(
                        [float(ok) for row in rows for ok in row[how]], clusters, seed=seed, bounds=(0.0, 1.0)
                    )
                    for how in ("strict", "loose")
                },
                "answers that end by themselves": wilson(sum(row["finished"] for row in rows), n),
            }
        )


def follows(answer: str, instructions: Sequence[tuple[str, Mapping[str, Any]]], *, loose: bool = False) -> list[bool]:
    """For each instruction (kind, arguments) whether the answer follows it, or any of its loose readings does."""
    readings = readings_of(answer) if loose else [answer]
    return [any(text.strip() and KINDS[kind].check(text, given) for text in readings) for kind, given in instructions]


def readings_of(answer: str) -> list[str]:
    """The answer, without first line, last line or both, each with and without asterisks."""
    lines = answer.split("\n")
    cut = [answer, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return [*cut, *(text.replace("*", "") for text in cut)]


def _instructions(item: Item) -> list[tuple[str, dict[str, Any]]]:
    """Kind and arguments of each; arguments that are null, as the hub's table has them, are none."""
    kinds, arguments = item.array("instruction_id_list"), item.array("kwargs")
    if len(kinds) != len(arguments):
        raise DataError(f"{item.place}: {len(kinds)} instructions and {len(arguments)} kwargs; each instruction has its own")
    found: list[tuple[str, dict[str, Any]]] = []
    for kind, given in zip(kinds, arguments, strict=True):
        if kind not in KINDS:
            raise DataError(f"{item.place}: the kind of instruction {kind!r} is not known; known are {', '.join(KINDS)}")
        plain = {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else {}
        for name in KINDS[kind].needs:
            value = plain.get(name)
            if value is None or value == []:
                raise DataError(f"{item.place}: {kind} lacks {name}")
            if name.endswith("relation") and value not in RELATIONS:
                raise DataError(f"{item.place}: {kind} has {name} {value!r}; it must be one of {', '.join(RELATIONS)}")
            plain[name] = int(value) if isinstance(value, float) and value.is_integer() else value
        found.append((kind, plain))
    return found
