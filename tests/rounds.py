"""Policy optimisation on the tiny model without files: a source with a reward given as a function, and its learner."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch

from conftest import make_tiny_llama
from truing.data.source import TreeSource
from truing.data.tree import Tree
from truing.losses import PolicyLoss
from truing.losses.clipped_surrogate import ClippedSurrogate
from truing.losses.clipped_value import ClippedValue
from truing.models.heads import ActorCritic, ValueModel
from truing.models.lora import CRITIC, LoRA, add_lora
from truing.models.policy import Policy, probe, share_lower_layers
from truing.objectives import PolicyGradient
from truing.parallel.world import World
from truing.records import Message, Origin, Prompt, Rollout
from truing.rewards.base import Failure, WeightedSum
from truing.rewards.combine import Shape, combination
from truing.rollouts.collect import LocalSampler
from truing.rollouts.credit import GAE, CreditRule
from truing.rollouts.kl_control import FixedKL, KLControl, KLRule
from truing.rollouts.on_policy import OnPolicy, Rounds
from truing.rollouts.sampler import Decoding
from truing.rollouts.scoring import Reference, divergence
from truing.train.learner import Learner
from truing.train.optim import Optimizer
from truing.train.replay import Replay, ReplayLearner

STOP = frozenset(range(0, 300, 25))
"""A twenty-fifth of the vocabulary ends an answer, so that some end and some are cut."""
TRUNKS = ((5, 6, 7), (5, 9), (40, 41, 42, 43, 44), (7,), (100, 101, 102), (8, 8, 8, 8))


def low_tokens(rollouts: Sequence[Rollout]) -> list[float | Failure]:
    """The share of tokens below 150: something that a few updates can raise."""
    return [sum(token < 150 for token in one.completion.tokens) / len(one.completion.tokens) for one in rollouts]


@cache
def start() -> Policy:
    """The tiny model, probed once."""
    return probe(make_tiny_llama(seed=1)).policy


@dataclass(kw_only=True)
class Setup:
    """Everything that a run is made of, with defaults that tests replace."""

    credit: CreditRule = field(default_factory=GAE)
    rounds: Rounds = field(default_factory=Rounds)
    replay: Replay = field(default_factory=Replay)
    kl: KLRule = field(default_factory=FixedKL)
    reward: Callable[[Sequence[Rollout]], Sequence[float | Failure]] = low_tokens
    temperature: float = 0.8
    max_tokens: int = 10
    batch_size: int = 4
    micro_tokens: int = 60
    lora: bool = False
    top_layers: int | None = None
    shared: bool = True
    """Whether the layers beneath all adapters are computed once a round."""
    lr: float = 1e-3
    world: World = field(default_factory=World)
    seed: int = 3
    steps: int = 10
    loss: PolicyLoss = field(default_factory=ClippedSurrogate)
    terms: Mapping[str, object] = field(default_factory=dict)
    shape: Mapping[str, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        policy = copy.deepcopy(start())
        model = policy.model
        if self.lora:
            add_lora(model, LoRA(rank=4, top_layers=self.top_layers), seed=0)
        critic = None
        if self.credit.needs_critic:
            if self.lora:
                add_lora(model, LoRA(rank=4, top_layers=self.top_layers), seed=0, name=CRITIC)
                critic = ValueModel(policy, adapter=CRITIC)
            else:
                critic = ValueModel(copy.deepcopy(start()))
        if self.shared:
            share_lower_layers(policy)
        self.model = ActorCritic(policy, critic)
        self.reference = Reference(policy)
        self.rows: list[Mapping[str, object]] = []
        self.warnings: list[str] = []
        self.control = KLControl(self.kl)
        trees = [Tree(trunk=trunk, branches=(), key=key) for key, trunk in enumerate(TRUNKS)]
        records = [
            Prompt(messages=(Message(role="user", content=str(trunk)),), origin=Origin(file="prompts.jsonl", row=row))
            for row, trunk in enumerate(TRUNKS, 1)
        ]
        self.source = OnPolicy(
            prompts=TreeSource(trees, batch_size=self.batch_size, micro_tokens=self.micro_tokens, seed=self.seed),
            records=records,
            model=self.model,
            reference=self.reference,
            reward=WeightedSum(parts={"low": self.reward}, weights={"low": 1.0}),
            combination=combination({"low": 1.0}, self.shape, {}),
            credit=self.credit,
            control=self.control,
            rounds=self.rounds,
            decoding=Decoding(max_tokens=self.max_tokens, temperature=self.temperature),
            stop_ids=STOP,
            decode=lambda tokens: " ".join(str(token) for token in tokens if token not in STOP),
            world=self.world,
            record=self.rows.append,
            warn=self.warnings.append,
            sampler=LocalSampler(policy=policy),
        )
        settings = Optimizer(lr=self.lr, eps=1e-5, schedule="linear", warmup=0.0)
        self.learner = ReplayLearner(
            Learner(self.model, settings, total_steps=self.steps, world=self.world),
            self.replay,
            self.control,
            partial(divergence, policy, self.reference, temperature=self.temperature),
            micro_tokens=self.micro_tokens,
            seed=self.seed,
        )
        self.objective = PolicyGradient(
            loss=self.loss,
            value_loss=ClippedValue() if self.credit.needs_critic else None,
            temperature=self.temperature,
            **self.terms,
        )

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def run(self, rounds: int) -> list[dict[str, float]]:
        """The metrics of so many rounds."""
        return [self.learner.update(self.objective, self.source.next()) for _ in range(rounds)]
