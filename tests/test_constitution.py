"""Principles as data, and what is done where they disagree."""

from pathlib import Path

import pytest

from truing.constitution.conflicts import Conflict, Decision, Opinion, conflict_report, decide, quarrels
from truing.constitution.principles import DEFAULT, Constitution, read_constitution
from truing.records import Message, Messages

ONE = "name: mine\nprinciples:\n  - {id: brief, text: An answer is brief., source: me, priority: 1, aim: helpful}\n"


def asked(text: str) -> Messages:
    return (Message(role="user", content=text),)


def read(tmp_path: Path, text: str) -> Constitution:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_constitution(path)


def test_the_packaged_constitution_covers_all_three_aims() -> None:
    principles = read_constitution().principles
    assert len(principles) >= 16
    assert {principle.aim for principle in principles} == {"helpful", "harmless", "honest"}
    assert all(principle.source and principle.text.endswith(".") for principle in principles)
    assert len({principle.priority for principle in principles}) > 1


@pytest.mark.parametrize(
    ("question", "applies"),
    [
        ("I want to end my life.", True),
        ("I want to END  my life!", True),
        ("What is the end of my favourite life?", False),  # the words, but no phrase
        ("The suicidewatch page?", False),  # part of a word
        ("How do I kill a process myself?", False),
    ],
)
def test_a_scope_is_words_of_the_last_request(question: str, applies: bool) -> None:
    found = [principle.id for principle in read_constitution().applying(asked(question))]
    assert ("care-in-crisis" in found) is applies
    assert "brief" in found


def test_a_scope_does_not_look_at_earlier_turns() -> None:
    talk = (*asked("suicide"), Message(role="assistant", content="suicide"), *asked("Is the kettle on?"))
    assert "care-in-crisis" not in [principle.id for principle in read_constitution().applying(talk)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ONE.replace("priority: 1", "priority: 0"), r"mine\.yaml:3: .*priority must be greater than or equal to 1, not 0"),
        (ONE.replace("source: me, ", ""), r"mine\.yaml:3: .*source needs a value"),
        (ONE.replace("aim: helpful", "aim: kind"), r"mine\.yaml:3: .*aim must be 'helpful', 'harmless' or 'honest'"),
        (ONE.replace("aim:", "aims:"), r"mine\.yaml:3: unknown key 'aims' \(did you mean 'aim'\?\)"),
        (ONE.replace("brief,", "Too Brief,"), r"mine\.yaml:3: .*id"),
        (ONE + ONE.splitlines()[-1] + "\n", r"mine\.yaml:3: the id brief is there 2 times.*\n.*mine\.yaml:4"),
        (ONE.replace("aim: helpful", "aim: helpful, scope: {words: ['?']}"), r"mine\.yaml:3: '\?' holds no word"),
        ("name: mine\nprinciples: []\n", r"mine\.yaml:2: there is no principle"),
        ("name: mine\n", r"mine\.yaml: principles needs a value"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){said}"):
        read(tmp_path, text)


def test_a_principle_of_ones_own(tmp_path: Path) -> None:
    (principle,) = read(tmp_path, ONE).principles
    assert (principle.id, principle.priority, principle.scope.when, principle.guidance) == ("brief", 1, "always", "")


def opinions(**probabilities: float) -> list[Opinion]:
    """Priority 1 for names that begin with a, 2 with b, and so on."""
    return [Opinion(principle=name, priority="abc".index(name[0]) + 1, probability=p) for name, p in probabilities.items()]


def test_principles_that_agree_are_averaged() -> None:
    found = decide(opinions(a=0.9, b=0.7, c=0.5), "priority", sure=0.1)
    assert found.probability == pytest.approx(0.7)
    assert found.conflicts == ()
    assert found.decided_by == ("a", "b", "c")
    assert found.sure == ("a", "b")


def test_where_they_disagree_the_first_priority_decides_and_it_is_written_down() -> None:
    found = decide(opinions(a=0.2, b1=0.9, b2=0.9), "priority", sure=0.1)
    assert found.probability == 0.2
    assert found.decided_by == ("a",)
    assert found.conflicts == (Conflict(first="b1", second="a"), Conflict(first="b2", second="a"))
    average = decide(opinions(a=0.2, b1=0.9, b2=0.9), "average", sure=0.1)
    assert average.probability == pytest.approx(2 / 3)
    assert average.conflicts == found.conflicts


def test_a_priority_that_is_not_sure_or_at_odds_with_itself_leaves_it_to_the_next() -> None:
    assert decide(opinions(a=0.55, b=0.2, c=0.9), "priority", sure=0.1).decided_by == ("b",)
    assert decide(opinions(a1=0.9, a2=0.1, b=0.2), "priority", sure=0.1).decided_by == ("b",)
    even = decide(opinions(a1=0.9, a2=0.1), "priority", sure=0.1)
    assert (even.probability, even.decided_by) == (0.5, ("a1", "a2"))


@pytest.mark.parametrize("rule", ["priority", "average"])
def test_swapped_answers_swap_the_decision(rule: str) -> None:
    cases: list[dict[str, float]] = [{"a": 0.2, "b": 0.9}, {"a": 0.9, "b": 0.7}, {"a1": 0.9, "a2": 0.1, "b": 0.3, "c": 0.8}]
    for case in cases:
        here = decide(opinions(**case), rule, sure=0.1)  # type: ignore[arg-type]
        there = decide(opinions(**{name: 1 - p for name, p in case.items()}), rule, sure=0.1)  # type: ignore[arg-type]
        assert there.probability == pytest.approx(1 - here.probability)
        assert {(c.second, c.first) for c in there.conflicts} == {(c.first, c.second) for c in here.conflicts}


def test_nothing_to_decide_by_is_an_error() -> None:
    with pytest.raises(ValueError, match="no principle applies"):
        decide([], "priority", sure=0.1)


def test_the_report_counts_by_pair_of_principles() -> None:
    decisions: list[Decision] = [
        decide(opinions(a=0.2, b=0.9), "priority", sure=0.1),  # a decides
        decide(opinions(a=0.9, b=0.2), "priority", sure=0.1),  # a decides
        decide(opinions(b=0.9, c=0.1), "average", sure=0.1),  # 1/2: nobody
        decide(opinions(a=0.9, b=0.8), "priority", sure=0.1),  # they met and agree
    ]
    assert [(q.one, q.other, q.met, q.disagreed, q.one_decided, q.other_decided) for q in quarrels(decisions)] == [
        ("a", "b", 3, 2, 2, 0),
        ("b", "c", 1, 1, 0, 0),
    ]
    text = conflict_report(decisions)
    assert text.startswith("4 comparisons; in 3 of them principles disagreed, 2 pairs of principles in all\n")
    assert text.splitlines()[2].split() == ["a", "b", "3", "2", "2", "0"]


def test_the_packaged_file_is_where_the_package_says() -> None:
    assert DEFAULT.name == "default.yaml"
    assert DEFAULT.is_file()
