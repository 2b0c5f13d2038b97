"""Whether a reward model minds what does not matter: the place of an answer, and plain rewritings that keep what it says.

The rewritings are rules, not paraphrases by a model: spaces, markdown, the marks of lists, a polite preface. A score may move with
them; what should not turn is the order of two answers that are rewritten alike. An answer that a rewriting leaves as it is says
nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from truing.evals.winrate import win_rate_over_prompts
from truing.records import Preference
from truing.statistics import Estimate, bootstrap_mean


def spaces(text: str) -> str:
    """Two spaces between sentences, and a line break at the end."""
    return re.sub(r"(?<=[.!?]) (?=\S)", "  ", text) + "\n"


def markdown(text: str) -> str:
    """The first sentence in bold, where nothing is bold yet."""
    first = re.match(r"\s*([^\n*#`-][^\n*]*?[.!?])(?=\s|$)", text)
    if "**" in text or first is None:
        return text
    return f"{text[: first.start(1)]}**{first[1]}**{text[first.end(1) :]}"


def list_marks(text: str) -> str:
    """Other marks before the items of lists: - for *, * for -, 1) for 1. and A. for a."""
    marks = {"-": "*", "*": "-", "+": "-"}

    def other(found: re.Match[str]) -> str:
        if found[2] is None:
            return f"{found[1]}{marks[found[0].strip()]} "
        return f"{found[1]}{found[2]}) " if found[3] == "." else f"{found[1]}{found[2].upper()}. "

    return re.sub(r"(?m)^([ \t]*)(?:[-*+]|(\d+|[a-z])([.)])) ", other, text)


def preface(text: str) -> str:
    """A polite sentence before the answer."""
    return f"Thank you for your question. {text}"


REWRITINGS: Mapping[str, Callable[[str], str]] = {
    "spaces": spaces,
    "markdown": markdown,
    "list marks": list_marks,
    "polite preface": preface,
}
"""Name -> rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Robust:
    """What one change does. Example: `robust("spaces", before, after, prompts).turned.value`."""

    name: str
    turned: Estimate
    """Share of pairs whose order turns, from or to a tie as half; 0 is robust."""
    shift: Estimate
    """Mean change of an answer's score, in deviations of the scores before: whom it pleases."""


def rewritten(pairs: Sequence[Preference], rewrite: Callable[[str], str]) -> list[Preference]:
    """The pairs with both answers rewritten, as many as the rule changes in both."""
    found = [replace(pair, chosen=rewrite(pair.chosen), rejected=rewrite(pair.rejected)) for pair in pairs]
    return [new for new, old in zip(found, pairs, strict=True) if new.chosen != old.chosen and new.rejected != old.rejected]


Scores = Sequence[tuple[float, float]]
"""Of the preferred answer and of the other, a pair each."""


def robust(name: str, before: Scores, after: Scores, prompts: Sequence[str], *, seed: int = 0) -> Robust:
    """The measures of one change over the pairs that it changes; pairs of one prompt are drawn together."""
    old, new = np.array(before, dtype=np.float64), np.array(after, dtype=np.float64)
    if old.shape != new.shape or old.ndim != 2 or len(prompts) != len(old):
        raise ValueError(
            f"{name}: scores of {len(old)} pairs before, {len(new)} after, {len(prompts)} prompts; all are of the same pairs"
        )
    sides = [np.sign(scores[:, 0] - scores[:, 1]) for scores in (old, new)]
    spread = float(old.std()) or 1.0
    return Robust(
        name=name,
        turned=win_rate_over_prompts(np.abs(sides[0] - sides[1]) / 2, prompts, seed=seed),
        shift=bootstrap_mean((new - old).mean(1) / spread, prompts, seed=seed),
    )
