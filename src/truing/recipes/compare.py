"""Models compared on held-out prompts in one command: answers, scores, one table with intervals, the words, an HTML report.

Answers and scores are kept in the folder `out` under what decides them, so the same command again comes from there, and a killed
one goes on where it was.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from truing.config import OneOf, load
from truing.data.chat import ChatTokenizer
from truing.data.read import as_kind, read
from truing.evals import compare_text
from truing.evals.answers import (
    Item,
    answered,
    answers_of_file,
    divergence,
    pairs_scored,
    scored_by_model,
    scored_by_rule,
)
from truing.evals.compare import Contender, compare
from truing.evals.html import page
from truing.evals.result import Evaluation, Setting, code_version
from truing.evals.reward_models import RewardModelReport, Scored, evaluate_reward_model
from truing.evals.tasks.evaluate import Model
from truing.memory import give_back
from truing.models.heads import RewardModel
from truing.models.load import load_tokenizer
from truing.recipes.examples import examples
from truing.recipes.fit import MODEL, model_folder, model_path, template_of
from truing.recipes.reward_folder import HEAD, load_reward_model
from truing.recipes.selection import PACKAGED, asked
from truing.recipes.settings import Data, device, torch_dtype
from truing.records import Messages, Preference, Prompt, Record
from truing.rewards.rules import RULES, Rule
from truing.rollouts.sampler import Decoding
from truing.runs.durable import make_folder, to_json, write_file
from truing.runs.read import read_json
from truing.runs.sinks import Sink, counted
from truing.settings_text import ConfigError

JUDGES: dict[str, type] = {name: rule for name, rule in RULES.items() if name != "python"}
"""Name -> rule. A function of the user's own would run inside this process; score its answers elsewhere and compare the files."""
PAGE, RESULT, REPORT, KEPT = "report.html", "comparison.json", "report.txt", "kept"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `truing eval NAME=MODEL NAME=MODEL ...`."""

    models: Mapping[str, str]
    """Name -> run, model folder, hub name, or a file of answers (JSON lines of prompt and answer); the first is the baseline."""
    prompts: str | None = None
    """A data file whose prompts are asked, each once; null takes the rows that a run among the models held out."""
    rows: Annotated[int, Field(gt=0)] | None = None
    """Only the first so many prompts; null takes all."""
    reward_model: str | None = None
    """The run whose reward model scores the answers; null takes the one beside a model's run, as `truing align` leaves it."""
    judge: Annotated[Rule, OneOf(JUDGES)] | None = None
    """A rule that scores instead of a reward model, such as judge=numeric_answer judge.column=answer."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is asked, and the pairs that the reward model is measured on."""

    items: list[Item]
    pairs: list[Preference]
    file: str
    sha256: str


def run(config: Config, sinks: Sequence[Sink]) -> Path:
    """Compare; returns the folder with `report.html`, `report.txt` and `comparison.json`."""
    if len(config.models) < 2:
        raise ConfigError(["name two models or more: truing eval base=MODEL tuned=RUN"])
    places = {name: stage_of(place) for name, place in config.models.items()}
    held = _held(config, places)
    judge = None if config.judge else _judge(config, places)
    answers: dict[str, Evaluation] = {}
    kl: dict[str, Evaluation] = {}
    for name, place in places.items():
        answers[name] = _answers(name, place, held, config, sinks)
        if config.reference is not None and not Path(place).is_file():
            kl[name] = _divergence(name, place, config.reference, held, config, sinks)
        give_back()
    if judge is None:
        assert config.judge is not None
        scores = {name: scored_by_rule(said, held.items, config.judge) for name, said in answers.items()}
        report = None
    else:
        scores = {name: judge.scores(name, said, held, config, sinks) for name, said in answers.items()}
        report = judge.report(held, config, sinks)
    contenders = {name: Contender(answers=answers[name], scores=scores[name], kl=kl.get(name)) for name in places}
    found = compare(
        contenders,
        {item.key: item.prompt[-1].content for item in held.items},
        judge=f"the rule {_name(config.judge)}" if judge is None else f"the reward model {judge.place}",
        seed=config.seed,
        reward_model=report,
    )
    make_folder(config.out)
    write_file(config.out / RESULT, to_json(_finite(found), indent=1))
    write_file(config.out / PAGE, page(found).encode())
    write_file(config.out / REPORT, compare_text.text(found, config.out / PAGE).encode())
    return config.out


def _answers(name: str, place: str, held: Held, config: Config, sinks: Sequence[Sink]) -> Evaluation:
    if Path(place).is_file():
        return answers_of_file(Path(place), place, held.items, data=(held.file, held.sha256))
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


class _Judge:
    """A reward model that is loaded when it is first asked, since its scores may all be kept."""

    def __init__(self, place: str, config: Config) -> None:
        self.place = place
        self._model = _model(place, config)
        self._loaded: RewardModel | None = None

    def __call__(self) -> tuple[RewardModel, ChatTokenizer]:
        if self._loaded is None:
            self._loaded = load_reward_model(Path(self.place), self._model.dtype)
        return self._loaded, self._model.chat

    def scores(self, name: str, answers: Evaluation, held: Held, config: Config, sinks: Sequence[Sink]) -> Evaluation:
        """The rewards of one model's answers."""
        progress = counted(sinks, f"{name}: rewards")
        return scored_by_model(answers, held.items, self, self._model.identity, config.out / KEPT, progress)

    def report(self, held: Held, config: Config, sinks: Sequence[Sink]) -> RewardModelReport | None:
        """How well it orders the held-out pairs; None where what is held out are no pairs."""
        if not held.pairs:
            return None
        setting = Setting(
            task="pairs",
            model=self.place,
            weights=self._model.identity,
            data=held.file,
            data_sha256=_digest([held.sha256, [[_key(pair.prompt), pair.chosen, pair.rejected] for pair in held.pairs]]),
            template=self._model.chat.fingerprint,
            decoding={},
            options={"dtype": str(self._model.dtype).removeprefix("torch.")},
            seeds={},
            code=code_version(),
        )
        progress = counted(sinks, "the reward model on held-out pairs")
        scored = pairs_scored(held.pairs, self, setting, config.out / KEPT, progress)
        return evaluate_reward_model(
            [
                Scored(
                    prompt=_key(pair.prompt),
                    category=pair.tags.get("kind", ""),
                    chosen=row["chosen"],
                    rejected=row["rejected"],
                    chosen_text=pair.chosen,
                    rejected_text=pair.rejected,
                )
                for pair, row in zip(held.pairs, scored.rows, strict=True)
            ],
            seed=config.seed,
        )


def _model(place: str, config: Config) -> Model:
    return Model(
        name=place, path=model_folder(place), dtype=torch_dtype(config.dtype), device=device(), template=template_of(Path(place))
    )


def stage_of(place: str) -> str:
    """What a name on the command line stands for: the run of `truing align` for the model that came of it."""
    path = Path(place)
    return str(path / "preference") if (path / "preference" / MODEL).is_dir() else place


def _judge(config: Config, places: Mapping[str, str]) -> _Judge:
    """The named reward model, or the one beside a run."""
    if config.reward_model is not None:
        if not (model_path(Path(config.reward_model)) / HEAD).is_file():
            place = f"reward_model={config.reward_model}"
            raise ConfigError([f"{place}: holds no reward model; name the run of `truing train reward_model`"])
        return _Judge(config.reward_model, config)
    beside = [Path(place).parent / "reward_model" for place in places.values()]
    found = list(dict.fromkeys(str(folder) for folder in beside if (model_path(folder) / HEAD).is_file()))
    if len(found) != 1:
        which = f"there are several: {', '.join(found)}" if found else "no run of a reward model lies beside the models"
        raise ConfigError([f"who scores the answers? {which}; name reward_model=RUN, or judge= one of {', '.join(JUDGES)}"])
    return _Judge(found[0], config)


def _held(config: Config, places: Mapping[str, str]) -> Held:
    """The prompts of the file, or those that a run held out."""
    if config.prompts is not None:
        return _of_file(config.prompts, config.rows)
    for place in reversed(list(places.values())):
        if (Path(place) / "config.json").is_file() and (Path(place) / "status.json").is_file():
            return _of_run(Path(place), config.rows)
    raise ConfigError(["which prompts? none of the models is a run that held rows out; name prompts=FILE"])


def _of_file(file: str, most: int | None) -> Held:
    reading = read(PACKAGED.get(file, file))
    items: list[Item] = []
    rows: dict[str, Record] = {}
    for record in reading.records:
        key = _key(asked(record))
        if key in rows:
            raise ValueError(f"{record.origin}: asks the same as {rows[key].origin}; each prompt is asked once, so take one out")
        rows[key] = record
        items.append(_item(record))
    pairs = [record for record in reading.records if isinstance(record, Preference)]
    return Held(items=items[:most], pairs=pairs[:most], file=file, sha256=reading.sha256)


def _of_run(run: Path, most: int | None) -> Held:
    """What the run's own data settings held out; a prompt of several rows is asked once."""
    written = read_json(run / "config.json")["data"]
    assert isinstance(written, dict)
    data = load(Data, base=written).value
    chat = ChatTokenizer.of(load_tokenizer(model_path(run)), template=data.template)
    found = examples(data, chat, (Preference,))
    if not found.held_out.trees:
        raise ValueError(f"{run}: its settings held no row out; name prompts=FILE")
    every = found.held_out.records
    records = [every[key] for key in found.held_out.trees.keys[:most].tolist()]
    items: dict[str, Item] = {}
    for record in records:
        items.setdefault(_key(asked(record)), _item(record))
    pairs = [record for record in records if isinstance(record, Preference)]
    return Held(items=list(items.values()), pairs=pairs, file=data.path, sha256=found.reading.sha256)


def _item(record: Record) -> Item:
    (prompt,) = as_kind([record], Prompt)
    return Item(key=_key(prompt.messages), prompt=prompt.messages, tags=prompt.tags, origin=prompt.origin)


def _name(rule: Rule | None) -> str:
    return next(name for name, cls in JUDGES.items() if cls is type(rule))


def _key(prompt: Messages) -> str:
    """The prompt itself names its answers: the same in every file and order."""
    return _digest([[message.role, message.content] for message in prompt])[:16]


def _digest(value: object) -> str:
    return hashlib.sha256(to_json(value)).hexdigest()


def _finite(value: Any) -> Any:
    """JSON has no infinity: a temperature that is infinite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def settings_of(arguments: Sequence[str]) -> list[str]:
    """The command line as settings: `base=MODEL` names a model, unless the name is a setting's."""
    known = {f.name for f in fields(Config)} - {"models"}
    found: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError([f"command line: {argument}: give the model a name, as in base={argument}, or name tasks=..."])
        if key.split(".")[0] in known:
            found.append(argument)
            continue
        near = get_close_matches(key.split(".")[0], known, 1, cutoff=0.7)
        if near and not Path(value).exists():
            raise ConfigError([f"command line: {argument}: there is no setting {key}; did you mean {near[0]}?"])
        found.append(f"models.{key}={value}")
    return found
