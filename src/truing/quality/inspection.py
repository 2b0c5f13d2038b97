"""Looking at a data set: which checks there are, one pass over the file, and what all of them found.

Memory grows by some 500 bytes a row, whatever the texts. Leaves out writing (`truing.quality.report`, `truing.quality.page`) and
mending (`truing.quality.curation`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from truing.data.problems import BadRow, DataError
from truing.data.read import iterate
from truing.data.rows import rows
from truing.quality.alike import TooAlike
from truing.quality.annotators import Annotators
from truing.quality.answers import Endings
from truing.quality.contamination import Contamination
from truing.quality.contradictions import Contradictions
from truing.quality.coverage import Coverage
from truing.quality.duplicates import Duplicates
from truing.quality.finding import Check, Finding
from truing.quality.languages import Languages
from truing.quality.leakage import Leakage
from truing.quality.length import LengthBias
from truing.quality.mismatched import Mismatched
from truing.quality.refusals import Refusals
from truing.quality.sample import Sample
from truing.quality.shortcuts import Shortcuts
from truing.quality.turns import Turns
from truing.quality.unreadable import Unreadable
from truing.quality.votes import further_votes
from truing.records import Origin

Tick = Callable[[int], None]
"""Told how many rows are done."""
EVERY = 10_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `truing check FILE` takes. Example: `Settings(path="pairs.jsonl", held_out=("test.jsonl",))`."""

    path: str
    """The file to look at."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Our column names to the file's, where they differ, such as {chosen: best}."""
    checks: tuple[str, ...] = ()
    """Which checks to run, such as [duplicates, length]; empty runs all."""
    held_out: tuple[str, ...] = ()
    """Held-out files of the same task, whose prompts must not be in this one."""
    benchmarks: tuple[str, ...] = ()
    """Evaluation sets of any columns (JSONL, JSON, CSV, TSV, Parquet, Arrow), whose texts must not be in this one."""
    rl_prompts: str | None = None
    """Prompts for RL, to be measured against this file as what the reward model learns from."""
    alike: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Similarity from which on the two answers of a pair are too alike."""
    near: Annotated[float, Field(gt=0.5, le=1)] | None = 0.85
    """Share of common text from which on rows or prompts are near-duplicates; null looks for exact ones alone."""
    run_of_words: Annotated[int, Field(ge=8)] = 13
    """Words in a row that make a row contaminated."""
    max_tokens: Annotated[int, Field(gt=1)] = 1024
    """Longest prompt with answer that training will take."""
    model: str | None = None
    """A model that judges by likelihood whether rejected answers are random; null judges by words."""
    html: Path | None = None
    """Where a page with charts goes; it needs nothing but a browser."""
    json: Path | None = None
    """Where the findings go for programs."""
    strict: bool = False
    """Whether findings that must be mended end in an error, for scripts."""
    seed: int = 0
    """Seed of samples and intervals."""


CHECKS: Mapping[str, Callable[[Settings], Check | None]] = {
    "duplicates": lambda s: Duplicates(s.near),
    "contradictions": lambda s: Contradictions(),
    "leakage": lambda s: Leakage(samples_of(s.held_out, s.mapping), s.near) if s.held_out else None,
    "contamination": lambda s: Contamination(texts_of(s.benchmarks), s.run_of_words) if s.benchmarks else None,
    "alike": lambda s: TooAlike(s.alike),
    "turns": lambda s: Turns(),
    "endings": lambda s: Endings(s.max_tokens),
    "languages": lambda s: Languages(),
    "refusals": lambda s: Refusals(),
    "length": lambda s: LengthBias(),
    "shortcuts": lambda s: Shortcuts(seed=s.seed),
    "mismatched": lambda s: Mismatched(seed=s.seed) if s.model is None else None,
    "annotators": lambda s: Annotators(further_votes(s.path), seed=s.seed),
    "coverage": lambda s: Coverage(samples_of((s.rl_prompts,), {})) if s.rl_prompts else None,
}
"""Each check and what of the settings it needs; None where it was given nothing to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What all checks found. Example: `inspect(Settings(path="pairs.jsonl")).worst`."""

    file: str
    rows_in: int
    rows_used: int
    kinds: tuple[str, ...]
    """The kinds of records, such as Preference."""
    findings: tuple[Finding, ...]
    """Those to act on first."""

    @property
    def worst(self) -> tuple[Finding, ...]:
        """What must be mended before training."""
        return tuple(finding for finding in self.findings if finding.level == "act")

    def plus(self, finding: Finding) -> "Inspected":
        """With one more finding, in its place."""
        return replace(self, findings=in_order((*self.findings, finding)))


ORDER = {"act": 0, "watch": 1, "unknown": 2, "fine": 3}


def inspect(settings: Settings, tick: Tick | None = None) -> Inspected:
    """One pass over the file with every check. Raises DataError for a file without usable rows."""
    unknown = [name for name in settings.checks if name not in CHECKS]
    if unknown:
        raise ValueError(f"checks: there is no {unknown[0]}; choose among {', '.join(CHECKS)}")
    wanted = settings.checks or tuple(CHECKS)
    checks = [check for name, make in CHECKS.items() if name in wanted and (check := make(settings)) is not None]
    unreadable = Unreadable()
    kinds: dict[str, None] = {}
    used = 0
    for count, item in enumerate(iterate(settings.path, mapping=settings.mapping), start=1):
        if tick and count % EVERY == 0:
            tick(count)
        if isinstance(item, BadRow):
            unreadable.see(item)
            continue
        unreadable.used()
        used += 1
        kinds[type(item).__name__] = None
        sample = Sample.of(item)
        for check in checks:
            check.see(sample)
    findings = [*unreadable.findings(), *(finding for check in checks for finding in check.findings())]
    return Inspected(
        file=settings.path,
        rows_in=unreadable.rows,
        rows_used=used,
        kinds=tuple(kinds),
        findings=in_order(findings),
    )


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those to act on first, else as they came."""
    return tuple(sorted(findings, key=lambda finding: ORDER[finding.level]))


def samples_of(files: Sequence[str], mapping: Mapping[str, str]) -> Iterator[Sample]:
    """The usable rows of other files, one after the other."""
    for file in files:
        for item in iterate(file, mapping=mapping):
            if not isinstance(item, BadRow):
                yield Sample.of(item)


def texts_of(files: Sequence[str]) -> Iterator[tuple[Origin, str]]:
    """Every text in files of whatever columns, with its place."""
    for file in files:
        if not Path(file).is_file():
            raise DataError(f"{file}: no such file; benchmarks are files of evaluation sets")
        for row in rows(Path(file), file):
            if isinstance(row, BadRow):
                raise DataError(f"{row.origin}: {row.reason}; correct the evaluation set, or name another")
            for text in _texts(row.cells):
                yield Origin(file=file, row=row.number), text


def _texts(cell: object) -> Iterator[str]:
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, Mapping):
        for inner in cell.values():
            yield from _texts(inner)
    elif isinstance(cell, list | tuple):
        for inner in cell:
            yield from _texts(inner)
