"""From the settings of a reward to the function that scores rollouts: parts made, what they depend on, what they hold in memory."""

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from truing.data.chat import ChatTokenizer
from truing.models.heads import RewardModel
from truing.models.load import weights_hash
from truing.models.lora import BASE, adapter_tensors, without_adapters
from truing.models.policy import Policy
from truing.recipes.fit import model_path
from truing.recipes.reward_folder import Made, load_reward_model
from truing.recipes.settings import torch_dtype
from truing.rewards.base import LearnedReward, ProcessReward, Scorer, WeightedSum
from truing.rewards.learned import LearnedScorer
from truing.rewards.outside import OutsideRule
from truing.rewards.process import ProcessScorer
from truing.rewards.rules import PythonFunction, Rule

Part = Rule | LearnedReward | ProcessReward


def assembled(
    parts: Mapping[str, Part],
    chat: ChatTokenizer | None,
    *,
    dtype: torch.dtype,
    budget: int,
    seconds: float,
    stack: ExitStack,
    bases: Mapping[str, Policy] | None = None,
    unsummed: Collection[str] = (),
) -> WeightedSum:
    """The weighted sum of all parts; what must be ended with the run is put on the stack.

    `chat` holds the policy's tokens; rules alone need none. `budget` tokens are scored at once, `seconds` is the longest that a
    rule may take for one answer. Reward models that were trained as adapters or heads on one of `bases`, frozen models by their
    hash, are put onto it; others share what they can. The parts that are named `unsummed` weigh 0. Raises ValueError naming the
    part that cannot be made.
    """
    scorers: dict[str, Scorer] = {}
    known = dict(bases or {})
    for number, (name, part) in enumerate(parts.items()):
        if isinstance(part, LearnedReward):
            assert chat is not None, "a reward model reads tokens"
            _same_tokens(part.run, chat)
            model = load_reward_model(part.run, lower(part.run, dtype), bases=known, name=f"reward_{number}")
            model.head.requires_grad_(False)
            if not any(model.policy is base for base in (bases or {}).values()):
                model.requires_grad_(False)
            scorers[name] = LearnedScorer(model, budget=budget, aggregate=part.aggregate, deviation_weight=part.deviation_weight)
        elif isinstance(part, ProcessReward):
            assert chat is not None, "a reward model reads tokens"
            _same_tokens(part.run, chat)
            model = load_reward_model(part.run, lower(part.run, dtype), bases=known, name=f"reward_{number}", of_steps=True)
            model.head.requires_grad_(False)
            if not any(model.policy is base for base in (bases or {}).values()):
                model.requires_grad_(False)
            separator = Made.of(model_path(part.run)).steps
            assert separator is not None
            scorers[name] = ProcessScorer(model, decode=chat.decode, separator=separator, aggregate=part.aggregate, budget=budget)
        else:
            rule = OutsideRule(part, seconds=seconds)
            stack.callback(rule.close)
            rule.start()
            scorers[name] = rule
    return WeightedSum(parts=scorers, weights={name: 0.0 if name in unsummed else part.weight for name, part in parts.items()})


def lower(folder: Path, dtype: torch.dtype) -> torch.dtype:
    """What a frozen model is held in: bf16 where it was saved in that, whatever the policy's dtype, so as it was trained and in
    half the memory; but not on a machine that computes in fp32 alone.
    """
    path = model_path(folder) / "config.json"
    saved = json.loads(path.read_bytes()).get("dtype") if path.is_file() else None
    return torch.bfloat16 if saved == "bfloat16" == str(torch_dtype("auto")).removeprefix("torch.") else dtype


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
        if isinstance(scorer, LearnedScorer | ProcessScorer):
            found[f"reward {name}"] = _hash(scorer.model)
        elif isinstance(part, PythonFunction):
            found[f"reward {name}"] = hashlib.sha256(part.file.read_bytes()).hexdigest()
    return found


def _hash(model: RewardModel) -> str:
    """Of everything that its scores depend on, and of nothing else that stands on its base."""
    tensors = {**without_adapters(model.policy.model), **model.head_tensors()}
    for name in model.adapters:
        tensors |= {f"{name}/{key}": value for key, value in adapter_tensors(model.policy.model, name).items()}
    return weights_hash(tensors)


def lines_of(reward: WeightedSum, base: Policy | None = None) -> list[str]:
    """What the rewards hold in memory, in words; `base` is what the policy or its reference stands on."""
    lines, seen = [], {} if base is None else {id(base): "the policy's base"}
    for name, scorer in reward.parts.items():
        if isinstance(scorer, LearnedScorer | ProcessScorer):
            model = scorer.model
            what = f"reward {name}: {model.members} members, " if model.members > 1 else f"reward {name}: "
            known = seen.setdefault(id(model.policy), f"the base of reward {name}")
            if known == f"the base of reward {name}":
                what += "a base of its own" if model.adapters or model.members > 1 else "weights of its own"
            else:
                what += f"{'heads' if BASE in model.adapters else 'adapters and heads'} on {known}"
            lines.append(f"{what}, in {'fp32' if model.policy.dtype == torch.float32 else 'bf16'}")
    return lines
