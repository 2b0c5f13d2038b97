"""From a model and a task to a result, in chunks that are kept: a stopped evaluation goes on, a finished one is not repeated.

What a chunk said is kept raw (log-likelihoods, answers) and judged afterwards; judgements are kept too, as a judge may be slow.
The chunk that an item belongs to is fixed by its place, so a continued evaluation computes the very batches of an unbroken one.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from truing.data.chat import ChatTokenizer
from truing.data.chat import Style as Template
from truing.evals.result import Evaluation, Setting, code_version, read_evaluation, write_evaluation
from truing.evals.tasks.files import Files
from truing.evals.tasks.generation import answers
from truing.evals.tasks.likelihood import log_likelihoods
from truing.evals.tasks.task import AnswerTask, Asked, Choices, ChoiceTask, Row, Said, Sampling, Style, Task
from truing.models.load import load_causal, load_tokenizer
from truing.models.policy import Policy, probe
from truing.models.resolve import resolve
from truing.randomness import counted_seed
from truing.runs.canonical import digest
from truing.runs.chunks import in_chunks
from truing.runs.durable import make_folder
from truing.runs.lock import RunLock
from truing.runs.sinks import Tick

T = TypeVar("T")

CHOICES_CHUNK, ASKED_CHUNK = 512, 128
"""Items that are computed and kept together."""
Bar = Callable[[str], Tick]
"""Shows a part of the work, such as `answers`, as a stage of its own."""
RESULT = "evaluation.json"
HASHED = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(kw_only=True)
class Model:
    """The model that is measured; it is loaded when it is first asked something, so a cached result needs no loading."""

    name: str
    """As the user called it."""
    path: str | Path
    """Folder or hub name."""
    dtype: torch.dtype
    device: torch.device
    template: Template = "auto"
    """How conversations become text."""

    @cached_property
    def identity(self) -> str:
        """SHA-256 over the files of weights, config, tokenizer and template: equal only for equal files."""
        folder = resolve(self.path)
        total = hashlib.sha256()
        for path in sorted(path for path in folder.iterdir() if path.suffix in HASHED and path.is_file()):
            with path.open("rb") as stream:
                total.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    @cached_property
    def policy(self) -> Policy:
        """The weights, in the fastest layout in which their own numbers come out."""
        return probe(load_causal(self.path, dtype=self.dtype, device=self.device)).policy

    @cached_property
    def chat(self) -> ChatTokenizer:
        """The tokenizer with its template."""
        return ChatTokenizer.of(load_tokenizer(self.path), template=self.template)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a task is put to a model. Example: `Manner(limit=100, seed=1)`."""

    style: Style | None = None
    """`plain` or `chat`; None takes the task's usual one: plain for likelihoods."""
    limit: int | None = None
    """Only so many items, drawn from the whole set; None takes all."""
    budget: int = 8192
    """Tokens computed at once; memory and speed change with it, results by rounding alone."""
    seed: int = 0
    """Seed of samples and of bootstraps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of it: the record, its figures in the task's own order, and what a reader must know of them."""

    evaluation: Evaluation
    notes: tuple[str, ...]


def evaluate(
    name: str, task: Task, model: Model, files: Files, manner: Manner, folder: Path, *, options: Mapping[str, str], bar: Bar
) -> Measured:
    """One task on one model; `folder` keeps what is done under a name made of all that decides it.

    `options` name what else decides a result and cannot be seen in the task's settings, such as a judge.
    """
    ask: Callable[[Style, Manner, Path, Bar], list[Row]]
    sampling: Sampling | None = None
    if isinstance(task, ChoiceTask):
        ask = partial(_chosen, task, model, spread(task.questions(files), manner.limit))
    else:
        sampling = task.sampling()
        ask = partial(_answered, task, model, spread(task.prompts(files), manner.limit))
    style = manner.style or (sampling.style if sampling else "plain")
    setting = Setting(
        task=name,
        model=model.name,
        weights=model.identity,
        data=str(files.root),
        data_sha256=digest(files.sha256),
        template=f"{style}, {model.template}, of the tokenizer that is hashed with the weights",
        decoding={} if sampling is None else asdict(sampling),
        options={
            **_plain(task),
            **options,
            "limit": manner.limit,
            "budget": manner.budget,
            "dtype": str(model.dtype).removeprefix("torch."),
            "files": dict(sorted(files.sha256.items())),
        },
        seeds={"samples": manner.seed, "bootstrap": manner.seed},
        code=code_version(),
    )
    home = folder / f"{name}-{setting.identity()[:16]}"
    make_folder(home)
    lock = RunLock.acquire(home)
    try:
        if (home / RESULT).is_file():
            rows = [dict(row) for row in read_evaluation(home / RESULT).rows]
        else:
            rows = ask(style, manner, home, bar)
        figures = task.figures(rows, manner.seed)
        evaluation = Evaluation(setting=setting, rows=tuple(rows), figures=figures.figures)
        if not (home / RESULT).is_file():
            write_evaluation(home / RESULT, evaluation)
        return Measured(evaluation=evaluation, notes=(*figures.notes, *_of_empty(rows)))
    finally:
        lock.release()


def _of_empty(rows: Sequence[Row]) -> list[str]:
    """The answers without a word, which rules take for something: XSTest's for no refusal, most for a wrong answer."""
    empty = [row["key"] for row in rows if not all(text.strip() for text in [*row.get("answers", ()), row.get("answer", "-")])]
    named = ", ".join(repr(key[:40]) for key in empty[:3])
    more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
    return [f"{len(empty)} of {len(rows)} items have an empty answer, judged as it stands: {named}{more}"] if empty else []


def spread(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most `limit` of the items, drawn once and for all, in their order: the same for every model and seed.

    Not every n-th one: published sets repeat a pattern, BBQ that of ambiguous and disambiguated.
    """
    if limit is None or limit >= len(items):
        return items
    drawn = random.Random(counted_seed(0, "items")).sample(range(len(items)), limit)
    return [items[i] for i in sorted(drawn)]


def _chosen(
    task: ChoiceTask, model: Model, items: Sequence[Choices], style: Style, manner: Manner, home: Path, bar: Bar
) -> list[Row]:
    def compute(chunk: Sequence[Choices], number: int, tick: Tick) -> Iterable[Any]:
        return log_likelihoods(model.policy, model.chat, chunk, style=style, budget=manner.budget, progress=tick)

    raw = in_chunks(items, CHOICES_CHUNK, home / "raw.jsonl", compute, bar("likelihoods"))
    return [task.judge(item, raw[item.key]) for item in items]


def _answered(
    task: AnswerTask, model: Model, items: Sequence[Asked], style: Style, manner: Manner, home: Path, bar: Bar
) -> list[Row]:
    sampling = task.sampling()

    def compute(chunk: Sequence[Asked], number: int, tick: Tick) -> Iterable[Any]:
        seed = counted_seed(manner.seed, "chunk", number)
        found = answers(model.policy, model.chat, chunk, sampling, style=style, seed=seed, progress=tick)
        return [[{"turns": list(said.turns), "finished": said.finished} for said in of_one] for of_one in found]

    raw = in_chunks(items, ASKED_CHUNK, home / "raw.jsonl", compute, bar("answers"))

    def judged(chunk: Sequence[Asked], number: int, tick: Tick) -> Iterable[Any]:
        for item in chunk:
            yield task.judge(item, [Said(turns=tuple(one["turns"]), finished=one["finished"]) for one in raw[item.key]])

    rows = in_chunks(items, 1, home / "judged.jsonl", judged, bar("judging"))
    return [rows[item.key] for item in items]


def _plain(task: Task) -> dict[str, Any]:
    """The task's settings in JSON types; a judge or scorer, which is a callable, is told by `options`."""
    fields = {field.name: getattr(task, field.name) for field in dataclass_fields(task)}  # type: ignore[arg-type]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items() if not callable(value)}
