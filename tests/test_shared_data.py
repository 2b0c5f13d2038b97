"""The public data sets read to exact counts, with each row that cannot be used named.

Lines are 1-based: the rows that the data's own notes count from 0 as 86, 516, 925, 1103, 1254 and 1688 are lines 87, 517, 926,
1104, 1255 and 1689 here. The third pair that parts early is line 1561: its chosen side goes on in a second assistant turn whose
marker lacks the blank line.
"""

from collections import Counter
from pathlib import Path

import pytest

from truing.data.problems import DataError
from truing.data.read import Reading, length_bias_filter, read
from truing.records import Demonstration, Feedback, Message, Preference, Prompt, Ranking

DATA = Path(__file__).parents[1] / "../shared/data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not beside this project")


def skipped(name: str, mapping: dict[str, str] | None = None) -> Reading:
    return read(DATA / name, mapping=mapping, on_bad_row="skip")


def lines(reading: Reading, reason: str) -> list[int]:
    return [row.origin.row for row in reading.bad_rows if reason in row.reason]


def test_hh_rlhf_names_its_empty_replies_and_the_pairs_that_part_early() -> None:
    reading = skipped("hh_rlhf/harmless-base.jsonl.gz")
    assert (reading.format, reading.rows_in, len(reading.records), len(reading.bad_rows)) == ("conversation_pair", 1800, 1793, 7)
    assert lines(reading, 'the last reply in "chosen" is empty') == [87, 517, 926, 1104]
    assert lines(reading, "the two sides part before the last turn") == [1255, 1561, 1689]
    first = reading.records[0]
    assert isinstance(first, Preference)
    assert first.prompt[0] == Message(role="user", content="what are some pranks with a pen i can do?")
    assert all(isinstance(record, Preference) and record.prompt[-1].role == "user" for record in reading.records)


def test_hh_rlhf_stops_with_the_lines_unless_told_to_skip() -> None:
    with pytest.raises(DataError, match=r"7 of 1800 rows cannot be used[\s\S]*harmless-base.jsonl.gz:87: [\s\S]*on_bad_row=skip"):
        read(DATA / "hh_rlhf/harmless-base.jsonl.gz")


def test_rasbt_names_its_six_equal_pairs() -> None:
    reading = skipped("rasbt_instruction/instruction-data-with-preference.json")
    assert (reading.format, reading.rows_in, len(reading.records)) == ("alpaca_preference", 1100, 1094)
    assert reading.reasons == {"chosen and rejected are equal": 6}
    assert [row.origin.row for row in reading.bad_rows] == [123, 227, 401, 567, 629, 677]
    kept, dropped = length_bias_filter([record for record in reading.records if isinstance(record, Preference)])
    assert (len(kept), len(dropped)) == (1016, 78)


def test_dolly_reads_as_demonstrations() -> None:
    reading = read(DATA / "dolly_hhrlhf_small/dolly_hhrlhf_train_small.jsonl", kind=Demonstration)
    assert (reading.format, reading.rows_in, len(reading.records)) == ("response", 1000, 1000)
    assert all(isinstance(r, Demonstration) and [m.role for m in r.messages] == ["user", "assistant"] for r in reading.records)


def test_llamafactory_pairs_keep_system_turns_and_history() -> None:
    reading = read(DATA / "llamafactory_demos/dpo_en_demo.json")
    assert (reading.format, reading.rows_in) == ("sharegpt_preference", 300)
    turns = Counter(len(record.prompt) for record in reading.records if isinstance(record, Preference))
    assert turns == {1: 114, 2: 80, 3: 1, 5: 57, 7: 46, 9: 1, 13: 1}
    systems = [r for r in reading.records if isinstance(r, Preference) and r.prompt[0].role == "system"]
    assert len(systems) == 80


def test_llamafactory_feedback_is_half_good_half_bad() -> None:
    reading = read(DATA / "llamafactory_demos/kto_en_demo.json", kind=Feedback)
    assert (reading.format, reading.rows_in) == ("messages_feedback", 300)
    assert Counter(record.desirable for record in reading.records if isinstance(record, Feedback)) == {True: 150, False: 150}


def test_oaast_reads_as_rankings_with_their_history() -> None:
    reading = skipped("oaast_rm_zh/oaast_rm_zh.json")
    assert (reading.format, reading.rows_in, len(reading.records)) == ("alpaca", 775, 769)
    assert reading.reasons == {'"output" holds the same response twice': 6}
    assert [row.origin.row for row in reading.bad_rows] == [145, 300, 312, 313, 592, 769]
    rankings = [record for record in reading.records if isinstance(record, Ranking)]
    assert max(len(ranking.responses) for ranking in rankings) == 10
    assert Counter(len(ranking.prompt) for ranking in rankings) == {1: 379, 3: 365, 5: 25}
    assert sum(len(ranking.pairs()) for ranking in rankings) == sum(
        len(ranking.responses) * (len(ranking.responses) - 1) // 2 for ranking in rankings
    )


def test_pandalm_reads_the_majority_and_counts_ties() -> None:
    reading = skipped("pandalm/testset-v1.json")
    assert (reading.format, reading.rows_in, len(reading.records)) == ("pandalm", 999, 835)
    assert reading.reasons == {
        "tie": 105,
        '"response1" is empty': 29,
        '"response2" is empty': 23,
        '"response1" is a boolean, not text': 4,
        '"response2" is a boolean, not text': 2,
        '"instruction" is empty': 1,
    }
    first = reading.records[0]
    assert isinstance(first, Preference)
    assert (first.chosen, first.tags["idx"]) == ("If you have any questions, please let me know.", "0")


@pytest.mark.parametrize(("name", "rows"), [("test.jsonl", 1319), ("train-400.jsonl", 400)])
def test_gsm8k_reads_with_a_mapping_and_not_without(name: str, rows: int) -> None:
    reading = read(DATA / "gsm8k" / name, mapping={"prompt": "question", "completion": "answer"}, kind=Demonstration)
    assert (reading.format, len(reading.records)) == ("demonstration", rows)
    assert all(isinstance(r, Demonstration) and "####" in r.messages[-1].content for r in reading.records)
    with pytest.raises(DataError, match='columns "answer", "question" are of no known format'):
        read(DATA / "gsm8k" / name)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("ifeval/input_data.jsonl", 541), ("xstest/xstest_prompts.csv", 450), ("humaneval/HumanEval.jsonl.gz", 164)],
)
def test_prompts_alone_read_as_prompts(name: str, rows: int) -> None:
    reading = read(DATA / name, kind=Prompt)
    assert (reading.format, len(reading.records)) == ("prompt", rows)


def test_a_zip_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"mmlu\.zip: a zip archive"):
        read(DATA / "mmlu/mmlu.zip")
