"""What an answer is worth: rules, functions of the user's own, learned models, and their weighted sum."""

from truing.rewards.base import LearnedReward, ProcessReward
from truing.rewards.rules import RULES

__all__ = ["REWARDS"]

REWARDS: dict[str, type] = {**RULES, "learned": LearnedReward, "process": ProcessReward}
"""Name in a config -> settings of one part of the reward. A new rule is one class and one line in `truing.rewards.rules`."""
