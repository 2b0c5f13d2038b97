"""Critique and revision with a writer that follows a script: what is asked, what is kept, what becomes of failures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from truing.constitution.principles import Constitution, read_constitution
from truing.constitution.revise import Revised, Reviser, Round, read_shots, whole_sentences
from truing.records import Message, Messages, Prompt
from truing.rollouts.writer import Said


@dataclass
class Scripted:
    """Says what a function of the conversation says, and remembers the conversations."""

    say: Callable[[Messages], Said]
    name: str = "script"
    identity: str = "script"
    seen: list[Messages] = field(default_factory=list)

    def __call__(self, prompts: Sequence[Prompt], *, samples: int, seed: int) -> list[list[Said]]:
        self.seen += [prompt.messages for prompt in prompts]
        return [[self.say(prompt.messages)] * samples for prompt in prompts]


def ended(text: str) -> Said:
    return Said(text=text, stop="end")


def prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), tags={"topic": "tea"})


def revising(talk: Messages) -> bool:
    """Whether a revision is asked for."""
    return talk[-1].content.endswith("Write only the answer.")


def critic(talk: Messages) -> Said:
    return ended("better" if revising(talk) else "critique")


def reviser(tmp_path: Path, *, say: Callable[[Messages], Said] = critic, rounds: int = 2, author: str = "Answer.") -> Reviser:
    return Reviser(
        author=Scripted(lambda talk: ended(author)), critic=Scripted(say), constitution=two(tmp_path), shots=(), rounds=rounds
    )


def two(tmp_path: Path) -> Constitution:
    path = tmp_path / "two.yaml"
    path.write_text(
        "name: two\nprinciples:\n"
        "  - {id: one, text: An answer is one., source: me, priority: 1, aim: helpful}\n"
        "  - {id: tea, text: An answer is tea., source: me, priority: 1, aim: helpful, guidance: Or coffee.,\n"
        "     scope: {when: it is about tea, words: [tea]}}\n"
    )
    return read_constitution(path)


def test_two_rounds_keep_every_intermediate_and_go_on_from_the_last(tmp_path: Path) -> None:
    revise = reviser(tmp_path)
    (found,) = revise([prompt("Is the tea hot?")], seed=0)
    assert (found.answer, found.problem) == ("Answer.", "")
    assert [(one.critique, one.revision) for one in found.rounds] == [("critique", "better")] * 2
    assert {one.principle for one in found.rounds} == {"one", "tea"}  # none twice before all had their turn
    first, revision, second, _ = revise.critic.seen  # type: ignore[attr-defined]
    assert "Request: Is the tea hot?\n\nAnswer: Answer.\n" in first[0].content
    assert (len(first), len(revision)) == (1, 1)
    assert "Answer: Answer.\n" in revision[0].content
    assert "\n\nCritique: critique\n\n" in revision[0].content
    assert "Answer: better\n" in second[0].content


def test_a_principle_is_told_with_its_scope_and_guidance_and_drawn_only_where_it_applies(tmp_path: Path) -> None:
    revise = reviser(tmp_path, rounds=3)
    about_tea, other = revise([prompt("Tea?"), prompt("Coffee?")], seed=0)
    assert {one.principle for one in other.rounds} == {"one"}
    assert {one.principle for one in about_tea.rounds} == {"one", "tea"}
    told = [talk[0].content for talk in revise.critic.seen if "An answer is tea." in talk[0].content]  # type: ignore[attr-defined]
    assert "Principle: An answer is tea. (Where it is about tea.) Or coffee.\n" in told[0]


def test_principles_follow_from_seed_and_place_alone(tmp_path: Path) -> None:
    prompts = [prompt(f"Tea {i}?") for i in range(8)]
    revise = reviser(tmp_path, rounds=1)
    drawn = [one.rounds[0].principle for one in revise(prompts, seed=3)]
    assert len(set(drawn)) == 2
    assert [one.rounds[0].principle for one in revise(prompts[5:], seed=3, places=range(5, 8))] == drawn[5:]
    assert any([one.rounds[0].principle for one in revise(prompts, seed=seed)] != drawn for seed in range(4, 8))


@pytest.mark.parametrize(("revision", "said"), [(False, "critique 1: lost"), (True, "revision 1: lost")])
def test_a_failure_is_named_and_stops_that_prompt_alone(tmp_path: Path, revision: bool, said: str) -> None:
    def fails(talk: Messages) -> Said:
        bad = "bad" in talk[0].content and revising(talk) is revision
        return Said(text="", stop=None, problem="lost") if bad else critic(talk)

    bad, good = reviser(tmp_path, say=fails)([prompt("bad tea"), prompt("good tea")], seed=0)
    assert (bad.problem, len(bad.rounds)) == (said, 0)
    assert (good.problem, len(good.rounds)) == ("", 2)


def test_a_writer_that_says_nothing_whole_is_a_problem_of_the_answer(tmp_path: Path) -> None:
    (found,) = reviser(tmp_path, author="")([prompt("Tea?")], seed=0)
    assert found.problem == "answer: the writer came to no whole sentence"


def test_a_cut_revision_is_kept_up_to_its_last_whole_sentence(tmp_path: Path) -> None:
    cut = reviser(tmp_path, say=lambda talk: Said(text="It is. Or is", stop="length"), rounds=1)
    assert cut([prompt("Tea?")], seed=0)[0].last == "It is."


@pytest.mark.parametrize(
    ("text", "whole"), [("Yes. It is o", "Yes."), ("No end", ""), ("Really?! Wel", "Really?!"), ("对。不", "对。"), ("", "")]
)
def test_whole_sentences(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def test_braces_and_marks_of_others_are_only_text(tmp_path: Path) -> None:
    revise = reviser(tmp_path, author="{principle} {0} {request}", rounds=1)
    (found,) = revise([prompt("{answer} tea")], seed=0)
    assert not found.problem
    assert "Request: {answer} tea\n\nAnswer: {principle} {0} {request}\n" in revise.critic.seen[0][0].content  # type: ignore[attr-defined]


def test_without_rounds_the_answer_is_shown_as_it_is(tmp_path: Path) -> None:
    revise = reviser(tmp_path, rounds=0)
    (found,) = revise([prompt("Tea?")], seed=0)
    assert found.demonstration({}).messages[-1].content == "Answer."
    assert revise.critic.seen == []  # type: ignore[attr-defined]


def test_a_demonstration_says_where_it_comes_from() -> None:
    rounds = (Round(principle="one", critique="c", revision="r"), Round(principle="tea", critique="c", revision="R"))
    one = Revised(prompt=prompt("Tea?"), answer="a", rounds=rounds)
    shown = one.demonstration({"critic": "script"})
    assert [message.content for message in shown.messages] == ["Tea?", "R"]
    assert shown.tags == {"topic": "tea", "critic": "script", "principles": "one tea"}
    assert Revised.from_json(one.prompt, one.as_json()) == one


def test_the_packaged_examples_are_of_packaged_principles_and_stand_before_the_request() -> None:
    shots, constitution = read_shots(), read_constitution()
    assert {shot.principle for shot in shots} <= {principle.text for principle in constitution.principles}
    writer = Scripted(critic)
    Reviser(author=writer, critic=writer, constitution=constitution, shots=shots, rounds=1)([prompt("Tea?")], seed=0)
    answer, critique, revision = writer.seen
    assert len(answer) == 1
    for talk, said in ((critique, [shot.critique for shot in shots]), (revision, [shot.revision for shot in shots])):
        assert [message.role for message in talk] == ["user", "assistant"] * len(shots) + ["user"]
        assert [message.content for message in talk[1::2]] == said
    assert all(f"Critique: {shot.critique}\n" in talk.content for shot, talk in zip(shots, revision[::2], strict=False))


def test_a_broken_file_of_examples_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "shots.yaml"
    path.write_text("shots:\n  - {request: a, answer: b, principle: c, critique: d}\n")
    with pytest.raises(ValueError, match=r"shots\.yaml:2: .*revision needs a value"):
        read_shots(path)
