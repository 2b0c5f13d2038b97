"""A comparison in words and one table: what a person reads after a run. The figures come from `truing.evals.alignment`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truing.statistics import ends

TITLES = {"base": "base", "sft": "after SFT", "tuned": "after DPO", "ppo": "after PPO"}
WIDTH = 100


def text(result: Mapping[str, Any], folder: Path) -> str:
    """Six answers side by side, one table, one sentence a finding, the folder, three next commands."""
    models: Mapping[str, Any] = result["models"]
    parts = [_answers(result["examples"], list(models)), table(models), words(result)]
    next_steps = [
        f"truing sample {folder}/{'ppo' if 'ppo' in models else 'preference':<23}    # talk to the aligned model",
        f"truing runs {folder}                              # every run with its state and figures",
        "truing train dpo data.path=YOUR.csv lora.rank=16   # the same on your own preferences",
    ]
    parts.append(f"Everything is in {folder}\nNext:\n" + "\n".join(f"  {line}" for line in next_steps))
    return "\n\n".join(parts) + "\n"


def table(models: Mapping[str, Any]) -> str:
    """One row a figure, one column a model; 95% intervals in brackets."""
    rows: list[list[str]] = [["held-out rows", *(TITLES.get(name, name) for name in models)]]
    first = next(iter(models.values()))

    def row(title: str, cell: Any) -> None:
        rows.append([title, *(cell(figures) for figures in models.values())])

    for kind, estimate in first["preference_accuracy"].items():
        row(f"preference accuracy, {kind} (n={estimate['n']})", lambda f, kind=kind: _rate(f["preference_accuracy"][kind]))
    row(f"answers preferred to base's (n={first['win_rate_against_base']['n']})", lambda f: _rate(f["win_rate_against_base"]))
    for key, title in (
        ("false_premise_corrected", "false premise corrected"),
        ("true_premise_confirmed", "true premise confirmed"),
    ):
        if key in first:
            row(f"{title} (n={first[key]['n']})", lambda f, key=key: _rate(f[key]))
    row("reward: mean, deviation", lambda f: f"{f['reward']['mean']:+.2f}, {f['reward']['deviation']:.2f}")
    row("answer length in tokens: mean, deviation", lambda f: f"{f['length']['mean']:.1f}, {f['length']['deviation']:.1f}")
    row("answers that end by themselves", lambda f: f"{100 * f['finished']:.0f}%")
    row("distinct-2", lambda f: f"{f['distinct_2']:.2f}")
    row("KL from the SFT model per answer: k1, k3", lambda f: f"{f['kl_k1']:.1f}, {f['kl_k3']:.1f}")
    widths = [max(len(line[column]) for line in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def words(result: Mapping[str, Any]) -> str:
    """What was found, in sentences, good or bad."""
    models = result["models"]
    last = list(models.values())[-1]
    gains = result["gain"]
    sentences = [f"{_verdict(gains['all'])} over all held-out rows."]
    sentences += [f"On {kind}: {_verdict(gain)}." for kind, gain in gains.items() if kind != "all"]
    win = last["win_rate_against_base"]
    sentences.append(
        f"The reward model prefers its answers to base's in {_rate(win)} of {win['n']} prompts; a model's taste, not people's."
    )
    if "against" in result:
        other = result["against"]
        sentences.insert(0, f"All of this is about the model {TITLES[list(models)[-1]]}, compared with the base.")
        sentences.append(
            f"It prefers them to those {TITLES[other['name']]} in {_rate(other['win_rate'])}; but it is what PPO was trained to"
            " please, and so no judge of it."
        )
    base = next(iter(models.values()))
    for key, title in (("false_premise_corrected", "false premises"), ("true_premise_confirmed", "true premises")):
        if key in last:
            sentences.append(
                f"By a plain rule, {title} are handled rightly in {_rate(last[key])} of answers, {_rate(base[key])} before."
            )
    sentences += [
        f"KL (k1) of {TITLES.get(name, name)} is below zero beyond chance, which no divergence is: its samples do not come from the"
        " distribution that scores them, so distrust its KL."
        for name, figures in models.items()
        if figures["kl_below_zero"]
    ]
    return textwrap.fill(" ".join(sentences), WIDTH)


def _verdict(gain: Mapping[str, float]) -> str:
    points = f"{100 * gain['value']:+.1f} points {ends(gain, 1, 100, '+')}, n = {gain['n']}"
    if gain["low"] > 0:
        return f"The model finds the good answer likelier more often than before: {points}"
    if gain["high"] < 0:
        return f"The model finds the good answer likelier less often than before: {points}"
    return f"It cannot be told whether the model finds the good answer likelier than before: {points}"


def _rate(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:.0f}% {ends(estimate, 0, 100)}"


def _answers(examples: Sequence[Mapping[str, str]], models: Sequence[str]) -> str:
    blocks = []
    for example in examples:
        lines = [textwrap.fill(f"> {_plain(example['prompt'])}", WIDTH)]
        for name in models:
            said = _plain(example[name]) or "(nothing)"
            lines.append(textwrap.fill(said, WIDTH, initial_indent=f"  {TITLES.get(name, name):>9}  ", subsequent_indent=" " * 13))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _plain(said: str) -> str:
    """One line without control characters: a model's words must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in said).strip()
