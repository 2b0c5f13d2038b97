"""From one record to one tree of tokens.

The trunk is what generation is fed at inference, and a response is its text and one end-of-turn token, whatever else the template
writes after it. Safe rendering is `template`, text to ids `text`, and a whole data set with its report `encoding`.

A prompt that leaves no room is dropped; a response that overruns is cut at its end and then carries no end token. Both are counted.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase

from truing.data.chat.template import CONTINUE, PLAIN, Template, TemplateError, Turn
from truing.data.chat.text import Span, TextEncoder, any_of
from truing.data.tree import Branch, Tree
from truing.records import Demonstration, Message, Messages

log = logging.getLogger(__name__)

Style = Literal["auto", "chat", "plain", "continue"]
Problem = Literal["no_prompt", "prompt_too_long", "empty_response", "same_response", "difference_cut"]
Note = Literal["prompt_cut", "response_cut", "template_rewrote_turns", "control_text"]

ASK, ANSWER = "lanternmoss", "quillfeather"
PROBE: list[Turn] = [{"role": "user", "content": ASK}, {"role": "assistant", "content": ANSWER}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What became of a record. Example: `Encoded(tree=None, problem="prompt_too_long")`."""

    tree: Tree | None
    problem: Problem | None = None
    """Why there is no tree."""
    notes: tuple[Note, ...] = ()
    """What was changed on the way to the tree."""
    cut_tokens: int = 0
    """Tokens of the record that the tree lacks because of its limit."""

    def __post_init__(self) -> None:
        assert (self.tree is None) == (self.problem is not None), "a tree or a problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a template writes around an assistant's answer, learnt from rendering one. Example: `Frame(close="<|im_end|>")`."""

    close: str
    """From the end of the content up to and with the end-of-turn token."""
    lead: str = ""
    """Between the prompt and the content, to be said by the model: the space after `[/INST]`, the channel of a Harmony message."""
    trims_start: bool = False
    trims_end: bool = False

    @classmethod
    def of(cls, template: Template, tokenizer: PreTrainedTokenizerBase) -> "Frame":
        """Render an answer, bare and among white space, and look at what stands before and after it."""
        name = tokenizer.name_or_path or "the tokenizer"
        prompt, unasked = template.render(PROBE[:1], ask=True), template.render(PROBE[:1], ask=False)
        whole = template.render(PROBE, ask=False)
        padded = template.render([PROBE[0], {"role": "assistant", "content": f" \n{ANSWER}\n "}], ask=False)
        if ANSWER not in whole or ANSWER not in padded or ASK not in prompt:
            raise TemplateError(f"the chat template of {name} leaves out messages; correct it or choose template=plain")
        tokens = tokenizer.added_tokens_decoder.values()
        added, special = any_of({t.content for t in tokens}), any_of({t.content for t in tokens if t.special})
        before, _, after = whole.rpartition(ANSWER)
        extra = before.removeprefix(prompt) if before.startswith(prompt) else None
        # A block that the template puts before the answer, say an empty `<think></think>`, is not in the response, and the
        # template drops it again from earlier turns; only white space or a header that the prompt lacks is the model's to write.
        own = extra is not None and (not extra.strip() or prompt == unasked or special.search(extra) is not None)
        if not own:
            log.warning(
                "the chat template of %s does not write an answer right after its prompt; trained is the response alone", name
            )
        end = added.search(after)
        close = after[: end.end()] if end else tokenizer.eos_token
        if close is None:
            raise TemplateError(f"{name} has no token that ends a response; set eos_token in tokenizer_config.json")
        start, _, finish = padded.rpartition(ANSWER)
        return cls(
            close=close,
            lead=extra if own and extra else "",
            trims_start=not start.endswith(" \n"),
            trims_end=not finish.startswith("\n "),
        )

    def around(self, content: str, *, finished: bool = True) -> str:
        """The text that the model is to write for this content."""
        content = content.lstrip() if self.trims_start else content
        content = content.rstrip() if self.trims_end else content
        return self.lead + content + (self.close if finished else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of a branch as text, scored or merely context."""

    text: str
    scored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A tree whose tokens are still text."""

    trunk: str
    branches: tuple[tuple[Piece, ...], ...]
    notes: tuple[Note, ...] = ()
    compared: bool = False
    """Whether the branches are there for their difference."""

    def spans(self) -> list[Span]:
        """All the texts, trunk first."""
        return [Span(self.trunk, True), *(Span(piece.text, False) for branch in self.branches for piece in branch)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTokenizer:
    """A tokenizer with its template. Example: `ChatTokenizer.of(tokenizer).prompt_tokens(prompt.messages)`."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    frame: Frame
    encoder: TextEncoder
    end_id: int
    """The token that ends a turn of the assistant."""
    stop_ids: frozenset[int]
    """Where generation stops: the end of a turn and the end of text."""
    fingerprint: str = field(repr=False)
    """SHA-256 of all that decides which tokens a record becomes: a changed tokenizer or template changes it."""

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, *, template: Style = "auto", variables: Mapping[str, str | bool] | None = None
    ) -> "ChatTokenizer":
        """Learn from the tokenizer how it writes conversations.

        `chat` takes the tokenizer's own template; `plain` sets contents and response apart by blank lines; `continue` lets the
        response follow the prompt with nothing between; `auto` is chat where there is a template, else plain. Without a template
        a response ends with EOS. `variables` are further names that the template reads, such as `enable_thinking`.
        """
        if template == "chat" and not tokenizer.chat_template:
            raise TemplateError(f"{tokenizer.name_or_path} has no chat template; choose template=plain or template=continue")
        if template == "auto":
            template = "chat" if tokenizer.chat_template else "plain"
        source = {"plain": PLAIN, "continue": CONTINUE}.get(template) or tokenizer.get_chat_template()
        written = Template(tokenizer=tokenizer, source=source, variables=dict(variables or {}))
        if template == "chat":
            written.probe([PROBE[:1], PROBE])
        frame = Frame.of(written, tokenizer)
        encoder = TextEncoder.of(tokenizer, template=source, frame_close=frame.close)
        (closing,) = encoder.encode([Span(frame.close, False)])
        eos = tokenizer.eos_token_id
        state = [source, written.variables, dict(tokenizer.special_tokens_map), encoder.state()]
        return cls(
            tokenizer=tokenizer,
            template=written,
            frame=frame,
            encoder=encoder,
            end_id=closing[-1],
            stop_ids=frozenset({closing[-1]} if eos is None else {closing[-1], eos}),
            fingerprint=hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest(),
        )

    def prompt_tokens(self, messages: Messages) -> tuple[int, ...]:
        """What generation is fed: the conversation up to where the assistant starts to speak."""
        turns, _ = self._guarded(messages)
        return self.encoder.encode([Span(self.template.render(turns, ask=True), True)])[0]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a response, without its end and other control tokens."""
        text: str = self.encoder.pipeline.decode([t for t in tokens if t not in self.stop_ids], skip_special_tokens=True)
        return text

    def tree_of_demonstration(self, record: Demonstration, *, max_tokens: int, key: int = 0) -> Encoded:
        """A trunk up to the assistant's first answer and one branch with all the rest, every answer in it scored."""
        draft = self.draft_of_demonstration(record)
        return self.grow(draft, max_tokens=max_tokens, key=key) if isinstance(draft, Draft) else draft

    def tree_of_responses(
        self,
        prompt: Messages,
        responses: Sequence[str],
        *,
        max_tokens: int,
        finished: bool | Sequence[bool] = True,
        sampled: bool = False,
        key: int = 0,
    ) -> Encoded:
        """A trunk and one branch a response; an unfinished one gets no end token.

        Of responses that are `sampled` from a model, empty ones and two alike are facts; in data they are problems.
        """
        draft = self.draft_of_responses(prompt, responses, finished=finished, sampled=sampled)
        return self.grow(draft, max_tokens=max_tokens, key=key) if isinstance(draft, Draft) else draft

    def draft_of_responses(
        self, prompt: Messages, responses: Sequence[str], *, finished: bool | Sequence[bool] = True, sampled: bool = False
    ) -> Draft | Encoded:
        """The texts of `tree_of_responses`."""
        if not prompt:
            return Encoded(tree=None, problem="no_prompt")
        turns, controls = self._guarded(prompt)
        guarded = [self.encoder.guard(response, assistant=True) for response in responses]
        if not sampled and not all(text.strip() for text, _ in guarded):
            return Encoded(tree=None, problem="empty_response")
        ends = [finished] * len(responses) if isinstance(finished, bool) else finished
        texts = [self.frame.around(text, finished=end) for (text, _), end in zip(guarded, ends, strict=True)]
        if not sampled and len(set(texts)) < len(texts):
            return Encoded(tree=None, problem="same_response")
        return Draft(
            trunk=self.template.render(turns, ask=True),
            branches=tuple((Piece(text=text, scored=True),) for text in texts),
            notes=("control_text",) if controls or any(n for _, n in guarded) else (),
            compared=not sampled,
        )

    def draft_of_demonstration(self, record: Demonstration) -> Draft | Encoded:
        """The texts of `tree_of_demonstration`.

        Before each answer the conversation must read as it would at inference, and go on from the answers already given.
        A template that rewrites those (drops their thinking, moves the system prompt) leaves only the last turn to train.
        """
        turns, controls = self._guarded(record.messages)
        said = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i > 0]
        if not said or said[-1] != len(turns) - 1:
            return Encoded(tree=None, problem="no_prompt")
        if not all(turns[i]["content"].strip() for i in said):
            return Encoded(tree=None, problem="empty_response")
        notes: tuple[Note, ...] = ("control_text",) if controls else ()
        prompts = [self.template.render(turns[:i], ask=True) for i in said]
        answers = [self.frame.around(turns[i]["content"]) for i in said]
        pieces = [Piece(text=answers[0], scored=True)]
        so_far = prompts[0] + answers[0]
        for prompt, answer in zip(prompts[1:], answers[1:], strict=True):
            if not prompt.startswith(so_far):
                last = Piece(text=answers[-1], scored=True)
                return Draft(trunk=prompts[-1], branches=((last,),), notes=(*notes, "template_rewrote_turns"))
            pieces += [Piece(text=prompt[len(so_far) :], scored=False), Piece(text=answer, scored=True)]
            so_far = prompt + answer
        return Draft(trunk=prompts[0], branches=(tuple(pieces),), notes=notes)

    def draft_of_prompt(self, prompt: Messages) -> Draft | Encoded:
        """A trunk without branches, for sampling."""
        return self.draft_of_responses(prompt, (), sampled=True)

    def grow(self, draft: Draft, *, max_tokens: int, key: int = 0) -> Encoded:
        """The tree of one draft."""
        return grow(draft, self.encoder.encode(draft.spans()), max_tokens=max_tokens, key=key)

    def _guarded(self, messages: Sequence[Message]) -> tuple[list[Turn], int]:
        """The messages as templates take them, control tokens in their contents marked, and how many there were."""
        turns, count = [], 0
        for message in messages:
            content, found = self.encoder.guard(message.content, assistant=message.role == "assistant")
            turns.append({"role": message.role, "content": content})
            count += found
        return turns, count


def grow(draft: Draft, ids: Sequence[tuple[int, ...]], *, max_tokens: int, key: int) -> Encoded:
    """The tree of a draft whose texts have these ids; no path from the root to a leaf is longer than `max_tokens`."""
    trunk, rest = ids[0], iter(ids[1:])
    if not trunk:
        return Encoded(tree=None, problem="no_prompt")
    room = max_tokens - len(trunk)
    if room < 1:
        return Encoded(tree=None, problem="prompt_too_long")
    whole: list[Branch] = []
    for pieces in draft.branches:
        encoded = [(next(rest), piece.scored) for piece in pieces]
        tokens = tuple(token for row, _ in encoded for token in row)
        whole.append(Branch(tokens=tokens, scored=tuple(scored for row, scored in encoded for _ in row)))
    if not all(branch.tokens for branch in whole):
        return Encoded(tree=None, problem="empty_response")
    branches = tuple(_cut(branch, room) for branch in whole)
    if draft.compared and len({b.tokens for b in branches}) < len(branches):
        return Encoded(tree=None, problem="difference_cut")
    lost = sum(len(b.tokens) for b in whole) - sum(len(b.tokens) for b in branches)
    return Encoded(
        tree=Tree(trunk=trunk, branches=branches, key=key),
        notes=(*draft.notes, "response_cut") if lost else draft.notes,
        cut_tokens=lost,
    )


def _cut(branch: Branch, room: int) -> Branch:
    """The first tokens of a branch, less those at its end that only a turn that is gone would have needed."""
    if len(branch.tokens) <= room:
        return branch
    while room and not branch.scored[room - 1]:
        room -= 1
    return Branch(tokens=branch.tokens[:room], scored=branch.scored[:room])
