"""A comparison as a person reads it: one table with intervals, and what may be said of it in sentences."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truing.runs.sinks import printable

WIDTH = 110


def text(found: Mapping[str, Any], report: Path) -> str:
    """Table, words, where the report lies."""
    return printable("\n\n".join([table(found), words(found), f"report: {report}"])) + "\n"


def table(found: Mapping[str, Any]) -> str:
    """One row a figure, one column a model; 95% intervals in brackets."""
    models: Mapping[str, Any] = found["models"]
    against = found["against"]
    rows = [[f"{found['prompts']} prompts", *models]]
    rows += [[title, *(cell(figures) for figures in models.values())] for title, cell in MODEL_ROWS]
    rows += [[title, "", *(cell(against[name]) for name in against)] for title, cell in AGAINST_ROWS]
    if any("kl" in figures for figures in models.values()):
        rows += [
            [f"KL from the reference, {k}", *(number(f["kl"][k], 2) if "kl" in f else "-" for f in models.values())]
            for k in ("k1", "k3")
        ]
    if "ratings" in found:
        for title, kind in (("rating (Bradley-Terry)", "plain"), ("rating at equal style", "style_controlled")):
            rated = found["ratings"][kind]["ratings"]
            rows.append([title, *(number(rated[name], 0) for name in models)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def words(found: Mapping[str, Any]) -> str:
    """One sentence a comparison, then what is known of the judge."""
    base = next(iter(found["models"]))
    sentences = [
        f"{name} against {base}, by {found['judge']}: {against['words']} (win rate {percent(against['win_rate'])};"
        f" {against['wins']} wins, {against['ties']} ties, {against['losses']} losses)."
        for name, against in found["against"].items()
    ]
    if "ratings" in found and any(found["ratings"][kind]["unbeaten"] for kind in found["ratings"]):
        sentences.append("Some model never lost, or never won: a prior holds its rating finite, so read its order, not its size.")
    if "reward_model" in found:
        sentences += _of_reward_model(found["reward_model"])
    return "\n".join(textwrap.fill(sentence, WIDTH, subsequent_indent="  ") for sentence in sentences)


def _of_reward_model(report: Mapping[str, Any]) -> list[str]:
    accuracy, calibration, confounds = report["accuracy"]["all"], report["calibration"], report["confounds"]
    found = [
        f"The reward model orders {percent(accuracy)} of {accuracy['n']} held-out pairs as people did ({report['ties']} ties);"
        f" calibration error {calibration['ece']:.3f}, by chance {calibration['ece_by_chance']:.3f};"
        f" Brier {number(calibration['brier'], 3)}."
    ]
    if confounds is not None and "length" in confounds["prefers_more"]:
        model, people = confounds["prefers_more"]["length"], confounds["people_prefer_more"]["length"]
        found.append(f"It prefers the longer of two answers in {percent(model)}, people in {percent(people)}, n = {model['n']}.")
    return found


def percent(estimate: Mapping[str, Any] | None) -> str:
    """`57.3% [51.0, 63.4]`; a dash where there is none."""
    if estimate is None:
        return "-"
    return f"{100 * estimate['value']:.1f}% [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def number(estimate: Mapping[str, Any], digits: int) -> str:
    """`0.31 [0.12, 0.50]`."""
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def _self_bleu(figures: Mapping[str, Any]) -> str:
    return "-" if figures["self_bleu"] is None else f"{figures['self_bleu']:.2f}"


MODEL_ROWS = (
    ("score: mean", lambda f: number(f["score"], 2)),
    ("score: deviation", lambda f: f"{f['score_deviation']:.2f}"),
    ("characters: mean", lambda f: number(f["characters"], 0)),
    ("answers that end by themselves", lambda f: percent(f["finished"])),
    ("distinct-1, distinct-2", lambda f: f"{f['distinct_1']:.2f}, {f['distinct_2']:.2f}"),
    ("self-BLEU", _self_bleu),
)
"""Title and cell of the rows that every model has."""
AGAINST_ROWS = (
    ("win rate, ties half", lambda a: percent(a["win_rate"])),
    ("win rate, length-adjusted *", lambda a: percent(a["length_adjusted_win_rate"])),
    ("score difference, paired", lambda a: number(a["score_difference"], 2)),
)
"""Of those that are compared with the first. * A fit without difficulties: not comparable with the AlpacaEval leaderboard."""
