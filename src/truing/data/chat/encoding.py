"""A whole data set from records to trees, with a count of everything that was cut, dropped or changed on the way.

How one record becomes a tree is `truing.data.chat.tokenizer`; order, shuffling and batches are `truing.data.source`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, assert_never

from truing.data.chat.template import TemplateError
from truing.data.chat.tokenizer import ChatTokenizer, Draft, Encoded, Note, Problem, grow
from truing.data.tree import Tree
from truing.records import Demonstration, Feedback, Messages, Preference, Prompt, Ranking, Record, Steps

Truncate = Literal["response", "prompt"]
CHUNK = 256
EXAMPLES = 5

MEANING: Mapping[Problem | Note, str] = {
    "no_prompt": "dropped: nothing comes before the response",
    "prompt_too_long": "dropped: the prompt leaves no room for a response",
    "empty_response": "dropped: a response is empty",
    "same_response": "dropped: two of the responses are the same",
    "difference_cut": "dropped: the responses differ only beyond max_tokens",
    "prompt_cut": "kept without the oldest turns of the prompt",
    "response_cut": "kept with a response cut at max_tokens, so without its end token",
    "template_rewrote_turns": "kept with the last turn alone scored: the template rewrites earlier ones",
    "control_text": "kept with control tokens in the text spelt out as ordinary characters",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingReport:
    """What encoding did to a data set. Example: `print(report)`."""

    records: int
    trees: int
    counts: Mapping[Problem | Note, int]
    """Records by what happened to them; one record can have several notes."""
    examples: Mapping[Problem | Note, tuple[str, ...]]
    """The first few records of each kind, by file and row."""
    cut_tokens: int
    """Tokens of the kept records that their trees lack."""

    def __str__(self) -> str:
        lines = [f"{self.trees} of {self.records} records became trees; {self.cut_tokens} tokens were cut"]
        lines += [f"{n} {MEANING[kind]} ({', '.join(self.examples[kind])})" for kind, n in self.counts.items()]
        return "\n".join(lines)


class Encoding:
    """Records to trees, some at a time, and the account of all so far. Example: `Encoding(chat, max_tokens=512).trees(records)`."""

    def __init__(self, chat: ChatTokenizer, *, max_tokens: int, truncate: Truncate = "response") -> None:
        self.chat = chat
        self.max_tokens = max_tokens
        self.truncate: Truncate = truncate
        self._records = self._trees = self._cut = 0
        self._counts: Counter[Problem | Note] = Counter()
        self._examples: dict[Problem | Note, tuple[str, ...]] = {}

    def trees(self, records: Sequence[Record]) -> list[Tree]:
        """The trees of the next records that have one, keyed by the record's number among all; branches in the record's own order.

        With `truncate="prompt"` a record that overruns first loses the oldest turns of its prompt, never the system's or the last.
        """
        found: list[Tree] = []
        encoded = _encode(records, self.chat, max_tokens=self.max_tokens, truncate=self.truncate, begin=self._records)
        for key, (record, grown) in enumerate(zip(records, encoded, strict=True), start=self._records):
            for kind in (grown.problem,) if grown.problem else grown.notes:
                self._counts[kind] += 1
                if self._counts[kind] <= EXAMPLES:
                    self._examples[kind] = (*self._examples.get(kind, ()), name_of(record, key))
            if grown.tree is not None:
                found.append(grown.tree)
                self._cut += grown.cut_tokens
        self._records += len(records)
        self._trees += len(found)
        return found

    def report(self) -> EncodingReport:
        """What happened to the records so far."""
        return EncodingReport(
            records=self._records,
            trees=self._trees,
            counts=dict(self._counts),
            examples=dict(self._examples),
            cut_tokens=self._cut,
        )


def encode_all(
    records: Sequence[Record], chat: ChatTokenizer, *, max_tokens: int, truncate: Truncate = "response"
) -> tuple[list[Tree], EncodingReport]:
    """The trees of records that are all in memory (`Encoding.trees`), keyed by the record's index, and their account."""
    encoding = Encoding(chat, max_tokens=max_tokens, truncate=truncate)
    trees = [tree for begin in range(0, len(records), CHUNK) for tree in encoding.trees(records[begin : begin + CHUNK])]
    return trees, encoding.report()


def draft_of(record: Record, chat: ChatTokenizer) -> Draft | Encoded:
    """The texts of a record's tree: a preference has its chosen branch first, a ranking its best, a prompt has no branches."""
    match record:
        case Demonstration():
            return chat.draft_of_demonstration(record)
        case Preference():
            return chat.draft_of_responses(record.prompt, (record.chosen, record.rejected))
        case Ranking():
            return chat.draft_of_responses(record.prompt, record.responses)
        case Feedback() | Steps():
            return chat.draft_of_responses(record.prompt, (record.response,))
        case Prompt():
            return chat.draft_of_prompt(record.messages)
        case _:
            assert_never(record)


def name_of(record: Record, index: int) -> str:
    """Where a record comes from, for people."""
    return str(record.origin) if record.origin else f"record {index}"


def _encode(chunk: Sequence[Record], chat: ChatTokenizer, *, max_tokens: int, truncate: Truncate, begin: int) -> list[Encoded]:
    drafts: list[Draft | Encoded] = []
    for key, record in enumerate(chunk, start=begin):
        try:
            drafts.append(draft_of(record, chat))
        except TemplateError as error:
            raise TemplateError(f"{name_of(record, key)}: {error}") from error
    spans = [draft.spans() if isinstance(draft, Draft) else [] for draft in drafts]
    ids = iter(chat.encoder.encode([span for row in spans for span in row]))
    out = []
    for key, (draft, row) in enumerate(zip(drafts, spans, strict=True), start=begin):
        if isinstance(draft, Draft):
            encoded = grow(draft, list(islice(ids, len(row))), max_tokens=max_tokens, key=key)
            if truncate == "prompt" and (encoded.cut_tokens or encoded.problem in ("prompt_too_long", "difference_cut")):
                encoded = _with_shorter_prompt(chunk[key - begin], chat, max_tokens=max_tokens, key=key) or encoded
            out.append(encoded)
        else:
            out.append(draft)
    return out


def _with_shorter_prompt(record: Record, chat: ChatTokenizer, *, max_tokens: int, key: int) -> Encoded | None:
    """The record without its oldest turns, as many as it takes for the rest to fit; None when that is not to be had."""
    whole = _length(record, chat)
    best: Encoded | None = None
    shorter = without_oldest_turns(record)
    while shorter is not None:
        draft = draft_of(shorter, chat)
        if not isinstance(draft, Draft):
            break
        encoded = chat.grow(draft, max_tokens=max_tokens, key=key)
        if encoded.tree is not None:
            lost = whole - _length(shorter, chat)
            best = replace(encoded, notes=(*encoded.notes, "prompt_cut"), cut_tokens=encoded.cut_tokens + lost)
            if "response_cut" not in encoded.notes:
                break
        shorter = without_oldest_turns(shorter)
    return best


def _length(record: Record, chat: ChatTokenizer) -> int:
    draft = draft_of(record, chat)
    assert isinstance(draft, Draft), "only drafts overrun"
    return sum(len(row) for row in chat.encoder.encode(draft.spans()))


def without_oldest_turns(record: Record) -> Record | None:
    """The record without what comes before its second user turn, save the system's; None when it has only one.

    Example: system, user, assistant, user becomes system, user.
    """
    match record:
        case Prompt() | Demonstration():
            messages = _shorter(record.messages)
            return replace(record, messages=messages) if messages else None
        case Preference() | Ranking() | Feedback() | Steps():
            prompt = _shorter(record.prompt)
            return replace(record, prompt=prompt) if prompt else None
        case _:
            assert_never(record)


def _shorter(messages: Messages) -> Messages | None:
    asked = [i for i, message in enumerate(messages) if message.role == "user"]
    if len(asked) < 2:
        return None
    return (*(m for m in messages[: asked[1]] if m.role == "system"), *messages[asked[1] :])
