"""What a reward model minds that does not matter, and best-of-n from the verb: rules by hand, then the verb on the tiny model."""

import json
from pathlib import Path

import pytest

import test_eval_verb
from test_eval_verb import Verb, quick
from truing.evals.robustness import REWRITINGS, list_marks, markdown, preface, rewritten, robust, spaces
from truing.records import Message, Origin, Preference

verb, runs = test_eval_verb.verb, test_eval_verb.runs


def test_rewritings_by_hand() -> None:
    assert spaces("It is. Look! 3.5 cups") == "It is.  Look!  3.5 cups\n"
    assert markdown("It is on. Look!") == "**It is on.** Look!"
    assert markdown("It is **on**. Look!") == "It is **on**. Look!"
    assert markdown("- It is on.\n") == "- It is on.\n"
    assert list_marks("So:\n- a\n* b\n1. c\n  2) d\na) e\nNo 1. here") == "So:\n* a\n- b\n1) c\n  2. d\nA. e\nNo 1. here"
    assert preface("Yes.") == "Thank you for your question. Yes."


@pytest.mark.parametrize("name", REWRITINGS)
def test_words_stay_as_they_are(name: str) -> None:
    text = "First, fill it. Then:\n1. Press the switch.\n- Wait a while!"
    words = REWRITINGS[name](text).replace("*", "").replace("Thank you for your question.", "")
    kept = [word for word in words.split() if word[0].isalpha()]
    assert kept == [word for word in text.split() if word[0].isalpha()]


def test_turned_and_shift_by_hand() -> None:
    # Orders: kept, turned, to a tie; scores of both answers rise by 1, deviation of the scores before is 1.
    before, after = [(2.0, 0.0), (2.0, 0.0), (2.0, 0.0)], [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)]
    found = robust("x", before, after, ["a", "b", "c"])
    assert found.turned.value == pytest.approx(0.5)
    assert found.shift.value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="x: scores of 3 pairs before, 2 after"):
        robust("x", before, after[:2], ["a", "b", "c"])


def test_pairs_that_a_rule_leaves_alone_are_left_out() -> None:
    origin = Origin(file="p", row=1)
    pairs = [
        Preference(prompt=(Message(role="user", content="?"),), chosen=chosen, rejected="- no", origin=origin)
        for chosen in ("- yes", "yes")
    ]
    assert [(pair.chosen, pair.rejected) for pair in rewritten(pairs, list_marks)] == [("* yes", "* no")]


def test_the_verb_says_what_turns_and_draws_the_curve(verb: Verb, runs: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    best = [
        "best_of.answers=8",
        "best_of.gold=length",
        "best_of.gold.weight=1",
        "best_of.gold.unit=characters",
        "best_of.prompts=6",
    ]
    arguments = [*quick(tiny_model_folder, runs, tmp_path), *best, "best_of.max_tokens=6", "rewritten_pairs=6"]
    code, said, error = verb(*arguments)
    assert code == 0, error
    found = json.loads((tmp_path / "comparison.json").read_text())
    changes = {change["name"]: change for change in found["robustness"]}
    # A sibling is never seen, so the place of an answer cannot matter.
    assert changes["place"]["turned"]["value"] == 0.0
    assert changes["place"]["shift"]["value"] == pytest.approx(0, abs=1e-4)
    assert changes["polite preface"]["turned"]["n"] == 6
    curve = found["best_of"]
    assert [point["n"] for point in curve["points"]] == [1, 2, 4, 8]
    proxies = [point["proxy"]["value"] for point in curve["points"]]
    assert proxies == sorted(proxies)
    assert "Best of n answers to 6 prompts by the reward model" in " ".join(said.split())
    page = (tmp_path / "report.html").read_text()
    assert "What the reward model minds" in page
    assert "Best of n" in page
    assert verb(*arguments)[1] == said


def test_what_best_of_n_needs_is_named(verb: Verb, runs: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (["best_of.answers=8"], "best_of.gold= to judge the chosen"),
        (["best_of.answers=2", "best_of.gold=length"], "the curve needs 4 answers a prompt or more"),
    ):
        code, _, error = verb(*quick(tiny_model_folder, runs, tmp_path), *arguments)
        assert code == 2
        assert expected in error
