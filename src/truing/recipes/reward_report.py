"""How good a reward model is on held-out pairs, for its result and in words: calibration, length, and what they are worth."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np

from truing.data.tree import Tree
from truing.evals.reward_models import RewardModelReport, Scored, correlation, evaluate_reward_model
from truing.records import Messages, Preference, Ranking, Record
from truing.statistics import Estimate, ends, shown


def report(trees: Sequence[Tree], scores: Sequence[Sequence[float]], records: Sequence[Record], *, seed: int) -> dict[str, Any]:
    """What `result.json` says under `reward_model`; `scores` has a number for each branch of each tree, whose keys are places in
    `records`.
    """
    pairs: list[Scored] = []
    prompts: list[str] = []
    lengths: list[int] = []
    for tree, values in zip(trees, scores, strict=True):
        record = records[tree.key]
        assert isinstance(record, Preference | Ranking)
        texts = (record.chosen, record.rejected) if isinstance(record, Preference) else record.responses
        asked = _key(record.prompt)
        category = record.tags.get("kind", "")
        for better, worse in combinations(range(len(values)), 2):
            pairs.append(
                Scored(
                    prompt=asked,
                    category=category,
                    chosen=values[better],
                    rejected=values[worse],
                    chosen_text=texts[better],
                    rejected_text=texts[worse],
                )
            )
        prompts += [asked] * len(values)
        lengths += [len(branch.tokens) for branch in tree.branches]
    flat = [value for values in scores for value in values]
    by_length = None
    if len(set(lengths)) > 1 and len(set(flat)) > 1:
        by_length = correlation(np.array(lengths), np.array(flat), prompts, seed=seed)
    return _as_json(evaluate_reward_model(pairs, seed=seed), by_length)


def _as_json(found: RewardModelReport, by_length: Estimate | None) -> dict[str, Any]:
    calibration, confounds = found.calibration, found.confounds
    temperature = calibration.temperature
    result: dict[str, Any] = {
        "accuracy": {name: shown(value) for name, value in found.accuracy.items()},
        "ties": found.ties,
        "ece": calibration.ece,
        "ece_by_chance": calibration.ece_by_chance,
        "brier": shown(calibration.brier),
        "nll": shown(calibration.nll),
        "temperature": temperature if math.isfinite(temperature) else None,
        "reliability": [asdict(bin) for bin in calibration.curve],
    }
    if by_length is not None:
        result["correlation_reward_length"] = shown(by_length)
    if confounds is not None:
        for name, value in (("longer", confounds.accuracy_when_longer), ("shorter", confounds.accuracy_when_shorter)):
            if value is not None:
                result[f"accuracy_where_better_is_{name}"] = shown(value)
        result["prefers_more"] = {name: shown(value) for name, value in confounds.prefers_more.items()}
        result["people_prefer_more"] = {name: shown(value) for name, value in confounds.people_prefer_more.items()}
    return result


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    told = [
        f"calibration error {found['ece']:.3f}, of which chance would show {found['ece_by_chance']:.3f}; "
        f"Brier {_number(found['brier'])}, 0.25 knows nothing"
    ]
    if found["reliability"]:
        bins = found["reliability"][:: max(1, len(found["reliability"]) // 5)]
        told.append("claimed and right: " + ", ".join(f"{100 * one['said']:.0f}% {100 * one['right']:.0f}%" for one in bins))
    if "correlation_reward_length" in found:
        told.append(f"correlation of reward with length {_number(found['correlation_reward_length'])}")
    for name in ("longer", "shorter"):
        if f"accuracy_where_better_is_{name}" in found:
            told.append(f"accuracy where the better answer is the {name}: {_number(found[f'accuracy_where_better_is_{name}'])}")
    return told


def _number(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.2f} {ends(estimate, 2)}, n = {estimate['n']}"


def _key(prompt: Messages) -> str:
    return repr([(message.role, message.content) for message in prompt])
