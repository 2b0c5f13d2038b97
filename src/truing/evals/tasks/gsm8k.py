"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): grade-school sums, worked in words, judged by the final number.

Strict: the number behind `####`, as the data write it. Flexible: the last number of the answer. Both as in lm-eval 0.4.13; numbers
are compared as text without commas, dollar signs and a final full stop, so that 3.0 is not 3, as in the published labels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from truing.data.problems import DataError
from truing.evals.tasks.files import Files, Hub, Item
from truing.evals.tasks.task import Asked, Figures, Row, Said, Sampling, Unique
from truing.statistics import wilson

STRICT = re.compile(r"#### (-?[0-9.,]+)")
NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


@dataclass(frozen=True, kw_only=True)
class GSM8K:
    """Worked answers, extracted both ways; the strict one is the score."""

    shots: Annotated[int, Field(ge=0, le=16)] = 5
    """Worked examples before each question: the first so many of the training file."""
    max_tokens: Annotated[int, Field(gt=0)] = 256
    """Longest answer."""

    def sampling(self) -> Sampling:
        """Greedy, to the next question."""
        return Sampling(max_tokens=self.max_tokens, until=("Question:", "</s>", "<|im_end|>"), style="plain")

    def prompts(self, files: Files) -> list[Asked]:
        """From test.jsonl, with examples from train.jsonl."""
        hub = "openai/gsm8k"
        train = files.items("gsm8k/train.jsonl", "gsm8k/train-400.jsonl", hub=Hub(name=hub, config="main", split="train"))
        if len(train) < self.shots:
            raise DataError(f"{train[0].place}: {len(train)} examples, and shots={self.shots} needs as many")
        shots = "".join(f"{_asked(item)} {item.text('answer')}\n\n" for item in train[: self.shots])
        unique = Unique("gsm8k")
        found = []
        for item in files.items("gsm8k/test.jsonl", hub=Hub(name=hub, config="main", split="test")):
            gold = extract(item.text("answer"), "strict")
            if gold is None:
                raise DataError(f"{item.place}: the answer does not end in `#### NUMBER`")
            found.append(Asked(key=unique(item.text("question"), item.place), turns=(shots + _asked(item),), row={"gold": gold}))
        return found

    def judge(self, asked: Asked, said: Sequence[Said]) -> Row:
        """Both extractions against the label."""
        (answer,) = said[0].turns
        strict, flexible = extract(answer, "strict"), extract(answer, "flexible")
        gold = asked.row["gold"]
        return {
            "key": asked.key,
            "score": float(strict == gold),
            "flexible": float(flexible == gold),
            "gold": gold,
            "extracted": [strict, flexible],
            "answer": answer,
            "finished": said[0].finished,
        }

    def figures(self, rows: Sequence[Row], seed: int) -> Figures:
        """Exact match, and how many answers had a number behind `####` at all."""
        n = len(rows)
        return Figures(
            figures={
                "exact match, strict": wilson(sum(row["score"] for row in rows), n),
                "exact match, flexible": wilson(sum(row["flexible"] for row in rows), n),
                "answers with ####": wilson(sum(row["extracted"][0] is not None for row in rows), n),
            }
        )


def extract(text: str, how: Literal["strict", "flexible"]) -> str | None:
    """The number that an answer ends in; None where it has none. Example: `extract("so $5.\\n#### 1,200", "strict") == "1200"`."""
    found = STRICT.findall(text)[:1] if how == "strict" else NUMBER.findall(text)[-1:]
    return found[0].replace(",", "").replace("$", "").removesuffix(".") if found else None


def _asked(item: Item) -> str:
    return f"Question: {item.text('question')}\nAnswer:"
