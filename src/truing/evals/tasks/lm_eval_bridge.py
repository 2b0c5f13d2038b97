"""Any task of lm-eval on a model of ours: `tasks=lm_eval:NAME`. A bridge, for what is not measured natively.

lm-eval (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness, 0.4.13) brings tasks, data, prompts and metrics; here are
the three things that it asks of a model: log-likelihoods, over trees; those of whole texts; answers, by our sampler. It is imported
when a bridged task is asked for and at no other time (`pip install 'truing[lm-eval]'`). What a metric says of each item is taken
from lm-eval; the interval is made here where the metric is the mean of its items, else it is lm-eval's own standard error.

Left out: the chat style, and `exact_match` of multiple choice, which asks of every answer whether it is the greedy one.
"""

import hashlib
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from truing.data.tree import Branch, Tree
from truing.evals.measures import per_tree
from truing.evals.result import Evaluation, Setting, code_version, read_evaluation, write_evaluation
from truing.evals.tasks.evaluate import RESULT, Bar, Manner, Measured, Model
from truing.evals.tasks.generation import ended_at, until
from truing.evals.tasks.likelihood import Ids, encode, log_likelihoods
from truing.evals.tasks.task import Choices, Row
from truing.randomness import counted_seed
from truing.rollouts.sampler import Decoding, sample
from truing.runs.canonical import digest, to_json
from truing.runs.chunks import in_chunks
from truing.runs.durable import make_folder
from truing.runs.lock import RunLock
from truing.runs.sinks import Tick
from truing.statistics import NO_INTERVAL, Estimate, Z, bootstrap_mean, win_rate

PREFIX = "lm_eval:"
CHUNK = 256
"""Requests that are computed and kept together."""
ANSWER = 256
"""Tokens of an answer where a task says nothing, as in lm-eval."""


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """Settings of every bridged task."""

    include: Path | None = None
    """A folder of task files (YAML) of your own beside lm-eval's; null takes lm-eval's alone."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Worked examples before a question; null takes as many as the task says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A part of lm-eval's requests as it is kept: alternatives to one context, a text, or a prompt to answer."""

    key: str
    texts: tuple[str, ...]
    options: Mapping[str, Any]


def installed() -> Any:
    """The package. Raises ValueError naming the extra."""
    try:
        return importlib.import_module("lm_eval")
    except ImportError as error:
        raise ValueError(f"tasks={PREFIX}NAME needs lm-eval, which is not here ({error}): pip install 'truing[lm-eval]'") from None


def bridged(name: str, model: Model, manner: Manner, bridge: Bridge, folder: Path, *, bar: Bar) -> Measured:
    """One task, or group of tasks, of lm-eval on one model; kept like the native ones, requests chunk by chunk."""
    package = installed()
    if manner.style == "chat":
        raise ValueError(f"{PREFIX}{name}: bridged tasks are asked in plain style; take style=chat out")
    version = str(getattr(package, "__version__", "unknown"))
    setting = Setting(
        task=f"{PREFIX}{name}",
        model=model.name,
        weights=model.identity,
        data=f"lm-eval {version}",
        data_sha256=digest([version, name, _texts(bridge.include)]),
        template="plain, of the tokenizer that is hashed with the weights",
        decoding={},
        options={
            "limit": manner.limit,
            "budget": manner.budget,
            "shots": bridge.shots,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        seeds={"samples": manner.seed, "bootstrap": manner.seed},
        code=code_version(),
    )
    home = folder / f"lm_eval-{name.replace('/', '_')}-{setting.identity()[:16]}"
    make_folder(home)
    lock = RunLock.acquire(home)
    try:
        if (home / RESULT).is_file():
            evaluation = read_evaluation(home / RESULT)
        else:
            found = _simple_evaluate(package, name, _Asked(model, manner, home, bar), manner, bridge)
            rows, figures = read(found, name, manner.seed)
            evaluation = Evaluation(setting=setting, rows=tuple(rows), figures=figures)
            write_evaluation(home / RESULT, evaluation)
    finally:
        lock.release()
    note = f"asked through lm-eval {version}, by its prompts and metrics; compare with its own figures, not with native tasks"
    return Measured(evaluation=evaluation, notes=(note,))


def _simple_evaluate(package: Any, name: str, asked: "_Asked", manner: Manner, bridge: Bridge) -> Mapping[str, Any]:
    tasks = importlib.import_module("lm_eval.tasks")
    include = None if bridge.include is None else str(bridge.include)
    found = package.simple_evaluate(
        model=_adapter(asked),
        tasks=[name],
        num_fewshot=bridge.shots,
        limit=manner.limit,
        task_manager=tasks.TaskManager(include_path=include),
        log_samples=True,
        bootstrap_iters=0,
    )
    return dict(found)


def _adapter(asked: "_Asked") -> Any:
    """lm-eval takes nothing but subclasses of its own LM."""
    base: Any = importlib.import_module("lm_eval.api.model").LM

    class Adapter(base):
        """Hands lm-eval's requests on."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return asked.alternatives([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return asked.whole_texts([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return asked.answers([request.args for request in requests])

    return Adapter()


@dataclass(frozen=True)
class _Asked:
    """A model of ours as lm-eval asks it."""

    model: Model
    manner: Manner
    home: Path
    bar: Bar

    @property
    def longest(self) -> int:
        return int(self.model.policy.model.config.get_text_config().max_position_embeddings)

    @property
    def beginning(self) -> str:
        """What stands before a text that has no context."""
        tokenizer = self.model.chat.tokenizer
        return str(tokenizer.bos_token or tokenizer.eos_token)

    def alternatives(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation of its context, neighbours of one context in one tree; and whether one that
        stands alone is what the model would say (lm-eval asks that of single continuations)."""
        groups: list[list[str]] = []
        for context, continuation in pairs:
            if not groups or groups[-1][0] != context or continuation in groups[-1][1:]:
                groups.append([context])
            groups[-1].append(continuation)
        work = [_work("alternatives", number, group) for number, group in enumerate(groups)]

        def compute(chunk: Sequence[_Work], number: int, tick: Tick) -> Iterable[Any]:
            questions = [self._question(item) for item in chunk]
            policy, chat = self.model.policy, self.model.chat
            values = log_likelihoods(policy, chat, questions, style="plain", budget=self.manner.budget, progress=tick)
            alone = [question for question in questions if len(question.answers) == 1]
            greedy = iter(self._greedy(alone))
            for question, value in zip(questions, values, strict=True):
                yield {"log_probs": value, "greedy": next(greedy) if len(question.answers) == 1 else False}

        raw = in_chunks(work, CHUNK, self.home / "alternatives.jsonl", compute, self.bar("likelihoods"))
        return [(value, raw[item.key]["greedy"]) for item in work for value in raw[item.key]["log_probs"]]

    def _question(self, item: _Work) -> Choices:
        context, *answers = item.texts
        where = f"{self.home.name}, request {item.key}"
        return Choices(key=where, shots="", text=context or self.beginning, answers=tuple(answers), row={})

    def _greedy(self, questions: Sequence[Choices]) -> list[bool]:
        if not questions:
            return []
        prompts: list[Ids] = []
        wanted: list[Ids] = []
        for question in questions:
            context = question.text.rstrip()
            trunk, whole = encode(self.model.chat, [context, question.text + question.answers[0]])
            wanted.append(whole[len(trunk) :])
            prompts.append(trunk[-(self.longest + 1 - len(wanted[-1])) :])
        said = sample(self.model.policy, prompts, Decoding(max_tokens=max(map(len, wanted))), stop_ids=frozenset())
        return [tuple(one.tokens[: len(ids)]) == ids for one, ids in zip(said, wanted, strict=True)]

    def whole_texts(self, texts: Sequence[str]) -> list[float]:
        """The log-likelihood of each text from its beginning, in windows of the model's length, each token once."""
        work = [_work("texts", number, [text]) for number, text in enumerate(texts)]

        def compute(chunk: Sequence[_Work], number: int, tick: Tick) -> Iterable[Any]:
            (before,) = encode(self.model.chat, [self.beginning])
            for item in chunk:
                trees = list(windows(before[:1], encode(self.model.chat, [item.texts[0]])[0], self.longest))
                policy = self.model.policy
                values = per_tree(trees, policy.response_log_probs, budget=self.manner.budget, device=policy.device)
                yield math.fsum(value for (value,) in values)

        raw = in_chunks(work, CHUNK, self.home / "texts.jsonl", compute, self.bar("texts"))
        return [raw[item.key] for item in work]

    def answers(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """An answer to each prompt, up to its marks; greedy unless the task draws."""
        work = [_work("answers", number, [prompt], options) for number, (prompt, options) in enumerate(asked)]

        def compute(chunk: Sequence[_Work], number: int, tick: Tick) -> Iterable[Any]:
            by_options: dict[bytes, list[int]] = {}
            for i, item in enumerate(chunk):
                by_options.setdefault(to_json(dict(item.options)), []).append(i)
            said: dict[int, str] = {}
            for places in by_options.values():
                decoding, marks = decoding_of(chunk[places[0]].options)
                room = max(1, self.longest - decoding.max_tokens)
                prompts = [encode(self.model.chat, [chunk[i].texts[0] or self.beginning])[0][-room:] for i in places]
                found = sample(
                    self.model.policy,
                    prompts,
                    decoding,
                    stop_ids=self.model.chat.stop_ids,
                    seed=counted_seed(self.manner.seed, "lm_eval", number),
                    progress=tick,
                    ended=ended_at(self.model.chat, marks) if marks else None,
                )
                said |= {i: until(self.model.chat.decode(one.tokens), marks) for i, one in zip(places, found, strict=True)}
            return [said[i] for i in range(len(chunk))]

        raw = in_chunks(work, CHUNK, self.home / "answers.jsonl", compute, self.bar("answers"))
        return [raw[item.key] for item in work]


def windows(before: Ids, tokens: Ids, longest: int) -> Iterable[Tree]:
    """A text as trees that score each token once, with as much before it as the window holds; `before` is one token."""
    whole = (*before, *tokens)
    for start in range(0, len(tokens), longest):
        end = min(start + longest, len(tokens))
        branch = Branch(tokens=whole[start + 1 : end + 1], scored=(True,) * (end - start))
        yield Tree(trunk=whole[max(0, end - longest) : start + 1], branches=(branch,))


def decoding_of(options: Mapping[str, Any]) -> tuple[Decoding, tuple[str, ...]]:
    """How a task wants its answers drawn, and the marks at which they end. Raises ValueError for what the sampler lacks."""
    marks = options.get("until") or ()
    draws = bool(options.get("do_sample", float(options.get("temperature") or 0) > 0))
    if draws and (options.get("top_p", 1.0) != 1.0 or options.get("top_k", 0) not in (0, None)):
        raise ValueError(
            f"{PREFIX} a task draws with top_p or top_k ({dict(options)}); answers are drawn from the whole distribution"
        )
    temperature = float(options.get("temperature") or 1.0) if draws else 0.0
    longest = int(options.get("max_gen_toks") or options.get("max_new_tokens") or ANSWER)
    return Decoding(max_tokens=longest, temperature=temperature), (marks,) if isinstance(marks, str) else tuple(marks)


def read(found: Mapping[str, Any], name: str, seed: int) -> tuple[list[Row], dict[str, Estimate]]:
    """The items and figures of what lm-eval gives back; a figure is named by its metric, its filter and, in a group, its task."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = found.get("samples") or {}
    rows = [row for task, of_task in samples.items() for row in _rows(task, of_task, found["results"].get(task, {}))]
    figures: dict[str, Estimate] = {}
    for task, measured in {**found["results"], **(found.get("groups") or {})}.items():
        for column, value in measured.items():
            metric, comma, kind = column.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value) or _unknown_here(metric, samples.get(task, ())):
                continue
            said = [sample.get(metric) for sample in samples.get(task, ()) if sample.get("filter", kind) == kind]
            title = metric if kind == "none" else f"{metric}, {kind}"
            error = measured.get(f"{metric}_stderr,{kind}")
            figures[title if task == name else f"{task}: {title}"] = _estimate(float(value), error, said, seed)
    if not figures:
        raise ValueError(f"{PREFIX}{name}: lm-eval gave no figure that is a number")
    return rows, figures


def _estimate(value: float, error: object, said: Sequence[object], seed: int) -> Estimate:
    numbers = [float(one) for one in said if isinstance(one, bool | int | float)]
    if numbers and len(numbers) == len(said) and abs(math.fsum(numbers) / len(numbers) - value) < 1e-9:
        return win_rate(numbers) if set(numbers) <= {0.0, 1.0} else bootstrap_mean(numbers, seed=seed)
    if isinstance(error, int | float) and math.isfinite(error):
        method = "lm-eval's standard error, normal, 95%"
        return Estimate(value=value, low=value - Z * error, high=value + Z * error, n=len(said), method=method)
    method = f"{NO_INTERVAL}: lm-eval gives no standard error"
    return Estimate(value=value, low=value, high=value, n=len(said), method=method)


def _rows(task: str, samples: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> Iterable[Row]:
    """One row an item, by the first filter; the score is its first metric where that lies in [0, 1]."""
    first = samples[0].get("filter") if samples else None
    metrics = dict.fromkeys(column.partition(",")[0] for column in measured if "," in column)
    for one in samples:
        if one.get("filter") == first:
            values = {name: float(one[name]) for name in metrics if _is_number(one.get(name)) and not _unknown_here(name, samples)}
            head = next(iter(values.values()), None)
            score = head if head is not None and 0 <= head <= 1 else None
            yield {"key": f"{task}/{one['doc_id']}", "score": score, "values": values, "doc_sha256": str(one.get("doc_hash", ""))}


def _unknown_here(metric: str, samples: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it asks of one of several answers whether it is the greedy one, which nobody has looked at."""
    several = any(len(one.get("arguments", ())) > 1 and len(one.get("resps", ())) > 1 for one in samples)
    return metric == "exact_match" and several


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _work(kind: str, number: int, texts: Sequence[str], options: Mapping[str, Any] | None = None) -> _Work:
    """A request under a name of its own that changes with what is asked."""
    named = digest([kind, number, list(texts), dict(options or {})])[:24]
    return _Work(key=f"{number}/{named}", texts=tuple(texts), options=options or {})


def _texts(folder: Path | None) -> list[list[str]]:
    """What decides the tasks of a folder of one's own."""
    files = [] if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())
    return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files]
