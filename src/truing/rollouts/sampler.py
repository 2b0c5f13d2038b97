"""Sampling from a policy in this process: prompts are read, common beginnings once; then all rows say a token a step to their ends.

A row that has ended makes room for a prompt that waits. For a model in the plain layout, transformers' own generation, batch by
batch.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Annotated, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

from truing.models.policy import Policy, decoder
from truing.models.rope import refuse_beyond
from truing.randomness import counted_seed
from truing.records import Completion
from truing.rollouts import cache
from truing.rollouts.cache import Cache

READ = 4096
"""Prompt tokens that pass through the model at once."""
PIECE = 256
"""Tokens of one prompt that do: scores of attention grow with it."""
WORTH_READING = 128
"""Prompt tokens to be saved by reading common beginnings first: one more pass costs about as much."""
REFILL = 4
"""Waiting prompts are taken in once this part of the rows is free, so that reading them does not hold up the others each step."""
SLOTS = 32768
"""Tokens whose keys and values are held at once, but for one prompt that is longer: 0.76 GB for SmolLM2-135M in bf16."""
CHUNK_ELEMENTS = 1 << 20
"""Probabilities that are summed up at once, in fp64."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are drawn. Example: `Decoding(temperature=1.0)` samples from the full distribution, as KL estimates need."""

    max_tokens: Annotated[int, Field(gt=0)] = 64
    """Longest answer, in tokens; a longer one is cut and counts as unfinished."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token; above 0 samples from the whole vocabulary, logits divided by it."""


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: Sequence[tuple[int, ...]],
    decoding: Decoding,
    *,
    stop_ids: frozenset[int],
    seed: int = 0,
    places: Sequence[int] | None = None,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
    ended: Callable[[Sequence[int]], bool] | None = None,
) -> list[Completion]:
    """One completion a prompt, in the order of the prompts; short prompts start first, at most `batch_size` go on at once.

    A prompt that stands there k times in a row has k different completions. It is read once where k is at most a `REFILL`-th of the
    rows, else perhaps a few times. What is drawn for a prompt depends on the seed
    and its place (by default among the prompts; `places` gives others, as where ranks share them), not on the batch (but for
    rounding). `ended` says of the tokens so far that no more are wanted; such an answer stops as one does at its limit, with
    `stop="length"`. In the plain layout it is not asked.
    """
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} is empty: a model needs at least one token to go on from")
        refuse_beyond(policy.reach, len(prompt) + decoding.max_tokens, "lower max_tokens, or leave out longer prompts")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    places = range(len(prompts)) if places is None else places
    assert len(set(places)) == len(prompts), "every prompt has a place of its own"
    found: dict[int, Completion] = {}
    waiting = deque((places[i], prompts[i]) for i in order)
    with _generating(policy):
        if policy.layout == "tree":
            said = _decode(policy, waiting, batch_size, decoding, stop_ids, seed, ended)
        else:
            said = _generate(policy, waiting, batch_size, decoding, stop_ids, seed)
        for place, tokens, log_probs in said:
            found[place] = _completion(tokens, log_probs, stop_ids)
            if progress:
                progress(len(found), len(prompts))
    return [found[place] for place in places]


Waiting = deque[tuple[int, tuple[int, ...]]]
"""Places and prompts, the next one first."""


def _next(waiting: Waiting, going: Sequence[tuple[int, ...]], max_tokens: int, batch_size: int) -> dict[int, tuple[int, ...]]:
    """Takes as many of those who wait as rows and slots allow beside the prompts that go on, at least one where none does.

    A prompt that stands there several times in a row is taken whole or waits, so that it is read once; but one that would hold more
    than its part of the rows (`REFILL`) is taken as far as it goes.
    """
    taken: dict[int, tuple[int, ...]] = {}
    longest = max(map(len, going), default=0)
    while waiting:
        prompt = waiting[0][1]
        longest = max(longest, len(prompt))
        most = min(batch_size, max(1, SLOTS // (longest + max_tokens)))
        alike = sum(1 for _ in takewhile(prompt.__eq__, (other for _, other in islice(waiting, most))))
        rows = len(going) + len(taken)
        if rows + alike > most and (rows >= most or REFILL * alike <= most):
            break
        taken |= dict(waiting.popleft() for _ in range(min(alike, most - rows)))
    return taken


@contextmanager
def _generating(policy: Policy) -> Iterator[None]:
    """The model with the attention of rollouts, or without decoding settings of its own, and as it was again afterwards."""
    model = policy.model
    own, settings = model.config._attn_implementation, model.generation_config
    cache.register()
    try:
        if policy.layout == "tree":
            model.set_attn_implementation(cache.NAME)
        else:
            model.generation_config = GenerationConfig()
        yield
    finally:
        model.generation_config = settings
        if policy.layout == "tree":
            model.set_attn_implementation(own)


def _decode(
    policy: Policy,
    waiting: Waiting,
    batch_size: int,
    decoding: Decoding,
    stop_ids: frozenset[int],
    seed: int,
    ended: Callable[[Sequence[int]], bool] | None,
) -> Iterator[tuple[int, list[int], list[float]]]:
    """The tokens of each answer with their log-probabilities, as it ends, under its prompt's place."""
    store = Cache(device=policy.device)
    prompts: dict[int, tuple[int, ...]] = {}
    said: dict[int, list[int]] = {}
    heard: dict[int, list[float]] = {}
    hidden = torch.empty(0)  # of the token that each row has read last
    while waiting or prompts:
        if REFILL * (store.rows - len(prompts)) >= store.rows:
            joining = _next(waiting, list(prompts.values()), decoding.max_tokens, batch_size)
            if joining:
                longest_first = sorted(range(len(prompts)), key=lambda row: -store.lengths[row])
                store.take(longest_first)
                hidden = hidden[longest_first]
                prompts = dict(list(prompts.items())[row] for row in longest_first)
                store.hold(len(prompts) + len(joining))
                states = _read(policy, list(joining.values()), store, len(prompts))
                hidden = torch.cat([hidden, states]) if prompts else states
                prompts |= joining
                said |= {i: [] for i in joining}
                heard |= {i: [] for i in joining}
        order = list(prompts)
        seeds = [counted_seed(seed, "sample", i, len(said[i])) for i in order]
        tokens, log_probs = _choose(_logits(policy, hidden), decoding.temperature, seeds)
        going = []
        for row, (i, token) in enumerate(zip(order, tokens, strict=True)):
            said[i].append(token)
            heard[i] += log_probs[row : row + 1]
            if token in stop_ids or len(said[i]) == decoding.max_tokens or (ended and ended(said[i])):
                yield i, said.pop(i), heard.pop(i)
            else:
                going.append(row)
        if len(going) < len(order):
            going = _close_gaps(going)
            store.take(going)
            prompts = {order[row]: prompts[order[row]] for row in going}
        if prompts:
            hidden = _hidden(policy, [(said[i][-1],) for i in prompts], store, 0)


def _close_gaps(rows: list[int]) -> list[int]:
    """The same rows, those beyond their number moved into the gaps and all others where they are."""
    count = len(rows)
    gaps = iter(sorted(set(range(count)) - set(rows)))
    placed = {row if row < count else next(gaps): row for row in rows}
    return [placed[place] for place in range(count)]


def _read(policy: Policy, prompts: Sequence[tuple[int, ...]], store: Cache, first: int) -> Float[Tensor, "row width"]:
    """Fill the rows from `first` on with a prompt each, what some begin with in common once; the states of their last tokens."""
    trunks, trunk_of = _trunks(prompts)
    if trunks:
        _read_on(policy, trunks, store, first)
        store.take([*range(first), *(first + number for number in trunk_of)])
    return _read_on(policy, prompts, store, first)


def _read_on(policy: Policy, prompts: Sequence[tuple[int, ...]], store: Cache, first: int) -> Float[Tensor, "row width"]:
    """Read what the rows from `first` on do not hold yet, piece by piece."""
    last: dict[int, Tensor] = {}
    while unread := [row for row, prompt in enumerate(prompts, first) if store.lengths[row] < len(prompt)]:
        pieces: list[tuple[int, ...]] = []
        for row in range(unread[0], first + len(prompts)):
            piece = prompts[row - first][store.lengths[row] :][:PIECE]
            if pieces and (len(pieces) + 1) * max(map(len, [*pieces, piece])) > READ:
                break
            pieces.append(piece)
        states = _hidden(policy, pieces, store, unread[0])
        last |= {row: state for row, state in enumerate(states, unread[0]) if row in unread}
    return torch.stack([last[row] for row in sorted(last)])


def _trunks(prompts: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """What groups of prompts begin with in common, short ones first, and for each prompt the number of its group's.

    None where they would save less than they cost. A prompt without others like it has an empty one.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i]):
        if groups:
            before = _shared([prompts[j] for j in groups[-1]])
            together = _shared([prompts[j] for j in [*groups[-1], i]])
            if (len(groups[-1]) - 1) * (before - together) < together:
                groups[-1].append(i)
                continue
        groups.append([i])
    found = [(prompts[group[0]][: _shared([prompts[j] for j in group])] if len(group) > 1 else (), group) for group in groups]
    if sum(len(trunk) * (len(group) - 1) for trunk, group in found) < WORTH_READING:
        return [], []
    found.sort(key=lambda one: len(one[0]))
    number_of = {i: number for number, (_, group) in enumerate(found) for i in group}
    return [trunk for trunk, _ in found], [number_of[i] for i in range(len(prompts))]


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all begin with, short of the whole of any; sorted, so the first and the last tell."""
    most = min(map(len, prompts)) - 1
    return next((n for n in range(most) if prompts[0][n] != prompts[-1][n]), most)


def _hidden(policy: Policy, pieces: Sequence[tuple[int, ...]], store: Cache, first: int) -> Float[Tensor, "row width"]:
    """Let the rows from `first` on read a piece each; the hidden states of the pieces' last tokens."""
    stage = store.grow(first, [len(piece) for piece in pieces])
    tokens = torch.tensor([token for piece in pieces for token in piece], device=policy.device)
    output = decoder(policy.model)(input_ids=tokens[None], position_ids=stage.positions[None], use_cache=False, tree_layout=stage)
    states: Tensor = output.last_hidden_state[0, stage.last]
    return states


def _logits(policy: Policy, hidden: Float[Tensor, "row width"]) -> Float[Tensor, "row vocabulary"]:
    """As the policy's own log-probabilities take them; `_choose` widens them to fp32 where that matters."""
    logits: Tensor = policy.model.get_output_embeddings()(hidden)
    softcap = getattr(policy.model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if softcap is None else torch.tanh(logits.float() / softcap) * softcap


def _choose(logits: Float[Tensor, "row vocabulary"], temperature: float, seeds: Sequence[int]) -> tuple[list[int], list[float]]:
    """The next token of each row and, where it was drawn, its log-probability. Raises ValueError when the model says NaN."""
    best, likeliest = logits.max(-1)
    if not best.isfinite().all():
        raise ValueError("the model's logits are NaN or infinite: its training has diverged; take an earlier checkpoint")
    if temperature == 0:
        return likeliest.tolist(), []
    # One number a row, from its seed alone, and the place where the running sum of probabilities passes it. The sum is in fp64:
    # in fp32, tokens less likely than 1e-7 would share one value with their neighbours, and some could never be drawn.
    numbers = torch.tensor([(seed >> 10) * 2.0**-53 for seed in seeds], dtype=torch.float64, device=logits.device)
    chosen: list[int] = []
    log_probs: list[float] = []
    for rows in torch.arange(len(logits)).split(max(1, CHUNK_ELEMENTS // logits.shape[1])):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        scaled = (logits[at].float() - best[at, None]).div_(temperature)
        sums = scaled.exp().cumsum(-1, dtype=torch.float64)
        drawn = torch.searchsorted(sums, numbers[at, None] * sums[:, -1:], right=True).clamp_(max=logits.shape[1] - 1)
        chosen += drawn.squeeze(1).tolist()
        log_probs += (scaled.gather(1, drawn) - sums[:, -1:].log()).squeeze(1).tolist()
    return chosen, log_probs


def _generate(
    policy: Policy, waiting: Waiting, batch_size: int, decoding: Decoding, stop_ids: frozenset[int], seed: int
) -> Iterator[tuple[int, list[int], list[float]]]:
    """As `_decode`, by transformers, prompts padded on the left; those who wait start when a whole batch is done."""
    pad = min(stop_ids)
    full_support = {"do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=decoding.max_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(stop_ids),
        use_cache=True,
        **(full_support if decoding.temperature > 0 else {"do_sample": False}),
    )
    generate = cast(Callable[..., Tensor], policy.model.generate)
    while prompts := _next(waiting, (), decoding.max_tokens, batch_size):
        longest = max(map(len, prompts.values()))
        rows = torch.full((len(prompts), longest), pad)
        mask = torch.zeros_like(rows)
        for row, prompt in enumerate(prompts.values()):
            rows[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        listener = _Listener(decoding.temperature)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counted_seed(seed, "sample", *prompts))
            out = generate(
                inputs=rows.to(policy.device),
                attention_mask=mask.to(policy.device),
                generation_config=settings,
                logits_processor=[listener] if decoding.temperature > 0 else [],
            )
        heard = listener.heard(out) if decoding.temperature > 0 else [[] for _ in prompts]
        yield from zip(prompts, out[:, longest:].tolist(), heard, strict=True)


class _Listener(LogitsProcessor):
    """Leaves transformers' logits as they are and remembers, a step later, how likely the token was that came of them."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.before: Tensor | None = None
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._hear(input_ids[:, -1:])
        self.before = (scores.float() / self.temperature).log_softmax(-1)
        return scores

    def _hear(self, tokens: Tensor) -> None:
        if self.before is not None:
            self.steps.append(self.before.gather(1, tokens).squeeze(1))

    def heard(self, out: Tensor) -> list[list[float]]:
        """Log-probabilities of all tokens, row by row, once generation is over."""
        self._hear(out[:, -1:])
        rows: list[list[float]] = torch.stack(self.steps, 1).tolist()
        return rows


def _completion(tokens: list[int], log_probs: list[float], stop_ids: frozenset[int]) -> Completion:
    """Up to and with the first stop token; what follows is padding."""
    end = next((place for place, token in enumerate(tokens, 1) if token in stop_ids), None)
    return Completion(tokens=tuple(tokens[:end]), stop="length" if end is None else "end", log_probs=tuple(log_probs[:end]))
