"""Answers in words: prompts in plain text or in the model's chat template, turn after turn, ended at the task's own marks."""

from collections.abc import Callable, Sequence

from truing.data.chat import ChatTokenizer
from truing.evals.tasks.likelihood import encode
from truing.evals.tasks.task import Asked, Said, Sampling, Style
from truing.models.policy import Policy
from truing.randomness import counted_seed
from truing.records import Message
from truing.rollouts.sampler import Decoding, sample
from truing.runs.sinks import Tick

LOOK_BACK = 24
"""Tokens at the end of an answer in which a mark is looked for; the longest of any task has fewer."""


def answers(
    policy: Policy,
    chat: ChatTokenizer,
    asked: Sequence[Asked],
    sampling: Sampling,
    *,
    style: Style,
    seed: int,
    progress: Tick | None = None,
) -> list[list[Said]]:
    """`sampling.samples` answers to each prompt. In plain style a prompt has one turn, and the answer goes on right behind it.

    The task's marks end answers in plain style alone, where a model goes on by itself; in a conversation they may be what was asked
    for, as `def` at the beginning of a line is in a block of code. What is drawn depends on the seed and the places of the prompts,
    not on batches (but for rounding).
    """
    if style == "plain" and any(len(item.turns) > 1 for item in asked):
        raise ValueError("a conversation of several turns needs the chat style; set style=chat")
    marks = sampling.until if style == "plain" else ()
    conversations: list[list[Message]] = [[] for _ in asked for _ in range(sampling.samples)]
    finished = [True] * len(conversations)
    turns = max(len(item.turns) for item in asked)
    for turn in range(turns):
        going = [i for i in range(len(conversations)) if turn < len(asked[i // sampling.samples].turns)]
        for i in going:
            conversations[i].append(Message(role="user", content=asked[i // sampling.samples].turns[turn]))
        if style == "plain":
            prompts = [encode(chat, [conversations[i][0].content])[0] for i in going]
        else:
            prompts = [chat.prompt_tokens(tuple(conversations[i])) for i in going]

        def tick(done: int, of: int, turn: int = turn) -> None:
            if progress:
                progress((turn * of + done) * len(asked) // (turns * of), len(asked))

        said = sample(
            policy,
            prompts,
            Decoding(max_tokens=sampling.max_tokens, temperature=sampling.temperature),
            stop_ids=chat.stop_ids,
            seed=counted_seed(seed, "task", turn),
            progress=tick,
            ended=ended_at(chat, marks) if marks else None,
        )
        for i, completion in zip(going, said, strict=True):
            text = chat.decode(completion.tokens)
            cut = until(text, marks)
            finished[i] = completion.stop == "end" or cut != text
            conversations[i].append(Message(role="assistant", content=cut))
    texts = [tuple(m.content for m in conversation if m.role == "assistant") for conversation in conversations]
    every = [Said(turns=text, finished=end) for text, end in zip(texts, finished, strict=True)]
    return [every[i * sampling.samples : (i + 1) * sampling.samples] for i in range(len(asked))]


def until(text: str, marks: Sequence[str]) -> str:
    """The text before the first of the marks. Example: `until("18\\nQuestion: 2", ("Question:",)) == "18\\n"`."""
    places = [place for place in (text.find(mark) for mark in marks) if place >= 0]
    return text[: min(places)] if places else text


def ended_at(chat: ChatTokenizer, marks: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    """Whether one of the marks stands at the end of the tokens so far."""

    def ended(tokens: Sequence[int]) -> bool:
        text = chat.decode(tokens[-LOOK_BACK:])
        return any(mark in text for mark in marks)

    return ended
