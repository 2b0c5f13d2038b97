"""Policy optimisation from rewards: PPO, RLOO, GRPO and REINFORCE are one recipe, told apart by their credit and a few settings.

Each step of the loop is a round: sample answers with the live policy, score and reward them, give credit, replay for some epochs.
What is held in memory is said at the start; the settings of the named methods are `PRESETS`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from truing.config import OneOf
from truing.data.chat import ChatTokenizer
from truing.data.source import TreeSource
from truing.losses import POLICY_LOSSES, PolicyLoss
from truing.losses.clipped_surrogate import ClippedSurrogate
from truing.losses.clipped_value import ClippedValue
from truing.models.heads import ActorCritic, ValueModel
from truing.models.layers import layers_of
from truing.models.load import load_tokenizer, weights_hash
from truing.models.lora import CRITIC, add_lora
from truing.models.policy import Policy, share_lower_layers
from truing.objectives import PolicyGradient
from truing.parallel.world import World
from truing.recipes.examples import Examples, examples
from truing.recipes.fit import MODEL, RESULT, introduce, load_policy, model_folder, opened, save_policy
from truing.recipes.held_out_answers import HeldOutAnswers, Row, rewards_of
from truing.recipes.preflight import preflight, refuse
from truing.recipes.reward_folder import load_reward_model, start_critic
from truing.recipes.rewarding import assembled, fingerprints_of, lines_of
from truing.recipes.samplers import SAMPLERS, Drawing, DrawnBy, Local, sampler_of
from truing.recipes.settings import OF_POLICIES, Data, Optimizer, Shared, device, torch_dtype
from truing.recipes.watched import Watched
from truing.records import Prompt
from truing.rewards import REWARDS
from truing.rewards.base import LearnedReward, ProcessReward, WeightedSum
from truing.rewards.combine import Constraint, Shape, combination
from truing.rewards.rules import Rule
from truing.rollouts.collect import Question, Sampler
from truing.rollouts.credit import CREDITS, GAE, CreditRule
from truing.rollouts.health import Health
from truing.rollouts.kl_control import KL_RULES, FixedKL, KLControl, KLRule
from truing.rollouts.on_policy import OnPolicy, Rounds
from truing.rollouts.sampler import Decoding
from truing.rollouts.scoring import Reference, divergence
from truing.runs.sinks import Sink
from truing.statistics import bootstrap_mean, paired_difference, shown
from truing.train.checkpoint import seed_random_states
from truing.train.learner import Learner
from truing.train.loop import train
from truing.train.replay import Replay, ReplayLearner

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ppo": {},
    "rloo": {"credit": "leave_one_out", "terms": {"action": "response"}, "rounds": {"samples": 4}, "replay": {"epochs": 1}},
    "grpo": {
        "credit": "group_mean",
        "terms": {"average": "response", "kl_estimator": "k3"},
        "rounds": {"samples": 8, "kl_in": "loss"},
        "kl": {"name": "fixed", "coefficient": 0.04},
        "replay": {"epochs": 1},
    },
    "reinforce": {"credit": "batch_mean", "loss": "reinforce", "replay": {"epochs": 1}},
}
"""Method -> what it sets; everything can be set otherwise."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of the loss beside the policy's own."""

    value_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the critic's loss. Customary: 0.1."""
    entropy_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus; above 0 it costs a second pass. Customary: 0, or 0.001 to 0.01."""
    action: Literal["token", "response", "response_mean"] = "token"
    """What a ratio is of: a token (PPO, GRPO), a response (RLOO), the geometric mean over its tokens (GSPO)."""
    average: Literal["token", "response"] = "token"
    """Whether all tokens of the batch weigh alike, or all responses, as the mean of their tokens (GRPO)."""
    kl_estimator: Literal["k2", "k3"] = "k2"
    """For a KL in the loss: k2 has the gradient of KL(pi, pi_ref), k3 (GRPO's) that of KL(pi_ref, pi)."""


@dataclass(frozen=True, kw_only=True)
class Config(Shared):
    """Settings of `truing train ppo`, `rloo`, `grpo` and `reinforce`. A step is a round; `batch_size` counts its prompts."""

    reward: Mapping[str, Annotated[Rule | LearnedReward | ProcessReward, OneOf(REWARDS)]]
    """The parts of the reward, by names of your choice: reward.brief=length_window reward.brief.most=40 reward.brief.weight=0.5."""
    shape: Mapping[str, Shape] = field(default_factory=dict)
    """What is done to a part, or to their `sum`, before it counts: shape.brief.clip=5 shape.sum.scale=true."""
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    """Parts that are not summed but kept above a mean: constraints.harmless.at_least=0.9."""
    reward_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Longest that one part may take for one answer, waits for a free processor not counted; then it counts as hung."""
    reward_changed: bool = False
    """Let a run go on whose rewards are no longer those that it began with (another file of yours, other weights); what was learnt
    stays learnt."""
    answers: Decoding = field(default_factory=lambda: Decoding(max_tokens=64, temperature=1.0))
    """How answers are drawn: from the whole distribution, logits divided by the temperature, here as in every log-probability."""
    sampler: Annotated[DrawnBy, OneOf(SAMPLERS)] = field(default_factory=Local)
    """What draws the answers of a round; answers to held-out prompts are always drawn by the policy itself."""
    rounds: Rounds = field(default_factory=Rounds)
    """How a round goes."""
    credit: Annotated[CreditRule, OneOf(CREDITS)] = field(default_factory=GAE)
    """How rewards become advantages."""
    loss: Annotated[PolicyLoss, OneOf(POLICY_LOSSES)] = field(default_factory=ClippedSurrogate)
    """The policy's loss."""
    value_loss: ClippedValue = field(default_factory=ClippedValue)
    """The critic's loss, where the credit needs a critic."""
    terms: Terms = field(default_factory=Terms)
    """The other terms of the loss."""
    kl: Annotated[KLRule, OneOf(KL_RULES)] = field(default_factory=FixedKL)
    """How the KL's coefficient beta goes."""
    kl_raise: Annotated[float, Field(gt=1)] = 1.5
    """What beta is multiplied by when an update was taken back (replay.kl_budget)."""
    replay: Replay = field(default_factory=Replay)
    """How a round is learnt from."""
    critic: Path | None = None
    """The run of a reward model that the critic starts as; null starts it as the policy, expecting 0. With adapters, one that was
    trained with like adapters on the same model."""
    optimizer: Optimizer = OF_POLICIES
    """The optimizer of policy and critic; the rate is one for a round. For LoRA take ten to a hundred times the rate."""


def run(config: Config, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Train by policy optimisation; returns the run's folder. A finished run is left as it is, an interrupted one continued."""
    check(config)
    world = World.here()
    sinks = sinks if world.rank == 0 else ()
    method = config.method or "ppo"
    folder = config.run or Path("runs") / method
    start = model_folder(config.model)
    chat = ChatTokenizer.of(load_tokenizer(start), template=config.data.template)
    dtype = torch_dtype(config.dtype)
    policy, reason = load_policy(start, dtype)
    found = examples(_prompts_only(config, policy), chat, (Prompt,), run=folder, world=world)
    concerns = preflight(method, resolved, chat, len(found.train.trees), prompts=found.train.records)
    if config.strict:
        refuse(concerns)
    fingerprints = {"data": found.reading.sha256, "tokenizer": chat.fingerprint, "weights": weights_hash(policy.model)}
    with ExitStack() as stack:
        model = _model(config, policy)
        reference = Reference(policy)
        reward = _reward(config, chat, {fingerprints["weights"]: reference.policy}, stack)
        fingerprints |= fingerprints_of(reward, config.reward)
        prompts = _prompt_source(config, found, world)
        steps = prompts.steps_per_epoch * config.epochs
        steps = min(steps, config.max_steps or steps)
        opened_run = opened(folder, config, steps, {**resolved, "method": method}, fingerprints, sinks, world)
        run = stack.enter_context(opened_run)
        if run.finished and (folder / RESULT).is_file():
            return folder
        lines = [
            *found.lines(),
            *_held_in_memory(config, dtype, policy),
            *lines_of(reward, reference.policy),
            *_of_the_budget(config),
        ]
        introduce(run, lines, concerns, plain=reason)
        control = KLControl(config.kl, raise_by=config.kl_raise)
        source = OnPolicy(
            prompts=prompts,
            records=_records(found.train.records),
            model=model,
            reference=reference,
            reward=reward,
            combination=combination(_weights(config), config.shape, config.constraints),
            credit=config.credit,
            control=control,
            rounds=config.rounds,
            decoding=config.answers,
            stop_ids=chat.stop_ids,
            decode=chat.decode,
            world=world,
            record=run.sample,
            warn=partial(run.message, level="warning"),
            sampler=_sampler(config, policy, chat, folder, world, stack),
        )
        learner = Learner(model, config.optimizer, total_steps=run.max_steps, world=world)
        apart = partial(divergence, policy, reference, temperature=config.answers.temperature)
        replay = ReplayLearner(learner, config.replay, control, apart, micro_tokens=config.micro_tokens, seed=config.seed)
        held_out = HeldOutAnswers(
            questions=_questions(found), reward=reward, decoding=config.answers, chat=chat, seed=config.seed, world=world
        )
        before = held_out.once(run, policy) if config.measure_before else None
        seed_random_states(config.seed)

        def evaluate() -> dict[str, float]:
            reference.check()
            return held_out.evaluated(run, policy, learner.steps_taken)

        watched = Watched(replay, Health(partial(run.message, level="warning")))
        train(run, watched, _objective(config), source, evaluate=evaluate if held_out.questions else None)
        reference.check()
        result = _result(method, found, before, held_out.last(run, policy, before))
        if world.rank == 0 and not (folder / MODEL / "config.json").is_file():
            save_policy(folder, policy, chat, start)
        run.write(RESULT, result)
        world.wait()
    return folder


def check(config: Config) -> None:
    """Raises ValueError for settings that cannot be meant together, with the remedy."""
    if not config.reward:
        raise ValueError(f"reward has no part: name one, such as reward.brief=length_window; there are {', '.join(REWARDS)}")
    if config.answers.temperature == 0:
        raise ValueError("answers.temperature=0 says the likeliest token only, and there is nothing to learn from: set it to 1")
    combination(_weights(config), config.shape, config.constraints)
    if not config.credit.needs_critic and not isinstance(config.credit, CREDITS["batch_mean"]) and config.rounds.samples < 2:
        raise ValueError("this credit compares the answers to one prompt: set rounds.samples to 2 or more")
    if config.credit.needs_critic and config.terms.action != "token":
        raise ValueError("credit=gae says what each token did: set terms.action=token, or another credit")
    if config.rounds.critic_warmup and not config.credit.needs_critic:
        raise ValueError("rounds.critic_warmup is for a critic, and this credit has none: set it to 0")


def _weights(config: Config) -> dict[str, float]:
    return {name: part.weight for name, part in config.reward.items()}


def _prompts_only(config: Config, policy: Policy) -> Data:
    """The data settings with the room that an answer takes set aside; what does not fit the context is dropped and counted."""
    most = _longest(config, policy)
    room = most - config.answers.max_tokens
    if room < 1:
        raise ValueError(
            f"answers.max_tokens={config.answers.max_tokens} leaves no room for a prompt in {most} tokens: lower it, "
            f"or raise data.max_tokens up to the model's context of {_context(policy)}"
        )
    fields = {name: getattr(config.data, name) for name in Data.__dataclass_fields__}
    return Data(**{**fields, "max_tokens": room + 1})


def _longest(config: Config, policy: Policy) -> int:
    """Tokens of the longest prompt with its answer."""
    return min(config.data.max_tokens, _context(policy) or config.data.max_tokens)


def _context(policy: Policy) -> int | None:
    found: int | None = policy.reach or getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return found


def _model(config: Config, policy: Policy) -> ActorCritic:
    model = _roles(config, policy)
    above = {"auto": 2 * config.micro_tokens, "always": 0, "never": None}[config.recompute]
    for role in (model.policy, *([model.critic.policy] if model.critic else [])):
        role.recompute_above = above
    if config.lora:
        share_lower_layers(policy)
    return model


def _roles(config: Config, policy: Policy) -> ActorCritic:
    if config.lora:
        add_lora(policy.model, config.lora, seed=config.seed)
    if not config.credit.needs_critic:
        return ActorCritic(policy)
    if config.lora:
        add_lora(policy.model, config.lora, seed=config.seed, name=CRITIC)
        critic = ValueModel(policy, adapter=CRITIC)
        if config.critic:
            start_critic(config.critic, critic)
        return ActorCritic(policy, critic)
    if config.critic:
        judge = load_reward_model(config.critic, policy.dtype)
        if judge.members > 1:
            raise ValueError(f"critic={config.critic} is an ensemble, and a critic starts as one model: name a run with ensemble=1")
        critic = ValueModel(judge.policy)
        critic.load_head(judge.head_tensors())
        return ActorCritic(policy, critic)
    return ActorCritic(policy, ValueModel(load_policy(model_folder(config.model), policy.dtype)[0]))


def _reward(config: Config, chat: ChatTokenizer, bases: Mapping[str, Policy], stack: ExitStack) -> WeightedSum:
    return assembled(
        config.reward,
        chat,
        dtype=torch_dtype(config.dtype),
        budget=config.micro_tokens,
        seconds=config.reward_seconds,
        stack=stack,
        bases=bases,
        unsummed=config.constraints.keys(),
    )


def _sampler(config: Config, policy: Policy, chat: ChatTokenizer, folder: Path, world: World, stack: ExitStack) -> Sampler:
    drawing = Drawing(
        start=model_folder(config.model),
        policy=policy,
        lora=config.lora,
        tokenizer=chat.tokenizer,
        run=folder,
        max_tokens=_longest(config, policy),
        world=world,
    )
    return sampler_of(config.sampler, drawing, stack)


def _of_the_budget(config: Config) -> list[str]:
    """What a user may not expect of a KL budget, in words."""
    if config.replay.kl_budget is None or config.kl.coefficient:
        return []
    return [
        f"kl.coefficient is 0 and stays 0: an update beyond replay.kl_budget={config.replay.kl_budget:g} is taken back, "
        "but nothing leads the policy back from there; kl.coefficient=0.01 would rise with each update taken back"
    ]


def _held_in_memory(config: Config, dtype: torch.dtype, policy: Policy) -> list[str]:
    """Which roles share weights, and in which dtype they are held, in words."""
    roles = {True: "policy and critic are adapters", False: "the policy is an adapter"}[config.credit.needs_critic]
    critic = ", a critic with weights of its own" if config.credit.needs_critic else ""
    masters = ", with fp32 masters of what is trained" if config.optimizer.rounding == "nearest" else ""
    held = "fp32" if dtype == torch.float32 else "bf16" + masters
    beneath = len(policy.lower.layers) if policy.lower else 0
    once = f"; the layers beneath them ({beneath} of {len(layers_of(policy.model))}) are computed once a round" if beneath else ""
    return [
        f"one base in {held}: {roles} on it, the reference is the base without them{once}"
        if config.lora
        else f"held in {held}: the policy, a frozen reference{critic}"
    ]


def _prompt_source(config: Config, found: Examples, world: World) -> TreeSource:
    return TreeSource(
        found.train.trees,
        batch_size=config.batch_size,
        micro_tokens=config.micro_tokens,
        seed=config.seed,
        rank=world.rank,
        ranks=world.size,
        device=device(),
    )


def _records(records: Sequence[object]) -> list[Prompt]:
    prompts = [record for record in records if isinstance(record, Prompt)]
    assert len(prompts) == len(records)
    return prompts


def _questions(found: Examples) -> list[Question]:
    """The held-out prompts."""
    records = _records(found.held_out.records)
    return [Question(number=number, prompt=records[tree.key], trunk=tree.trunk) for number, tree in enumerate(found.held_out.trees)]


def _objective(config: Config) -> PolicyGradient:
    terms = config.terms
    return PolicyGradient(
        loss=config.loss,
        value_loss=config.value_loss if config.credit.needs_critic else None,
        value_weight=terms.value_weight,
        entropy_weight=terms.entropy_weight,
        action=terms.action,
        average=terms.average,
        kl_estimator=terms.kl_estimator,
        temperature=config.answers.temperature,
    )


def _result(method: str, found: Examples, rows_before: Sequence[Row] | None, rows_after: Sequence[Row]) -> dict[str, Any]:
    """`result.json`: how much was trained on, and the mean reward of answers to held-out prompts before and after."""
    before, after = rewards_of(rows_before or ()), rewards_of(rows_after)
    result: dict[str, Any] = {"method": method, "train": len(found.train.trees), "held_out": len(found.held_out.trees)}
    good = [value for value in after if value is not None]
    if good:
        result["reward_after"] = shown(bootstrap_mean(good, seed=0))
    pairs = [(a, b) for a, b in zip(after, before, strict=bool(before)) if a is not None and b is not None]
    if pairs:
        result["reward_before"] = shown(bootstrap_mean([b for _, b in pairs], seed=0))
        result["reward_gain"] = shown(paired_difference([a for a, _ in pairs], [b for _, b in pairs], seed=0))
    return result
