"""Contamination: rows that hold the texts of evaluation sets."""

import re
import zlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

from truing.quality.finding import Finding, Flagged, rate_finding
from truing.quality.sample import Sample
from truing.records import Origin

WORDS = re.compile(r"\w+")


class Contamination:
    """Flags rows that hold a run of `words` words of an evaluation set (13: GPT-3, arXiv 2005.14165, appendix C).

    Evaluation texts are given whole, whatever their format; one of fewer than `words` words counts only when all of its words, at
    least 8, stand in a row.
    """

    SHORTEST = 8

    def __init__(self, benchmarks: Iterable[tuple[Origin, str]], words: int = 13) -> None:
        self.words = words
        runs: dict[int, dict[int, Origin]] = {}
        for origin, text in benchmarks:
            hashes = word_hashes(text)
            length = min(words, len(hashes))
            if length >= self.SHORTEST:
                for run in run_hashes(hashes, length).tolist():
                    runs.setdefault(length, {}).setdefault(run, origin)
        self.runs = runs
        self.sorted = {length: np.sort(np.fromiter(found, dtype=np.uint64)) for length, found in runs.items()}
        self.count = 0
        self.flagged = Flagged()

    def see(self, sample: Sample) -> None:
        """Looks for the runs of the evaluation sets in prompt and answers."""
        self.count += 1
        hashes = word_hashes("\n".join((sample.prompt, *sample.answers)))
        for length, known in self.sorted.items():
            if len(hashes) < length:
                continue
            here = run_hashes(hashes, length)
            places = np.searchsorted(known, here)
            hits = np.flatnonzero(known[np.minimum(places, len(known) - 1)] == here)
            if len(hits):
                origin = self.runs[length][int(here[hits[0]])]
                words = WORDS.findall("\n".join((sample.prompt, *sample.answers)))
                said = " ".join(words[hits[0] : hits[0] + length])
                self.flagged.add(sample.origin, f"{len(hits)} runs of {length} words, first in {origin}: {said}")
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
    return np.array([zlib.crc32(word.encode()) for word in WORDS.findall(text.casefold())], dtype=np.uint64)


def run_hashes(words: UInt64[np.ndarray, " word"], length: int) -> UInt64[np.ndarray, " run"]:
    """A hash of each run of so many words."""
    count = len(words) - length + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(length):
        hashes = (hashes ^ words[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes
