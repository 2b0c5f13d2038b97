"""Each kind of interval holds the truth in a few simulated studies; two thousand of each are `python -m benchmarks.coverage`."""

import pytest

from benchmarks.coverage import AT_LEAST, STUDIES, coverage

FEW = 120
"""Studies a kind: a true 95% lies within 4 standard errors (8 points) of it but once in 16,000."""


@pytest.mark.parametrize("name", STUDIES)
def test_the_interval_holds_the_truth(name: str) -> None:
    covered = coverage(STUDIES[name], FEW)
    assert covered >= 0.87
    assert name in AT_LEAST or covered < 1.0
