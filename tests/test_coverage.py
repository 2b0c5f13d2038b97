"""Each kind of interval holds the truth in a few simulated studies; two thousand of each are `python -m benchmarks.coverage`."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.coverage import SLOW, STUDIES, coverage
from truing.statistics import Estimate

FEW = 60
"""Studies a kind: a true 95% lies within 4 standard errors (11 points) of it but once in 16,000."""


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in SLOW])
def test_the_interval_holds_the_truth(name: str) -> None:
    assert coverage(STUDIES[name], FEW) >= 0.84


def test_an_interval_that_is_too_narrow_is_seen() -> None:
    def narrow(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
        found, truth = STUDIES["mean of skewed values"](generator, seed)
        return replace(found, low=(found.low + found.value) / 2, high=(found.high + found.value) / 2), truth

    assert coverage(narrow, FEW) < 0.84
