"""What another program says that it drew, as a completion: checked, since a wrong one would be trained on."""

import math
from collections.abc import Sequence

from truing.records import Completion


def completion_of(
    tokens: Sequence[int], log_probs: Sequence[float], ending: str, *, max_tokens: int, stop_ids: frozenset[int]
) -> Completion:
    """Its tokens, with the end token where it was reached, and how it ended. Raises ValueError where that does not fit together."""
    if not tokens or len(tokens) != len(log_probs):
        raise ValueError(f"the sampler said {len(tokens)} tokens and {len(log_probs)} log-probabilities; each token has one")
    if not all(math.isfinite(value) and value < 1e-3 for value in log_probs):
        raise ValueError("the sampler said a log-probability that is none: its weights or its arithmetic are broken")
    end = next((place for place, token in enumerate(tokens, 1) if token in stop_ids), None)
    if end is not None and end < len(tokens):
        raise ValueError("the sampler went on behind an end token: it does not heed stop_token_ids")
    if end is None and ending != "length":
        raise ValueError(
            f"the sampler ended an answer ({ending}) that has no end token: it leaves that out, or stops at another; "
            f"end tokens are {', '.join(map(str, sorted(stop_ids)))}"
        )
    if end is None and len(tokens) != max_tokens:
        raise ValueError(
            f"the sampler cut an answer at {len(tokens)} tokens, and answers.max_tokens={max_tokens} were asked for: "
            "raise its context (--max-model-len), or lower answers.max_tokens"
        )
    return Completion(tokens=tuple(tokens), stop="length" if end is None else "end", log_probs=tuple(log_probs))
