"""Sampling from a policy in this process, by transformers' own generation with a key-value cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from pydantic import Field
from transformers import GenerationConfig, GenerationMixin

from truing.models.policy import Policy
from truing.randomness import counted_seed
from truing.records import Completion


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
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """One completion a prompt, in the order of the prompts. Prompts of like length share a batch, padded on the left."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: dict[int, Completion] = {}
    with _generating(policy):
        for number, start in enumerate(range(0, len(order), batch_size)):
            rows = order[start : start + batch_size]
            drawn = _draw(policy, [prompts[i] for i in rows], decoding, stop_ids, counted_seed(seed, "sample", number))
            found |= dict(zip(rows, drawn, strict=True))
            if progress:
                progress(len(found), len(prompts))
    return [found[i] for i in range(len(prompts))]


@contextmanager
def _generating(policy: Policy) -> Iterator[None]:
    """The model with an attention that knows caches and without decoding settings of its own, and as it was again afterwards."""
    model = policy.model
    attention, settings = model.config._attn_implementation, model.generation_config
    model.generation_config = GenerationConfig()
    if policy.layout == "tree":
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.generation_config = settings
        if policy.layout == "tree":
            model.set_attn_implementation(attention)


def _draw(
    policy: Policy, prompts: Sequence[tuple[int, ...]], decoding: Decoding, stop_ids: frozenset[int], seed: int
) -> list[Completion]:
    longest = max(map(len, prompts))
    pad = min(stop_ids)
    rows = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(rows)
    for row, prompt in enumerate(prompts):
        rows[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    full_support = {"do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=decoding.max_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(stop_ids),
        use_cache=True,
        **(full_support if decoding.temperature > 0 else {"do_sample": False}),
    )
    model = cast(GenerationMixin, policy.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        out = model.generate(inputs=rows.to(policy.device), attention_mask=mask.to(policy.device), generation_config=settings)
    return [_completion(tokens, stop_ids) for tokens in cast(torch.Tensor, out)[:, longest:].tolist()]


def _completion(tokens: list[int], stop_ids: frozenset[int]) -> Completion:
    """Up to and with the first stop token; what follows is padding."""
    for place, token in enumerate(tokens):
        if token in stop_ids:
            return Completion(tokens=tuple(tokens[: place + 1]), stop="end")
    return Completion(tokens=tuple(tokens), stop="length")
