"""One example as the tokens that training sees, with those that are scored in brackets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from truing.data.problems import BadRow
from truing.records import Record

if TYPE_CHECKING:
    from truing.data.chat import ChatTokenizer
    from truing.data.tree import Tree


@dataclass(frozen=True, kw_only=True)
class Show:
    """What `truing data show` takes."""

    mapping: dict[str, str] = field(default_factory=dict)
    """Our column names to the file's, where they differ, such as {chosen: best}."""
    row: Annotated[int, Field(gt=0)] | None = None
    """The row to show, as findings count it; null shows the first ones."""
    rows: Annotated[int, Field(gt=0)] = 3
    """How many of the first rows to show."""
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """With --tokens: whose tokenizer and template."""
    template: Literal["auto", "chat", "plain", "continue"] = "auto"
    """With --tokens: how conversations become text, as data.template in training."""
    max_tokens: Annotated[int, Field(gt=1)] = 1024
    """With --tokens: longest prompt with answer, as data.max_tokens in training."""
    truncate: Literal["response", "prompt"] = "response"
    """With --tokens: what gives way first, as data.truncate in training."""


def as_tokens(items: Sequence[Record | BadRow], wanted: Show) -> str:
    """Rows as training would see them, and what was cut, dropped or changed on the way."""
    from truing.data.chat import ChatTokenizer, encode_all
    from truing.models.load import load_tokenizer
    from truing.recipes.fit import model_folder

    chat = ChatTokenizer.of(load_tokenizer(model_folder(wanted.model)), template=wanted.template)
    records = [item for item in items if not isinstance(item, BadRow)]
    trees, report = encode_all(records, chat, max_tokens=wanted.max_tokens, truncate=wanted.truncate)
    parts = [f"{item}\n" for item in items if isinstance(item, BadRow)]
    parts += [token_lines(tree, chat, str(records[tree.key].origin)) for tree in trees]
    return "".join(parts) + f"\n{report}\n"


def token_lines(tree: "Tree", chat: "ChatTokenizer", title: str) -> str:
    """The trunk and each branch of a tree; scored tokens in brackets."""

    def token(number: int) -> str:
        return repr(chat.tokenizer.convert_ids_to_tokens(number))[1:-1]

    lines = [f"\n{title}: {tree.size} tokens", "  trunk   " + " ".join(map(token, tree.trunk))]
    for branch in tree.branches:
        marked = (f"[{token(t)}]" if scored else token(t) for t, scored in zip(branch.tokens, branch.scored, strict=True))
        lines.append("  branch  " + " ".join(marked))
    return "\n".join(lines) + "\n"
