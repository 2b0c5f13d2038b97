"""Held-out prompts answered and scored, as records that are kept: what a comparison is made of.

Answers come from a model, or from a file that somebody else's model wrote. Scores come from a reward model, which reads the very
tokens that were said, or from a rule. A chunk that is done is kept, so a killed evaluation goes on; a whole record is found again.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truing.data.chat import ChatTokenizer
from truing.data.problems import BadValueError
from truing.data.strict_json import parse_row
from truing.data.tree import Branch, Tree
from truing.evals.measures import kl_estimates, rewards, right_order
from truing.evals.result import Evaluation, Setting, check_rows, code_version, read_evaluation, write_evaluation
from truing.evals.tasks.evaluate import Model
from truing.models.heads import RewardModel
from truing.randomness import counted_seed
from truing.records import Completion, Messages, Origin, Prompt, Ranking, Rollout
from truing.rewards.base import Failure
from truing.rewards.outside import OutsideRule
from truing.rewards.rules import Rule
from truing.rollouts.sampler import Decoding, sample
from truing.runs.canonical import digest
from truing.runs.chunks import in_chunks
from truing.runs.durable import make_folder
from truing.runs.lock import RunLock
from truing.runs.read import read_rows
from truing.runs.sinks import Tick
from truing.statistics import Estimate, bootstrap_mean, wilson, win_rate

CHUNK = 32
"""Prompts that are answered and kept together: what a killed evaluation loses at most."""
BUDGET = 2048
WHOLE_TEXT = 1 << 20
"""No limit on tokens: what was said is scored as a whole."""
RULE_SECONDS = 10.0
"""What a rule may take for one answer; ppo's reward_seconds has the same default."""
WHOLE, PART = "evaluation.json", "raw.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One held-out prompt. Example: `Item(key="7", prompt=(Message(role="user", content="Is the kettle on?"),))`."""

    key: str
    prompt: Messages
    tags: Mapping[str, str]
    """Further columns of its row, for rules; `shown` is the chosen answer of a pair, the answer of a demonstration."""
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranked:
    key: str
    ranking: Ranking


def setting_of(
    task: str,
    model: Model,
    items: Sequence[Item],
    decoding: Decoding,
    *,
    data: tuple[str, str],
    seed: int,
    options: Mapping[str, object] | None = None,
) -> Setting:
    """What a measurement on drawn answers hangs on; `data` is the name and the SHA-256 of what the items were read from."""
    return Setting(
        task=task,
        model=model.name,
        weights=model.identity,
        data=data[0],
        data_sha256=digest([data[1], [item.key for item in items]]),
        template=model.chat.fingerprint,
        decoding=asdict(decoding),
        options={**(options or {}), "dtype": str(model.dtype).removeprefix("torch."), "chunk": CHUNK},
        seeds={"sample": seed},
        code=code_version(),
    )


def answered(
    model: Model, items: Sequence[Item], decoding: Decoding, folder: Path, *, data: tuple[str, str], seed: int, progress: Tick
) -> Evaluation:
    """One answer a prompt; `data` is the name and the SHA-256 of what the items were read from."""
    setting = setting_of("answers", model, items, decoding, data=data, seed=seed)

    def compute(chunk: Sequence[Item], number: int, tick: Tick) -> Iterable[Any]:
        prompts = [model.chat.prompt_tokens(item.prompt) for item in chunk]
        said = sample(
            model.policy,
            prompts,
            decoding,
            stop_ids=model.chat.stop_ids,
            seed=counted_seed(seed, "answers", number),
            progress=tick,
        )
        for completion in said:
            yield {
                "answer": model.chat.decode(completion.tokens).strip(),
                "tokens": list(completion.tokens),
                "finished": completion.stop == "end",
            }

    return kept(setting, items, folder, compute, progress, _figures_of_answers)


def answers_of_file(
    path: Path, name: str, items: Sequence[Item], *, data: tuple[str, str], cut_to: int | None = None
) -> Evaluation:
    """Answers that a file holds: JSON lines of `prompt` (text, or a list of messages) or `key`, `answer` and perhaps `finished`.

    Where a row has both, the prompt decides, since a key may be the data set's own. `cut_to` is the setting rows, which cuts the
    prompts down. Where a row does not say whether its answer ended by itself, nobody knows: it is scored as if it had, and in no
    share of those that did. Raises ValueError naming the line of a row that is broken, asked twice or not asked, and a prompt
    without an answer.
    """
    by_prompt = {digest(_turns(item.prompt)): item for item in items}
    by_key = {item.key: item for item in items}
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    content = path.read_bytes()
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = parse_row(line)
        except BadValueError as error:
            raise ValueError(f"{where}: is no JSON object ({error}); answer files hold one a line") from error
        answer = row.get("answer")
        if not isinstance(answer, str):
            raise ValueError(f"{where}: has no text under answer")
        finished = row.get("finished")
        if not (finished is None or isinstance(finished, bool)):
            raise ValueError(f"{where}: finished is {finished!r}; write true or false, or leave it out where nobody knows")
        by_its_key = "key" in row and row.get("prompt") is None
        item = by_key.get(str(row["key"])) if by_its_key else by_prompt.get(digest(_asked(row.get("prompt"), where)))
        if item is None:
            remedy = "take the row out" if cut_to is None else f"take the row out, or leave out rows={cut_to}"
            raise ValueError(f"{where}: answers a prompt that is not among the {len(items)} held-out ones; {remedy}")
        if item.key in found:
            raise ValueError(f"{where}: answers prompt {item.key!r} again, after line {found[item.key][0]}; give one answer each")
        found[item.key] = (number, {"answer": answer.strip(), "tokens": [], "finished": finished})
    if missing := [item for item in items if item.key not in found]:
        asked = missing[0].prompt[-1].content
        raise ValueError(f"{path}: lacks answers to {len(missing)} of {len(items)} prompts, such as {asked[:60]!r}")
    rows = tuple({"key": item.key, **found[item.key][1]} for item in items)
    setting = Setting(
        task="answers",
        model=name,
        weights=hashlib.sha256(content).hexdigest(),
        data=data[0],
        data_sha256=digest([data[1], [item.key for item in items]]),
        template="",
        decoding={},
        options={},
        seeds={},
        code=code_version(),
    )
    return Evaluation(setting=setting, rows=rows, figures=_figures_of_answers(rows))


def scored_by_model(
    answers: Evaluation, items: Sequence[Item], judge: Callable[[], tuple[RewardModel, ChatTokenizer]], weights: str, folder: Path,
    progress: Tick,
) -> Evaluation:  # fmt: skip
    """The reward of each answer. `judge` is asked for only when something is not kept; `weights` names the reward model."""
    setting = _of_answers(answers, "rewards", weights)
    by_key = answers.by_key()

    def compute(chunk: Sequence[Item], number: int, tick: Tick) -> Iterable[Any]:
        model, chat = judge()
        trees = [read_by_judge(item, by_key[item.key], chat, same=answers.setting.template == chat.fingerprint) for item in chunk]
        for (value,) in rewards(model, trees, budget=BUDGET, progress=tick):
            yield {"score": value}

    return kept(setting, items, folder, compute, progress, _figures_of_scores)


def rankings_scored(
    rankings: Sequence[Ranking], judge: Callable[[], tuple[RewardModel, ChatTokenizer]], setting: Setting, folder: Path,
    progress: Tick,
) -> Evaluation:  # fmt: skip
    """The rewards of all answers of each held-out ranking under `scores`, in their order; each prompt is computed once."""
    items = [_Ranked(key=str(number), ranking=ranking) for number, ranking in enumerate(rankings)]

    def compute(chunk: Sequence[_Ranked], number: int, tick: Tick) -> Iterable[Any]:
        model, chat = judge()
        trees = []
        for item in chunk:
            grown = chat.tree_of_responses(item.ranking.prompt, item.ranking.responses, max_tokens=WHOLE_TEXT)
            if grown.tree is None:
                raise ValueError(f"{item.ranking.origin}: the reward model's tokenizer makes nothing of it ({grown.problem})")
            trees.append(grown.tree)
        for values in rewards(model, trees, budget=BUDGET, progress=tick):
            yield {"scores": list(values)}

    return kept(setting, items, folder, compute, progress, _figures_of_rankings)


def divergence(
    model: Model, reference: Model, items: Sequence[Item], max_tokens: int, folder: Path, *, data: tuple[str, str], seed: int,
    progress: Tick,
) -> Evaluation:  # fmt: skip
    """KL from the reference on answers drawn at temperature 1, in nats an answer: figures k1 and k3 (Schulman 2020).

    Raises ValueError where the two read prompts as other tokens, since their probabilities are then of other events.
    """
    if model.chat.fingerprint != reference.chat.fingerprint:
        raise ValueError(f"{model.name} and {reference.name} have other tokenizers or templates: there is no KL between them")
    free = Decoding(max_tokens=max_tokens, temperature=1.0)
    setting = setting_of("divergence", model, items, free, data=data, seed=seed, options={"reference": reference.identity})

    def compute(chunk: Sequence[Item], number: int, tick: Tick) -> Iterable[Any]:
        prompts = [model.chat.prompt_tokens(item.prompt) for item in chunk]
        said = sample(
            model.policy,
            prompts,
            free,
            stop_ids=model.chat.stop_ids,
            seed=counted_seed(seed, "divergence", number),
            progress=tick,
        )
        trees = [_spoken(prompt, completion.tokens) for prompt, completion in zip(prompts, said, strict=True)]
        k1, k3 = kl_estimates(model.policy, reference.policy, trees, budget=BUDGET)
        yield from ({"k1": a, "k3": b} for a, b in zip(k1, k3, strict=True))

    return kept(setting, items, folder, compute, progress, _figures_of_divergence)


def scored_by_rule(answers: Evaluation, items: Sequence[Item], rule: Rule) -> Evaluation:
    """The score of each answer by a rule, times its weight; the rule runs in a process of its own, `RULE_SECONDS` for an answer.

    Raises ValueError naming the prompt of a score that is not finite and, by its number, one for which the rule failed or took too
    long; and naming a file of answers where the rule counts tokens: nobody knows how many they were.
    """
    if getattr(rule, "unit", None) == "tokens" and any(not row["tokens"] for row in answers.rows):
        raise ValueError(f"{answers.setting.model}: a file of answers has no tokens to count; set judge.unit=words for all models")
    by_key = answers.by_key()
    rows: list[dict[str, Any]] = []
    with closing(OutsideRule(rule, seconds=RULE_SECONDS)) as outside:
        for number, item in enumerate(items, 1):
            (value,) = outside([_rollout(item, by_key[item.key])])
            if isinstance(value, Failure):
                raise ValueError(f"{answers.setting.model}: the answer to prompt {number} has no score: the rule {value}")
            rows.append({"key": item.key, "score": rule.weight * value})
    # Paths and tuples of a rule's settings as text: they only name it.
    said = {name: str(value) for name, value in asdict(rule).items()}  # type: ignore[call-overload]
    setting = _of_answers(answers, "rule", digest([type(rule).__name__, said]))
    return Evaluation(setting=setting, rows=tuple(rows), figures=_figures_of_scores(rows))


def _rollout(item: Item, row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        prompt=Prompt(messages=item.prompt, tags=item.tags, origin=item.origin),
        trunk=(),
        completion=Completion(tokens=tuple(row["tokens"]), stop="end" if ended(row) else "length"),
        response=row["answer"],
    )


def kept(
    setting: Setting,
    items: Sequence[Any],
    folder: Path,
    compute: Callable[[Any, int, Tick], Iterable[Any]],
    progress: Tick,
    figures: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    seen: Callable[[Sequence[Any]], None] | None = None,
) -> Evaluation:
    """The record, from its folder where it is whole, else made chunk by chunk; what fixes it is the setting.

    `seen` is told, whenever a chunk has been computed, what is known so far, in the order of the items.
    """
    home = folder / f"{setting.task}-{setting.identity()[:16]}"
    make_folder(home)
    lock = RunLock.acquire(home)
    try:
        if (home / WHOLE).is_file():
            return read_evaluation(home / WHOLE)
        watched = compute if seen is None else _watched(compute, items, home / PART, seen)
        values = in_chunks(items, CHUNK, home / PART, watched, progress)
        rows = tuple({"key": item.key, **values[item.key]} for item in items)
        check_rows(rows, f"{setting.task} of {setting.model}")
        evaluation = Evaluation(setting=setting, rows=rows, figures=figures(rows))
        write_evaluation(home / WHOLE, evaluation)
        return evaluation
    finally:
        lock.release()


def _watched(
    compute: Callable[[Any, int, Tick], Iterable[Any]], items: Sequence[Any], part: Path, seen: Callable[[Sequence[Any]], None]
) -> Callable[[Any, int, Tick], Iterable[Any]]:
    """The same, which tells what is known after each chunk; what an earlier run has kept is known from the start."""
    known = {str(row["key"]): row["value"] for row in read_rows(part)}

    def computed(chunk: Sequence[Any], number: int, tick: Tick) -> Iterable[Any]:
        for item, value in zip(chunk, compute(chunk, number, tick), strict=True):
            known[item.key] = value
            yield value
        seen([known[item.key] for item in items if item.key in known])

    return computed


def _figures_of_answers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures = {"characters": bootstrap_mean([float(len(row["answer"])) for row in rows], seed=0)}
    share = share_finished(rows)
    return figures if share is None else {"finished": share, **figures}


def ended(row: Mapping[str, Any]) -> bool:
    """Whether an answer is read as one that ended by itself: where its file does not say, it is."""
    return row["finished"] is not False


def share_finished(rows: Sequence[Mapping[str, Any]]) -> Estimate | None:
    """The share that ended by themselves, of those of which it is known; None where it is known of none."""
    known = [row["finished"] for row in rows if row["finished"] is not None]
    return wilson(sum(known), len(known)) if known else None


def _figures_of_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"score": bootstrap_mean([row["score"] for row in rows], seed=0)}


def _figures_of_rankings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"accuracy": win_rate(right_order([row["scores"] for row in rows]))}


def _figures_of_divergence(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: bootstrap_mean([row[name] for row in rows], seed=0) for name in ("k1", "k3")}


def _of_answers(answers: Evaluation, task: str, weights: str) -> Setting:
    own = answers.setting
    return Setting(
        task=task,
        model=own.model,
        weights=weights,
        data=own.data,
        data_sha256=own.data_sha256,
        template=own.template,
        decoding={},
        options={"answers": digest([dict(row) for row in answers.rows]), "answered_by": own.weights},
        seeds={},
        code=code_version(),
    )


def read_by_judge(item: Item, row: Mapping[str, Any], chat: ChatTokenizer, *, same: bool) -> Tree:
    """What the reward model reads: the very tokens where the tokenizers are the same; a cut answer gets no end in any case."""
    if same and row["tokens"]:
        return _spoken(chat.prompt_tokens(item.prompt), tuple(row["tokens"]))
    encoded = chat.tree_of_responses(item.prompt, [row["answer"]], max_tokens=WHOLE_TEXT, finished=ended(row), sampled=True)
    if encoded.tree is None:
        raise ValueError(f"prompt {item.key!r}: the reward model's tokenizer makes nothing of it ({encoded.problem})")
    return encoded.tree


def _spoken(prompt: tuple[int, ...], tokens: tuple[int, ...]) -> Tree:
    return Tree(trunk=prompt, branches=(Branch(tokens=tokens, scored=(True,) * len(tokens)),))


def _asked(prompt: object, where: str) -> list[list[str]]:
    """The turns that a row of an answer file names."""
    if isinstance(prompt, str):
        return [["user", prompt]]
    if prompt is None:
        raise ValueError(f"{where}: has neither prompt nor key; say which prompt it answers")
    if not isinstance(prompt, list):
        raise ValueError(f"{where}: prompt is neither text nor a list of messages")
    turns: list[list[str]] = []
    for turn in prompt:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"{where}: prompt is a list of something else than messages of role and content")
        turns.append([role, content])
    return turns


def _turns(prompt: Messages) -> list[list[str]]:
    return [[message.role, message.content] for message in prompt]
