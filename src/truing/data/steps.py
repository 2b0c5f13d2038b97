"""Where the steps of a response end among its tokens: one function for training and for scoring, so that both read the same."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


def step_ends(tokens: Sequence[int], decode: Decode, separator: str) -> tuple[int, ...]:
    """The place of each step's last token: the one that completes a separator, and the response's last one.

    A token that completes several separators ends one step. What follows the last separator is a step too, if it is only the end
    of the turn; text that is nothing but separators has one step for each token that completes one. Never empty for a response.
    """
    ends: list[int] = []
    for number in range(1, decode(tokens).count(separator) + 1):
        low, high = (ends[-1] if ends else 0), len(tokens) - 1
        while low < high:  # a longer beginning never holds fewer separators
            middle = (low + high) // 2
            low, high = (low, middle) if decode(tokens[: middle + 1]).count(separator) >= number else (middle + 1, high)
        if not ends or low > ends[-1]:
            ends.append(low)
    if tokens and (not ends or ends[-1] < len(tokens) - 1):
        ends.append(len(tokens) - 1)
    return tuple(ends)
