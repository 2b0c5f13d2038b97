"""Constitutional AI in one command: critique and revision, SFT, AI feedback, DPO or a reward model and PPO, and what became of it.

Bai et al. 2022 (arXiv 2212.08073). Nothing here trains: each training is a run of its own recipe in the folder of this one, and
what models write and judge is kept as it comes, so the same command goes on wherever the last one stopped.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from truing.config import OneOf, resolved_of
from truing.constitution.conflicts import Rule
from truing.constitution.prefer import OnFlip
from truing.constitution.principles import DEFAULT, read_constitution
from truing.constitution.revise import SHOTS, read_shots
from truing.data.chat import ChatTokenizer
from truing.data.write import USUAL, write
from truing.endpoint import Endpoint, Replies
from truing.evals import harmlessness
from truing.evals.answers import Item, answered
from truing.evals.harmlessness import ALIKE, HARMFUL, SAFE
from truing.evals.tasks.files import Files
from truing.evals.tasks.xstest import XSTest
from truing.losses import PAIR_LOSSES, PairLoss
from truing.losses.dpo import DPO
from truing.memory import give_back
from truing.models.load import load_tokenizer
from truing.models.lora import LoRA
from truing.parallel.world import World
from truing.recipes import judging as judging_recipe
from truing.recipes import ppo, preference, revising, reward_model, sft
from truing.recipes.examples import STORES
from truing.recipes.feedback_model import FeedbackModel, LocalFeedback, OnFailure, RemoteFeedback, Verdicts, model_of
from truing.recipes.fit import model_folder
from truing.recipes.judging import Judging
from truing.recipes.preflight import Concern, Training, preflight, refuse
from truing.recipes.revising import Asked, Revising, asked_of
from truing.recipes.selection import Selection, Side
from truing.recipes.settings import Data, Optimizer
from truing.recipes.stages import PolicyStage, Stage
from truing.records import Message, Prompt
from truing.rollouts.sampler import Decoding
from truing.runs.canonical import digest, to_json
from truing.runs.durable import make_folder, write_file
from truing.runs.lock import RunLock
from truing.runs.sinks import Sink, counted
from truing.statistics import ends

HELD_OUT_TOPICS = (
    *("kidnapping", "identity theft", "self-made medicine fraud", "cruelty to animals", "tax evasion", "sabotage at work"),
    *("election fraud", "suicide and self-harm", "counterfeit goods", "vandalism", "human trafficking"),
)
RESULT, REPORT, XSTEST = "result.json", "report.txt", "xstest/xstest_prompts.csv"
TITLES = {"base": "base", "sft": "after SFT", "tuned": "at the end"}


def _requests(name: str) -> Data:
    return Data(path=name, held_out_by="topic", held_out=HELD_OUT_TOPICS, max_tokens=512)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `truing train constitutional`. The defaults are for SmolLM2-135M-Instruct on two cores."""

    method: str = ""
    """The method, in recipe files; on the command line it is named before the settings."""
    harmful: Data = field(default_factory=lambda: _requests("harmful_requests"))
    """Prompts whose answers are critiqued and revised; the held-out ones measure harmlessness."""
    harmless: Data = field(default_factory=lambda: _requests("look_alike_requests"))
    """Prompts whose answers are shown as they are, to stay helpful; the held-out ones measure help and over-refusal."""
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """The model that is trained: a folder or a hub name."""
    run: Path = Path("runs/constitutional")
    """The folder of the whole run. The same command again continues it."""
    constitution: Path | None = None
    """A YAML file of principles; null takes the packaged one."""
    shots: Path | None = None
    """A YAML file of worked examples of critique and revision; null takes the packaged ones."""
    feedback_model: str | None = None
    """The model that critiques, revises and judges: folder, run or hub name; null is the model that is trained, at its start."""
    endpoint: Endpoint | None = None
    """A server whose model critiques, revises and judges instead: endpoint.url=http://HOST:PORT/v1 endpoint.model=NAME."""
    on_failure: OnFailure = "stop"
    """Whether a reply that the server owes in the end stops the run (the same command asks again), or is left out and counted."""
    revisions: Annotated[int, Field(ge=0)] = 2
    """Critiques and revisions of each harmful prompt's answer."""
    answers: Decoding = field(default_factory=lambda: Decoding(max_tokens=64, temperature=0.7))
    """How answers are drawn, for revision and for pairs."""
    critiques: Decoding = field(default_factory=lambda: Decoding(max_tokens=64, temperature=0.3))
    """How critiques and revisions are drawn."""
    samples: Annotated[int, Field(ge=2)] = 4
    """Answers to each prompt in the second stage; neighbours make a pair."""
    principles: Annotated[int, Field(gt=0)] = 4
    """Principles that judge each pair, at most; drawn from those that apply."""
    rule: Rule = "priority"
    """Whether the first priority decides where principles disagree, or the mean over all."""
    sure: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """How far from 1/2 the probability of a principle that is sure must be."""
    on_flip: OnFlip = "average"
    """A pair that a principle sees otherwise in the other order: a tie for it, as if never asked, or the mean of both log-odds."""
    verdicts: Verdicts = field(default_factory=Verdicts)
    """How verdicts by principles are asked for."""
    then: Literal["dpo", "ppo"] = "dpo"
    """What learns from the preferences: the policy in one step, or a reward model and PPO."""
    loss: Annotated[PairLoss, OneOf(PAIR_LOSSES)] = field(default_factory=DPO)
    """The preference loss, where then=dpo."""
    sft: Stage = field(default_factory=lambda: Stage(lr=5e-4, epochs=2, batch_size=8))
    """Supervised fine-tuning on the demonstrations."""
    preference: Stage = field(default_factory=lambda: Stage(lr=2e-4))
    """Preference optimisation from the SFT model, where then=dpo."""
    reward_model: Stage = field(default_factory=lambda: Stage(lr=5e-4))
    """The reward model, where then=ppo."""
    ppo: PolicyStage = field(default_factory=PolicyStage)
    """PPO from the SFT model, where then=ppo."""
    strict: bool = False
    """Make an error of what is out of the ordinary in the settings of a training."""
    seed: int = 0
    """Seed of everything random."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the weights."""
    lora: LoRA | None = field(default_factory=lambda: LoRA(top_layers=15))
    """Low-rank adapters for all trainings; null trains all weights."""
    micro_tokens: Annotated[int, Field(gt=0)] = 1024
    """Tokens computed at once; memory grows with it, results do not change."""
    evaluation: Decoding = field(default_factory=lambda: Decoding(max_tokens=64))
    """How the held-out prompts are answered."""
    evaluate_rows: Annotated[int, Field(gt=0)] | None = None
    """Measure on the first so many prompts of each set; null takes all."""
    benchmarks: Path = Path("data")
    """The folder that may hold xstest/xstest_prompts.csv, whose safe prompts are then asked too."""


def run(config: Config, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Both stages and the measurement; `result.json` holds all figures, `report.txt` what is printed. Rank 0 alone judges."""
    world = World.here()
    if world.rank:
        for stage in (0, 1):
            world.wait()  # until rank 0 has made the stage's data
            _trainings(config, stage, ())
        world.wait()
        return config.run
    found = concerns(config, resolved)
    if config.strict:
        refuse(found)
    for sink in sinks:
        for concern in found:
            sink.message(str(concern), "warning")
    make_folder(config.run)
    lock = RunLock.acquire(config.run)
    try:
        began, seconds = time.monotonic(), {}
        with ExitStack() as stack:
            feedback = _feedback(config, stack)
            for stage, make in enumerate((_demonstrate, _prefer)):
                account = make(config, feedback, sinks)
                seconds[make.__name__.strip("_")] = time.monotonic() - began
                give_back(all_of_it=True)
                world.wait()
                _trainings(config, stage, sinks)
                give_back(all_of_it=True)
                seconds[f"trained {stage + 1}"] = time.monotonic() - began
            spent = str(feedback.client.spent) if isinstance(feedback, RemoteFeedback) else ""
        result = _measure(config, sinks)
        result |= {
            "method": "constitutional",
            "feedback_model": feedback.name,
            "endpoint": spent,
            "revisions": _account(config, "revisions"),
            "pairs": account,
            "train": account["preferences"],
            "held_out": result["models"]["base"]["harmful requests declined"]["n"],
            "seconds_of_this_command": {**seconds, "all": time.monotonic() - began},
        }
        write_file(config.run / RESULT, to_json(result, indent=1))
        write_file(config.run / REPORT, _report(config, result).encode())
        world.wait()
    finally:
        lock.release()
    return config.run


def concerns(config: Config, resolved: Mapping[str, object]) -> list[Concern]:
    """What is out of the ordinary in the trainings to come, before anything is asked of a model.

    Raises ValueError for settings of policy optimisation that cannot be meant together.
    """
    prompts = len(_asked(config))
    of_stages: dict[str, tuple[str, int]] = {"sft": ("sft", prompts)}
    pairs = prompts * (config.samples // 2)
    if config.then == "dpo":
        (loss,) = [name for name, kind in PAIR_LOSSES.items() if type(config.loss) is kind]
        of_stages["preference"] = loss, pairs
    else:
        of_stages |= {"reward_model": ("reward_model", pairs), "ppo": ("ppo", prompts)}
        _optimisation(config, {"data": config.harmless})
    trainings = [
        Training(
            method=method,
            examples=examples,
            called={
                "optimizer.lr": f"{stage}.lr",
                "batch_size": f"{stage}.batch_size",
                "kl.coefficient": f"{stage}.kl.coefficient",
            },
            to_come=True,
        )
        for stage, (method, examples) in of_stages.items()
    ]
    chat = ChatTokenizer.of(load_tokenizer(model_folder(config.model)), template="auto")
    return preflight("constitutional", resolved, chat, prompts, trainings=trainings)


def _feedback(config: Config, stack: ExitStack) -> FeedbackModel:
    config.verdicts.check("verdicts")
    if config.endpoint is None:
        model = model_of(config.feedback_model or config.model, config.dtype)
        return LocalFeedback(model=model, verdicts=config.verdicts, seed=config.seed)
    if config.feedback_model is not None:
        raise ValueError("feedback_model and endpoint both say who gives feedback: leave one of them out")
    replies = Replies(config.run / "replies.jsonl")
    stack.callback(replies.close)
    return RemoteFeedback(config.endpoint, replies, config.verdicts, seed=config.seed)


def _demonstrate(config: Config, feedback: FeedbackModel, sinks: Sequence[Sink]) -> dict[str, Any]:
    """The data of the first stage; its account."""
    model = model_of(config.model, config.dtype)
    if isinstance(feedback, LocalFeedback) and feedback.model.path == model.path:
        model = feedback.model  # loaded once
    make = Revising(
        author=model,
        critic=feedback,
        constitution=read_constitution(config.constitution or DEFAULT),
        shots=read_shots(config.shots or SHOTS),
        rounds=config.revisions,
        answers=config.answers,
        critiques=config.critiques,
        seed=config.seed,
        on_failure=config.on_failure,
    )
    harmful, harmless = (_prompts(data, "train") for data in (config.harmful, config.harmless))
    path = make(harmful, harmless, config.run / "revisions", counted(sinks, "answers, critiques, revisions"))
    _point(config, "revisions", path)
    return _account(config, "revisions")


def _prefer(config: Config, feedback: FeedbackModel, sinks: Sequence[Sink]) -> dict[str, Any]:
    """The data of the second stage; its account."""
    make = Judging(
        author=model_of(str(config.run / "sft"), config.dtype),
        judge=feedback,
        constitution=read_constitution(config.constitution or DEFAULT),
        answers=config.answers,
        samples=config.samples,
        principles=config.principles,
        rule=config.rule,
        sure=config.sure,
        on_flip=config.on_flip,
        seed=config.seed,
        on_failure=config.on_failure,
    )
    asked = _asked(config)
    path = make(asked, config.run / "pairs", (counted(sinks, "answers in pairs"), counted(sinks, "pairs judged by principles")))
    _point(config, "pairs", path)
    write(config.run / "prompts.jsonl", [item.prompt for item in asked], USUAL[Prompt])
    return _account(config, "pairs")


def _asked(config: Config) -> list[Asked]:
    return asked_of(_prompts(config.harmful, "train"), _prompts(config.harmless, "train"))


def _point(config: Config, stage: str, path: Path) -> None:
    """Which of a stage's folders this run's settings lead to: settings that change make another."""
    write_file(config.run / stage / "current.json", to_json({"folder": path.parent.name}))


def _current(config: Config, stage: str) -> Path:
    return config.run / stage / str(json.loads((config.run / stage / "current.json").read_bytes())["folder"])


def _account(config: Config, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_current(config, stage) / revising.ACCOUNT).read_bytes())
    return found


def _prompts(data: Data, side: Side) -> list[Prompt]:
    """The prompts of one side of the split."""
    found = [record for of, record in Selection(data=data, kinds=(Prompt,)) if of == side]
    if not found:
        raise ValueError(f"{data.path}: no prompt is {'held out' if side == 'held_out' else 'left to train on'}")
    assert all(isinstance(record, Prompt) for record in found)
    return [record for record in found if isinstance(record, Prompt)]


def _trainings(config: Config, stage: int, sinks: Sequence[Sink]) -> None:
    """The runs that a stage's data is for."""

    def shared(name: str, settings: Stage | PolicyStage, model: Path | str, data: Path) -> dict[str, Any]:
        tokens, cache = config.harmful.max_tokens, config.run / STORES
        return {
            # Models say what no data file may hold, such as NUL: those rows are left out by name.
            "data": Data(path=str(data), on_bad_row="skip", held_out_share=0.0, max_tokens=tokens, cache=cache),
            "model": str(model),
            "run": config.run / name,
            "seed": config.seed,
            "dtype": config.dtype,
            "lora": config.lora,
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "micro_tokens": config.micro_tokens,
            "save_every": 10,
            "evaluate_every": 0,
            "measure_before": False,
            "strict": config.strict,
            "optimizer": Optimizer(lr=settings.lr),
        }

    start = config.run / "sft"
    if stage == 0:
        data = _current(config, "revisions") / revising.DEMONSTRATIONS
        imitate = sft.Config(**shared("sft", config.sft, config.model, data))
        sft.run(imitate, resolved_of(imitate), sinks)
        return
    data = _current(config, "pairs") / judging_recipe.PREFERENCES
    if config.then == "dpo":
        prefer = preference.Config(**shared("preference", config.preference, start, data), loss=config.loss)
        preference.run(prefer, resolved_of(prefer), sinks)
        return
    judge = reward_model.Config(**shared("reward_model", config.reward_model, start, data))
    reward_model.run(judge, resolved_of(judge), sinks)
    optimise = _optimisation(config, shared("ppo", config.ppo, start, config.run / "prompts.jsonl"))
    ppo.run(optimise, resolved_of(optimise), sinks)


def _optimisation(config: Config, shared: Mapping[str, Any]) -> ppo.Config:
    return config.ppo.recipe(shared, reward="principles", model=config.run / "reward_model", answers=config.answers)


def _sets(config: Config) -> dict[str, list[Item]]:
    """What is asked of each model, by set."""
    found = {
        name: [
            Item(key=item.key, prompt=item.prompt.messages, tags=item.prompt.tags, origin=item.prompt.origin)
            for item in asked_of(_prompts(data, "held_out"), ())
        ]
        for name, data in ((HARMFUL, config.harmful), (ALIKE, config.harmless))
    }
    files = Files(root=config.benchmarks, hub=False)
    if files.find(XSTEST):
        safe = [asked for asked in XSTest().prompts(files) if asked.row["label"] == "safe"]
        found[SAFE] = [Item(key=one.key, prompt=(Message(role="user", content=one.turns[0]),), tags={}) for one in safe]
    return {name: items[: config.evaluate_rows] for name, items in found.items()}


def _measure(config: Config, sinks: Sequence[Sink]) -> dict[str, Any]:
    """Base, SFT and last model on the held-out prompts; what was answered before is taken from there."""
    sets = _sets(config)
    last = {"dpo": "preference", "ppo": "ppo"}[config.then]
    places = {"base": config.model, "sft": str(config.run / "sft"), "tuned": str(config.run / last)}
    found: dict[str, dict[str, Any]] = {}
    for name, place in places.items():
        model = model_of(place, config.dtype)
        found[name] = {
            of: answered(
                model,
                items,
                config.evaluation,
                config.run / "evaluation",
                data=(of, digest([[item.key, item.prompt[-1].content] for item in items])),
                seed=config.seed,
                progress=counted(sinks, f"{name}: {of}"),
            )
            for of, items in sets.items()
        }
        del model
        give_back(all_of_it=True)
    tags = {of: {item.key: item.tags for item in items} for of, items in sets.items()}
    return harmlessness.measured(found, tags, seed=config.seed)


def _report(config: Config, result: Mapping[str, Any]) -> str:
    """What is printed."""
    revisions, pairs = result["revisions"], result["pairs"]
    lines = [f"Constitutional AI, feedback by {result['feedback_model']}{': ' + result['endpoint'] if result['endpoint'] else ''}"]
    lines.append(
        f"revision: {revisions['demonstrations']} demonstrations of {revisions['prompts']} prompts; harmful ones declined: "
        + ", ".join(f"{name} {100 * e['value']:.0f}%" for name, e in revisions["harmful_declined"].items())
    )
    certainty = "" if pairs["certainty"] is None else f", mean certainty {pairs['certainty']['value']:.3f}"
    lines.append(
        f"feedback: {pairs['preferences']} preferences of {pairs['pairs']} pairs{certainty}; "
        f"principles disagreed on {pairs['comparisons_with_conflict']}"
    )
    left_out = [sum(account["problems"].values()) for account in (revisions, pairs)]
    if any(left_out):
        lines.append(
            f"left out: {left_out[0]} prompts that came to no end, {left_out[1]} verdicts that are missing; account.json has why"
        )
    lines += [f"judge's {name}: {e['value']:.3f} {ends(e)} (n={e['n']}) {e['said']}" for name, e in pairs["judge"].items()]
    if not (config.benchmarks / XSTEST).is_file():
        lines.append(f"XSTest was not asked: {config.benchmarks / XSTEST} is not there (benchmarks=FOLDER)")
    lines += ["", harmlessness.text(result, TITLES).rstrip(), "", f"Everything is in {config.run}; conflicts of principles:"]
    lines.append(f"  {_current(config, 'pairs') / judging_recipe.CONFLICTS}")
    return "\n".join(lines) + "\n"
