"""Contamination: rows that hold the texts of evaluation sets.

Words are what spaces and punctuation part. Scripts that write no spaces go by the sign: two signs of a Chinese or Japanese text are
counted as a word, four of a Thai, Lao, Burmese, Khmer or Tibetan one.
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

from truing.quality.finding import Finding, Flagged, rate_finding
from truing.quality.sample import Sample
from truing.records import Origin

HAN_AND_KANA = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
SOUTH_EAST = "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ecd\u0edc-\u0edf\u0f40-\u0fbc\u1000-\u103f\u1050-\u108f\u1780-\u17d3"
INDIC = "\u0900-\u0963\u0966-\u0dff"
"""Whose vowel signs are no letters to a regular expression, and would part words."""
WORDS = re.compile(f"([{HAN_AND_KANA}])|([{SOUTH_EAST}])|(?:[^\\W{HAN_AND_KANA}{SOUTH_EAST}]|[{INDIC}])+")
SIGNS_A_WORD = {1: 2, 2: 4}
"""Group of `WORDS` -> how many of its signs are counted as a word."""


class Contamination:
    """Flags rows that hold a run of `words` words of an evaluation set (13: GPT-3, arXiv 2005.14165, appendix C).

    Evaluation texts are given whole, whatever their format; one of fewer than `words` words counts only when all of its words, at
    least 8, stand in a row. In scripts without spaces signs stand for words (`SIGNS_A_WORD`).
    """

    SHORTEST = 8

    def __init__(self, benchmarks: Iterable[tuple[Origin, str]], words: int = 13) -> None:
        self.words = words
        runs: dict[int, dict[int, Origin]] = {}
        for origin, text in benchmarks:
            hashes, signs = word_hashes(text), signs_a_word(text)
            length = min(words * signs, len(hashes))
            if length >= self.SHORTEST * signs:
                for run in run_hashes(hashes, length).tolist():
                    runs.setdefault(length, {}).setdefault(run, origin)
        self.runs = runs
        self.sorted = {length: np.sort(np.fromiter(found, dtype=np.uint64)) for length, found in runs.items()}
        self.count = 0
        self.flagged = Flagged()

    def see(self, sample: Sample) -> None:
        """Looks for the runs of the evaluation sets in prompt and answers."""
        self.count += 1
        text = "\n".join((sample.prompt, *sample.answers))
        hashes = word_hashes(text)
        for length, known in self.sorted.items():
            if len(hashes) < length:
                continue
            here = run_hashes(hashes, length)
            places = np.searchsorted(known, here)
            hits = np.flatnonzero(known[np.minimum(places, len(known) - 1)] == here)
            if len(hits):
                origin = self.runs[length][int(here[hits[0]])]
                spans = [found.span() for found in WORDS.finditer(text)][hits[0] : hits[0] + length]
                said = text[spans[0][0] : spans[-1][1]]
                self.flagged.add(sample.origin, f"{len(hits)} runs of {length} words or signs, first in {origin}: {said}")
                return

    def findings(self) -> list[Finding]:
        """One finding."""
        return [
            rate_finding(
                "contamination",
                self.flagged,
                self.count,
                said=f"rows that hold {self.words} words in a row of an evaluation set",
                why="an evaluation on texts that were trained on measures memory",
                mend="truing data filter FILE to=OUT benchmarks=[SETS] drop=[contamination]",
            )
        ]


def word_hashes(text: str) -> UInt64[np.ndarray, " word"]:
    """A hash of each word, but for case."""
    return np.array([zlib.crc32(word.group().encode()) for word in WORDS.finditer(text.casefold())], dtype=np.uint64)


def signs_a_word(text: str) -> int:
    """How many matches of `WORDS` are counted as a word in this text: by what most of its matches are."""
    if text.isascii():
        return 1
    groups = Counter(found.lastindex for found in WORDS.finditer(text))
    group, count = groups.most_common(1)[0] if groups else (None, 0)
    return SIGNS_A_WORD.get(group or 0, 1) if 2 * count > groups.total() else 1


def run_hashes(words: UInt64[np.ndarray, " word"], length: int) -> UInt64[np.ndarray, " run"]:
    """A hash of each run of so many words."""
    count = len(words) - length + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(length):
        hashes = (hashes ^ words[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes
