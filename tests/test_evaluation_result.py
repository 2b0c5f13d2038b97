"""The record of an evaluation: what is written is read again, and what is not whole is refused with its place."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from truing.evals.result import Evaluation, Setting, code_version, read_evaluation, same_items, write_evaluation
from truing.statistics import wilson

SETTING = Setting(
    task="answers",
    model="runs/demo/sft",
    weights="ab" * 32,
    data="prompts.jsonl",
    data_sha256="cd" * 32,
    template="ef" * 32,
    decoding={"max_tokens": 40, "temperature": 0.0},
    options={},
    seeds={"sample": 0},
    code={"version": "0.1.0", "sha256": "01" * 32},
)
ROWS = ({"key": "1", "answer": "Yes.", "reward": 0.5}, {"key": "2", "answer": "No.", "reward": -1.0})


def evaluation(rows=ROWS, **changed) -> Evaluation:
    return Evaluation(setting=replace(SETTING, **changed), rows=tuple(rows), figures={"finished": wilson(7, 10)})


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    write_evaluation(tmp_path / "deep" / "one.json", evaluation())
    assert read_evaluation(tmp_path / "deep" / "one.json") == evaluation()


def test_the_identity_follows_what_decides_the_outcome_and_not_names():
    same = replace(SETTING, model="copy/of/sft", data="other/name.jsonl")
    assert same.identity() == SETTING.identity()
    for changed in (
        {"weights": "x"}, {"data_sha256": "x"}, {"template": "x"}, {"decoding": {}}, {"options": {"k": 5}}, {"seeds": {"a": 1}},
        {"code": {}}, {"task": "mmlu"},
    ):  # fmt: skip
        assert replace(SETTING, **changed).identity() != SETTING.identity()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*ROWS, {"key": "1"}], "rows 1 and 3 have the same key '1'"),
        ([{"answer": "Yes."}], "row 1 has no key"),
        ([ROWS[0], {"key": "2", "reward": float("nan")}], r"row 2 \('2'\): reward is not finite"),
        ([{"key": "1", "score": 0.5}, {"key": "2", "score": "nan"}], r"row 2 \('2'\): score is 'nan', and must be a number"),
        ([{"key": "2", "scores": {"a": [1.0, float("inf")]}}], r"row 1 \('2'\): scores is not finite"),
    ],
)
def test_broken_rows_are_refused(rows, said):
    with pytest.raises(ValueError, match=said):
        evaluation(rows)


def test_broken_files_are_named(tmp_path: Path):
    path = tmp_path / "one.json"
    with pytest.raises(ValueError, match=r"one\.json: no such evaluation"):
        read_evaluation(path)
    for text, said in (
        ("{", "is no JSON"),
        ("[]", "is no evaluation of the format"),
        (json.dumps({**evaluation().as_json(), "setting": {"task": "x"}}), "lacks or has too much"),
        (json.dumps({**evaluation().as_json(), "rows": [{"key": "1"}, {"key": "1"}]}), "same key"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"one\.json: .*{said}"):
            read_evaluation(path)


def test_models_are_compared_on_the_same_items_or_not_at_all():
    assert same_items({"a": evaluation(), "b": evaluation(ROWS[::-1])}) == ["1", "2"]
    with pytest.raises(ValueError, match="b has no answer to '2', which a has"):
        same_items({"a": evaluation(), "b": evaluation(ROWS[:1])})
    with pytest.raises(ValueError, match="a has no answer to '2', which b has"):
        same_items({"a": evaluation(ROWS[:1]), "b": evaluation()})


def test_the_code_version_is_that_of_the_files():
    assert len(code_version()["sha256"]) == 64
