"""Models on published benchmarks: every task asked of every model, kept chunk by chunk, and the differences between the models."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from truing.config import OneOf
from truing.evals.tasks.bbq import BBQ
from truing.evals.tasks.evaluate import Manner, Measured, Model, evaluate
from truing.evals.tasks.files import Files
from truing.evals.tasks.gsm8k import GSM8K
from truing.evals.tasks.humaneval import HumanEval
from truing.evals.tasks.ifeval import IFEval
from truing.evals.tasks.lm_eval_bridge import PREFIX, Bridge, bridged, installed
from truing.evals.tasks.mmlu import MMLU
from truing.evals.tasks.mt_bench import MTBench
from truing.evals.tasks.mt_bench_pairs import Pairs, by_function, by_judge
from truing.evals.tasks.red_team import RedTeam
from truing.evals.tasks.report import as_json, report
from truing.evals.tasks.sycophancy import AreYouSure, FalsePremise
from truing.evals.tasks.table import JUDGED, SUITES, TASKS
from truing.evals.tasks.task import Task
from truing.evals.tasks.toxicity import Toxicity
from truing.evals.tasks.truthfulqa import TruthfulQA
from truing.evals.tasks.xstest import XSTest
from truing.judges.marks import callable_of
from truing.recipes.eval_arguments import arguments_as_settings
from truing.recipes.fit import model_folder
from truing.recipes.judges import EndpointJudge, LocalAsked, ModelJudge, PairJudge, RemoteAsked
from truing.recipes.settings import device, torch_dtype
from truing.runs.canonical import to_json
from truing.runs.durable import make_folder, write_file
from truing.runs.sinks import Sink, Tick, counted
from truing.settings_text import ConfigError

REPORT, RESULT = "report.txt", "tasks.json"


@dataclass(frozen=True, kw_only=True)
class FunctionJudge:
    """A function of the user's own from a prompt to a reply. Example: `judge=my_judges:ask`."""

    function: str
    """As module:function; the module must be importable from here."""


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Settings of MT-Bench beside its judge."""

    max_tokens: Annotated[int, Field(gt=0)] = MTBench.max_tokens
    """Longest answer of a turn."""


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """Settings of red-team success beside its judge."""

    samples: Annotated[int, Field(gt=0)] = RedTeam.samples
    """Answers a prompt; one is greedy, more are drawn at temperature 1, and one success is enough."""
    max_tokens: Annotated[int, Field(gt=0)] = RedTeam.max_tokens
    """Longest answer."""


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """Settings of toxicity beside its scorer."""

    samples: Annotated[int, Field(gt=0)] = Toxicity.samples
    """Continuations a prompt."""
    max_tokens: Annotated[int, Field(gt=0)] = Toxicity.max_tokens
    """Tokens of a continuation."""


TASK_JUDGES: Mapping[str, type] = {"function": FunctionJudge, "model": ModelJudge, "endpoint": EndpointJudge}
PAIRED = "mt_bench"
"""The task whose answers are compared in pairs, too."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `truing eval MODEL tasks=...`."""

    tasks: tuple[str, ...]
    """Tasks or suites (quick, full), by name: tasks=mmlu,truthfulqa; any task of lm-eval as lm_eval:NAME."""
    models: Mapping[str, str]
    """Name -> folder of a model or run, or hub name; on the command line base=FOLDER, or one folder alone."""
    data: Path = Path("data")
    """The folder that holds the data sets, each in its own folder, as mmlu/mmlu.zip; what is not there is asked of the hub."""
    out: Path = Path("runs/eval")
    """Where results are kept; the same command again takes them from there."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Only so many items of each task, drawn once and for all; null takes all, or as many as the suite says."""
    style: Literal["plain", "chat"] | None = None
    """Plain text or the model's chat template; null asks each task in its usual style."""
    template: Literal["auto", "chat", "plain", "continue"] = "auto"
    """How conversations become text in the chat style."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the weights; auto is bf16 where the machine computes in it, else fp32."""
    budget: Annotated[int, Field(gt=0)] = 8192
    """Tokens computed at once; memory grows with it, results change by rounding alone."""
    seed: int = 0
    """Seed of samples and bootstraps."""
    truthfulqa: TruthfulQA = field(default_factory=TruthfulQA)
    """TruthfulQA's own settings."""
    bbq: BBQ = field(default_factory=BBQ)
    """BBQ's own settings."""
    mmlu: MMLU = field(default_factory=MMLU)
    """MMLU's own settings."""
    gsm8k: GSM8K = field(default_factory=GSM8K)
    """GSM8K's own settings."""
    humaneval: HumanEval = field(default_factory=HumanEval)
    """HumanEval's own settings."""
    ifeval: IFEval = field(default_factory=IFEval)
    """IFEval's own settings."""
    xstest: XSTest = field(default_factory=XSTest)
    """XSTest's own settings."""
    are_you_sure: AreYouSure = field(default_factory=AreYouSure)
    """Settings of doubt after an answer."""
    false_premise: FalsePremise = field(default_factory=FalsePremise)
    """Settings of questions with a premise."""
    mt_bench: Conversations = field(default_factory=Conversations)
    """Settings of MT-Bench."""
    red_team: Attacks = field(default_factory=Attacks)
    """Settings of red-team success."""
    toxicity: Continuations = field(default_factory=Continuations)
    """Settings of toxicity."""
    lm_eval: Bridge = field(default_factory=Bridge)
    """Settings of the tasks of lm-eval, tasks=lm_eval:NAME."""
    judge: Annotated[FunctionJudge | PairJudge, OneOf(TASK_JUDGES)] | None = None
    """Who judges mt_bench and red_team: judge=model judge.model=FOLDER, judge=endpoint, or a function as judge=module:function."""
    scorer: str | None = None
    """A function from texts to toxicities in [0, 1], as module:function, for toxicity."""


def run(config: Config, sinks: Sequence[Sink]) -> Path:
    """Evaluate; returns the folder with the report and the results of all tasks."""
    chosen = _chosen(config)
    asked = None if config.judge is None or isinstance(config.judge, FunctionJudge) else _asked(config.judge, config)
    results: dict[str, dict[str, Measured]] = {}
    for name, place in config.models.items():
        model = _model(place, config)
        results[name] = {}
        for task, limit in chosen.items():

            def bar(what: str, name: str = name, task: str = task) -> Tick:
                return counted(sinks, f"{name}, {task}: {what}")

            manner = Manner(style=config.style, limit=limit, budget=config.budget, seed=config.seed)
            if task.startswith(PREFIX):
                results[name][task] = bridged(
                    task.removeprefix(PREFIX), model, manner, config.lm_eval, config.out / "items", bar=bar
                )
                continue
            built, options = _built(config, task, asked)
            results[name][task] = evaluate(
                task, built, model, Files(root=config.data), manner, config.out / "items", options=options, bar=bar
            )
    found = as_json(results)
    lines: list[str] = []
    for name, pairs in _paired(config, asked, results, sinks).items():
        found[name][f"{PAIRED} in pairs"] = pairs.as_json()
        lines += pairs.lines(name, next(iter(results)))
    make_folder(config.out)
    write_file(config.out / RESULT, to_json(found))
    write_file(config.out / REPORT, (report(results) + "".join(f"{line}\n" for line in lines)).encode())
    return config.out


def _model(place: str, config: Config) -> Model:
    return Model(name=place, path=model_folder(place), dtype=torch_dtype(config.dtype), device=device(), template=config.template)


def _asked(judge: PairJudge, config: Config) -> LocalAsked | RemoteAsked:
    if isinstance(judge, ModelJudge):
        return LocalAsked(judge, _model(judge.model, config), config.seed)
    return RemoteAsked(judge, config.out / "replies.jsonl", config.seed)


def _built(config: Config, name: str, asked: LocalAsked | RemoteAsked | None) -> tuple[Task, dict[str, str]]:
    """The task with its settings, and what of it no setting shows."""
    if name not in JUDGED:
        task: Task = getattr(config, name) if hasattr(config, name) else TASKS[name]()
        return task, {}
    made, takes = JUDGED[name]
    settings = asdict(getattr(config, name))
    if takes == "scorer":
        scorer = callable_of(config.scorer, "scorer", name)
        return made(scorer=scorer, **settings), {"scorer": f"{config.scorer}, {source(scorer)}"}
    if asked is not None:
        return made(ask=asked.chooser(), **settings), {"judge": asked.identity}
    function = config.judge.function if isinstance(config.judge, FunctionJudge) else None
    ask = callable_of(function, "judge", name)
    return made(ask=ask, **settings), {"judge": f"{function}, {source(ask)}"}


def source(function: Callable[..., Any]) -> str:
    """The SHA-256 of the file that a function stands in: an edited judge is another judge. What it imports is not seen."""
    own = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(own if inspect.isroutine(own) else type(own))
    except TypeError:
        path = None
    if path is None or not Path(path).is_file():
        return "of no file"
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _paired(
    config: Config, asked: LocalAsked | RemoteAsked | None, results: Mapping[str, Mapping[str, Measured]], sinks: Sequence[Sink]
) -> dict[str, Pairs]:
    """Each further model's conversations against the first one's, by the judge, in both orders."""
    base, *others = results
    if PAIRED not in results[base] or not others:
        return {}
    task, _ = _built(config, PAIRED, asked)
    questions = {question.key: question for question in task.prompts(Files(root=config.data))}  # type: ignore[union-attr]
    answers = {name: {row["key"]: row["answers"] for row in of[PAIRED].evaluation.rows} for name, of in results.items()}
    found = {}
    for name in others:
        keys = [key for key in answers[name] if key in answers[base]]
        compared = [(questions[key], answers[name][key], answers[base][key]) for key in keys]
        if asked is not None:
            tick = counted(sinks, f"{name} against {base}, {PAIRED}: judging pairs")
            found[name] = by_judge(asked, compared, config.out / "items", tick, data=str(config.data), seed=config.seed)
        else:
            function = config.judge.function if isinstance(config.judge, FunctionJudge) else None
            found[name] = by_function(callable_of(function, "judge", PAIRED), compared)
    return found


def _chosen(config: Config) -> dict[str, int | None]:
    """Task -> how many items."""
    found: dict[str, int | None] = {}
    for name in config.tasks:
        if name.startswith(PREFIX):
            installed()
        elif name not in TASKS and name not in SUITES and name not in JUDGED:
            raise ConfigError([f"tasks: there is no {name}; choose of {', '.join([*SUITES, *TASKS, *JUDGED])}, {PREFIX}NAME"])
        found |= {task: config.limit or limit for task, limit in SUITES.get(name, {name: None}).items()}
    if not found or not config.models:
        raise ConfigError(["name at least one task and one model: truing eval MODEL tasks=quick"])
    return found


def settings_of(arguments: Sequence[str]) -> list[str]:
    """The command line as settings: `MODEL` and `base=MODEL` name models, and `tasks=a,b` is a list."""
    found: list[str] = []
    for setting in arguments_as_settings(arguments, benchmarks=True):
        key, _, value = setting.partition("=")
        if key == "judge" and ":" in value:
            found += ["judge=function", f"judge.function={value}"]
        else:
            found.append(f"tasks=[{value.strip('[]')}]" if key == "tasks" else setting)
    return found
