"""Models on published benchmarks: every task asked of every model, kept chunk by chunk, and the differences between the models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from truing.evals.tasks.bbq import BBQ
from truing.evals.tasks.evaluate import Manner, Measured, Model, evaluate
from truing.evals.tasks.files import Files
from truing.evals.tasks.gsm8k import GSM8K
from truing.evals.tasks.humaneval import HumanEval
from truing.evals.tasks.ifeval import IFEval
from truing.evals.tasks.mmlu import MMLU
from truing.evals.tasks.report import as_json, report
from truing.evals.tasks.sycophancy import AreYouSure, FalsePremise
from truing.evals.tasks.table import JUDGED, SUITES, TASKS
from truing.evals.tasks.task import Task
from truing.evals.tasks.truthfulqa import TruthfulQA
from truing.evals.tasks.xstest import XSTest
from truing.judges.marks import callable_of
from truing.recipes.fit import model_folder
from truing.recipes.settings import device, torch_dtype
from truing.runs.durable import make_folder, to_json, write_file
from truing.runs.sinks import Sink, Tick, counted
from truing.settings_text import ConfigError

REPORT, RESULT = "report.txt", "tasks.json"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `truing eval MODEL tasks=...`."""

    tasks: tuple[str, ...]
    """Tasks or suites (quick, full), by name: tasks=mmlu,truthfulqa."""
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
    judge: str | None = None
    """A function from a prompt to a reply, as module:function, for mt_bench and red_team."""
    scorer: str | None = None
    """A function from texts to toxicities in [0, 1], as module:function, for toxicity."""


def run(config: Config, sinks: Sequence[Sink]) -> Path:
    """Evaluate; returns the folder with the report and the results of all tasks."""
    chosen = _chosen(config)
    results: dict[str, dict[str, Measured]] = {}
    for name, place in config.models.items():
        model = Model(
            name=place, path=model_folder(place), dtype=torch_dtype(config.dtype), device=device(), template=config.template
        )
        results[name] = {}
        for task, limit in chosen.items():

            def bar(what: str, name: str = name, task: str = task) -> Tick:
                return counted(sinks, f"{name}, {task}: {what}")

            built, options = _built(config, task)
            manner = Manner(style=config.style, limit=limit, budget=config.budget, seed=config.seed)
            results[name][task] = evaluate(
                task, built, model, Files(root=config.data), manner, config.out / "items", options=options, bar=bar
            )
    make_folder(config.out)
    write_file(config.out / RESULT, to_json(as_json(results)))
    write_file(config.out / REPORT, report(results).encode())
    return config.out


def _built(config: Config, name: str) -> tuple[Task, dict[str, str]]:
    """The task with its settings, and what of it no setting shows."""
    if name not in JUDGED:
        task: Task = getattr(config, name) if hasattr(config, name) else TASKS[name]()
        return task, {}
    made, takes = JUDGED[name]
    setting = "scorer" if takes == "scorer" else "judge"
    function = callable_of(getattr(config, setting), setting, name)
    return made(**{takes: function}), {setting: str(getattr(config, setting))}


def _chosen(config: Config) -> dict[str, int | None]:
    """Task -> how many items."""
    found: dict[str, int | None] = {}
    for name in config.tasks:
        if name not in TASKS and name not in SUITES and name not in JUDGED:
            raise ConfigError([f"tasks: there is no {name}; choose of {', '.join([*SUITES, *TASKS, *JUDGED])}"])
        found |= {task: config.limit or limit for task, limit in SUITES.get(name, {name: None}).items()}
    if not found or not config.models:
        raise ConfigError(["name at least one task and one model: truing eval MODEL tasks=quick"])
    return found


def settings_of(arguments: Sequence[str]) -> list[str]:
    """The command line as settings: `MODEL` and `base=MODEL` name models, and `tasks=a,b` is a list."""
    known = {field.name for field in fields(Config)}
    found: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            found.append(f"models.model={argument}")
        elif key.split(".")[0] in known:
            found.append(f"tasks=[{value.strip('[]')}]" if key == "tasks" else argument)
        else:
            near = get_close_matches(key.split(".")[0], known, 1, cutoff=0.7)
            if near and not Path(value).exists():
                raise ConfigError([f"command line: {argument}: there is no setting {key}; did you mean {near[0]}?"])
            found.append(f"models.{key}={value}")
    return found
