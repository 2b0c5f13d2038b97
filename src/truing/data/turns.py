"""Cells to turns: texts, messages and conversations out of one row's values, with a reason for each that cannot be used.

Knows role names and the order of turns, and HH transcripts. Which columns a file has is `truing.data.formats`.
"""

import re
from collections.abc import Mapping, Sequence

from truing.data.problems import BadValueError
from truing.records import Message, Messages, Role

Row = Mapping[str, object]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Role names that are read, and what they become."""

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
MARKER = re.compile(r"\n\n(Human|Assistant):")
LINE_MARKER = re.compile(r"\n[ \t]*(Human|Assistant):")
NO_PROMPT = 'chosen and rejected are texts without a prompt: add a "prompt" column (only Human/Assistant transcripts carry one)'
PART_EARLY = "the two sides part before the last turn"


def is_blank(text: str) -> bool:
    """Whether a reader would see nothing: white space and zero-width characters only."""
    return not text[:1].isalnum() and all(sign.isspace() or sign in INVISIBLE for sign in text)


def checked(text: str, what: str) -> str:
    """The text itself, once it can be encoded and handed to a tokenizer."""
    if "\0" in text:
        raise BadValueError(f"{what} holds a NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadValueError(f"{what} holds a lone surrogate, which is not text") from None
    return text


def value(row: Row, column: str) -> object:
    """A cell that must be there and not null."""
    if column not in row:
        raise BadValueError(f'missing column "{column}"')
    if row[column] is None:
        raise BadValueError(f'"{column}" is null')
    return row[column]


def as_text(cell: object, what: str) -> str:
    """A cell that must be text with something in it."""
    if not isinstance(cell, str):
        raise BadValueError(f"{what} is {type_name(cell)}, not text")
    if is_blank(cell):
        raise BadValueError(f"{what} is empty")
    return checked(cell, what)


def text(row: Row, column: str) -> str:
    """The text of a column that must be there and not empty."""
    return as_text(value(row, column), f'"{column}"')


def optional_text(row: Row, column: str) -> str:
    """The text of a column that may be absent, null or empty; then the empty string."""
    cell = row.get(column)
    if cell is None or (isinstance(cell, str) and is_blank(cell)):
        return ""
    return as_text(cell, f'"{column}"')


def type_name(cell: object) -> str:
    """A cell's type in the words of a data file."""
    if cell is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(cell), f"a {type(cell).__name__}")


def _content(cell: object, what: str) -> str:
    """A turn's text; a list of text parts, as in OpenAI's schema, is joined."""
    if isinstance(cell, list) and cell:
        parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in cell]
        if not all(isinstance(part, str) for part in parts):
            raise BadValueError(f"{what} has a part that is not text")
        cell = "".join(str(part) for part in parts)
    if not isinstance(cell, str):
        raise BadValueError(f"the content of {what} is {type_name(cell)}, not text")
    return checked(cell, what)


def message(cell: object, what: str) -> Message:
    """One turn, as `role` and `content` or as ShareGPT's `from` and `value`."""
    if not isinstance(cell, dict):
        raise BadValueError(f"{what} is {type_name(cell)}, not an object with role and content")
    name_key, text_key = ("from", "value") if cell.get("role") is None and cell.get("from") is not None else ("role", "content")
    for key in (name_key, text_key):
        if cell.get(key) is None:
            raise BadValueError(f'{what} has no "{key}"')
    name = cell[name_key]
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise BadValueError(f"{what} has the unknown role {str(name)[:40]!r}")
    content = _content(cell[text_key], what)
    if is_blank(content) and role in ("user", "assistant"):
        raise BadValueError(f"{what} ({role}) is empty")
    return Message(role=role, content=content)


def messages(cell: object, column: str) -> Messages:
    """A list of turns in a possible order; a single turn may stand without its list."""
    if isinstance(cell, dict):
        cell = [cell]
    if not isinstance(cell, list):
        raise BadValueError(f'"{column}" is {type_name(cell)}, not a list of messages')
    if not cell:
        raise BadValueError(f'"{column}" is empty')
    return ordered(tuple(message(item, f'message {i} of "{column}"') for i, item in enumerate(cell, start=1)))


def ordered(turns: Messages) -> Messages:
    """The turns themselves, once a system turn stands at most once and first."""
    systems = [i for i, turn in enumerate(turns) if turn.role == "system"]
    if len(systems) > 1:
        raise BadValueError(f"broken role order: {len(systems)} system turns")
    if systems and systems[0]:
        raise BadValueError("broken role order: the system turn is not the first")
    return turns


def asks(turns: Messages) -> Messages:
    """The turns themselves, once they can be answered."""
    if not turns:
        raise BadValueError("the prompt is empty")
    if turns[-1].role == "assistant":
        raise BadValueError("broken role order: the prompt ends with an assistant turn")
    return ordered(turns)


def ends_with_answer(turns: Messages) -> tuple[Messages, str]:
    """A conversation parted into what was asked and the last assistant turn."""
    if turns[-1].role != "assistant":
        raise BadValueError(f"broken role order: the conversation ends with a {turns[-1].role} turn, not with an assistant turn")
    return asks(turns[:-1]), turns[-1].content


def prompt(cell: object, column: str) -> Messages:
    """A prompt column: turns, a transcript that ends with an open assistant marker, or any other text as one user turn."""
    if not isinstance(cell, str):
        return asks(messages(cell, column))
    asked = as_text(cell, f'"{column}"')
    if asked.lstrip().startswith("Human:") and asked.rstrip().endswith(ASSISTANT):
        return asks(transcript(asked.rstrip().removesuffix(ASSISTANT), f'"{column}"'))
    return (Message(role="user", content=asked),)


def transcript(written: str, what: str) -> Messages:
    """The turns of a text in which each begins with a blank line and `Human:` or `Assistant:`."""
    lead, *parts = MARKER.split("\n\n" + written.lstrip())
    if lead.strip() or not parts:
        raise BadValueError(f"{what} does not begin with Human: or Assistant:")
    turns = []
    for number, (name, said) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1):
        if is_blank(said):
            raise BadValueError(f"turn {number} of the transcript in {what} is empty")
        turns.append(Message(role="user" if name == "Human" else "assistant", content=said.strip()))
    return tuple(turns)


def transcripts(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    """Two HH transcripts, split at the last assistant marker. Shared text is never taken for a prompt: it would cut words."""
    prompts, replies = [], []
    for column, written in (("chosen", checked(chosen, '"chosen"')), ("rejected", checked(rejected, '"rejected"'))):
        if is_blank(written):
            raise BadValueError(f'"{column}" is empty')
        before, marker, reply = ("\n\n" + written.lstrip()).rpartition(ASSISTANT)
        if not marker:
            raise BadValueError(NO_PROMPT)
        if HUMAN in reply:
            raise BadValueError(f'broken role order: the transcript in "{column}" ends with a human turn')
        prompts.append(before)
        replies.append(reply)
    # A marker at the start of a line but without its blank line is one more turn on one side, written carelessly.
    if prompts[0] != prompts[1] or any(LINE_MARKER.search(reply) for reply in replies):
        raise BadValueError(PART_EARLY)
    for column, reply in zip(("chosen", "rejected"), replies, strict=True):
        if is_blank(reply):
            raise BadValueError(f'the last reply in "{column}" is empty')
    return asks(transcript(prompts[0], '"chosen"')), replies[0].strip(), replies[1].strip()


def conversation(asked: Messages, side: Messages, column: str) -> Messages:
    """A whole conversation out of a prompt and one side, which may repeat the prompt, hold all of it, or go on from it."""
    if _same(side[: len(asked)], asked):
        return side
    if side[0].role == "assistant":
        return ordered((*asked, *side))
    if len(asked) == 1 and any(_same((turn,), asked) for turn in side):
        return side
    raise BadValueError(f'"{column}" neither repeats the prompt nor begins with an assistant turn')


def part(chosen: Messages, rejected: Messages) -> tuple[Messages, str, str]:
    """Two whole conversations that are the same up to their last turn, as prompt and two responses."""
    if not _same(chosen[:-1], rejected[:-1]):
        raise BadValueError(PART_EARLY)
    return *ends_with_answer(chosen), ends_with_answer(rejected)[1]


def _same(left: Sequence[Message], right: Sequence[Message]) -> bool:
    """Whether two stretches of turns are equal but for white space around them."""
    return len(left) == len(right) and all(
        a.role == b.role and a.content.strip() == b.content.strip() for a, b in zip(left, right, strict=True)
    )
