"""Text to ids, where control tokens come from the template alone and never from what people or models wrote.

Control tokens inside contents are wrapped in marks before rendering and encoded as ordinary characters after it; text without
them is encoded whole, just as `apply_chat_template(tokenize=True)` does. What the pieces mean is `truing.data.chat.tokenizer`.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

# Noncharacters: Unicode keeps them out of interchange, templates do not strip them, and none reaches the tokenizer.
OPEN, CLOSE = "\ufdd0", "\ufdd1"


class Span(NamedTuple):
    """A text to encode and whether it starts the sequence. Example: `Span("<|im_start|>user", True)`."""

    text: str
    start: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder:
    """A private copy of a tokenizer's pipeline, which nobody else's padding or truncation settings reach."""

    pipeline: Tokenizer
    bos: int | None
    """Written ahead of a text that starts a sequence and does not begin with it; None where the tokenizer adds none."""
    prefixed: bool
    """Whether the tokenizer puts a space before the first word, which would be wrong in the middle of a text."""
    special: re.Pattern[str]
    """What no content may write: special tokens and those that end a turn or text."""
    asked: re.Pattern[str]
    """What no message but the assistant's may write: also such added tokens as the template writes, say `</think>`."""
    marked: re.Pattern[str]
    """A marked control token, or a mark that a template's string methods have left alone."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, template: str, frame_close: str) -> "TextEncoder":
        """The encoder of a fast tokenizer whose conversations are written by this template and whose turns end with this text."""
        pipeline = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        pipeline.no_truncation()
        pipeline.no_padding()
        pipeline.encode_special_tokens = False
        added = [t for t in tokenizer.added_tokens_decoder.values() if not t.content.isspace()]
        special = {t.content for t in added if t.special} | {*tokenizer.all_special_tokens, frame_close.strip()}
        asked = special | {t.content for t in added if t.content in template}
        first = pipeline.encode("a").ids[:1]
        adds_bos = first == [tokenizer.bos_token_id] and pipeline.encode("a", add_special_tokens=False).ids[:1] != first
        return cls(
            pipeline=pipeline,
            bos=first[0] if adds_bos else None,
            prefixed=pipeline.encode("\na", add_special_tokens=False).ids[-1:]
            != pipeline.encode("a", add_special_tokens=False).ids,
            special=any_of(special),
            asked=any_of(asked),
            marked=re.compile(f"{OPEN}({any_of(asked).pattern}){CLOSE}|[{OPEN}{CLOSE}]"),
        )

    def guard(self, content: str, *, assistant: bool) -> tuple[str, int]:
        """The content with its control tokens marked, and how many there were."""
        return (self.special if assistant else self.asked).subn(f"{OPEN}\\g<0>{CLOSE}", content)

    def encode(self, spans: Sequence[Span]) -> list[tuple[int, ...]]:
        """The ids of each text, all in one call of the tokenizer."""
        pieces = [list(self._pieces(span)) for span in spans]
        encoded = iter(self._batch([piece for row in pieces for piece in row]))
        rows = [tuple(i for _ in row for i in next(encoded)) for row in pieces]
        return [
            (self.bos, *r) if s.start and self.bos is not None and r[:1] != (self.bos,) else r
            for s, r in zip(spans, rows, strict=True)
        ]

    def _pieces(self, span: Span) -> Iterator[Span]:
        if OPEN not in span.text and CLOSE not in span.text:
            yield span
            return
        start = span.start
        for i, text in enumerate(self.marked.split(span.text)):
            # Half a control token is no control token: split in two it is spelt out like any other characters.
            for part in (text[:1], text[1:]) if i % 2 and text else (text,):
                if part:
                    yield Span(part, start)
                    start = False

    def _batch(self, spans: Sequence[Span]) -> list[list[int]]:
        # A newline ahead stands for whatever text comes before, so that no space is put before the first word.
        late = [self.prefixed and not span.start for span in spans]
        texts = ["\n" + span.text if inside else span.text for span, inside in zip(spans, late, strict=True)]
        ids = [e.ids for e in self.pipeline.encode_batch_fast(texts, add_special_tokens=False)]
        if not self.prefixed:
            return ids
        newline = self.pipeline.encode("\n", add_special_tokens=False).ids
        for i, inside in enumerate(late):
            if inside and ids[i][: len(newline)] == newline:
                ids[i] = ids[i][len(newline) :]
            elif inside:
                ids[i] = self.pipeline.encode(spans[i].text, add_special_tokens=False).ids
        return ids

    def state(self) -> str:
        """All that decides how text becomes ids, as text: for fingerprints."""
        return json.dumps([self.pipeline.to_str(), self.bos, self.special.pattern, self.asked.pattern])


def any_of(texts: set[str]) -> re.Pattern[str]:
    """A pattern for any of these, longer ones first; of none, one that matches nothing."""
    return re.compile("|".join(re.escape(t) for t in sorted(texts, key=lambda t: (-len(t), t)) if len(t) > 1) or "(?!)")
