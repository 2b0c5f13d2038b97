"""Who says which of two answers is better: settings of judges that read both, and the judge they make, loaded when first asked."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import Field

from truing.data.chat import ChatTokenizer
from truing.endpoint import Client, Endpoint, Replies
from truing.evals.answers import RULE_SECONDS
from truing.evals.tasks.evaluate import Model
from truing.evals.verdicts import Asked
from truing.judges import Judge, JudgePrompt, LocalJudge, RemoteJudge, RewardJudge
from truing.judges.choice import LocalChooser, RemoteChooser
from truing.recipes.reward_folder import load_reward_model
from truing.records import Reward, Rollout
from truing.rewards.base import Failure, LearnedReward, RewardFunction, WeightedSum
from truing.rewards.learned import LearnedScorer
from truing.rewards.outside import OutsideRule
from truing.rewards.rules import RULES, Rule
from truing.rollouts.sampler import Decoding
from truing.rollouts.writer import LocalWriter
from truing.runs.canonical import digest
from truing.runs.sinks import Tick


@dataclass(frozen=True, kw_only=True)
class ModelJudge:
    """A model in this process, by the log-probabilities of its verdict. Example: `judge=model judge.model=FOLDER`."""

    model: str
    """A run, a model's folder or a hub name."""
    rubric: str = "overall"
    """What counts: overall, helpful, harmless, honest, or the path of a text file."""
    template: str | None = None
    """How it is put: the path of a text file; null takes the packaged one, letter, or reasons where it weighs first."""
    reasons: Annotated[int, Field(ge=0)] = 0
    """Tokens in which the judge weighs both answers before its verdict is asked; 0 asks at once."""
    max_tokens: Annotated[int, Field(gt=0)] = 2048
    """Longest question; a longer one has no verdict."""


@dataclass(frozen=True, kw_only=True)
class EndpointJudge:
    """A model behind a chat endpoint. Example: `judge=endpoint judge.endpoint.url=http://HOST/v1 judge.endpoint.model=NAME`."""

    endpoint: Endpoint
    """The server."""
    rubric: str = "overall"
    """What counts: overall, helpful, harmless, honest, or the path of a text file."""
    template: str | None = None
    """How it is put: the path of a text file; null takes the packaged one, structured, or reasoned where it weighs first."""
    reasoning: bool = False
    """Whether the judge weighs both answers before its verdict."""
    samples: Annotated[int, Field(gt=0)] = 1
    """Verdicts for each order; more than one need a temperature."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest verdict."""
    max_tokens: Annotated[int, Field(gt=0)] = 512
    """Longest reply."""


PairJudge = ModelJudge | EndpointJudge
JUDGES: Mapping[str, type] = {
    **{name: rule for name, rule in RULES.items() if name != "python"},
    "model": ModelJudge,
    "endpoint": EndpointJudge,
}
"""Name in a config -> settings of a judge: a model or an endpoint that reads both answers, or a rule that scores each.

A function of the user's own would run inside this process; score its answers elsewhere and compare the files."""
MORE_JUDGES: Mapping[str, type] = {**JUDGES, "learned": LearnedReward}
SCORERS: Mapping[str, type] = {name: cls for name, cls in MORE_JUDGES.items() if name not in ("model", "endpoint")}
"""Those that give an answer a score by itself."""
BUDGET = 2048
"""Tokens that a reward model scores at once."""


def asked_of(
    settings: Rule | PairJudge | LearnedReward, name: str, *, model_of: Callable[[str], Model], folder: Path, seed: int
) -> Asked:
    """The judge of these settings; `name` is what the user calls it, and `folder` where an endpoint's replies are kept."""
    if isinstance(settings, ModelJudge):
        return LocalAsked(settings, model_of(settings.model), seed)
    if isinstance(settings, EndpointJudge):
        return RemoteAsked(settings, folder / f"replies-{name}.jsonl", seed)
    if isinstance(settings, LearnedReward):
        return LearnedAsked(settings, model_of(str(settings.run)))
    return RuleAsked(settings)


class LocalAsked:
    """A model in this process as a judge; the evaluation keeps what it says."""

    keeps = False

    def __init__(self, settings: ModelJudge, model: Model, seed: int) -> None:
        self.settings, self.seed, self._model = settings, seed, model
        self.prompt = JudgePrompt.of(settings.rubric, settings.template or ("reasons" if settings.reasons else "letter"))
        self.name = settings.model

    @cached_property
    def weights(self) -> str:
        return self._model.identity

    @cached_property
    def identity(self) -> str:
        asked = {**asdict(self.prompt), "reasons": self.settings.reasons, "max_tokens": self.settings.max_tokens}
        dtype = str(self._model.dtype)
        return digest([self.weights, self._model.template, dtype, asked, self.seed if self.settings.reasons else None])

    def judge(self, progress: Tick) -> Judge:
        policy, chat = self._model.policy, self._model.chat
        reasoner = None
        if self.settings.reasons:
            decoding = Decoding(max_tokens=self.settings.reasons)
            reasoner = LocalWriter(policy=policy, chat=chat, decoding=decoding, weights=self.weights)
        return LocalJudge(
            policy=policy,
            chat=chat,
            prompt=self.prompt,
            reasoner=reasoner,
            max_tokens=self.settings.max_tokens,
            name=self.name,
            weights=self.weights,
            seed=self.seed,
            progress=progress,
        )

    def chooser(self) -> LocalChooser:
        """The same model where one answer is judged."""
        return LocalChooser(load=lambda: (self._model.policy, self._model.chat), max_tokens=self.settings.max_tokens)


class RemoteAsked:
    """A model behind an endpoint as a judge; every reply is kept in a file: none is paid for twice, failures are asked again."""

    keeps = True
    weights = ""

    def __init__(self, settings: EndpointJudge, replies: Path, seed: int) -> None:
        if settings.samples > 1 and not settings.temperature:
            raise ValueError("judge: several samples of a verdict at temperature 0 are one; set temperature=1 or samples=1")
        self.settings, self.seed = settings, seed
        self.prompt = JudgePrompt.of(settings.rubric, settings.template or ("reasoned" if settings.reasoning else "structured"))
        self.client = Client(settings.endpoint, Replies(replies))
        self.name = settings.endpoint.model

    @cached_property
    def identity(self) -> str:
        return self.judge(lambda done, total: None).identity

    def judge(self, progress: Tick) -> RemoteJudge:
        return RemoteJudge(
            client=self.client,
            prompt=self.prompt,
            reasoning=self.settings.reasoning,
            samples=self.settings.samples,
            temperature=self.settings.temperature,
            max_tokens=self.settings.max_tokens,
            seed=self.seed,
            progress=progress,
        )

    def chooser(self) -> RemoteChooser:
        """The same endpoint where one answer is judged."""
        return RemoteChooser(client=self.client, max_tokens=self.settings.max_tokens)


class LearnedAsked:
    """A reward model as a judge: the answer of the higher reward is better, in whichever order."""

    keeps = False
    weights = ""

    def __init__(self, settings: LearnedReward, model: Model) -> None:
        self.settings, self._model = settings, model
        self.name = f"the reward model {settings.run}"

    @cached_property
    def identity(self) -> str:
        """Of the model's files, and of how an ensemble's values become one."""
        return digest([self._model.identity, self.settings.aggregate, self.settings.deviation_weight, str(self._model.dtype)])

    @cached_property
    def _scorer(self) -> LearnedScorer:
        of = self.settings
        model = load_reward_model(of.run, self._model.dtype)
        return LearnedScorer(model, budget=BUDGET, aggregate=of.aggregate, deviation_weight=of.deviation_weight)

    def judge(self, progress: Tick) -> Judge:
        """As settings say, but for the weight, which changes no order."""
        return RewardJudge(reward=self.reward(), chat=self.chat(), name=self.name, identity=self.identity)

    def reward(self) -> RewardFunction:
        """Scores rollouts."""
        return WeightedSum(parts={"learned": self._scorer}, weights={"learned": 1.0})

    def chat(self) -> ChatTokenizer | None:
        """The tokenizer with which it was trained."""
        return self._model.chat


class RuleAsked:
    """A rule as a judge: the answer of the higher score is better, in whichever order."""

    keeps = False
    weights = ""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.name = f"the rule {rule_name(rule)}"

    @cached_property
    def identity(self) -> str:
        """Of the rule and its settings."""
        said = {name: str(value) for name, value in asdict(self.rule).items()}  # type: ignore[call-overload]
        return digest([type(self.rule).__name__, said])

    def judge(self, progress: Tick) -> Judge:
        """By score times weight. Raises ValueError for a rule that counts tokens, since a pair of answers is text."""
        if getattr(self.rule, "unit", None) == "tokens":
            raise ValueError(f"{self.name}: counts tokens, and a judge of two answers has only their text; set its unit=words")
        return RewardJudge(reward=self.reward(), name=self.name, identity=self.identity)

    def reward(self) -> RewardFunction:
        """Scores rollouts, in a process of its own. Raises ValueError where the rule fails or takes too long."""
        outside = OutsideRule(self.rule, seconds=RULE_SECONDS)

        def scored(rollouts: Sequence[Rollout]) -> list[Reward]:
            found = []
            for value in outside(rollouts):
                if isinstance(value, Failure):
                    raise ValueError(f"{self.name} {value}")
                found.append(Reward(value=self.rule.weight * value))
            return found

        weakref.finalize(scored, outside.close)
        return scored

    def chat(self) -> ChatTokenizer | None:
        """None: rules read text."""
        return None


def rule_name(rule: object) -> str:
    """The name in a config under which a rule's settings stand."""
    return next(name for name, cls in JUDGES.items() if cls is type(rule))
