"""The command line of `truing eval`: which words name models, which are settings, and of which of its two halves."""

from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches

from truing.settings_text import ConfigError


def arguments_as_settings(arguments: Sequence[str], *, benchmarks: bool) -> list[str]:
    """`base=MODEL` as `models.base=MODEL` (`MODEL` alone too, of benchmarks), settings as they are; what is neither is refused."""
    from truing.recipes import compare, tasks  # Each of the two imports this module.

    of_comparison, of_benchmarks = ({field.name for field in fields(half)} - {"models"} for half in (compare.Config, tasks.Config))
    own = of_benchmarks if benchmarks else of_comparison
    found: list[str] = []
    models: dict[str, str] = {}
    problems: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=") if "=" in argument else ("model", "", argument)
        place, first = f"command line: {argument}", key.split(".")[0]
        name = key.removeprefix("models.")
        near = get_close_matches(first, of_comparison | of_benchmarks, 1, cutoff=0.75)
        if not equals and not benchmarks:
            problems.append(f"{place}: give the model a name, as in base={argument}, or name tasks=...")
        elif first in own:
            found.append(argument)
        elif first in of_comparison:
            problems.append(f"{place}: {first} is a setting of a comparison, which has no tasks=; leave out one of the two")
        elif first in of_benchmarks:
            problems.append(f"{place}: {first} is a setting of benchmarks and needs tasks=, such as tasks=quick")
        elif near:
            problems.append(f"{place}: there is no setting {first}; did you mean {near[0]}? A model may not be called so")
        elif name in models:
            unnamed = "" if equals else "a model without a name is called model, and "
            remedy = f"give each model a name of its own: first={models[name]} second={value}"
            problems.append(f"{place}: {unnamed}there is a model called {name} already, {models[name]}; {remedy}")
        else:
            models[name] = value
            found.append(f"models.{name}={value}")
    if benchmarks and not models and not problems:
        asked = next((argument for argument in arguments if argument.startswith("tasks=")), "tasks=quick")
        problems.append(f"command line: {asked}: of which model? truing eval NAME=MODEL {asked}")
    if problems:
        raise ConfigError(problems)
    return found
