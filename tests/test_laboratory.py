"""The laboratory of over-optimisation: its gold, its labels and its arithmetic by hand; and one small run of all its parts."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.laboratory import shown
from benchmarks.laboratory_curves import Course, Point, law, over_seeds, points, table
from benchmarks.laboratory_gold import NOISE, gold, noisy, prompts, words
from benchmarks.laboratory_model import first_two, made_here
from truing.data.chat import ChatTokenizer
from truing.models.load import load_tokenizer
from truing.recipes.fit import load_policy
from truing.rollouts.sampler import Decoding
from truing.rollouts.writer import LocalWriter


def test_the_gold_counts_different_glad_words_and_takes_off_what_is_said_again_by_hand() -> None:
    assert gold("The sun was happy.") == 2.0
    assert gold("Happy happy sun") == pytest.approx(2 - 4 / 3)
    assert gold("the dog and the cat") == pytest.approx(-4 / 5)
    assert gold("...") == gold("") == 0.0
    far = " ".join(["happy", *(f"w{chr(97 + i)}" for i in range(12)), "happy"])
    assert gold(far) == 1.0, "twelve words on, it may be said again"
    assert words("Don't, Tim!") == ["don", "t", "tim"]


def test_labels_are_right_as_often_as_bradley_and_terry_say() -> None:
    """Gold 1 against 0 at temperature 1/2: sigmoid(2) is 0.881; of 4000 draws the share lies within four deviations."""
    right = sum(noisy("a happy day", str(seed)) > noisy("a plain day", str(seed)) for seed in range(4000)) / 4000
    expected = 1 / (1 + math.exp(-1 / NOISE))
    assert abs(right - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
    assert noisy("a happy day", "3") == noisy("a happy day", "3") != noisy("a happy day", "4")


def test_prompts_are_64_that_differ() -> None:
    assert len({prompt.messages[0].content for prompt in prompts(0)}) == 64
    assert {prompt.tags["seed"] for prompt in prompts(7)} == {"7"}


def test_a_demonstration_is_two_sentences_on_one_line() -> None:
    assert first_two('She said, "Hi!" He ran. More.') == 'She said, "Hi!" He ran.'
    assert first_two("One sentence only") == first_two("Over\nlines. They go.") == ""


def rows(folder: Path, of: list[list[tuple[float, float, str]]]) -> Path:
    folder.mkdir()
    lines = [
        {"step": step, "kl": kl, "parts": {"proxy": proxy}, "response": text}
        for step, found in enumerate(of, 1)
        for kl, proxy, text in found
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_curve_is_in_deviations_of_the_first_round_by_hand(tmp_path: Path) -> None:
    """Proxy 1 and 3 at first: mean 2, deviation sqrt(2). Rounds 2 and 3 make one point, 4 another."""
    plain, glad = "a b", "happy sun"
    run = rows(
        tmp_path / "run",
        [
            [(0.0, 1.0, plain), (0.0, 3.0, plain)],
            [(1.0, 4.0, glad), (1.0, 4.0, glad)],
            [(3.0, 4.0, plain), (3.0, 4.0, plain)],
            [(4.0, 6.0, "b b"), (4.0, 6.0, "b b")],
        ],
    )
    found = points(run, block=2)
    assert [point.round for point in found] == [1, 3, 4]
    assert [point.kl for point in found] == [0.0, 2.0, 4.0]
    assert [point.proxy for point in found] == pytest.approx([0.0, 2 / math.sqrt(2), 4 / math.sqrt(2)])
    assert [point.gold for point in found] == [0.0, 1.0, -2.0]
    course = Course.of(found)
    assert (course.start, course.highest, course.end, course.fall) == (0.0, 1.0, -2.0, 3.0)


def test_an_interval_over_three_seeds_is_students_by_hand() -> None:
    """1, 2, 3: deviation 1, so 2 +- 4.303 / sqrt(3)."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2 - 2.4843, 2 + 2.4843), abs=1e-4)
    with pytest.raises(ValueError, match="needs 2 to 10"):
        over_seeds([1.0])


def test_the_law_is_found_again_and_the_table_holds_settings_against_the_free_one() -> None:
    curve = [Point(round=1, kl=0.0, proxy=0.0, gold=0.5, length=10.0)] + [
        Point(round=k, kl=float(k**2), proxy=1.0, gold=0.5 + k * (1.0 - 0.8 * math.log(k)), length=10.0) for k in (1, 2, 3, 5)
    ]
    assert law(curve) == pytest.approx((1.0, 0.8))
    assert law(curve[:2]) is None
    free = [Course(kl=4.0, proxy=1.0, start=0.0, highest=1.0, end=end) for end in (0.0, 0.5)]
    bound = [Course(kl=1.0, proxy=0.5, start=0.0, highest=1.0, end=end) for end in (1.0, 1.0)]
    text = table({("rloo", "free"): free, ("rloo", "bound"): bound}, "free").splitlines()
    assert text[2].startswith("| rloo | free | 2.00 [2.00, 2.00] | 1.00 [1.00, 1.00] |")
    assert text[2].endswith("|  |  |")
    fallen = "| 0.00 [0.00, 0.00] | 0.75 [-2.43, 3.93] |"  # without it by 1 and by 1/2
    assert text[3].endswith(f"{fallen} 0.75 [-2.43, 3.93] |")
    assert all(line.count("|") == text[0].count("|") for line in text)


def test_the_measured_table_is_that_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "laboratory.json"
    runs = [
        {"method": "rloo", "setting": setting, "seed": seed, "points": [asdict(point(gold)) for gold in (0.0, 2.0, end)]}
        for setting, ends in (("no KL", (0.0, 0.5)), ("KL budget of 20 nats", (1.0, 1.0)))
        for seed, end in enumerate(ends)
    ]
    path.write_text(json.dumps({"policies": {"runs": [*runs, {**runs[0], "method": "ppo"}]}}))
    lines = shown(path).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| rloo", "no KL"], ["| rloo", "KL budget of 20 nats"]]
    assert lines[3].endswith("| 1.00 [1.00, 1.00] | 0.75 [-2.43, 3.93] | 0.75 [-2.43, 3.93] |")


def point(gold: float) -> Point:
    return Point(round=1, kl=1.0, proxy=0.0, gold=gold, length=1.0)


def test_without_the_story_model_one_is_made_with_stories_to_learn_from(tmp_path: Path) -> None:
    folder, demonstrations = made_here(tmp_path / "base", draws=2)
    assert len(demonstrations) == 128
    assert demonstrations == made_here(tmp_path / "again", draws=2)[1]
    tokenizer = load_tokenizer(folder)
    policy, reason = load_policy(folder, torch.float32)
    assert reason is None
    chat = ChatTokenizer.of(tokenizer, template="plain")
    for row in demonstrations[::16]:
        assert chat.decode(tokenizer.encode(row["completion"])) == row["completion"]
    said = LocalWriter(policy=policy, chat=chat, decoding=Decoding(max_tokens=4, temperature=1.0))(
        prompts(0)[:2], samples=1, seed=0
    )
    assert [len(group) for group in said] == [1, 1]
