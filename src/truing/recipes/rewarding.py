"""From the settings of a reward to the function that scores rollouts: parts made, what they depend on, what they hold in memory."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from truing.data.chat import ChatTokenizer
from truing.models.load import weights_hash
from truing.recipes.fit import load_reward_model
from truing.rewards.base import LearnedReward, Scorer, WeightedSum
from truing.rewards.learned import LearnedScorer
from truing.rewards.outside import OutsideRule
from truing.rewards.rules import PythonFunction, Rule

Part = Rule | LearnedReward


def assembled(
    parts: Mapping[str, Part], chat: ChatTokenizer, *, dtype: torch.dtype, budget: int, seconds: float, stack: ExitStack
) -> WeightedSum:
    """The weighted sum of all parts; what must be ended with the run is put on the stack.

    `budget` tokens are scored at once, `seconds` is the longest that a rule may take for one answer. Raises ValueError naming the
    part that cannot be made.
    """
    scorers: dict[str, Scorer] = {}
    for name, part in parts.items():
        if isinstance(part, LearnedReward):
            _same_tokens(part.run, chat)
            model = load_reward_model(part.run, dtype).requires_grad_(False)
            scorers[name] = LearnedScorer(model, budget=budget)
        else:
            rule = OutsideRule(part, seconds=seconds)
            stack.callback(rule.close)
            rule.start()
            scorers[name] = rule
    return WeightedSum(parts=scorers, weights={name: part.weight for name, part in parts.items()})


def _same_tokens(folder: Path, chat: ChatTokenizer) -> None:
    """Raises ValueError for a reward model that was trained on other tokens than the policy says."""
    path = folder / "fingerprints.json"
    if path.is_file() and json.loads(path.read_bytes())["tokenizer"] != chat.fingerprint:
        raise ValueError(f"{folder}: this reward model was trained with another tokenizer or template; train one with the policy's")


def fingerprints_of(reward: WeightedSum, parts: Mapping[str, Part]) -> dict[str, str]:
    """What the rewards depend on beside the config: weights, and the user's files."""
    found = {}
    for name, scorer in reward.parts.items():
        part = parts[name]
        if isinstance(scorer, LearnedScorer):
            found[f"reward {name}"] = weights_hash(scorer.model)
        elif isinstance(part, PythonFunction):
            found[f"reward {name}"] = hashlib.sha256(part.file.read_bytes()).hexdigest()
    return found


def lines_of(reward: WeightedSum) -> list[str]:
    """What the rewards hold in memory, in words."""
    learned = [name for name, scorer in reward.parts.items() if isinstance(scorer, LearnedScorer)]
    return [f"reward models with weights of their own: {', '.join(learned)}"] if learned else []
