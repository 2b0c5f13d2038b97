"""Models compared on held-out prompts in one command: answers, scores, one table with intervals, the words, an HTML report.

Answers and scores are kept in the folder `out` under what decides them, so the same command again comes from there, and a killed
one goes on where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from truing.config import OneOf, resolved_of
from truing.evals import compare_text
from truing.evals.answers import (
    answered,
    answers_of_file,
    divergence,
    scored_by_rule,
)
from truing.evals.compare import Contender, compare
from truing.evals.html import page
from truing.evals.result import Evaluation
from truing.evals.sequential import looked
from truing.evals.tasks.evaluate import Model
from truing.evals.verdicts import Asked, Told, account, judged, pairings, told
from truing.memory import give_back
from truing.recipes.best_of import BestOf, best_of
from truing.recipes.compare_panels import panels
from truing.recipes.compare_report import PAGE, REPORT, RESULT, write_report
from truing.recipes.compare_reward import evaluate_alone
from truing.recipes.eval_arguments import arguments_as_settings
from truing.recipes.fit import MODEL, model_folder, model_path, template_of
from truing.recipes.held_prompts import Held, held_prompts, held_rankings
from truing.recipes.judges import JUDGES, MORE_JUDGES, LearnedAsked, PairJudge, RuleAsked, asked_of
from truing.recipes.reward_folder import HEAD
from truing.recipes.reward_scorer import RewardScorer
from truing.recipes.settings import device, torch_dtype
from truing.rewards.base import LearnedReward
from truing.rewards.rules import Rule
from truing.rollouts.sampler import Decoding
from truing.runs.sinks import Sink, counted
from truing.settings_text import ConfigError

__all__ = ["PAGE", "REPORT", "RESULT", "Config", "run", "settings_of", "stage_of"]

KEPT = "kept"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `truing eval NAME=MODEL NAME=MODEL ...`, and of `truing eval reward_model=RUN prompts=PAIRS`."""

    models: Mapping[str, str] = field(default_factory=dict)
    """Name -> run, model folder, hub name, or a file of answers (JSON lines of prompt and answer); the first is the baseline."""
    prompts: str | None = None
    """A data file whose prompts are asked, each once; null takes the rows that a run among the models held out."""
    rows: Annotated[int, Field(gt=0)] | None = None
    """Only the first so many prompts; null takes all."""
    reward_model: str | None = None
    """The run whose reward model scores the answers; null takes the one beside a model's run, as `truing align` leaves it.
    Without models it is measured alone, on the pairs and rankings of `prompts`, or on those that it held out."""
    category: str | None = None
    """The column by which the reward model's accuracy is parted, such as subset; null takes kind, where rows have it."""
    judge: Annotated[Rule | PairJudge, OneOf(JUDGES)] | None = None
    """Who decides instead of a reward model: judge=model judge.model=FOLDER, judge=endpoint, or a rule such as numeric_answer."""
    more_judges: Mapping[str, Annotated[Rule | PairJudge | LearnedReward, OneOf(MORE_JUDGES)]] = field(default_factory=dict)
    """Further judges by names of your choice, to see how far all agree: more_judges.strict=endpoint, or learned, a reward model."""
    judged_pairs: Annotated[int, Field(ge=0)] = 100
    """Held-out pairs, labelled by people, of which judges are asked too, to see how far they agree with people; 0 asks none."""
    rewritten_pairs: Annotated[int, Field(ge=0)] = 64
    """Held-out pairs that the reward model scores again, places changed and answers rewritten; 0 leaves it out."""
    best_of: BestOf = field(default_factory=BestOf)
    """Best-of-n by the reward model, and whether it over-optimises."""
    out: Path = Path("runs/eval")
    """Where answers, scores and the report are kept; the same command again takes them from there."""
    answers: Decoding = field(default_factory=Decoding)
    """How answers are drawn."""
    reference: str | None = None
    """A model from which the KL of each other one is taken, on answers at temperature 1; null leaves it out."""
    kl_prompts: Annotated[int, Field(gt=0)] = 32
    """Prompts on which the KL is estimated."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the weights; auto is bf16 where the machine computes in it, else fp32."""
    seed: int = 0
    """Seed of samples and bootstraps."""


def run(config: Config, sinks: Sequence[Sink]) -> Path:
    """Compare; returns the folder with `report.html`, `report.txt` and `comparison.json`."""
    if not config.models and config.reward_model is not None:
        return _alone(config, sinks)
    if len(config.models) < 2:
        raise ConfigError(
            ["name two models or more: truing eval base=MODEL tuned=RUN; or a reward model alone: reward_model=RUN prompts=PAIRS"]
        )
    places = {name: stage_of(place) for name, place in config.models.items()}
    _refuse_unused(config, places)
    held = held_prompts(config.prompts, config.rows, places)
    scorer = _scorer(config, places)
    asked = None if config.judge is None else _asked(config.judge, "judge", config)
    answers: dict[str, Evaluation] = {}
    kl: dict[str, Evaluation] = {}
    for name, place in places.items():
        answers[name] = _answers(name, place, held, config, sinks)
        if config.reference is not None and not Path(place).is_file():
            kl[name] = _divergence(name, place, config.reference, held, config, sinks)
        give_back()
    scores: dict[str, Evaluation] = {}
    if scorer is not None:
        scores = {name: scorer.scores(name, said, held, sinks) for name, said in answers.items()}
    elif config.judge is not None and not isinstance(config.judge, PairJudge):
        scores = {name: scored_by_rule(said, held.items, config.judge) for name, said in answers.items()}
    judge = asked.name if asked is not None else f"the reward model {scorer.place if scorer else ''}"
    verdicts: dict[tuple[str, str], Evaluation] | None = None
    if asked is not None and isinstance(config.judge, PairJudge):
        judge = f"the judge {asked.name}"
        verdicts, said_of_all = _verdicts(asked, answers, held, config, sinks)
    found = compare(
        {name: Contender(answers=answers[name], scores=scores.get(name), kl=kl.get(name)) for name in places},
        {item.key: item.prompt[-1].content for item in held.items},
        judge=judge,
        seed=config.seed,
        reward_model=None if scorer is None else scorer.report(held, sinks),
        verdicts=verdicts,
    )
    found |= _judged_by(config, scorer)
    if asked is not None and verdicts is not None:
        found["verdicts"] = account(asked.name, said_of_all, seed=config.seed)
    if scorer is not None and (changes := scorer.robustness(held, config.rewritten_pairs, sinks)):
        found["robustness"] = [asdict(change) for change in changes]
    if config.best_of.answers:
        found["best_of"] = _best_of(config, scorer, places, held, sinks)
    several = panels(
        _judges(config, asked, scorer),
        answers,
        held,
        judged_pairs=config.judged_pairs if config.more_judges or isinstance(config.judge, PairJudge) else 0,
        folder=config.out / KEPT,
        sinks=sinks,
        seed=config.seed,
    )
    if several:
        found["panels"] = several
    return write_report(config.out, found, page(found), compare_text.text(found, config.out / PAGE))


def _judged_by(config: Config, scorer: RewardScorer | None) -> dict[str, Any]:
    """For the record: the seed of bootstraps, the judge's settings, and which weights the reward model had."""
    found: dict[str, Any] = {"bootstrap_seed": config.seed}
    if config.judge is not None:
        found["judge_settings"] = resolved_of(config)["judge"]
    if scorer is not None:
        found["reward_model_weights"] = scorer.model.identity
    return found


def _refuse_unused(config: Config, places: Mapping[str, str]) -> None:
    """Raises ConfigError for settings that nothing of this comparison would take up."""
    by_rule = config.judge is not None and not isinstance(config.judge, PairJudge)
    problems = []
    if config.reference is not None and all(Path(place).is_file() for place in places.values()):
        problems.append("reference: files of answers have no log-probabilities, and so no KL; leave it out, or name a model")
    if by_rule and config.reward_model is not None:
        problems.append("reward_model: the rule that judge names scores the answers; leave out one of the two")
    if config.category is not None and config.judge is not None and (by_rule or config.reward_model is None):
        problems.append("category: parts a reward model's accuracy, and none is asked here; leave it out")
    if problems:
        raise ConfigError(problems)


def _alone(config: Config, sinks: Sequence[Sink]) -> Path:
    """The reward model by itself."""
    if config.judge is not None or config.more_judges or config.best_of.answers or config.reference is not None:
        raise ConfigError(["judge, more_judges, best_of and reference are of models' answers: name the models, or leave them out"])
    scorer = _judge(config, {})
    held = held_rankings(config.prompts, config.rows, scorer.place)
    return evaluate_alone(scorer, held, config.rewritten_pairs, config.out, sinks)


def _asked(settings: Rule | PairJudge | LearnedReward, name: str, config: Config) -> Asked:
    def model_of(place: str) -> Model:
        return _model(stage_of(place), config)

    return asked_of(settings, name, model_of=model_of, folder=config.out / KEPT, seed=config.seed)


def _verdicts(
    asked: Asked, answers: Mapping[str, Evaluation], held: Held, config: Config, sinks: Sequence[Sink]
) -> tuple[dict[tuple[str, str], Evaluation], list[Told]]:
    """Of every two models, what the judge says of their answers to each prompt; what may be said of it so far is shown."""
    verdicts: dict[tuple[str, str], Evaluation] = {}
    every: list[Told] = []
    for a, b in combinations(answers, 2):
        pairs = pairings(held.items, answers[a], answers[b])
        tick = counted(sinks, f"{asked.name}: {a} or {b}")

        def look(outcomes: list[float], a: str = a, b: str = b) -> None:
            for sink in sinks:
                sink.message(f"{b} against {a}: {looked([1 - outcome for outcome in outcomes])}", "info")

        verdicts[a, b] = judged(asked, pairs, config.out / KEPT, tick, data=held.file, seen=look)
        every += told(asked, pairs, verdicts[a, b], answers[a], answers[b])
        give_back()
    return verdicts, every


def _judges(config: Config, asked: Asked | None, scorer: RewardScorer | None) -> dict[str, Asked]:
    """All who judge, by name."""
    judges: dict[str, Asked] = {}
    if asked is not None:
        judges["judge"] = asked
    if scorer is not None:
        judges["reward_model"] = _asked(LearnedReward(run=Path(scorer.place)), "reward_model", config)
    if taken := set(judges) & set(config.more_judges):
        raise ConfigError([f"more_judges.{taken.pop()}: this name is taken; choose another"])
    return judges | {name: _asked(settings, name, config) for name, settings in config.more_judges.items()}


def _best_of(
    config: Config, scorer: RewardScorer | None, places: Mapping[str, str], held: Held, sinks: Sequence[Sink]
) -> dict[str, Any]:
    *_, (name, place) = places.items()
    if scorer is None or config.best_of.gold is None or Path(place).is_file():
        raise ConfigError(
            ["best_of: name a reward model to choose (reward_model=RUN), best_of.gold= to judge the chosen, and a model, no file"]
        )
    gold = _asked(config.best_of.gold, "gold", config)
    assert isinstance(gold, LearnedAsked | RuleAsked)
    proxy = LearnedAsked(LearnedReward(run=Path(scorer.place)), scorer.model)
    items, model = held.items[: config.best_of.prompts], _model(place, config)
    source = (held.file, held.sha256)
    tick = counted(sinks, f"{name}: {config.best_of.answers} answers a prompt")
    return best_of(config.best_of, model, items, proxy, gold, config.out / KEPT, data=source, seed=config.seed, progress=tick)


def _scorer(config: Config, places: Mapping[str, str]) -> RewardScorer | None:
    """The reward model that scores: the only judge, or, where it is named, beside a judge of two answers."""
    if config.judge is None or (isinstance(config.judge, PairJudge) and config.reward_model is not None):
        return _judge(config, places)
    return None


def _answers(name: str, place: str, held: Held, config: Config, sinks: Sequence[Sink]) -> Evaluation:
    if Path(place).is_file():
        return answers_of_file(Path(place), place, held.items, data=(held.file, held.sha256), cut_to=config.rows)
    return answered(
        _model(place, config),
        held.items,
        config.answers,
        config.out / KEPT,
        data=(held.file, held.sha256),
        seed=config.seed,
        progress=counted(sinks, f"{name}: answers"),
    )


def _divergence(name: str, place: str, reference: str, held: Held, config: Config, sinks: Sequence[Sink]) -> Evaluation:
    return divergence(
        _model(place, config),
        _model(stage_of(reference), config),
        held.items[: config.kl_prompts],
        config.answers.max_tokens,
        config.out / KEPT,
        data=(held.file, held.sha256),
        seed=config.seed,
        progress=counted(sinks, f"{name}: KL from the reference"),
    )


def _model(place: str, config: Config) -> Model:
    return Model(
        name=place, path=model_folder(place), dtype=torch_dtype(config.dtype), device=device(), template=template_of(Path(place))
    )


def stage_of(place: str) -> str:
    """What a name on the command line stands for: the run of `truing align` for the model that came of it."""
    path = Path(place)
    return str(path / "preference") if (path / "preference" / MODEL).is_dir() else place


def _judge(config: Config, places: Mapping[str, str]) -> RewardScorer:
    """The named reward model, or the one beside a run."""
    if config.reward_model is not None:
        if not (model_path(Path(config.reward_model)) / HEAD).is_file():
            place = f"reward_model={config.reward_model}"
            raise ConfigError([f"{place}: holds no reward model; name the run of `truing train reward_model`"])
        return _scorer_of(config.reward_model, config)
    beside = [Path(place).parent / "reward_model" for place in places.values()]
    found = list(dict.fromkeys(str(folder) for folder in beside if (model_path(folder) / HEAD).is_file()))
    if len(found) != 1:
        which = f"there are several: {', '.join(found)}" if found else "no run of a reward model lies beside the models"
        raise ConfigError([f"who scores the answers? {which}; name reward_model=RUN, or judge= one of {', '.join(JUDGES)}"])
    return _scorer_of(found[0], config)


def _scorer_of(place: str, config: Config) -> RewardScorer:
    return RewardScorer(place, _model(place, config), config.out / KEPT, config.seed, config.category)


def settings_of(arguments: Sequence[str]) -> list[str]:
    """The command line as settings: `base=MODEL` names a model, unless the name is a setting's."""
    return arguments_as_settings(arguments, benchmarks=False)
