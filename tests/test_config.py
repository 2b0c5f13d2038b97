"""The config: what is read, what is refused, and the words of each refusal."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from truing.config import ConfigError, OneOf, describe, dotted, load, sweep, to_yaml
from truing.settings_text import read_file


@dataclass(frozen=True)
class DPO:
    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference."""


@dataclass(frozen=True)
class IPO:
    needs_reference: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.5
    """Half the inverse of the target margin."""


@dataclass(frozen=True)
class Margin:
    gamma: float
    """No default: it must be said."""

    def __post_init__(self) -> None:
        if self.gamma == 7.0:
            raise ValueError("gamma 7 is unlucky; take another")


LOSSES: dict[str, type] = {"dpo": DPO, "ipo": IPO, "margin": Margin}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """The optimizer."""

    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Stage:
    steps: int
    optimizer: AdamW = AdamW(lr=0.25)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    loss: Annotated[DPO | IPO | Margin, OneOf(lambda: LOSSES)] = DPO(beta=0.05)
    """The loss
    of the pairs."""
    judge: Annotated[object, OneOf(LOSSES)] | None = None
    optimizer: AdamW = AdamW(lr=5e-7)
    stages: tuple[Stage, ...] = ()
    data: Path | None = None
    name: str = "run"
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 100
    packed: bool = True
    precision: Literal["bf16", "fp32"] = "bf16"
    weights: Mapping[str, float] = field(default_factory=lambda: {"helpful": 1.0, "harmless": 2.0})
    limit: int | str = 3
    ceiling: Annotated[float, Field(allow_inf_nan=True)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Child(AdamW):
    model: Path
    """Where the weights are."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """A share."""


def read(tmp_path: Path, text: str | bytes, *overrides: str, cls: type = Recipe):
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(cls, file=file, overrides=overrides)


def complaint(tmp_path: Path, text: str | bytes, *overrides: str, cls: type = Recipe) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, *overrides, cls=cls)
    return str(caught.value).replace(f"{tmp_path}/", "")


def wrong(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Recipe, overrides=overrides)
    return str(caught.value)


def test_defaults_alone_and_an_empty_file_say_the_same(tmp_path):
    assert load(Recipe).value == Recipe()
    for text in ("", "\n\n", "# only a comment\n", "---\n", "null\n", "{}\n"):
        assert read(tmp_path, text).value == Recipe()


def test_resolved_is_plain_json_with_every_field():
    resolved = load(Recipe, overrides=["data=a/b.jsonl"]).resolved
    assert resolved == {
        "loss": {"name": "dpo", "beta": 0.05},
        "judge": None,
        "optimizer": {"lr": 5e-7, "betas": [0.9, 0.95]},
        "stages": [],
        "data": "a/b.jsonl",
        "name": "run",
        "steps": 100,
        "packed": True,
        "precision": "bf16",
        "weights": {"helpful": 1.0, "harmless": 2.0},
        "limit": 3,
        "ceiling": 1.0,
    }
    assert json.loads(json.dumps(resolved)) == resolved
    assert load(Recipe, base=resolved).resolved == resolved


def test_a_file_is_read_into_the_types_of_the_fields(tmp_path):
    text = """
loss: {name: ipo, beta: 0.2}
judge: margin
optimizer:
  lr: 1e-5
data: pairs/train.jsonl
steps: 1e3
packed: false
stages:
  - steps: 2_000
  - {steps: 1, optimizer: {betas: [0.5, 1]}}
weights: {helpful: 3}
limit: ten
""".replace("judge: margin", "judge: {name: margin, gamma: 1}")
    got = read(tmp_path, text).value
    assert got == Recipe(
        loss=IPO(beta=0.2),
        judge=Margin(gamma=1.0),
        optimizer=AdamW(lr=1e-5),
        data=Path("pairs/train.jsonl"),
        steps=1000,
        packed=False,
        stages=(Stage(steps=2000), Stage(steps=1, optimizer=AdamW(lr=0.25, betas=(0.5, 1.0)))),
        weights={"helpful": 3.0},
        limit="ten",
    )
    assert isinstance(got.optimizer.lr, float)
    assert isinstance(got.steps, int)


def test_each_alternative_keeps_its_own_defaults(tmp_path):
    assert load(Recipe).value.loss == DPO(beta=0.05)
    assert load(Recipe, overrides=["loss=ipo"]).value.loss == IPO(beta=0.5)
    assert load(Recipe, overrides=["judge=dpo"]).value.judge == DPO(beta=0.1)
    assert load(Recipe, overrides=["loss=ipo", "loss.beta=0.2"]).value.loss == IPO(beta=0.2)
    assert load(Recipe, overrides=["loss.beta=0.2", "loss=ipo"]).value.loss == IPO(beta=0.2)
    assert load(Recipe, overrides=["loss={name: ipo, beta: 3}"]).value.loss == IPO(beta=3.0)
    assert load(Recipe, overrides=["loss.beta=0.2"]).value.loss == DPO(beta=0.2)
    assert read(tmp_path, "loss: {beta: 0.3}").value.loss == DPO(beta=0.3)
    assert read(tmp_path, "loss: {name: dpo, beta: 0.3}", "loss=ipo").value.loss == IPO(beta=0.5)
    assert read(tmp_path, "loss: {name: ipo, beta: 0.3}", "loss=ipo").value.loss == IPO(beta=0.3)
    assert load(Recipe, overrides=["loss=ipo"]).resolved["loss"] == {"name": "ipo", "beta": 0.5}


def test_a_partial_group_keeps_the_recipes_own_default():
    assert load(Recipe, overrides=["optimizer.betas=[0.8, 0.9]"]).value.optimizer == AdamW(lr=5e-7, betas=(0.8, 0.9))


def test_later_layers_win(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("steps: 20\nname: file\n")
    got = load(Recipe, file=file, overrides=["steps=30", "steps=40"], base={"steps": 10, "name": "base", "data": Path("d")})
    assert (got.value.steps, got.value.name, got.value.data) == (40, "file", Path("d"))


def test_base_settings_are_named_when_they_are_wrong(tmp_path):
    (tmp_path / "r.yaml").write_text("name: x")
    with pytest.raises(ConfigError) as caught:
        load(Recipe, file=tmp_path / "r.yaml", base={"stepz": 1, "loss": {"name": "ipo", "beta": "x"}})
    assert str(caught.value).splitlines() == [
        'base settings: loss.beta must be a number, not "x"',
        "base settings: unknown key 'stepz' (did you mean 'steps'?)",
    ]


def test_groups_that_may_be_null_and_tables_of_groups():
    @dataclass(frozen=True, kw_only=True)
    class Plan:
        optimizer: AdamW | None = None
        stages: Mapping[str, Stage] = field(default_factory=dict)
        losses: tuple[Annotated[object, OneOf(LOSSES)], ...] = ()

    assert load(Plan, overrides=["optimizer.lr=2"]).value == Plan(optimizer=AdamW(lr=2.0))
    assert load(Plan, overrides=["optimizer={}"]).value == Plan(optimizer=AdamW())
    got = load(Plan, overrides=["stages={a: {steps: 1}}", "stages.b.steps=2", "stages.b.optimizer.betas=[0,1]"])
    assert got.value == Plan(stages={"a": Stage(steps=1), "b": Stage(steps=2, optimizer=AdamW(lr=0.25, betas=(0.0, 1.0)))})
    got = load(Plan, overrides=["losses=[ipo, {name: dpo, beta: 2}]"])
    assert got.value == Plan(losses=(IPO(), DPO(beta=2.0)))
    assert got.resolved["losses"] == [{"name": "ipo", "beta": 0.5}, {"name": "dpo", "beta": 2.0}]
    with pytest.raises(ConfigError, match=r"stages\.a\.steps must be a whole number"):
        load(Plan, overrides=["stages.a.steps=x"])


def test_a_table_in_a_file_replaces_and_a_dotted_key_adds(tmp_path):
    assert read(tmp_path, "weights: {brief: 1}").value.weights == {"brief": 1.0}
    assert read(tmp_path, "", "weights.helpful=5").value.weights == {"helpful": 5.0, "harmless": 2.0}


def test_overrides_are_values_not_documents():
    got = load(Recipe, overrides=["name=Say: hi #1", "data=*.jsonl", "limit=&y"]).value
    assert (got.name, got.data, got.limit) == ("Say: hi #1", Path("*.jsonl"), "&y")
    assert load(Recipe, overrides=["data="]).value.data is None
    assert load(Recipe, overrides=['name="12"']).value.name == "12"
    assert load(Recipe, overrides=["name=a=b"]).value.name == "a=b"
    assert load(Recipe, overrides=["name=no"]).value.name == "no"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E3", 1000),
        (".5", 0.5),
        ("+2", 2),
        ("-3.", -3.0),
        ("1_000", 1000),
        ("5e-07", 5e-7),
        ("2", 2),
        ("-0.0", 0.0),
    ],
)
def test_numbers_read_as_people_write_them(tmp_path, text, value):
    assert read(tmp_path, f"ceiling: {text}").value.ceiling == value
    assert load(Recipe, overrides=[f"ceiling={text}"]).value.ceiling == value


@pytest.mark.parametrize("text", ["007", "1__0", "1_", "12:30", "2024-01-01", "0x1f", "yes", "on", "1e", "e5", "<<", "="])
def test_text_stays_text(tmp_path, text):
    assert read(tmp_path, f"name: {text}").value.name == text


def test_an_unknown_key_names_the_nearest_with_file_and_line(tmp_path):
    text = "# a recipe\nname: x\n\nsteps: 5\nloss:\n  name: ipo\n  bata: 0.1\n"
    assert complaint(tmp_path, text) == "recipe.yaml:7: unknown key 'bata' (did you mean 'beta'?)"
    assert complaint(tmp_path, "stepz: 5") == "recipe.yaml:1: unknown key 'stepz' (did you mean 'steps'?)"
    assert complaint(tmp_path, "\nstages:\n- {step: 5}") == (
        "recipe.yaml:3: stages.0.steps needs a value\nrecipe.yaml:3: unknown key 'step' (did you mean 'steps'?)"
    )
    assert complaint(tmp_path, "lr: 5") == "recipe.yaml:1: unknown key 'lr' (did you mean 'optimizer.lr'?)"
    assert complaint(tmp_path, "loss.beta: 5") == "recipe.yaml:1: unknown key 'loss.beta' (nest it: `loss: {beta: ...}`)"
    assert complaint(tmp_path, "optimizer: {zzz: 1}") == "recipe.yaml:1: unknown key 'zzz' (there are: lr, betas)"
    assert wrong("loss.bata=1") == "command line: loss.bata=1: unknown key 'bata' (did you mean 'beta'?)"


def test_a_field_of_another_alternative_is_unknown():
    assert wrong("loss=ipo", "loss.gamma=1") == "command line: loss.gamma=1: unknown key 'gamma' (there are: beta)"


def test_an_unknown_alternative_names_the_nearest(tmp_path):
    assert complaint(tmp_path, "name: x\nloss:\n  name: ipp\n  beta: 1") == (
        "recipe.yaml:3: loss must be one of dpo, ipo, margin, not \"ipp\" (did you mean 'ipo'?)"
    )
    assert complaint(tmp_path, "loss: {name: ipo}", "loss=7") == "command line: loss=7: loss must be one of dpo, ipo, margin, not 7"
    assert complaint(tmp_path, "loss:") == "recipe.yaml:1: loss must be one of dpo, ipo, margin, not null"
    assert complaint(tmp_path, "judge: {beta: 1}") == "recipe.yaml:1: judge needs a name, one of dpo, ipo, margin"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loss: {name: ipo, beta: abc}", 'loss.beta must be a number, not "abc"'),
        ("loss: {beta: -1}", "loss.beta must be greater than 0, not -1"),
        ("optimizer: {lr: 0}", "optimizer.lr must be greater than 0, not 0"),
        ("optimizer: 3", "optimizer must be a table of `key: value`, not 3"),
        ("optimizer: {betas: 1}", "optimizer.betas must be a list, not 1"),
        ("optimizer: {betas: [1]}", "optimizer.betas.1 needs a value"),
        ("optimizer: {betas: [1, x]}", 'optimizer.betas.1 must be a number, not "x"'),
        ("packed: 1", "packed must be true or false, not 1"),
        ('packed: "1"', 'packed must be true or false, not "1"'),
        ("packed: yes", 'packed must be true or false, not "yes"'),
        ("steps: 1.5", "steps must be a whole number, not 1.5"),
        ("steps: true", "steps must be a whole number, not true"),
        ("steps: 0", "steps must be greater than or equal to 1, not 0"),
        ("name: 12", "name must be text in quotes, not 12"),
        ("name: [a]", 'name must be text, not ["a"]'),
        ("precision: fp16", "precision must be 'bf16' or 'fp32', not \"fp16\""),
        ("weights: 3", "weights must be a table of `key: value`, not 3"),
        ("weights: {a: b}", 'weights.a must be a number, not "b"'),
        ("limit: 1.5", "limit must be a whole number or text in quotes, not 1.5"),
        ("data: 3", "data must be text in quotes, not 3"),
        ("optimizer: {lr: .inf}", "optimizer.lr must be a finite number, not Infinity"),
        ("optimizer: {lr: .nan}", "optimizer.lr must be a finite number, not NaN"),
        ("optimizer: {lr: 1e999}", "optimizer.lr must be a finite number, not Infinity"),
        ("judge: {name: margin, gamma: 7}", "judge: gamma 7 is unlucky; take another"),
        ("judge: margin", "judge.gamma needs a value"),
    ],
)
def test_a_wrong_value_names_key_value_and_expectation(tmp_path, text, said):
    assert complaint(tmp_path, "# one\n" + text) == f"recipe.yaml:2: {said}"


def test_a_wrong_value_on_the_command_line():
    assert wrong("loss.beta=abc") == 'command line: loss.beta=abc: loss.beta must be a number, not "abc"'
    assert wrong("optimizer.lr.x=1") == 'command line: optimizer.lr.x=1: optimizer.lr must be a number, not {"x": 1}'
    assert wrong("steps=") == "command line: steps=: steps must be a whole number, not null"
    assert wrong("loss={name: ipo, beta: [}") == "command line: loss={name: ipo, beta: [}: expected the node content, but found '}'"


def test_an_override_blames_itself_not_the_line_it_replaced(tmp_path):
    assert complaint(tmp_path, "loss: {name: ipo}\nweights: {a: 1}", "weights={a: x}") == (
        'command line: weights={a: x}: weights.a must be a number, not "x"'
    )
    assert complaint(tmp_path, "loss: {name: ipo, beta: x}", "steps=2").startswith("recipe.yaml:1: loss.beta")


def test_an_argument_that_is_not_key_value():
    assert wrong("loss") == "command line: loss: expected key=value, such as loss.beta=0.1"
    assert wrong("=3") == "command line: =3: '' is not a key; write names joined by dots, such as loss.beta=0.1"
    assert wrong("a..b=3").startswith("command line: a..b=3: 'a..b' is not a key")
    assert wrong(".".join("a" * 1000) + "=3").startswith("command line: a.a.a")
    assert wrong("name=\udcff") == "command line: name=\\udcff: not UTF-8"


def test_a_repeated_key_is_an_error_with_both_lines(tmp_path):
    assert complaint(tmp_path, "steps: 1\nname: x\nsteps: 2\n") == "recipe.yaml:3: key 'steps' is given twice (first on line 1)"
    assert complaint(tmp_path, "loss:\n  name: ipo\n  beta: 1\n  beta: 2\n").startswith("recipe.yaml:4: key 'beta' is given twice")
    assert wrong("loss={beta: 1, beta: 2}").startswith("command line: loss={beta: 1, beta: 2}: key 'beta' is given twice")


def test_several_errors_are_listed_together(tmp_path):
    text = "steps: 1\nsteps: 2\npacked: 3\nnme: x\n"
    assert complaint(tmp_path, text, "nonsense", "loss.beta=q").splitlines() == [
        "recipe.yaml:2: key 'steps' is given twice (first on line 1)",
        "command line: nonsense: expected key=value, such as loss.beta=0.1",
        'command line: loss.beta=q: loss.beta must be a number, not "q"',
        "recipe.yaml:3: packed must be true or false, not 3",
        "recipe.yaml:4: unknown key 'nme' (did you mean 'name'?)",
    ]
    many = complaint(tmp_path, "".join(f"k{i}: 1\n" for i in range(50))).splitlines()
    assert len(many) == 21
    assert many[-1] == "and 30 more"


def test_a_required_setting_is_asked_for(tmp_path):
    assert complaint(tmp_path, "# nothing", cls=Child) == "recipe.yaml: model needs a value"
    with pytest.raises(ConfigError, match=r"^command line: model needs a value$"):
        load(Child, overrides=["lr=1"])
    with pytest.raises(ConfigError, match=r"^settings: model needs a value$"):
        load(Child)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"name: x\nloss: \xff\n", "recipe.yaml:2: not UTF-8 (byte 0xff); save the file as UTF-8"),
        ("loss:\n\tbeta: 1\n", "recipe.yaml:2: a tab; indent with spaces"),
        ("steps: 1\nloss: [1, 2\nname: x\n", "recipe.yaml:3: expected ',' or ']', but got ':'"),
        ("steps: 1\n name: x\n", "recipe.yaml:2: mapping values are not allowed here"),
        ("name: 'x\n", "recipe.yaml:2: found unexpected end of stream"),
        ("- a\n- b\n", "recipe.yaml:1: the file must be a table of `key: value` lines"),
        ("hello\n", "recipe.yaml:1: the file must be a table of `key: value` lines"),
        ("steps: 1\n---\nsteps: 2\n", "recipe.yaml:2: a second document begins here; keep one to a file"),
        ("steps: 1\nname: a\x07b\n", "recipe.yaml:2: unprintable character U+0007; remove it"),
        ('name: "\\ud800"\n', "recipe.yaml:1: half a surrogate pair is no character"),
        ("? [a]\n: 1\n", "recipe.yaml:1: a key must be text, not a list or a table"),
        ("name: !!python/object:os.system x\n", "recipe.yaml:1: tags (!) are not allowed; put text in quotes"),
    ],
)
def test_what_is_not_a_config_file_is_named_with_its_line(tmp_path, text, said):
    assert complaint(tmp_path, text) == said


def test_odd_directives_and_escapes_of_yaml_stay_config_errors(tmp_path):
    assert complaint(tmp_path, f"%YAML {'9' * 5000}.1\n--- a").startswith("recipe.yaml:1: not YAML")
    assert complaint(tmp_path, 'name: "\\Uffffffff"').startswith("recipe.yaml:1: not YAML")


def test_alias_bombs_and_deep_nesting_are_refused_at_once(tmp_path):
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\n"
    assert complaint(tmp_path, bomb) == (
        "recipe.yaml:1: anchors and aliases (& and *) are not allowed; write the value out, or put text in quotes"
    )
    assert complaint(tmp_path, "data: *here\n").startswith("recipe.yaml:1: anchors and aliases")
    assert complaint(tmp_path, "a: " + "[" * 100_000) == "recipe.yaml:1: nested more than 32 deep"
    assert wrong("name=" + "[" * 100_000).endswith("nested more than 32 deep")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file or directory$"):
        load(Recipe, file=tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(Recipe, file=tmp_path)
    assert complaint(tmp_path, b"#" * (2**20 + 1)) == "recipe.yaml: larger than 1048576 bytes; a config holds settings, not data"
    assert read(tmp_path, b"#" * 2**20).value == Recipe()


def test_infinity_only_where_the_type_says_so(tmp_path):
    assert read(tmp_path, "ceiling: .inf").value.ceiling == float("inf")
    assert read(tmp_path, "ceiling: -.INF").value.ceiling == float("-inf")


def test_describe_tells_key_type_default_and_sentence():
    rows = {(d.key, d.when): d for d in describe(Recipe)}
    assert rows["loss", ""].type == "dpo | ipo | margin"
    assert (rows["loss", ""].default, rows["loss", ""].doc) == ("dpo", "The loss\nof the pairs.")
    assert rows["loss.beta", "loss=dpo"].default == 0.05
    ipo = rows["loss.beta", "loss=ipo"]
    assert (ipo.type, ipo.default, ipo.doc, ipo.required) == ("number > 0", 0.5, "Half the inverse of the target margin.", False)
    assert rows["loss.gamma", "loss=margin"].required
    assert (rows["judge", ""].type, rows["judge", ""].default) == ("dpo | ipo | margin | null", None)
    assert rows["judge.beta", "judge=dpo"].default == 0.1
    assert (rows["optimizer", ""].type, rows["optimizer.lr", ""].default) == ("settings", 5e-7)
    assert rows["optimizer.lr", ""].doc == "Peak learning rate."
    types = {key: row.type for (key, _), row in rows.items()}
    assert types["optimizer.betas"] == "list of number"
    assert types["data"] == "path | null"
    assert types["steps"] == "whole number >= 1 and <= 10000000"
    assert types["packed"] == "true | false"
    assert types["precision"] == "bf16 | fp32"
    assert types["weights"] == "table of text to number"
    assert types["stages"] == "list of settings"


def test_describe_reads_inherited_fields():
    rows = {d.key: (d.type, d.required, d.doc) for d in describe(Child)}
    assert rows == {
        "lr": ("number > 0", False, "Peak learning rate."),
        "betas": ("list of number", False, ""),
        "model": ("path", True, "Where the weights are."),
        "warmup": ("number >= 0 and < 1", False, "A share."),
    }


def test_dotted_flattens_tables_and_keeps_lists():
    nested = {"loss": {"name": "ipo", "beta": 0.1}, "betas": [0.9, 0.95], "weights": {}, "name": None}
    assert dotted(nested) == {"loss.name": "ipo", "loss.beta": 0.1, "betas": [0.9, 0.95], "weights": {}, "name": None}


def test_to_yaml_reads_as_if_written_by_hand(tmp_path):
    text = to_yaml(
        {"loss": {"name": "ipo", "beta": 1e-5}, "betas": [0.9, 1e20], "name": "yes", "note": "a\nb\n", "data": None, "n": 3}
    )
    assert (
        text
        == 'loss:\n  name: ipo\n  beta: 1e-5\nbetas: [0.9, 1e20]\nname: "yes"\nnote: |\n  a\n  b\ndata: null\nn: 3\n'.replace(
            '"', "'"
        )
    )
    resolved = load(Recipe, overrides=["stages=[{steps: 4}]", "judge=ipo"]).resolved
    assert read(tmp_path, to_yaml(resolved)).resolved == resolved


LEAVES = (
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(st.characters(codec="utf-8")), LEAVES | st.lists(LEAVES, max_size=3), max_size=4))
def test_to_yaml_loses_nothing(tmp_path, table):
    file = tmp_path / "x.yaml"
    file.write_text(to_yaml({"x": table}), encoding="utf-8", newline="")
    problems: list[str] = []
    assert read_file(file, {}, problems) == {"x": table}
    assert problems == []


def test_sweep_is_the_product_of_the_choices():
    assert sweep(["loss.beta=0.05,0.1,0.5"]) == [["loss.beta=0.05"], ["loss.beta=0.1"], ["loss.beta=0.5"]]
    assert sweep(["a=1,2", "b=x", "c=p, q"]) == [
        ["a=1", "b=x", "c=p"],
        ["a=1", "b=x", "c=q"],
        ["a=2", "b=x", "c=p"],
        ["a=2", "b=x", "c=q"],
    ]
    assert sweep([]) == [[]]
    assert sweep(["a=", "nonsense"]) == [["a=", "nonsense"]]


def test_sweep_leaves_brackets_and_quotes_whole():
    assert sweep(["betas=[0.9,0.95],[0.8,0.9]"]) == [["betas=[0.9,0.95]"], ["betas=[0.8,0.9]"]]
    assert sweep(['name="a,b"']) == [['name="a,b"']]
    assert sweep(['loss={name: ipo, note: "],"},dpo']) == [['loss={name: ipo, note: "],"}'], ["loss=dpo"]]
    assert sweep(["name=don't,won't"]) == [["name=don't"], ["name=won't"]]


def test_sweep_refuses_what_it_cannot_mean():
    with pytest.raises(ConfigError, match=r"^command line: a=1,: an empty choice between commas; write null for none$"):
        sweep(["a=1,"])
    with pytest.raises(ConfigError, match="a is given again beside a list of choices"):
        sweep(["a=1,2", "a=3"])


def test_import_is_quick_and_brings_no_torch():
    script = (
        "import sys, time; t = time.process_time(); import truing.config; t = time.process_time() - t\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(t)"
    )
    source = str(Path(__file__).parents[1] / "src")
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONPATH": source})
    assert float(out.stdout) < 0.4


SIGNS = [*"ab:-?[]{},&*!|>'\"%@`#\\ \n\t\r~=<0123456789.eExuU_", "loss", "beta", "name", "steps", "\x85", "é", "\ufeff"]
YAMLISH = st.lists(st.sampled_from(SIGNS), max_size=40).map("".join)
KEYS = st.sampled_from(["loss=", "loss.beta=", "a=", "stages=[", "weights.x={", "name", ""])


def outcome(act) -> str:
    """What an act says when it refuses; anything but a ConfigError gets through."""
    try:
        act()
    except ConfigError as error:
        return str(error)
    return ""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | YAMLISH.map(str.encode))
def test_no_bytes_raise_anything_but_a_config_error(tmp_path, raw):
    file = tmp_path / "fuzz.yaml"
    file.write_bytes(raw)
    said = outcome(lambda: load(Recipe, file=file))
    assert all(line.startswith((f"{file}:", "and ")) for line in said.split("\n") if said)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.builds(str.__add__, KEYS, YAMLISH | st.text(st.characters())), max_size=3))
def test_no_override_raises_anything_but_a_config_error(overrides):
    for said in (outcome(lambda: load(Recipe, overrides=overrides)), outcome(lambda: sweep(overrides))):
        assert said == "" or said.startswith("command line: ")
