"""From YAML and `key=value` to a typed, frozen config; a mistake is named with its file, its line and the nearest right word.

A config class is a plain frozen dataclass with a sentence under each field. Settings are laid over each other, later ones winning:
the class's defaults, `base`, the file, the overrides. Relative paths stay relative to the working directory, not to the file.
Left out: how text becomes values (`truing.settings_text`), what the settings mean (`truing.recipes`), how a run remembers them
(`truing.runs`).
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import textwrap
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from truing.settings_text import ConfigError, Where, read_file, read_override, split, sweep, to_yaml

__all__ = ["ConfigError", "FieldDoc", "Loaded", "OneOf", "describe", "dotted", "load", "resolved_of", "sweep", "to_yaml"]

T = TypeVar("T")

_TABLE = "a table of `key: value`"
_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": _TABLE,
    "mapping_type": _TABLE,
    "dataclass_type": _TABLE,
}
_TYPE_WORDS: dict[object, str] = {float: "number", int: "whole number", bool: "true | false", str: "text", Path: "path"}
_TYPE_WORDS[types.NoneType] = "null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[T]):
    """A config and its record. Example: `load(Recipe, overrides=["loss=ipo"]).resolved["loss"] == {"name": "ipo", "beta": 0.1}`."""

    value: T
    """The instance, frozen and validated."""
    resolved: dict[str, object]
    """Every field with its default, in plain JSON types; a choice is written as its name and its fields."""


@dataclass(frozen=True, slots=True, eq=False)
class OneOf:
    """Marks a field that holds one of a table of dataclasses, chosen by name and each with its own defaults.

    Example: `loss: Annotated[PairLoss, OneOf(lambda: PAIR_LOSSES)] = DPO()`, written `loss: ipo` or `loss: {name: ipo, beta: 0.2}`.
    For a field that may be null: `Annotated[PairLoss, OneOf(table)] | None`.
    """

    table: Mapping[str, type] | Callable[[], Mapping[str, type]]
    """The alternatives by name; a function when importing them is dear."""

    def types(self) -> Mapping[str, type]:
        """The table itself."""
        return self.table() if callable(self.table) else self.table

    def named(self, name: object) -> type | None:
        """The alternative of that name."""
        cls = self.types().get(name) if isinstance(name, str) else None
        assert cls is None or "name" not in _hints(cls), f"{cls} is chosen by name, so no field of it can be called name"
        return cls

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        """For pydantic: values are read by this table."""
        return core_schema.no_info_plain_validator_function(self._read)

    def _read(self, value: object) -> object:
        fields = dict(value) if isinstance(value, Mapping) else {"name": value}
        name = fields.pop("name", None)
        cls = self.named(name)
        if cls is not None:
            return _validate(cls, fields)
        names = ", ".join(self.types())
        text = f"must be one of {names}, not {_shown(name)}{_did_you_mean(str(name), self.types())}"
        raise PydanticCustomError("choice", "{text}", {"text": text if name or value is None else f"needs a name, one of {names}"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDoc:
    """One setting, for help and docs. Example: key `loss.beta`, type `number > 0`, default 0.1, when `loss=ipo`."""

    key: str
    type: str
    """In words: `number > 0`, `path | null`, `list of text`, `dpo | ipo`; `settings` for a group, whose fields follow it."""
    default: object
    """In plain JSON types; None when required."""
    required: bool
    doc: str
    """The text under the field."""
    when: str = ""
    """The choice under which the setting exists, as an override; empty when it always does."""


def load(
    cls: type[T], *, file: Path | None = None, overrides: Sequence[str] = (), base: Mapping[str, object] | None = None
) -> Loaded[T]:
    """The config of class `cls` made of its defaults, then `base`, then `file`, then `overrides` such as `loss.beta=0.2`.

    Shorter keys are applied first, so `loss.beta=0.2 loss=ipo` means `loss=ipo loss.beta=0.2`; of equal keys the last wins.
    Naming another alternative starts from that one's own defaults; naming the one already chosen keeps what was set.
    """
    problems: list[str] = []
    origins: dict[Where, str] = {}
    data: object = _defaults(cls)
    if base is not None:
        origins.update({(key,): "base settings" for key in base})
        data = _merge(cls, data, _plain(object, base))
    if file is not None:
        data = _merge(cls, data, read_file(file, origins, problems))
    for path, text, source in sorted(split(overrides, problems), key=lambda override: len(override[0])):
        for stale in [p for p in origins if p[: len(path)] == path]:
            del origins[stale]
        origins.update({path[:i]: source for i in range(1, len(path) + 1)})
        try:
            value = read_override(text, path, source, origins)
        except ConfigError as error:
            problems += error.problems
            continue
        for key in reversed(path):
            value = {key: value}
        data = _merge(cls, data, value, along=len(path))
    fallback = str(file) if file is not None else "command line" if overrides else "settings"
    try:
        loaded = _validate(cls, data)
    except ValidationError as error:
        problems += _explain(error.errors(include_url=False), cls, data, {(): fallback} | origins)
    if problems:
        raise ConfigError(problems)
    resolved = _plain(cls, loaded)
    assert isinstance(loaded, cls)
    assert isinstance(resolved, dict)
    return Loaded(value=loaded, resolved=resolved)


@functools.cache
def _hints(cls: type) -> dict[str, object]:
    """The declared types of the settings of a class, in order."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


@functools.cache
def _around(cls: type) -> type[BaseModel]:
    """A model that holds one `cls`, because a plain dataclass takes its pydantic settings from the model around it."""
    return create_model("Around", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), HELD=(cls, ...))


def _validate(cls: type, data: object) -> object:
    # As JSON, because strict JSON takes lists for tuples and text for paths, but never "1" for true.
    return dict(_around(cls).model_validate_json(json.dumps({"HELD": data}), strict=True))["HELD"]


def _members(declared: object) -> Iterator[object]:
    """A declared type with its annotations and unions opened."""
    if get_origin(declared) is Annotated:
        inner, *marks = get_args(declared)
        chosen = [mark for mark in marks if isinstance(mark, OneOf)]
        yield from chosen or _members(inner)
    elif get_origin(declared) in (Union, types.UnionType):
        for arg in get_args(declared):
            yield from _members(arg)
    else:
        yield declared


def _reading(declared: object, value: object) -> object:
    """The member of a declared type that speaks for `value`: a OneOf, a settings class or a container; else None."""
    for member in _members(declared):
        container = get_origin(member)
        if isinstance(member, OneOf) or (isinstance(value, dict) and dataclasses.is_dataclass(member)):
            return member
        if isinstance(container, type) and issubclass(container, Mapping if isinstance(value, dict) else Collection):
            return member
    return None


def _settings(declared: object, value: object) -> type | None:
    """The settings class that `value` fills in."""
    reading = _reading(declared, value)
    if isinstance(reading, OneOf):
        return reading.named(value.get("name")) if isinstance(value, dict) else None
    return reading if isinstance(reading, type) and dataclasses.is_dataclass(reading) else None


def _inner(declared: object, value: object, key: object) -> object:
    """The declared type of what lies under `key` in `value`."""
    cls = _settings(declared, value)
    if cls is not None:
        return _hints(cls).get(str(key), object)
    args = [arg for arg in get_args(_reading(declared, value)) if arg is not Ellipsis]
    return args[-1] if args else object


def _defaults(cls: type) -> dict[str, object]:
    """What a settings class says by itself; required fields are absent."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(cls):
        if field.init and field.default is not dataclasses.MISSING:
            found[field.name] = _plain(_hints(cls)[field.name], field.default)
        elif field.init and field.default_factory is not dataclasses.MISSING:
            found[field.name] = _plain(_hints(cls)[field.name], field.default_factory())
    return found


def _plain(declared: object, value: object) -> object:
    """A value in plain JSON types; what a OneOf chose carries its name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: _plain(hint, getattr(value, name)) for name, hint in _hints(type(value)).items()}
        for choice in (m for m in _members(declared) if isinstance(m, OneOf)):
            names = [name for name, cls in choice.types().items() if cls is type(value)]
            assert names, f"{type(value).__name__} is not in the table it is chosen from"
            return {"name": names[0], **fields}
        return fields
    if isinstance(value, Mapping):
        return {str(k): _plain(_inner(declared, {}, k), v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(_inner(declared, [], 0), item) for item in value]
    assert value is None or isinstance(value, bool | int | float | str | PurePath), f"{value!r} cannot be written as a setting"
    return str(value) if isinstance(value, PurePath) else value


def _merge(declared: object, old: object, new: object, along: int = 0) -> object:
    """`new` laid over `old`: settings classes field by field, anything else whole; `along` counts dotted keys left to follow."""
    reading = _reading(declared, new)
    if isinstance(reading, OneOf) and isinstance(new, str):
        new = {"name": new}
    if isinstance(new, list):
        return [_merge(_inner(declared, new, i), None, item) for i, item in enumerate(new)]
    if not isinstance(new, dict) or reading is None:
        return new
    before = old if isinstance(old, dict) else {}
    if isinstance(reading, OneOf):
        new = {"name": before["name"], **new} if "name" in before else new
        cls = reading.named(new.get("name"))
        if cls is None:
            return new
        before = before if before.get("name") == new["name"] else {"name": new["name"], **_defaults(cls)}
    elif isinstance(reading, type):
        before = before or _defaults(reading)
    elif not along:
        before = {}
    return before | {
        key: _merge(_inner(declared, new, key), before.get(key), value, max(along - 1, 0)) for key, value in new.items()
    }


def _explain(errors: Iterable[ErrorDetails], cls: type, data: object, origins: Mapping[Where, str]) -> list[str]:
    """One line a problem, in the order of the fields; the members of a union that all refuse a value share a line."""
    lines: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        kind, text = error["type"], error["msg"]
        path = _path(error["loc"][1:], data, kind == "missing")
        at = (*path, "name") if kind == "choice" else path
        place = next(origins[at[:i]] for i in range(len(at), -1, -1) if at[:i] in origins)
        key = ".".join(map(str, path))
        if kind == "missing":
            inside = [field.key for field in describe(cls) if field.required and field.key.startswith(key + ".")]
            lines[f"{place}: {' and '.join(inside) or key} needs a value", ""] = []
        elif kind == "unexpected_keyword_argument":
            lines[f"{place}: unknown key {str(path[-1])!r}{_nearest(path, cls, data)}", ""] = []
        elif kind == "choice":
            lines[f"{place}: {key} {text}", ""] = []
        elif kind in _EXPECTED or text.startswith("Input should be "):
            expected = _EXPECTED.get(kind, text.removeprefix("Input should be "))
            expected += " in quotes" if kind == "string_type" and isinstance(error["input"], bool | int | float) else ""
            lines.setdefault((f"{place}: {key} must be ", f", not {_shown(error['input'])}"), []).append(expected)
        else:
            text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
            lines[f"{place}: {key + ': ' if key else ''}{text}", ""] = []
    return [start + " or ".join(dict.fromkeys(expected)) + end for (start, end), expected in lines.items()]


def _path(steps: Sequence[str | int], data: object, missing: bool) -> Where:
    """Where in the data an error is: pydantic's steps without its names for the members of a union and for the models around."""
    path: list[str | int] = []
    for i, step in enumerate(steps):
        if (isinstance(data, dict) and step in data) or (isinstance(data, list) and isinstance(step, int) and step < len(data)):
            data = data[step]  # type: ignore[index]
        elif not missing or i < len(steps) - 1:
            continue
        path.append(step)
    return tuple(path)


def _nearest(path: Where, cls: type, data: object) -> str:
    """Which key was meant: one of the same name elsewhere, else one beside it, else all there are."""
    declared: object = cls
    for step in path[:-1]:
        declared, data = _inner(declared, data, step), data[step]  # type: ignore[index]
    settings = _settings(declared, data)
    assert settings is not None, "only settings classes refuse keys"
    key, names = str(path[-1]), list(_hints(settings))
    if "." in key:
        first, _, rest = key.partition(".")
        return f" (nest it: `{first}: {{{rest}: ...}}`)"
    elsewhere = [name for name in dotted(_defaults(cls)) if name.endswith("." + key)]
    return _did_you_mean(key, elsewhere, 0.0) or _did_you_mean(key, names) or f" (there are: {', '.join(names)})"


def _did_you_mean(word: str, words: Iterable[str], likeness: float = 0.6) -> str:
    close = difflib.get_close_matches(word, list(words), 1, likeness)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def resolved_of(config: object) -> dict[str, object]:
    """Every field of a config made in code, in plain JSON types: what `load` gives as `resolved`."""
    resolved = _plain(type(config), config)
    assert isinstance(resolved, dict)
    return resolved


def dotted(resolved: Mapping[str, object]) -> dict[str, object]:
    """Nested tables as one, for comparing configs: `{"loss": {"beta": 0.1}}` is `{"loss.beta": 0.1}`; lists stay whole."""
    flat: dict[str, object] = {}
    for key, value in resolved.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{under}": leaf for under, leaf in dotted(value).items()})
        else:
            flat[key] = value
    return flat


def describe(cls: type) -> list[FieldDoc]:
    """Every setting of a config class, groups before their fields; the fields of each alternative carry the choice in `when`."""
    return list(_describe(cls, _defaults(cls), "", ""))


def _describe(cls: type, defaults: Mapping[str, object], prefix: str, when: str) -> Iterator[FieldDoc]:
    docs = _sentences(cls)
    for name, declared in _hints(cls).items():
        key, default = prefix + name, defaults.get(name)
        below = default if isinstance(default, dict) else {}
        reading = _reading(declared, {})
        chosen = isinstance(reading, OneOf) and bool(below)
        yield FieldDoc(
            key=key,
            type=_type_words(declared),
            default=below["name"] if chosen else default,
            required=name not in defaults,
            doc=docs.get(name, ""),
            when=when,
        )
        if isinstance(reading, OneOf):
            for choice, alternative in reading.types().items():
                own = below if below.get("name") == choice else _defaults(alternative)
                yield from _describe(alternative, own, key + ".", f"{when} {key}={choice}".strip())
        elif isinstance(reading, type):
            yield from _describe(reading, below or _defaults(reading), key + ".", when)


def _type_words(declared: object) -> str:
    if isinstance(declared, OneOf):
        return " | ".join(declared.types())
    origin, args = get_origin(declared), get_args(declared)
    if origin is Annotated:
        choices = [mark for mark in args[1:] if isinstance(mark, OneOf)]
        limits = [limit for mark in args[1:] for limit in getattr(mark, "metadata", [mark])]
        signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
        bounds = [f"{sign} {getattr(limit, name)}" for limit in limits for name, sign in signs.items() if hasattr(limit, name)]
        return _type_words(choices[0]) if choices else " ".join([_type_words(args[0]), " and ".join(bounds)]).strip()
    if origin in (Union, types.UnionType):
        return " | ".join(_type_words(arg) for arg in args)
    if origin is Literal:
        return " | ".join(map(str, args))
    if isinstance(origin, type):
        parts = dict.fromkeys(_type_words(arg) for arg in args if arg is not Ellipsis)
        return ("table of " if issubclass(origin, Mapping) else "list of ") + " to ".join(parts)
    if dataclasses.is_dataclass(declared):
        return "settings"
    return _TYPE_WORDS.get(declared) or str(getattr(declared, "__name__", declared))


def _sentences(cls: type) -> dict[str, str]:
    """The text under each field, read from the source; empty where there is no source, as at a prompt."""
    found: dict[str, str] = {}
    for parent in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        except (OSError, TypeError):
            continue
        assert isinstance(body, ast.ClassDef)
        for statement, below in itertools.pairwise(body.body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found
