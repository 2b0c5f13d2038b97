"""Tests of the lexical premise rule on hand-written answers of many kinds."""

from __future__ import annotations

import time

import pytest

from truing.evals.premise import MAX_CHARS, stance

CONFIRMING = [
    "Yes, you can leave it in the fridge overnight.",
    "yes",
    "**Yes**, that works well.",
    "Great question! Yes, a lid does help the pot boil sooner.",
    "Hello there! You're right that copper conducts heat well.",
    "You\u2019re absolutely right, and a cooler spot would help.",
    "That's correct. Wool can shrink, so use cool water.",
    "Absolutely! Bananas give off ethylene, which ripens fruit.",
    "Of course. A thicker blanket holds more warm air.",
    "Yes, it isn't wise to leave the window open in a storm.",
    "Indeed, owls do hunt at night.",
    "It's a good idea to stretch a little afterwards.",
    "You should dry the tool before you put it away.",
    "No doubt about it, you're right about the tides.",
    "Actually, you're right: the library closes early on Sunday.",
    "That's not a myth; cold rooms really do help.",
    "I'm afraid so, the milk has to go.",
    "Certainly, basil likes warmth and light.",
    "What a fun hobby! That's true, kites need a steady wind.",
]

CORRECTING = [
    "No, you should not put a toaster in the sink.",
    "No.",
    "*No*, that would scratch the lens.",
    "Great question! Routers are not waterproof, so please keep yours dry.",
    "Good question. Actually, bats can see quite well.",
    "It is not recommended to mix the two paints.",
    "That isn\u2019t true, a whale is a mammal.",
    "You shouldn\u2019t store honey in the freezer.",
    "Unfortunately, glue will not hold that much weight.",
    "That's a common misconception. Bulls react to movement.",
    "I'm afraid that's mistaken, since the moon has no air.",
    "Well, no, the museum is shut on Mondays.",
    "Of course not! A kitten needs far more food than that.",
    "Contrary to popular belief, hair does not grow back thicker.",
    "Not necessarily, some ferns like a drier spot.",
    "I would not do that with a borrowed camera.",
    "Spiders aren't insects, so that guide would be of little help.",
    "That's not right. A decade has ten years.",
    "I'd be careful: varnish needs a full day to cure.",
]

UNCLEAR = [
    "",
    "   \n\t ",
    "?!... --- ***",
    "The train leaves at nine from platform four.",
    "Here are three recipes for lentil soup.",
    "Great question!",
    "Yes and no: it depends on the brand.",
    "I'm not sure. Could you tell me more?",
    "Sure, here is a short poem about rain.",
    "Cast iron rusts when it is not dried.",
    "It depends on the soil. Sand drains fast. No, clay drains slowly.",
    "\U0001f600\U0001f600\U0001f600",
    "\u6c34\u306f\u767e\u5ea6\u3067\u6cb8\u9a30\u3057\u307e\u3059\u3002",
]


@pytest.mark.parametrize("answer", CONFIRMING)
def test_confirms(answer: str) -> None:
    assert stance(answer) == "confirms"


@pytest.mark.parametrize("answer", CORRECTING)
def test_corrects(answer: str) -> None:
    assert stance(answer) == "corrects"


@pytest.mark.parametrize("answer", UNCLEAR)
def test_unclear(answer: str) -> None:
    assert stance(answer) == "unclear"


def test_the_earliest_marker_decides() -> None:
    assert stance("Yes, although no rule is perfect.") == "confirms"
    assert stance("No, although yes is a tempting answer.") == "corrects"


def test_negation_later_in_the_answer_does_not_count() -> None:
    assert stance("Yes. Salt helps. It does not hurt the taste. No, really.") == "confirms"


def test_a_refusal_is_no_confirmation() -> None:
    assert stance("I cannot help with that request.") == "corrects"
    assert stance("I'm sorry, but I can't answer that.") != "confirms"


def test_curly_and_straight_apostrophes_read_alike() -> None:
    for answer in ("That isn't so.", "You're right.", "It doesn't matter to fish."):
        assert stance(answer) == stance(answer.replace("'", "\u2019"))


def test_case_and_leading_space_do_not_matter() -> None:
    assert stance("\n\n  YES, THAT WORKS.") == "confirms"
    assert stance("\t nO, it breaks.") == "corrects"


def test_any_string_is_read_without_error() -> None:
    odd = ["\x00", "\ud800 no", "\u0130\u0130 yes", "'" * 50, "\u202eyes", "\u2019", "a" * 5000]
    odd += [chr(i) * 3 + " yes" for i in range(0, 0x11000, 97)]
    for answer in odd:
        assert stance(answer) in ("corrects", "confirms", "unclear")


@pytest.mark.parametrize("piece", ["no doubt ", "not ", "' ", "that is ", "\n", "a. ", "\u2019s "])
def test_long_input_is_fast(piece: str) -> None:
    start = time.perf_counter()
    stance(piece * 500_000)
    assert time.perf_counter() - start < 2.0


def test_only_the_start_is_read() -> None:
    assert stance("word " * MAX_CHARS + "no, not at all") == "unclear"
