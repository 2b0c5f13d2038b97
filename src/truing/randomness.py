"""Randomness that is counted, not consumed: a seed for each purpose and place, so that nothing depends on what was drawn before."""

import hashlib


def counted_seed(run_seed: int, purpose: str, *counts: int) -> int:
    """A 63-bit seed from the run's seed, its purpose and a place: `counted_seed(7, "shuffle", epoch)` is the same everywhere."""
    text = "/".join([str(run_seed), purpose, *map(str, counts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1
