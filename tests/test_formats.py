"""Formats: each converted by hand, each fault with its reason, and nothing guessed."""

import datetime
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.data.formats import COLUMNS, FORMATS, check_mapping, label, recognise, renamed
from truing.data.problems import BadValueError, DataError
from truing.data.turns import ROLES, is_blank, transcript
from truing.records import Demonstration, Feedback, Message, Messages, Origin, Preference, Prompt, Ranking, Record, Steps

HI = Message(role="user", content="Hi")
YES, NO = Message(role="assistant", content="Yes"), Message(role="assistant", content="No")
SYSTEM = Message(role="system", content="Be kind.")
U, A, B = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}, {"role": "assistant", "content": "No"})
S = {"role": "system", "content": "Be kind."}
HUMAN, GPT, GPT_NO = ({"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}, {"from": "gpt", "value": "No"})
PAIR = Preference(prompt=(HI,), chosen="Yes", rejected="No")
LONGER: Messages = (HI, YES, Message(role="user", content="Sure?"))


PARTS = {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}
SURE = {"role": "user", "content": "Sure?"}


def pair(prompt: Messages, margin: float | None = None) -> Preference:
    return Preference(prompt=prompt, chosen="Yes", rejected="No", margin=margin)


def shown(*turns: Message) -> Demonstration:
    return Demonstration(messages=turns)


def said(text: str) -> Message:
    return Message(role="assistant", content=text)


STEPS = Steps(prompt=(HI,), steps=("a", "b"), labels=(True, False))
GOOD: list[tuple[str, dict[str, object], Record]] = [
    ("preference", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, PAIR),
    ("preference", {"prompt": [U], "chosen": "Yes", "rejected": "No"}, PAIR),
    ("preference", {"prompt": [S, U], "chosen": [A], "rejected": [B]}, pair((SYSTEM, HI))),
    ("preference", {"prompt": [U], "chosen": [U, A], "rejected": [U, B]}, PAIR),
    ("preference", {"prompt": "Hi", "chosen": [U, A], "rejected": [U, B], "messages": [U, A]}, PAIR),
    ("preference", {"prompt": "Hi", "chosen": [S, U, A], "rejected": [S, U, B]}, pair((SYSTEM, HI))),
    ("preference", {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Yes", "rejected": "No"}, PAIR),
    ("preference", {"prompt": [U], "chosen": [A, SURE, A], "rejected": [A, SURE, B]}, pair(LONGER)),
    ("preference", {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": 1.5}, pair((HI,), 1.5)),
    ("preference", {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "probability": "0.75"}, replace(PAIR, probability=0.75)),
    ("conversation_pair", {"chosen": [U, A], "rejected": [U, B]}, PAIR),
    ("conversation_pair", {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, PAIR),
    (
        "conversation_pair",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Sure?\n\nAssistant: Yes",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Sure?\n\nAssistant: No",
        },
        pair(LONGER),
    ),
    ("votes", {"conversation": [U], "first": "Yes", "second": "No", "choice": "A"}, replace(PAIR, tags={"shown_first": "chosen"})),
    ("votes", {"conversation": "Hi", "first": "No", "second": "Yes", "choice": 2}, replace(PAIR, tags={"shown_first": "rejected"})),
    ("good_bad", {"prompt": "Hi", "good_answer": "Yes", "bad_answer": "No"}, PAIR),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Yes"}, shown(HI, YES)),
    ("alpaca", {"instruction": "Add", "input": "1, 2", "output": "3"}, shown(Message(role="user", content="Add\n1, 2"), said("3"))),
    (
        "alpaca",
        {"instruction": "Sure?", "input": None, "output": "No", "system": "Be kind.", "history": [["Hi", "Yes"]]},
        shown(SYSTEM, *LONGER, NO),
    ),
    ("alpaca", {"instruction": "Hi", "output": ["Yes", "No", "?"]}, Ranking(prompt=(HI,), responses=("Yes", "No", "?"))),
    ("alpaca_preference", {"instruction": "Hi", "input": "", "output": "Yes", "chosen": "Yes", "rejected": "No"}, PAIR),
    ("messages", {"messages": [S, U, A]}, Demonstration(messages=(SYSTEM, HI, YES))),
    ("messages", {"messages": [A, U, B]}, Demonstration(messages=(YES, HI, NO))),
    ("messages", {"messages": [PARTS, A]}, shown(HI, YES)),
    ("messages_feedback", {"messages": [U, A], "label": True}, Feedback(prompt=(HI,), response="Yes", desirable=True)),
    ("sharegpt", {"conversations": [HUMAN, GPT], "system": "Be kind."}, Demonstration(messages=(SYSTEM, HI, YES))),
    ("sharegpt_feedback", {"conversations": [HUMAN, GPT], "label": 0}, Feedback(prompt=(HI,), response="Yes", desirable=False)),
    ("sharegpt_preference", {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT_NO}, PAIR),
    ("openai_preference", {"input": {"messages": [U], "tools": []}, "preferred_output": [A], "non_preferred_output": [B]}, PAIR),
    ("demonstration", {"prompt": "Hi", "completion": "Yes"}, Demonstration(messages=(HI, YES))),
    ("demonstration", {"prompt": [S, U], "completion": [A]}, Demonstration(messages=(SYSTEM, HI, YES))),
    ("response", {"prompt": "Hi", "response": "Yes"}, Demonstration(messages=(HI, YES))),
    ("feedback", {"prompt": "Hi", "completion": "Yes", "label": "False"}, Feedback(prompt=(HI,), response="Yes", desirable=False)),
    ("feedback", {"prompt": [U], "completion": [A], "label": True}, Feedback(prompt=(HI,), response="Yes", desirable=True)),
    ("response_feedback", {"prompt": "Hi", "response": "Yes", "label": 1}, Feedback(prompt=(HI,), response="Yes", desirable=True)),
    ("ranking", {"prompt": "Hi", "responses": ["Yes", "No"]}, Ranking(prompt=(HI,), responses=("Yes", "No"))),
    ("steps", {"prompt": "Hi", "completions": ["a", "b"], "labels": [1, "false"]}, STEPS),
    (
        "steps",
        {"prompt": [U], "completions": ["a", "b"], "labels": [True, False], "separator": "||"},
        replace(STEPS, separator="||"),
    ),
    ("prompt", {"prompt": "Hi"}, Prompt(messages=(HI,))),
    ("prompt", {"prompt": [S, U]}, Prompt(messages=(SYSTEM, HI))),
]


@pytest.mark.parametrize(("name", "row", "record"), GOOD)
def test_a_row_of_each_format_becomes_the_record_worked_out_by_hand(name: str, row: dict[str, object], record: Record) -> None:
    assert recognise(row) is FORMATS[name]
    assert recognise(row).record(row) == record


def test_every_format_has_an_example_and_its_own_name() -> None:
    assert {name for name, _, _ in GOOD} == set(FORMATS) - {"pandalm"}
    assert all(known.name == name for name, known in FORMATS.items())


PANDALM = {"instruction": "Hi", "input": "", "response1": "Yes", "response2": "No", "annotator3": 0}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        *[
            ("", "nobody has chosen yet"),
            (None, "nobody has chosen yet"),
            ("tie", "tie"),
            (0, "tie"),
            ("Both bad", r"tie \(both bad\)"),
        ],
        ("third", "\"choice\" is 'third'; it must be first, second, tie or both bad"),
    ],
)
def test_a_vote_that_prefers_nothing_says_why(choice: object, reason: str) -> None:
    with pytest.raises(BadValueError, match=f"^{reason}$"):
        FORMATS["votes"].record({"conversation": "Hi", "first": "Yes", "second": "No", "choice": choice})


def test_pandalm_reads_the_majority_of_three_and_leaves_ties_out() -> None:
    pandalm = FORMATS["pandalm"]
    assert recognise({**PANDALM, "annotator1": 1, "annotator2": 1}) is pandalm
    assert pandalm.record({**PANDALM, "annotator1": 1, "annotator2": 1}) == PAIR
    assert pandalm.record({**PANDALM, "annotator1": 2, "annotator2": 2}) == PAIR.swapped()
    for votes, reason in (((0, 1), "^tie$"), ((1, 2), "no majority"), ((3, 1), "not 0, 1 or 2"), (("1", 1), "not 0, 1 or 2")):
        with pytest.raises(BadValueError, match=reason):
            pandalm.record({**PANDALM, "annotator1": votes[0], "annotator2": votes[1]})


BAD: list[tuple[dict[str, object], str]] = [
    ({"prompt": "Hi", "chosen": "", "rejected": "No"}, '"chosen" is empty'),
    ({"prompt": "Hi", "chosen": "\u200b \n", "rejected": "No"}, '"chosen" is empty'),
    ({"prompt": " ", "chosen": "Yes", "rejected": "No"}, '"prompt" is empty'),
    ({"prompt": "Hi", "chosen": "Yes", "rejected": " Yes\n"}, "chosen and rejected are equal"),
    ({"prompt": "Hi", "chosen": None, "rejected": "No"}, '"chosen" is null'),
    ({"prompt": "Hi", "chosen": 7, "rejected": "No"}, '"chosen" is a number'),
    ({"prompt": 5, "chosen": "Yes", "rejected": "No"}, '"prompt" is a number, not a list of messages'),
    ({"prompt": [], "chosen": "Yes", "rejected": "No"}, '"prompt" is empty'),
    ({"prompt": [U, A], "chosen": "Yes", "rejected": "No"}, "the prompt ends with an assistant turn"),
    ({"prompt": "Hi", "chosen": "Yes", "rejected": [B]}, '"chosen" is text and "rejected" is a list'),
    ({"prompt": [S, U], "chosen": [U, A], "rejected": [U, B]}, "neither repeats the prompt"),
    ({"prompt": "Hi", "chosen": "a\0b", "rejected": "No"}, '"chosen" holds a NUL'),
    ({"prompt": "Hi", "chosen": "a\ud800", "rejected": "No"}, '"chosen" holds a lone surrogate'),
    ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": math.nan}, '"margin" is not a finite number'),
    ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": "much"}, '"margin" is not a finite number'),
    ({"prompt": "Hi", "chosen": "Yes", "rejected": "No", "probability": 1.5}, '"probability" is 1.5; it must be between 0 and 1'),
    ({"chosen": [U, A], "rejected": [{"role": "user", "content": "Ho"}, B]}, "the two sides part before the last turn"),
    ({"chosen": [U, A], "rejected": [U, A, U, B]}, "the two sides part before the last turn"),
    ({"chosen": [U, A, U], "rejected": [U, A, U]}, "ends with a user turn"),
    ({"chosen": [A], "rejected": [B]}, "the prompt is empty"),
    ({"messages": [U]}, "ends with a user turn"),
    ({"messages": [A]}, "the prompt is empty"),
    ({"messages": []}, '"messages" is empty'),
    ({"messages": "Hi"}, '"messages" is text, not a list'),
    ({"messages": [U, "Yes"]}, 'message 2 of "messages" is text'),
    ({"messages": [S, S, U, A]}, "2 system turns"),
    ({"messages": [U, S, A]}, "the system turn is not the first"),
    ({"messages": [{"role": "narrator", "content": "Hi"}, A]}, "unknown role 'narrator'"),
    ({"messages": [{"role": "user"}, A]}, 'message 1 of "messages" has no "content"'),
    ({"messages": [{"role": "user", "content": " "}, A]}, r'message 1 of "messages" \(user\) is empty'),
    ({"messages": [{"role": "user", "content": 4}, A]}, "is a number, not text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]}, "a part that is not text"),
    ({"messages": [U, A], "label": "maybe"}, "\"label\" is 'maybe'; it must be true or false"),
    ({"messages": [U, A], "label": None}, '"label" is null'),
    ({"prompt": "Hi", "completion": "Yes", "label": 2}, '"label" is 2'),
    ({"prompt": "Hi", "completions": ["a"], "labels": [True, True]}, '"completions" has 1 steps and "labels" has 2'),
    ({"prompt": "Hi", "completions": "a", "labels": [True]}, '"completions" and "labels" are not lists'),
    ({"prompt": "Hi", "completions": ["a", "b\nc"], "labels": [True, True]}, 'step 2 of "completions" holds the separator'),
    ({"prompt": "Hi", "completions": ["a", " "], "labels": [True, True]}, 'step 2 of "completions"'),
    ({"prompt": "Hi", "completions": ["a"], "labels": [True], "separator": ""}, '"separator" is not text'),
    ({"prompt": "Hi", "completion": "Yes", "label": [True]}, '"label" is a list'),
    ({"prompt": "Hi", "responses": ["Yes"]}, "fewer than two responses"),
    ({"prompt": "Hi", "responses": ["Yes", "No", "Yes "]}, "the same response twice"),
    ({"prompt": "Hi", "responses": ["Yes", 3]}, 'response 2 of "responses" is a number'),
    ({"prompt": "Hi", "responses": "Yes"}, '"responses" is text, not a list of responses'),
    ({"instruction": " ", "input": "1", "output": "3"}, '"instruction" is empty'),
    ({"instruction": "Hi", "output": "3", "history": "none"}, '"history" is not a list'),
    ({"input": "Hi", "preferred_output": [A], "non_preferred_output": [B]}, '"input" has no "messages"'),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: ", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, 'last reply in "chosen" is empty'),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Ho\n\nAssistant: No"}, "part before the last turn"),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: Yes\nAssistant: So", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, "part before"),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Ho", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, "a human turn"),
    ({"chosen": "So\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "So\n\nHuman: Hi\n\nAssistant: No"}, "does not begin with Human"),
    ({"chosen": "\n\nHuman: \n\nAssistant: Yes", "rejected": "\n\nHuman: \n\nAssistant: No"}, "turn 1 of the transcript"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, object], reason: str) -> None:
    with pytest.raises(BadValueError, match=reason):
        recognise(row).record(row)


@pytest.mark.parametrize(("chosen", "rejected"), [("Paris ", "London"), ("The sky", "The sky is blue"), ("Human: Hi", "Human: Ho")])
def test_trap_05_no_prompt_is_extracted_from_what_two_texts_share(chosen: str, rejected: str) -> None:
    with pytest.raises(BadValueError, match='add a "prompt" column'):
        recognise(("chosen", "rejected")).record({"chosen": chosen, "rejected": rejected})


def test_trap_05_transcripts_split_at_the_last_assistant_marker_and_keep_a_shared_beginning_of_replies() -> None:
    before = "\n\nHuman: Where is it?\n\nAssistant: Where?\n\nHuman: The tower.\n\nAssistant:"
    record = recognise(("chosen", "rejected")).record({"chosen": before + " In Paris.", "rejected": before + " In Parma."})
    assert isinstance(record, Preference)
    assert [turn.content for turn in record.prompt] == ["Where is it?", "Where?", "The tower."]
    assert (record.chosen, record.rejected) == ("In Paris.", "In Parma.")


def test_trap_06_an_empty_response_is_an_error_in_the_data_never_a_record() -> None:
    for row in (
        {"prompt": "Hi", "completion": ""},
        {"prompt": "Hi", "chosen": "Yes", "rejected": " "},
        {"messages": [U, {**A, "content": ""}]},
    ):
        with pytest.raises(BadValueError, match="is empty"):
            recognise(row).record(row)


def test_further_columns_become_tags_as_text() -> None:
    row = {"prompt": "Hi", "good_answer": "Yes", "bad_answer": "No", "kind": "greeting", "topic": "t" * 4096, "turns": 3}
    row |= {"safe": True, "score": 0.5, "long": "t" * 4097, "gap": math.nan, "list": [1], "none": None, "": "index", "blank": ""}
    row |= {"meta": {"by": ["a", None]}, "empty": [], "bytes": b"x", "inside": [b"x"], "day": datetime.date(2026, 3, 1)}
    record = recognise(row).record(row, Origin(file="a.csv", row=2))
    tags = {"kind": "greeting", "topic": "t" * 4096, "turns": "3", "safe": "true", "score": "0.5", "list": "[1]"}
    assert record.tags == {**tags, "meta": '{"by":["a",null]}', "day": "2026-03-01"}
    assert str(record.origin) == "a.csv:2"


def test_unknown_columns_are_refused_with_the_nearest_format() -> None:
    with pytest.raises(DataError, match='"preference", which lacks "rejected"'):
        recognise(("prompt", "chosen"))
    with pytest.raises(DataError, match="mapping"):
        recognise(("question", "answer"))
    with pytest.raises(DataError, match="none"):
        recognise(())


@pytest.mark.parametrize("columns", [("messages", "chosen"), ("instruction", "output", "rejected"), ("prompt", "good_answer")])
def test_half_a_pair_is_not_read_as_something_else(columns: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no known format"):
        recognise(columns)


def test_a_mapping_renames_before_recognition_and_hides_what_was_there() -> None:
    row = {"question": "Hi", "best": "Yes", "worst": "No", "prompt": "hidden"}
    ours = renamed(row, {"prompt": "question", "chosen": "best", "rejected": "worst"})
    assert ours == {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
    assert recognise(ours).record(ours) == PAIR
    assert renamed(row, {}) is row


def test_a_mapping_with_a_wrong_name_gets_the_nearest_one() -> None:
    with pytest.raises(DataError, match='did you mean "prompt"'):
        check_mapping({"promt": "question"}, ["question"])
    with pytest.raises(DataError, match='did you mean "question"'):
        check_mapping({"prompt": "qestion"}, ["question"])
    check_mapping({"prompt": "question"}, ["question"])
    assert {"prompt", "chosen", "label", "history"} <= COLUMNS


YES_OR_NO = [(True, True), (False, False), (1, True), (0, False), (1.0, True), ("true", True), ("FALSE", False), (" 1 ", True)]


@pytest.mark.parametrize(("cell", "judged"), YES_OR_NO)
def test_labels_that_say_yes_or_no(cell: object, judged: bool) -> None:
    assert label(cell) is judged


OTHER_TEXT = st.text().filter(lambda text: text.strip().lower() not in ("true", "false", "0", "1"))
OTHER_NUMBER = (st.floats() | st.integers()).filter(lambda number: number not in (0, 1))


@given(st.none() | OTHER_TEXT | OTHER_NUMBER | st.lists(st.booleans()))
def test_any_other_label_is_refused(cell: object) -> None:
    with pytest.raises(BadValueError, match="must be true or false"):
        label(cell)


@pytest.mark.parametrize("name", sorted(ROLES))
def test_every_role_name_is_read_in_any_case(name: str) -> None:
    turns = [{"role": name.upper(), "content": "Hi"}, U, A]
    record = FORMATS["messages"].record({"messages": turns})
    assert isinstance(record, Demonstration)
    assert record.messages[0].role == ROLES[name]


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0:")).filter(lambda said: not is_blank(said)), min_size=1)
)
def test_a_transcript_gives_back_its_turns(said: list[str]) -> None:
    written = "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {text}" for i, text in enumerate(said))
    turns = transcript(written, "it")
    assert [turn.content for turn in turns] == [text.strip() for text in said]
    assert [turn.role for turn in turns] == ["assistant" if i % 2 else "user" for i in range(len(said))]


KEYS = st.sampled_from(["role", "content", "from", "value", "messages"])
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_whatever_the_cells_hold_a_row_gives_a_record_or_a_reason(name: str, data: st.DataObject) -> None:
    row = {column: data.draw(CELLS) for column in sorted(FORMATS[name].needs)}
    try:
        record = FORMATS[name].record(row)
    except BadValueError:
        return
    assert isinstance(record, (Prompt, Demonstration, Preference, Ranking, Feedback))
