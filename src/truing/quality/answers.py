"""Answers that do not end well: cut in the middle, running in circles, too long for training, or hardly there.

What is empty is no record: readers refuse it by row. Where a column says why the writer stopped (`finish_reason`, `stop_reason`; of
pairs `chosen_finish_reason` and so on), it is believed. All other rules look at the text alone and err on the quiet side: a short
answer without a full stop is an answer, and one that was cut after a full stop looks finished.
"""

import re

from truing.charts import Bars
from truing.quality.finding import Finding, Flagged, rate_finding
from truing.quality.sample import Sample
from truing.statistics import wilson

LONG_ENOUGH = 25
"""Words from which on an answer is expected to end like a sentence."""
CLAUSE_GOES_ON = re.compile(
    r"(?:[,;:\-–(\[]|\b(?:and|or|but|the|a|an|of|to|in|with|for|is|are|that|which|because|my|your))\s*$", re.I
)
LETTER_AT_END = re.compile(r"[^\W\d_]\s*$")
STOPS = ("finish_reason", "stop_reason")
LIMITS = ("length", "max_tokens", "max_new_tokens", "limit", "model_length")
"""What servers call it when a limit stopped them."""
LIST_OR_CODE = re.compile(r"^\s*(?:[-*•|#>]|\d+[.)]|```|\S+\s*[:=(]|https?:)|[{}<>|=;]")
SPOKEN_END = re.compile(r"[.!?。！？…]")
CHARACTERS_A_TOKEN = 4
DISTINCT = 0.25
"""Share of different runs of four words under which a text of 60 words or more runs in circles."""


class Endings:
    """Flags rows of which some answer is cut, runs in circles, or overruns `max_tokens` (at four characters a token)."""

    def __init__(self, max_tokens: int = 1024) -> None:
        self.max_tokens = max_tokens
        self.rows = 0
        self.cut, self.circling, self.long = Flagged(), Flagged(), Flagged()
        self.sides: dict[str, list[int]] = {}

    def see(self, sample: Sample) -> None:
        """Looks at the end of every answer."""
        if not sample.answers:
            return
        self.rows += 1
        for side, answer in zip(sample.sides, sample.answers, strict=True):
            count = self.sides.setdefault(side, [0, 0])
            count[1] += 1
            if stopped_by_limit(sample, side) or is_cut(answer):
                count[0] += 1
                self.cut.add(sample.origin, f"{side}: … {answer.rstrip()[-120:]}")
            if runs_in_circles(answer):
                self.circling.add(sample.origin, f"{side}: {answer}")
            tokens = (len(sample.prompt) + len(answer)) // CHARACTERS_A_TOKEN
            if tokens > self.max_tokens:
                self.long.add(sample.origin, f"{side}: about {tokens} tokens with its prompt")

    def findings(self) -> list[Finding]:
        """Three findings, for data with answers."""
        if not self.rows:
            return []
        shares = {side: wilson(cut, of) for side, (cut, of) in self.sides.items() if of}
        lines = [f"{side}: {100 * e.value:.1f}% [{100 * e.low:.1f}, {100 * e.high:.1f}]" for side, e in shares.items()]
        return [
            rate_finding(
                "truncated",
                self.cut,
                self.rows,
                said="rows with an answer that stops in the middle",
                why="the model learns to stop anywhere, and a judge takes the cut for a fault of the answer",
                mend="truing data filter FILE to=OUT drop=[truncated]",
                watch=0.01,
                act=0.05,
                details=tuple(lines),
                chart=Bars(
                    title="answers that stop in the middle, %",
                    labels=tuple(shares),
                    series={"share": tuple(100 * share.value for share in shares.values())},
                ),
            ),
            rate_finding(
                "circling",
                self.circling,
                self.rows,
                said="rows with an answer that repeats itself over and over",
                why="nothing is easier to learn than repetition, and a model that has learnt it does not finish",
                mend="truing data filter FILE to=OUT drop=[circling]",
                watch=0.0,
                act=0.01,
            ),
            rate_finding(
                "over_long",
                self.long,
                self.rows,
                said=f"rows that overrun {self.max_tokens} tokens, at {CHARACTERS_A_TOKEN} characters a token",
                why="what overruns is cut in training, and an answer without its end teaches not to end",
                mend="truing train METHOD data.max_tokens=N, or truing data filter FILE to=OUT drop=[over_long]",
                watch=0.01,
                act=0.1,
            ),
        ]


def stopped_by_limit(sample: Sample, side: str) -> bool:
    """Whether a column says that a limit ended this answer; of several answers the column is named by the side."""
    prefix = "" if len(sample.answers) == 1 else f"{side}_"
    return any(sample.tags.get(prefix + name, "").lower() in LIMITS for name in STOPS)


def is_cut(answer: str) -> bool:
    """Whether a longer answer stops in the middle: an open code block, a clause that goes on, or a sentence without its end."""
    text = answer.rstrip()
    tail = text[-200:]
    if "```" in text and text.count("```") % 2:
        return True
    last_line = tail.rpartition("\n")[2]
    if not LETTER_AT_END.search(tail):
        return bool(tail) and tail[-1] in ",(" and len(text.split()) >= LONG_ENOUGH and not LIST_OR_CODE.search(last_line)
    if len(text.split()) < LONG_ENOUGH or not tail.isascii() or LIST_OR_CODE.search(last_line):
        return False
    if CLAUSE_GOES_ON.search(tail):
        return True
    # A last line of prose that has ended sentences before, and is long, was going to end this one too.
    return len(last_line.split()) > 4 and bool(SPOKEN_END.search(text[:-1]))


def runs_in_circles(answer: str) -> bool:
    """Whether a text is mostly made of the same runs of four words (or signs, in scripts without spaces)."""
    if len(answer) < 120:
        return False
    parts = answer.split()
    if len(parts) < 60:
        if len(parts) * 20 > len(answer):
            return False
        parts = list(answer[:2000])
    runs = [tuple(parts[i : i + 4]) for i in range(len(parts) - 3)]
    return len(set(runs)) < DISTINCT * len(runs)
