"""Results of tasks as text: a figure a line, with its interval and n; then the differences in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from truing.evals.tasks.evaluate import Measured
from truing.evals.tasks.tax import compared
from truing.statistics import Estimate

Results = Mapping[str, Mapping[str, Measured]]
"""Model -> task -> what came of it."""


def report(results: Results) -> str:
    """A table of all figures, one column a model; differences from the first model; notes."""
    names = list(results)
    rows: list[tuple[str, ...]] = [("", *names)]
    tasks = list(dict.fromkeys(task for of_model in results.values() for task in of_model))
    notes: list[str] = []
    words: list[str] = []
    for task in tasks:
        of_model = [results[name][task].evaluation.figures for name in names]
        figures = dict.fromkeys(figure for found in of_model for figure in found)
        rows += [(f"{task}: {figure}", *(_cell(found.get(figure)) for found in of_model)) for figure in figures]
        notes += dict.fromkeys(f"{task}: {note}" for name in names for note in results[name][task].notes)
        first = results[names[0]][task].evaluation
        for name in names[1:]:
            said = compared(first, results[name][task].evaluation)
            words += [] if said is None else [f"{name} against {names[0]}, {said}"]
    return "\n".join([*_columns(rows), *([""] if words or notes else []), *words, *notes]) + "\n"


def as_json(results: Results) -> dict[str, Any]:
    """All figures and notes, without the rows; each task's record lies beside it."""
    return {
        name: {
            task: {"figures": measured.evaluation.as_json()["figures"], "notes": list(measured.notes)}
            for task, measured in of_model.items()
        }
        for name, of_model in results.items()
    }


def _cell(figure: Estimate | None) -> str:
    return "not defined" if figure is None else str(figure)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
