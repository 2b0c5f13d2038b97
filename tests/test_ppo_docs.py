"""The pages of policy optimisation name settings that exist, every metric that is logged, and each loss with its file."""

import re
from functools import cache
from pathlib import Path

import pytest

from rounds import Setup
from truing.config import describe
from truing.losses import POLICY_LOSSES, VALUE_LOSSES
from truing.recipes.ppo import PRESETS, Config
from truing.rewards.combine import Shape
from truing.rollouts.credit import LeaveOneOut
from truing.rollouts.on_policy import Rounds
from truing.train.replay import Replay

PAGES = Path(__file__).parents[1] / "docs" / "methods"
OF_LOSS = {"clipped_surrogate": "ppo", "clipped_value": "ppo", "reinforce": "reinforce"}


def first_column(page: str, section: str) -> list[str]:
    """Names in backticks in the first column of a section's table."""
    (body,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", (PAGES / f"{page}.md").read_text(), re.S | re.M)
    rows = [line.split("|")[1] for line in body.splitlines() if line.startswith("| ")]
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


@cache
def logged() -> frozenset[str]:
    """The metrics of rounds with everything that adds some."""
    terms = {"entropy_weight": 0.01}
    ppo = Setup(replay=Replay(kl_budget=100.0), terms=terms).run(1)[0]
    rloo = Setup(credit=LeaveOneOut(), rounds=Rounds(samples=2, kl_in="loss"), shape={"low": Shape(token_price=0.01)}).run(1)[0]
    return frozenset(ppo) | frozenset(rloo)


@pytest.mark.parametrize("loss", [*POLICY_LOSSES, *VALUE_LOSSES])
def test_every_loss_has_a_page_that_names_it_and_its_file(loss: str) -> None:
    name = {**POLICY_LOSSES, **VALUE_LOSSES}[loss].__name__
    assert f"| loss | `{name}` in `src/truing/losses/{loss}.py` |" in (PAGES / f"{OF_LOSS[loss]}.md").read_text()


@pytest.mark.parametrize("method", PRESETS)
def test_the_settings_of_a_page_exist(method: str) -> None:
    settings = {field.key for field in describe(Config)}
    named = first_column(method, "Hyperparameters")
    assert named
    assert [name for name in named if name not in settings] == []


def test_every_metric_is_explained_and_no_other() -> None:
    text = (PAGES / "ppo.md").read_text()
    assert [name for name in sorted(logged()) if f"`{name}`" not in text and not name.startswith("reward_")] == []
    named = [name for name in first_column("ppo", "Metrics") if "*" not in name]
    assert [name for name in named if name not in logged()] == []
