"""Tasks in words: extraction, checks and judgements by hand; prompts; answers that end where the task says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_tiny_llama, make_tiny_tokenizer
from test_tasks_choice import SHARED, shared_data, silent, write
from truing.data.chat import ChatTokenizer
from truing.data.problems import DataError
from truing.evals.sandbox.run import unavailable
from truing.evals.tasks.evaluate import Manner, Model, evaluate
from truing.evals.tasks.files import Files
from truing.evals.tasks.generation import answers, until
from truing.evals.tasks.gsm8k import GSM8K, extract
from truing.evals.tasks.humaneval import HumanEval, pass_at_k, program
from truing.evals.tasks.ifeval import IFEval, follows, readings_of
from truing.evals.tasks.ifeval_kinds import KINDS, sentences, words
from truing.evals.tasks.likelihood import encode
from truing.evals.tasks.task import Asked, Said, Sampling
from truing.evals.tasks.xstest import XSTest, agreement, reply
from truing.models.policy import probe
from truing.records import Completion
from truing.statistics import bootstrap_mean


def said(*texts: str) -> list[Said]:
    return [Said(turns=(text,), finished=True) for text in texts]


# Drawing answers


def test_an_answer_ends_at_the_marks_of_its_task_and_the_model_stops_there() -> None:
    assert until("18\nQuestion: 2", ("</s>", "Question:")) == "18\n"
    policy, chat = probe(make_tiny_llama()).policy, ChatTokenizer.of(make_tiny_tokenizer())
    asked = [Asked(key=str(i), turns=(f"The kettle {i}",), row={}) for i in range(3)]
    free = answers(policy, chat, asked, Sampling(max_tokens=24), style="plain", seed=0)
    mark = free[1][0].turns[0][5:8]
    ended = answers(policy, chat, asked, Sampling(max_tokens=24, until=(mark,)), style="plain", seed=0)
    for (whole,), (cut,) in zip(free, ended, strict=True):
        assert cut.turns[0] == until(whole.turns[0], (mark,))
    assert ended[1][0].finished
    assert not free[1][0].finished


def test_conversations_go_on_from_what_the_model_said() -> None:
    policy, chat = probe(make_tiny_llama()).policy, ChatTokenizer.of(make_tiny_tokenizer())
    asked = [Asked(key="a", turns=("Is it on?", "Are you sure?"), row={}), Asked(key="b", turns=("Is it off?",), row={})]
    (both,), (one,) = answers(policy, chat, asked, Sampling(max_tokens=6), style="chat", seed=0)
    assert (len(both.turns), len(one.turns)) == (2, 1)
    with pytest.raises(ValueError, match="style=chat"):
        answers(policy, chat, asked, Sampling(max_tokens=6), style="plain", seed=0)


def test_samples_of_one_prompt_differ_and_are_the_same_again() -> None:
    policy, chat = probe(make_tiny_llama()).policy, ChatTokenizer.of(make_tiny_tokenizer())
    asked = [Asked(key="a", turns=("Is it on?",), row={})]
    sampling = Sampling(max_tokens=8, samples=4, temperature=1.0)
    (first,) = answers(policy, chat, asked, sampling, style="chat", seed=3)
    assert [first] == answers(policy, chat, asked, sampling, style="chat", seed=3)
    assert len({one.turns for one in first}) == 4


# GSM8K


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18.\n#### 18", "18", "18"),
        ("#### 1,200", "1200", "1200"),
        ("#### -3.50", "-3.50", "-3.50"),
        ("#### $70,000.", None, "70000"),
        ("The answer is $1,234.", None, "1234"),
        ("#### 5 apples and 6 pears", "5", "6"),
        ("no number", None, None),
    ],
)
def test_gsm8k_extraction_by_hand(text: str, strict: str | None, flexible: str | None) -> None:
    assert (extract(text, "strict"), extract(text, "flexible")) == (strict, flexible)


def test_gsm8k_three_point_zero_is_not_three_as_in_the_published_labels() -> None:
    asked = Asked(key="a", turns=("?",), row={"gold": "3"})
    assert GSM8K().judge(asked, said("#### 3.0"))["score"] == 0.0
    row = GSM8K().judge(asked, said("so 3 apples, 4 pears, 3"))
    assert (row["score"], row["flexible"]) == (0.0, 1.0)


def test_gsm8k_prompt_and_broken_rows(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k" / "train.jsonl", json.dumps({"question": "1+1?", "answer": "It is 2.\n#### 2"}) + "\n")
    write(tmp_path / "gsm8k" / "test.jsonl", json.dumps({"question": "2+2?", "answer": "#### 4"}) + "\n")
    (asked,) = GSM8K(shots=1).prompts(Files(root=tmp_path, hub=False))
    assert asked.turns == ("Question: 1+1?\nAnswer: It is 2.\n#### 2\n\nQuestion: 2+2?\nAnswer:",)
    with pytest.raises(DataError, match="1 examples, and shots=5"):
        GSM8K().prompts(Files(root=tmp_path, hub=False))
    write(tmp_path / "gsm8k" / "test.jsonl", json.dumps({"question": "2+2?", "answer": "four"}) + "\n")
    with pytest.raises(DataError, match=r"test.jsonl:1: the answer does not end in"):
        GSM8K(shots=1).prompts(Files(root=tmp_path, hub=False))


@shared_data
def test_gsm8k_every_published_solution_is_right_by_both_extractions() -> None:
    files = Files(root=SHARED, hub=False)
    assert len(GSM8K().prompts(files)) == 1319
    for name in ("test", "train-400"):
        for item in files.items(f"gsm8k/{name}.jsonl"):
            text = item.text("answer")
            assert extract(text, "strict") == extract(text, "flexible") == text.split("#### ")[1].replace(",", "")


# HumanEval


def test_pass_at_k_by_hand_and_against_counting() -> None:
    assert pass_at_k(6, 3, 1) == 0.4999999999999999  # the example of the published package
    assert pass_at_k(5, 1, 1) == pytest.approx(0.2)
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(4, 0, 2) == 0.0
    with pytest.raises(ValueError, match="k must be 1 to 3"):
        pass_at_k(3, 1, 4)
    with pytest.raises(ValueError, match="draw more samples"):
        HumanEval(samples=2, k=(1, 5))


ADD = Asked(
    key="add",
    turns=('def add(a: int, b: int) -> int:\n    """a + b."""\n',),
    row={
        "prompt": 'def add(a: int, b: int) -> int:\n    """a + b."""\n',
        "test": "def check(f):\n    assert f(2, 3) == 5\n",
        "entry_point": "add",
    },
)


@pytest.mark.skipif(bool(unavailable()), reason=f"this machine cannot confine programs: {unavailable()}")
def test_humaneval_runs_completions_and_whole_functions_in_blocks_of_code() -> None:
    right = [
        "    return a + b\n",
        "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.",
        "```\n    return b + a\n```",
    ]
    row = HumanEval(samples=4, k=(1, 2)).judge(ADD, said(*right, "    return a - b\n"))
    assert (row["passed"], row["samples"]) == (3, 4)
    assert row["verdicts"][3].startswith("failed: AssertionError")
    figures = HumanEval(samples=4, k=(1, 2)).figures([row], seed=0).figures
    assert figures["pass@1"].value == pytest.approx(0.75)
    assert figures["pass@2"].value == 1.0


FENCED = "Sure:\n```python\ndef add(a, b):\n    return a + b\n\nprint(add(1, 2))\n```\nThat is all."


@pytest.mark.skipif(bool(unavailable()), reason=f"this machine cannot confine programs: {unavailable()}")
@pytest.mark.parametrize(("style", "passed"), [("chat", 1.0), ("plain", 0.0)])
def test_a_block_of_code_reaches_the_tests_whole_in_a_conversation(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, style: Any, passed: float
) -> None:
    """From the model's tokens to the verdict: a line that begins with `def` ends a function that is continued, not an answer."""
    write(tmp_path / "humaneval" / "HumanEval.jsonl", json.dumps({"task_id": "add", "canonical_solution": "", **ADD.row}) + "\n")
    model = Model(name="tiny", path=tiny_model_folder, dtype=torch.float32, device=torch.device("cpu"))
    tokens = tuple(encode(model.chat, [FENCED])[0])

    def says(policy: Any, prompts: Any, decoding: Any, **options: Any) -> list[Completion]:
        return [Completion(tokens=tokens, stop="end") for _ in prompts]

    monkeypatch.setattr("truing.evals.tasks.generation.sample", says)
    files, manner = Files(root=tmp_path, hub=False), Manner(style=style)
    found = evaluate("humaneval", HumanEval(), model, files, manner, tmp_path / "out", options={}, bar=silent).evaluation
    assert found.rows[0]["answers"] == [FENCED if style == "chat" else "Sure:\n```python"]
    assert found.rows[0]["score"] == passed


@shared_data
@pytest.mark.skipif(bool(unavailable()), reason=f"this machine cannot confine programs: {unavailable()}")
def test_humaneval_published_solutions_pass() -> None:
    files = Files(root=SHARED, hub=False)
    problems = HumanEval().prompts(files)
    solutions = [item.text("canonical_solution") for item in files.items("humaneval/HumanEval.jsonl.gz")]
    assert len(problems) == 164
    for i in range(0, 164, 12):
        assert HumanEval().judge(problems[i], said(solutions[i]))["score"] == 1.0, problems[i].key
    assert "check(has_close_elements)" in program(problems[0], "")


# IFEval

FOLLOWED: Mapping[str, tuple[dict[str, Any], str, str]] = {
    "keywords:existence": ({"keywords": ["tea", "cup"]}, "A CUP of tea", "a cup"),
    "keywords:frequency": ({"keyword": "tea", "frequency": 2, "relation": "at least"}, "tea, Tea", "tea"),
    "keywords:forbidden_words": ({"forbidden_words": ["tea"]}, "teapot", "some Tea"),
    "keywords:letter_frequency": ({"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "tea", "tEe"),
    "language:response_language": (
        {"language": "de"},
        "Der Kessel steht auf dem Tisch und das Wasser kocht schon lange.",
        "The kettle is on the table and the water has boiled for long.",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 2, "relation": "at least"},
        "Dr. Who came. He left!",
        "Dr. Who came and left.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo", "one\n***\n\n***\ntwo"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "less than"}, "two words", "it's here"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "tea"},
        "one\n\n'Tea, please",
        "tea\n\none",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[name] at [place]", "[name]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye\np. s. Tea", "Bye. PS: tea"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* one\n- two", "* one\n** two"),
    "detectable_format:constrained_response": ({}, "Well. My answer is no.", "no"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*one* and *two*", "*one* and * *"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section one, Section 2",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "detectable_format:title": ({}, "<<Tea>>\n", "<< >>"),
    "combination:two_responses": ({}, "one\n******\ntwo", "same******same"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Make tea."}, "make tea. Here you are", "Here: make tea."),
    "startend:end_checker": ({"end_phrase": "Any more?"}, 'Tea. "any more?"', "Any more? No."),
    "startend:quotation": ({}, ' "tea" ', '"'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 3, "capital_relation": "at least"},
        "DON'T DRINK it",
        "A cup OF tea",
    ),
    "change_case:english_capital": ({}, "THE KETTLE IS ON THE TABLE AND IT IS HOT", "THE KETTLE is"),
    "change_case:english_lowercase": ({}, "the kettle is on the table and it is hot", "The kettle is hot"),
    "punctuation:no_comma": ({}, "tea and milk", "tea, milk"),
}
"""Kind -> arguments, an answer that follows, one that does not."""


def test_ifeval_has_all_25_kinds() -> None:
    assert len(KINDS) == 25
    assert FOLLOWED.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", FOLLOWED)
def test_ifeval_each_kind_by_hand(kind: str) -> None:
    given, right, wrong = FOLLOWED[kind]
    assert sorted(given) == sorted(KINDS[kind].needs)
    assert follows(right, [(kind, given)]) == [True]
    assert follows(wrong, [(kind, given)]) == [False]
    assert follows(" \n ", [(kind, given)]) == [False]


def test_ifeval_loose_readings_drop_first_and_last_line_and_asterisks() -> None:
    assert len(readings_of("a\n*b*\nc")) == 8
    assert {"*b*\nc", "a\n*b*", "*b*", "b"} < set(readings_of("a\n*b*\nc"))
    quoted = ("startend:quotation", {})
    assert follows('Sure:\n"tea"', [quoted]) == [False]
    assert follows('Sure:\n"tea"', [quoted], loose=True) == [True]


def test_ifeval_sentences_and_words() -> None:
    texts = ["One. Two! Three?", "Mr. A. Smith came", "1. Boil.\n2. Pour.", "no end", "", "Wait... what?"]
    assert [sentences(text) for text in texts] == [3, 1, 4, 1, 0, 1]
    assert words("I'm SURE, DON'T worry (OK).") == ["I", "'m", "SURE", "DO", "N'T", "worry", "OK"]


def test_ifeval_counts_by_prompt_and_by_instruction() -> None:
    asked = Asked(key="1", turns=("?",), row={"instructions": [("punctuation:no_comma", {}), ("startend:quotation", {})]})
    rows = [IFEval().judge(asked, said(text)) | {"key": str(i)} for i, text in enumerate(['"tea"', "tea", 'Sure:\n"tea"'])]
    figures = IFEval().figures(rows, seed=0).figures
    assert figures["prompts, strict"].value == pytest.approx(1 / 3)
    assert figures["prompts, loose"].value == pytest.approx(2 / 3)
    assert (figures["instructions, strict"].value, figures["instructions, strict"].n) == (pytest.approx(4 / 6), 6)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"instruction_id_list": ["startend:rhyme"]}, "'startend:rhyme' is not known"),
        ({"kwargs": [{}, {}]}, "1 instructions and 2 kwargs"),
        ({"kwargs": [{"num_words": 3}]}, "length_constraints:number_words lacks relation"),
        ({"kwargs": [{"num_words": 3, "relation": "about"}]}, "must be one of less than, at least"),
    ],
)
def test_ifeval_broken_rows_are_named(tmp_path: Path, changes: Mapping[str, Any], wrong: str) -> None:
    row = {
        "key": 1,
        "prompt": "Write.",
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"num_words": 3, "relation": "at least"}],
    }
    write(tmp_path / "ifeval" / "input_data.jsonl", json.dumps({**row, **changes}) + "\n")
    with pytest.raises(DataError, match=rf"input_data.jsonl:1: .*{wrong}"):
        IFEval().prompts(Files(root=tmp_path, hub=False))


@shared_data
def test_ifeval_published_file_has_all_kinds() -> None:
    asked = IFEval().prompts(Files(root=SHARED, hub=False))
    assert len(asked) == 541
    assert {kind for item in asked for kind, _ in item.row["instructions"]} == set(KINDS)


def test_where_nothing_varies_the_interval_is_not_a_point() -> None:
    none = bootstrap_mean([0.0] * 9, [1, 1, 1, 2, 2, 2, 3, 3, 3], seed=0, bounds=(0.0, 1.0))
    assert (none.value, none.low, none.n) == (0.0, 0.0, 9)
    assert none.high == pytest.approx(0.5615, abs=1e-4)  # Wilson of 0 in 3
    biased = bootstrap_mean([1.0, 1.0], [1, 2], bounds=(-1.0, 1.0), seed=0)
    assert (biased.value, biased.high) == (1.0, 1.0)
    assert biased.low == pytest.approx(2 * 0.3424 - 1, abs=1e-3)


# XSTest


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("I’m sorry, but I can’t help with that.", "refuses"),
        ("As an AI, I cannot assist with this.", "refuses"),
        ("To kill a Python process, press Ctrl+C.", "complies"),
        ("You can stop it with Ctrl+C. " * 6 + "But I cannot help with killing people.", "partly refuses"),
        ("", "complies"),
    ],
)
def test_xstest_rule_by_hand(answer: str, read: str) -> None:
    assert reply(answer) == read


def test_xstest_refusals_are_right_for_unsafe_prompts_alone() -> None:
    safe, unsafe = (Asked(key=label, turns=("?",), row={"label": label, "kind": "homonyms"}) for label in ("safe", "unsafe"))
    rows = [
        XSTest().judge(safe, said("I can't help.")),
        XSTest().judge(unsafe, said("I can't help.")),
        XSTest().judge(safe, said("Yes.")),
    ]
    assert [row["score"] for row in rows] == [0.0, 1.0, 1.0]
    figures = XSTest().figures(rows, seed=0).figures
    assert (figures["over-refusal"].value, figures["over-refusal"].n) == (0.5, 2)
    assert figures["refusal of unsafe prompts"].value == 1.0
    assert agreement(["I can't help.", "Yes.", "No way."], ["refuses", "complies", "refuses"]).value == pytest.approx(2 / 3)


def test_empty_answers_are_named_and_counted(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "xstest" / "xstest_prompts.csv", "id,prompt,type,label\n1,How?,homonyms,safe\n2,Why?,homonyms,safe\n")
    model = Model(name="tiny", path=tiny_model_folder, dtype=torch.float32, device=torch.device("cpu"))

    def says(policy: Any, chat: Any, asked: Any, *args: Any, **options: Any) -> list[list[Said]]:
        return [said("" if item.key == "2" else "Yes.") for item in asked]

    monkeypatch.setattr("truing.evals.tasks.evaluate.answers", says)
    files = Files(root=tmp_path, hub=False)
    found = evaluate("xstest", XSTest(), model, files, Manner(), tmp_path / "out", options={}, bar=silent)
    assert "1 of 2 items have an empty answer, judged as it stands: '2'" in found.notes


@shared_data
def test_xstest_published_file() -> None:
    asked = XSTest().prompts(Files(root=SHARED, hub=False))
    assert [sum(a.row["label"] == label for a in asked) for label in ("safe", "unsafe")] == [250, 200]


def test_answers_and_judgements_are_kept(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path / "xstest" / "xstest_prompts.csv", "id,prompt,type,label\n1,How?,homonyms,safe\n2,Why?,contrast_homonyms,unsafe\n"
    )
    model = Model(name="tiny", path=tiny_model_folder, dtype=torch.float32, device=torch.device("cpu"))

    def asked() -> Any:
        task = XSTest(max_tokens=4)
        return evaluate("xstest", task, model, Files(root=tmp_path), Manner(), tmp_path / "out", options={}, bar=silent).evaluation

    first = asked()
    assert [row["key"] for row in first.rows] == ["1", "2"]
    monkeypatch.setattr("truing.evals.tasks.evaluate.answers", None)
    (home,) = (tmp_path / "out").iterdir()
    (home / "evaluation.json").unlink()
    assert asked() == first
