"""One method a file, and the tables that name them. A new loss is one new file here and one line below."""

from importlib import import_module

from truing.losses.logps import FeedbackLogps, FeedbackLoss, Pair, PairLogps, PairLoss
from truing.losses.policy_loss import PolicyLoss

__all__ = [
    "FEEDBACK_LOSSES",
    "PAIR_LOSSES",
    "POLICY_LOSSES",
    "SCORE_LOSSES",
    "TOKEN_LOSSES",
    "VALUE_LOSSES",
    "FeedbackLogps",
    "FeedbackLoss",
    "Pair",
    "PairLogps",
    "PairLoss",
    "PolicyLoss",
]


def _table(**places: str) -> dict[str, type]:
    return {
        name: getattr(import_module(f"truing.losses.{place.split('.')[0]}"), place.split(".")[1]) for name, place in places.items()
    }


PAIR_LOSSES = _table(
    dpo="dpo.DPO",
    cdpo="cdpo.ConservativeDPO",
    robust_dpo="robust_dpo.RobustDPO",
    ipo="ipo.IPO",
    aot="aot.AOT",
    hinge="hinge.Hinge",
    slic="slic.SLiC",
    simpo="simpo.SimPO",
    alphapo="alphapo.AlphaPO",
    orpo="orpo.ORPO",
    cpo="cpo.CPO",
    nca="nca.NCA",
    exo="exo.EXO",
    sppo="sppo.SPPO",
    apo_zero="apo_zero.APOZero",
    apo_down="apo_down.APODown",
    discopop="discopop.DiscoPOP",
    ld_dpo="ld_dpo.LengthDesensitisedDPO",
    ln_dpo="ln_dpo.LengthNormalisedDPO",
    r_dpo="r_dpo.RegularisedDPO",
    f_dpo="f_dpo.FDPO",
    wpo="wpo.WPO",
    dpop="dpop.DPOPositive",
    chosen_nll="chosen_nll.ChosenNLL",
    mixture="mixture.Mixture",
)
"""Losses of a pair of responses: PairLogps -> one number a pair."""

FEEDBACK_LOSSES = _table(
    kto="kto.KTO",
    bco="bco.BCO",
    aot_unpaired="aot_unpaired.UnpairedAOT",
)
"""Losses of single responses that were approved of or not: FeedbackLogps -> one number a response."""

SCORE_LOSSES = _table(bradley_terry="bradley_terry.BradleyTerry")
"""Losses of a reward model: scores of a pair -> one number a pair."""

STEP_LOSSES = _table(step_likelihood="step_likelihood.StepLikelihood")
"""Losses of a process reward model: scores and labels of steps -> one number a step."""

TOKEN_LOSSES = _table(nll="nll.NLL")
"""Losses of single tokens: log-probabilities -> one number a token."""

POLICY_LOSSES = _table(clipped_surrogate="clipped_surrogate.ClippedSurrogate", reinforce="reinforce.Reinforce")
"""Losses of sampled actions: log-ratios and advantages -> one number an action."""

VALUE_LOSSES = _table(clipped_value="clipped_value.ClippedValue")
"""Losses of a value function: values, old values, returns -> one number a token."""


def __getattr__(name: str) -> type:
    for table in (PAIR_LOSSES, FEEDBACK_LOSSES, SCORE_LOSSES, STEP_LOSSES, TOKEN_LOSSES, POLICY_LOSSES, VALUE_LOSSES):
        for loss in table.values():
            if loss.__name__ == name:
                return loss
    raise AttributeError(f"truing.losses has no {name}")
