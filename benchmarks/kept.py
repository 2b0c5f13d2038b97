"""A verifiable reward in the manner of IFEval: 1 where an answer keeps the instruction that its prompt ends with, else 0.

For `reward.NAME=python reward.NAME.file=benchmarks/kept.py`; the column `rule` of the data names the instruction.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

INSTRUCTIONS: Mapping[str, str] = {
    "no comma": "Do not use any commas in your answer.",
    "few words": "Answer in fewer than 15 words.",
    "lowercase": "Write your whole answer in lowercase letters.",
    "keyword": 'Include the word "happy" in your answer.',
}
RULES: Mapping[str, Callable[[str], bool]] = {
    "no comma": lambda text: "," not in text,
    "few words": lambda text: len(text.split()) < 15,
    "lowercase": lambda text: text == text.lower(),
    "keyword": lambda text: re.search(r"\bhappy\b", text) is not None,
}


def reward(rollout: Any) -> float:
    """An answer without text keeps nothing."""
    text = rollout.response.strip()
    return float(bool(text) and RULES[rollout.prompt.tags["rule"]](text))
