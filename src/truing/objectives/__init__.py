"""What is asked of a model and a batch: an objective runs the model, hands tensors to a loss, and returns sums.

Objectives never divide by a count that depends on the batch: the learner does, once, by the number of units over all micro-batches
and ranks. So how a batch was split or packed cannot change a number.
"""

from truing.objectives.base import (
    AnyObjective,
    LossOutput,
    Mean,
    Objective,
    PartedObjective,
    Prepared,
    RememberingObjective,
    WholeBatchObjective,
    averaged,
    parts_of,
    prepared,
)
from truing.objectives.imitation import Imitation
from truing.objectives.paired_preference import PairedPreference, SortedPreference
from truing.objectives.policy_gradient import PolicyGradient
from truing.objectives.reward_ranking import RewardRanking
from truing.objectives.step_judging import StepJudging
from truing.objectives.unpaired_feedback import UnpairedFeedback

__all__ = [
    "AnyObjective",
    "Imitation",
    "LossOutput",
    "Mean",
    "Objective",
    "PairedPreference",
    "PartedObjective",
    "PolicyGradient",
    "Prepared",
    "RememberingObjective",
    "RewardRanking",
    "SortedPreference",
    "StepJudging",
    "UnpairedFeedback",
    "WholeBatchObjective",
    "averaged",
    "parts_of",
    "prepared",
]
