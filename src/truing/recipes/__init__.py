"""Recipes wire the parts into methods that run; this table names them. Importing it is cheap: a recipe is loaded when used."""

from importlib import import_module
from types import ModuleType

RECIPES = {
    "sft": "sft",
    "reward_model": "reward_model",
    "process_reward": "process_reward",
    "preference": "preference",
    "feedback": "feedback",
    "ppo": "ppo",
    "online": "online",
    "align": "align",
    "label": "label",
    "constitutional": "constitutional",
}
"""Recipe -> module of this folder, each with a `Config` dataclass and a `run(config, resolved, sinks)`."""


def module_of(recipe: str) -> ModuleType:
    """The module of a recipe, imported now."""
    return import_module(f"truing.recipes.{RECIPES[recipe]}")
