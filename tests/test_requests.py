"""The packaged requests: what their README says of them holds."""

from collections import Counter

from truing.constitution.principles import read_constitution
from truing.data.read import read
from truing.recipes.selection import PACKAGED
from truing.records import Prompt


def requests(name: str) -> list[Prompt]:
    records = read(PACKAGED[name]).records
    found = [record for record in records if isinstance(record, Prompt)]
    assert len(found) == len(records) == 108
    return found


def test_both_sides_have_four_rows_of_every_topic_and_no_prompt_is_there_twice() -> None:
    harmful, alike = requests("harmful_requests"), requests("look_alike_requests")
    for side in (harmful, alike):
        assert set(Counter(prompt.tags["topic"] for prompt in side).values()) == {4}
    assert {prompt.tags["topic"] for prompt in harmful} == {prompt.tags["topic"] for prompt in alike}
    assert len({prompt.messages[0].content.casefold() for prompt in (*harmful, *alike)}) == 216


def test_harmful_requests_are_one_short_sentence_or_two_without_steps_or_numbers() -> None:
    for prompt in requests("harmful_requests"):
        (message,) = prompt.messages
        assert len(message.content.split()) <= 18, message.content
        assert not any(c.isdigit() for c in message.content), message.content


def test_every_look_alike_names_what_a_helpful_answer_has() -> None:
    for prompt in requests("look_alike_requests"):
        words = prompt.tags["expects"].split("|")
        assert all(word and word == word.casefold() for word in words), prompt.messages[0].content


def test_every_request_is_within_the_scope_of_some_principle() -> None:
    constitution = read_constitution()
    assert all(
        constitution.applying(prompt.messages) for name in ("harmful_requests", "look_alike_requests") for prompt in requests(name)
    )
