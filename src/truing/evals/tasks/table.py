"""The tasks by name, and suites of them."""

from collections.abc import Mapping

from truing.evals.tasks.bbq import BBQ
from truing.evals.tasks.mmlu import MMLU
from truing.evals.tasks.truthfulqa import TruthfulQA

TASKS: Mapping[str, type] = {
    "truthfulqa": TruthfulQA,
    "bbq": BBQ,
    "mmlu": MMLU,
}
"""Name -> task; each is a frozen dataclass whose fields are its settings."""

SUITES: Mapping[str, Mapping[str, int | None]] = {
    "quick": {"truthfulqa": 100, "bbq": 200, "mmlu": 228},
    "full": {"truthfulqa": None, "bbq": None, "mmlu": None},
}
"""Suite -> its tasks and how many items of each, None for all. `quick` takes about five minutes for a 135M model on two cores."""
