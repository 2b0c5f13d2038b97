"""Settings as text: YAML and `key=value` to plain values, each with the place it was written; and back to YAML.

A small, safe part of YAML: tables, lists, text, numbers, true, false, null. Numbers read as people write them (`1e-5`, `10_000`);
`yes`, `on` and `12:30` are text. Anchors, aliases, tags, repeated keys and deep nesting are refused. Left out: what a key means
(`truing.config`).
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import yaml

Where = tuple[str | int, ...]
"""The keys and positions that lead to a value."""

LARGEST_FILE = 2**20
DEEPEST = 32
_LISTED = 20

_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")
_WORDS: dict[str, object] = {"": None, "~": None, "null": None, "true": True, "false": False}
_WHOLE = re.compile(r"[-+]?(?=.{1,32}$)(0|[1-9][0-9]*(?:_[0-9]+)*)(?:[eE]\+?([0-9]|1[0-8]))?")
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*(?:_[0-9]+)*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)


class ConfigError(ValueError):
    """What is wrong with the settings, one line a problem, all of them at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        more = len(problems) - _LISTED
        super().__init__("\n".join([*self.problems[:_LISTED], *([f"and {more} more"] if more > 0 else [])]))


def scalar(text: str) -> object:
    """What unquoted text means: null, true, false, a number, else text. Example: `1e-5` is a number, `yes` is text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if whole := _WHOLE.fullmatch(text):
        return int(text[: whole.end(1)]) * 10 ** int(whole[2] or 0)
    if special := _NOT_FINITE.fullmatch(text):
        return float(special[1] + special[2])
    return float(text) if _NUMBER.fullmatch(text) else text


def read_file(file: Path, origins: dict[Where, str], problems: list[str]) -> dict[str, object]:
    """The table in a file; `origins` takes `file:line` of each value, `problems` the repeated keys. What is not YAML raises."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from error
    if len(raw) > LARGEST_FILE:
        raise ConfigError([f"{file}: larger than {LARGEST_FILE} bytes; a config holds settings, not data"])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{file}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"]) from error
    reader = _Reader(place=lambda line: f"{file}:{line}", origins=origins, problems=problems)
    try:
        node = reader.compose(text)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    if isinstance(node, yaml.MappingNode):
        return reader.mapping(node, ())
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.style and scalar(node.value) is None):
        return {}
    raise ConfigError([f"{reader.at(node)}: the file must be a table of `key: value` lines"])


def read_override(text: str, path: Where, source: str, origins: dict[Where, str]) -> object:
    """The value of one override. Only brackets and quotes begin YAML: `*.jsonl` and `Say: hi #1` are text."""
    if not text.startswith(("[", "{", '"', "'")):
        return scalar(text)
    reader = _Reader(place=lambda line: source, origins=origins, problems=[])
    node = reader.compose(text)
    assert node is not None, "brackets and quotes begin a value"
    value = reader.value(node, path)
    if reader.problems:
        raise ConfigError(reader.problems)
    return value


def split(overrides: Sequence[str], problems: list[str]) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Path, value as text, and source of each override."""
    for override in overrides:
        key, equals, text = override.partition("=")
        source = "command line: " + _printable(override)
        if not equals:
            problems.append(f"{source}: expected key=value, such as loss.beta=0.1")
        elif not _KEY.fullmatch(key) or key.count(".") >= DEEPEST:
            problems.append(f"{source}: {key!r} is not a key; write names joined by dots, such as loss.beta=0.1")
        elif any("\ud800" <= c <= "\udfff" for c in override):
            problems.append(f"{source}: not UTF-8")
        else:
            yield tuple(key.split(".")), text.strip(), source


def _printable(override: str) -> str:
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in override)
    return text if len(text) <= 200 else text[:197] + "..."


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of comma-separated choices: `["a=1,2", "b=x"]` is `[["a=1", "b=x"], ["a=2", "b=x"]]`.

    Commas inside brackets or quotes do not split.
    """
    spread: list[list[str]] = []
    problems: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        choices = _choices(text)
        if len(choices) > 1 and not all(choices):
            problems.append(f"command line: {_printable(override)}: an empty choice between commas; write null for none")
        if len(choices) > 1 and sum(o.partition("=")[0] == key for o in overrides) > 1:
            problems.append(f"command line: {_printable(override)}: {key} is given again beside a list of choices")
        spread.append([key + equals + choice for choice in choices])
    if problems:
        raise ConfigError(problems)
    return [list(combination) for combination in itertools.product(*spread)]


def _choices(text: str) -> list[str]:
    found, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'" and (depth > 0 or not found[-1].strip()):
            quote = c
        else:
            depth += (c in "[{") - (c in "]}")
        if c == "," and not quote and depth <= 0:
            found.append("")
        else:
            found[-1] += c
    return [choice.strip() for choice in found]


class _Loader(yaml.SafeLoader):
    """Composes nodes without anchors, tags or deep nesting; what a plain scalar means is `scalar`'s to say."""

    yaml_implicit_resolvers: ClassVar[dict[str, object]] = {}  # type: ignore[misc]
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event = self.peek_event()
        problem = None
        if getattr(event, "anchor", None) is not None:
            problem = "anchors and aliases (& and *) are not allowed; write the value out, or put text in quotes"
        elif getattr(event, "tag", None) is not None:
            problem = "tags (!) are not allowed; put text in quotes"
        elif self.depth >= DEEPEST:
            problem = f"nested more than {DEEPEST} deep"
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self.depth -= 1
        return node


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Turns nodes into plain values, noting for each path where it was written."""

    place: Callable[[int], str]
    """The name of a 1-based line."""
    origins: dict[Where, str]
    problems: list[str]

    def compose(self, text: str) -> yaml.Node | None:
        try:
            return _Loader(text).get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            said = error.problem or "not YAML"
            if "'\\t'" in said:
                said = "a tab; indent with spaces"
            elif error.context == "expected a single document in the stream":
                said = "a second document begins here; keep one to a file"
            raise ConfigError([f"{self.place(mark.line + 1 if mark else 1)}: {said}"]) from error
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(
                [f"{self.place(line)}: unprintable character U+{ord(text[error.position]):04X}; remove it"]
            ) from error
        except (ValueError, OverflowError) as error:
            # PyYAML lets its own int() and chr() fail on odd directives and escapes, without a mark.
            raise ConfigError([f"{self.place(1)}: not YAML: {error}"]) from error

    def value(self, node: yaml.Node, path: Where) -> object:
        self.origins.setdefault(path, self.at(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self.text(node) if node.style else scalar(self.text(node))

    def mapping(self, node: yaml.MappingNode, path: Where) -> dict[str, object]:
        found: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(f"{self.at(key_node)}: a key must be text, not a list or a table")
                continue
            key = self.text(key_node)
            if key in found:
                self.problems.append(f"{self.at(key_node)}: key {key!r} is given twice (first on line {lines[key]})")
                continue
            self.origins[(*path, key)] = self.at(key_node)
            lines[key], found[key] = key_node.start_mark.line + 1, self.value(value_node, (*path, key))
        return found

    def text(self, node: yaml.Node) -> str:
        if any("\ud800" <= c <= "\udfff" for c in node.value):
            self.problems.append(f"{self.at(node)}: half a surrogate pair is no character")
            return ""
        return str(node.value)

    def at(self, node: yaml.Node) -> str:
        return self.place(node.start_mark.line + 1)


class _Dumper(yaml.SafeDumper):
    """Writes as people do; text that `scalar` or YAML 1.1 would take for something else is quoted."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _write_float(dumper: _Dumper, value: float) -> yaml.Node:
    if not math.isfinite(value):
        return dumper.represent_float(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float", re.sub(r"e([-+]?)0*", r"e\1", repr(value)).replace("e+", "e"))


def _write_text(dumper: _Dumper, value: str) -> yaml.Node:
    # PyYAML folds the rarer line breaks of unquoted text into spaces.
    rare = any(c in value for c in "\r\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if rare else "|" if "\n" in value else None)


def _write_table(dumper: _Dumper, value: Mapping[str, object]) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=False if value else None)


def _write_list(dumper: _Dumper, value: Sequence[object]) -> yaml.Node:
    short = not any(isinstance(v, Mapping | list) or (isinstance(v, str) and "\n" in v) for v in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


_Dumper.add_representer(float, _write_float)
_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(dict, _write_table)
_Dumper.add_representer(list, _write_list)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def to_yaml(resolved: Mapping[str, object]) -> str:
    """Plain values as YAML in the style of a hand-written file: keys in their order, `1e-5`, short lists on one line."""
    return yaml.dump(dict(resolved), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
