"""Judges: which of two answers is better, asked in both orders of a model here, of a server, or of a reward."""

from truing.judges.judgement import Comparison, Judge, Judgement, Opinion, both_orders
from truing.judges.local import LocalJudge
from truing.judges.prompt import JudgePrompt
from truing.judges.remote import RemoteJudge
from truing.judges.reward import RewardJudge

__all__ = ["Comparison", "Judge", "JudgePrompt", "Judgement", "LocalJudge", "Opinion", "RemoteJudge", "RewardJudge", "both_orders"]
