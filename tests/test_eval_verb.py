"""`truing eval` on runs: one command, kept answers, a page without network, and wrong input named with its place."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from truing import cli
from truing.config import load
from truing.data.chat import ChatTokenizer
from truing.evals import answers as answers_module
from truing.evals.compare import Contender, compare
from truing.evals.compare_text import text
from truing.evals.html import page
from truing.evals.result import Evaluation, Setting
from truing.evals.sequential import confidence_sequence
from truing.recipes import align, commands
from truing.recipes import compare as recipe
from truing.recipes.compare import settings_of
from truing.records import Message
from truing.runs.read import read_rows

PROMPTS = [f"What is {i} plus {i}?" for i in range(40)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, pairs_file: Path) -> Path:
    """What `truing align` leaves behind, of the tiny model."""
    folder = tmp_path_factory.mktemp("aligned") / "run"
    settings = {
        "model": tiny_model_folder, "run": folder, "dtype": "fp32", "lora": "null", "data.path": pairs_file,
        "data.held_out_by": "null", "data.held_out": "[]", "data.held_out_share": 0.4,
        "kl_prompts": 2, "evaluate_rows": 2, "answers.max_tokens": 4,
        "sft.lr": 3e-3, "preference.lr": 3e-3, "method": "ppo", "ppo.lr": 3e-3, "ppo.batch_size": 8,
    }  # fmt: skip
    loaded = load(align.Config, overrides=[f"{key}={value}" for key, value in settings.items()])
    return align.run(loaded.value, loaded.resolved, ())


class Verb:
    """Runs `truing eval` in this process."""

    def __init__(self, capsys, monkeypatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *argv: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["truing", "eval", *map(str, argv)])
        self.capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = self.capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def verb(capsys, monkeypatch) -> Verb:
    return Verb(capsys, monkeypatch)


def quick(base: object, tuned: object, out: Path) -> list[str]:
    return [f"base={base}", f"tuned={tuned}", f"out={out}", "answers.max_tokens=6", "answers.temperature=1", "dtype=fp32"]


def test_one_command_on_the_runs_of_align(verb, runs: Path, tiny_model_folder: Path, tmp_path: Path):
    code, said, _ = verb(*quick(tiny_model_folder, runs, tmp_path), f"more={runs / 'sft'}")
    assert code == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["names"] == ["base", "tuned", "more"]
    assert found["judge"] == f"the reward model {runs / 'reward_model'}"
    assert f"{found['prompts']} prompts" in said
    assert re.search(r"tuned against base, by the reward model .*(better|worse|cannot tell)", " ".join(said.split()))
    assert found["against"]["tuned"]["win_rate"]["n"] == found["prompts"] == len(found["rows"])
    assert found["reward_model"]["accuracy"]["all"]["n"] == found["prompts"]
    assert all(set(found["ratings"][kind]["ratings"]) == {"base", "tuned", "more"} for kind in ("plain", "style_controlled", "elo"))


def test_the_same_again_computes_nothing_and_writes_the_same_bytes(verb, runs, tiny_model_folder, tmp_path, monkeypatch):
    verb(*quick(tiny_model_folder, runs, tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"}

    def never(*_args, **_options):
        raise AssertionError("computed again")

    monkeypatch.setattr(answers_module, "sample", never)
    assert verb(*quick(tiny_model_folder, runs, tmp_path))[0] == 0
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"} == before


def test_a_killed_evaluation_goes_on_and_ends_the_same(verb, runs, tiny_model_folder, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    arguments = [f"prompts={prompts}", f"reward_model={runs / 'reward_model'}"]
    monkeypatch.setattr(answers_module, "CHUNK", 8)
    verb(*quick(tiny_model_folder, runs, tmp_path / "whole"), *arguments)
    real, asked = answers_module.sample, []

    def killed(policy, chunk, *rest, **options):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(chunk))
        return real(policy, chunk, *rest, **options)

    monkeypatch.setattr(answers_module, "sample", killed)
    with pytest.raises(KeyboardInterrupt):
        commands.evaluate([*quick(tiny_model_folder, runs, tmp_path / "broken"), *arguments], (), as_json=False)
    monkeypatch.setattr(answers_module, "sample", lambda *a, **k: asked.append(len(a[1])) or real(*a, **k))
    assert verb(*quick(tiny_model_folder, runs, tmp_path / "broken"), *arguments)[0] == 0
    assert sum(asked) == 2 * len(PROMPTS), "each prompt is asked once of each model"
    one, two = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("whole", "broken"))
    assert one == two


def test_files_of_answers_by_a_rule(verb, tmp_path: Path):
    good, poor, prompts = tmp_path / "good.jsonl", tmp_path / "poor.jsonl", tmp_path / "prompts.csv"
    for path, right in ((good, 40), (poor, 8)):
        rows = [{"prompt": text, "answer": f"It is {2 * i if i < right else 'unknown'}."} for i, text in enumerate(PROMPTS)]
        path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    asked = [f"{text},yes {i},no {i},{2 * i}" for i, text in enumerate(PROMPTS)]
    prompts.write_text("\n".join(["prompt,chosen,rejected,answer", *asked]) + "\n")
    rule = ["judge=numeric_answer", "judge.column=answer"]
    code, said, error = verb(f"poor={poor}", f"good={good}", f"prompts={prompts}", *rule, f"out={tmp_path / 'out'}")
    assert code == 0, error
    # 8 ties, 32 wins: (32 + 4) / 40.
    assert "good against poor, by the rule numeric_answer: better by 40.0 points" in said
    assert "32 wins, 8 ties, 0 losses" in said


def written(path: Path, answers: list[str]) -> Path:
    rows = [{"prompt": text, "answer": answer} for text, answer in zip(PROMPTS, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(folder: Path) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return f"prompts={path}"


@pytest.mark.parametrize("rule", ["length", "length_window"])
def test_files_of_answers_do_not_tie_in_tokens_that_nobody_counted(verb, tmp_path: Path, rule: str):
    short, long = (written(tmp_path / f"{name}.jsonl", [text] * 40) for name, text in (("short", "one"), ("long", "one two")))
    command = [f"short={short}", f"long={long}", asked(tmp_path), f"out={tmp_path / 'out'}", f"judge={rule}"]
    code, _, error = verb(*command)
    assert (code, error.count("error: ")) == (2, 1), error
    assert f"{short}: a file of answers has no tokens to count; set judge.unit=words for all models" in error
    most = ["judge.most=1"] if rule == "length_window" else []
    code, said, error = verb(*command, "judge.unit=words", *most)
    assert code == 0, error
    assert "long against short" in said
    assert "0 wins, 0 ties, 40 losses" in " ".join(said.split())


def test_a_file_does_not_beat_a_model_whose_tokens_are_counted_and_does_not_say_that_it_ended(
    verb, tiny_model_folder: Path, tmp_path: Path
):
    file = written(tmp_path / "file.jsonl", ["one two three"] * 40)
    command = [*quick(tiny_model_folder, file, tmp_path / "out"), asked(tmp_path), "judge=length"]
    code, _, error = verb(*command)
    assert code == 2, error
    assert f"{file}: a file of answers has no tokens to count; set judge.unit=words" in error
    code, said, error = verb(*command, "judge.unit=words")
    assert code == 0, error
    assert re.search(r"answers that end by themselves +\d+\.\d% \[\d+\.\d, \d+\.\d\] +-\n", said)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda rows: rows[:-1], "answers.jsonl: lacks answers to 1 of 3 prompts, such as 'Third\\?'"),
        (lambda rows: [*rows, rows[0]], "answers.jsonl:4: answers prompt '.{16}' again, after line 1"),
        (
            lambda rows: [*rows, '{"prompt": "Fourth?", "answer": "No."}'],
            "answers.jsonl:4: answers a prompt that is not among the 3",
        ),
        (lambda rows: [rows[0], '{"prompt": "Second?"', rows[2]], "answers.jsonl:2: is no JSON"),
        (lambda rows: [rows[0], '{"prompt": "Second?", "answer": null}', rows[2]], "answers.jsonl:2: has no text under answer"),
    ],
)
def test_broken_answer_files_are_named(verb, tmp_path: Path, spoil, expected):
    prompts, path = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("First?", "Second?", "Third?")))
    rows = [json.dumps({"prompt": text, "answer": "Yes."}) for text in ("First?", "Second?", "Third?")]
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(rows) + "\n")
    path.write_text("\n".join(spoil(rows)) + "\n")
    code, _, error = verb(f"base={whole}", f"tuned={path}", f"prompts={prompts}", "judge=length", f"out={tmp_path / 'out'}")
    assert code == 2
    assert re.search(expected, error), error


def test_wrong_use_is_one_block_with_a_remedy(verb, runs: Path, tiny_model_folder: Path, tmp_path: Path):
    tiny, sft, twice = f"base={tiny_model_folder}", f"tuned={runs / 'sft'}", tmp_path / "twice.jsonl"
    twice.write_text('{"prompt": "One?"}\n{"prompt": "Two?"}\n{"prompt": "One?"}\n')
    for arguments, expected in (
        ([tiny], "name two models or more"),
        ([tiny, f"tuned={tiny_model_folder}"], "which prompts\\?"),
        (
            [f"base={tiny_model_folder}", f"tuned={tiny_model_folder}", f"prompts={twice}", "judge=length"],
            "twice.jsonl:3: asks the same as",
        ),
        (
            [tiny, sft, "promts=x.jsonl"],
            "there is no setting promts; did you mean prompts",
        ),
        ([tiny, sft, "judge=nicer"], "judge"),
        ([str(tiny_model_folder)], "give the model a name"),
        ([tiny, sft, f"reward_model={runs / 'sft'}"], "holds no reward model"),
    ):
        code, _, error = verb(*arguments, f"out={tmp_path / 'out'}")
        assert (code, error.count("error: ")) == (2, 1), error
        assert "Traceback" not in error
        assert re.search(expected, error), error


def test_the_divergence_of_the_reference_from_itself_is_zero_and_of_a_tuned_model_is_not(verb, runs, tiny_model_folder, tmp_path):
    arguments = [*quick(tiny_model_folder, runs, tmp_path), f"reference={tiny_model_folder}", "kl_prompts=6"]
    assert verb(*arguments)[0] == 0
    models = json.loads((tmp_path / "comparison.json").read_text())["models"]
    assert models["base"]["kl"]["k1"]["value"] == pytest.approx(0, abs=1e-4)
    assert models["tuned"]["kl"]["k3"]["value"] > 1e-3
    assert models["tuned"]["kl"]["k3"]["n"] == 6


def test_names_of_models_and_of_settings_are_told_apart():
    assert settings_of(["base=a", "out=b", "answers.max_tokens=3"]) == ["models.base=a", "out=b", "answers.max_tokens=3"]
    assert settings_of(["models.base=a", "tuned=b"]) == ["models.base=a", "models.tuned=b"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a=x", "b=y", "b=x"], "b=x: there is a model called b already, y; give each model a name of its own: first=y second=x"),
        (["a=x", "models.a=y"], "models.a=y: there is a model called a already, x; give"),
        (["a=x", "a=y", "tasks=mmlu"], "a=y: there is a model called a already, x; give"),
        (["x", "y", "tasks=mmlu"], "y: a model without a name is called model, and there is a model called model already, x; give"),
        (["model=x", "y", "tasks=mmlu"], "first=x second=y"),
        (["a=x", "b=y", "limit=3"], "limit=3: limit is a setting of benchmarks and needs tasks="),
        (["a=x", "b=y", "mmlu.shots=0"], "mmlu.shots=0: mmlu is a setting of benchmarks and needs tasks="),
        (["a=x", "tasks=quick", "reward_model=y"], "reward_model is a setting of a comparison, which has no tasks="),
        (["a=x", "tasks=quick", "prompts=y"], "prompts is a setting of a comparison, which has no tasks="),
        (["a=x", "tasks=quick", "more_judges.b=y"], "more_judges is a setting of a comparison, which has no tasks="),
        (["a=x", "tasks=quick", "judge=length"], "judge must be one of function, model, endpoint, not"),
        (["tasks=quick"], "tasks=quick: of which model? truing eval NAME=MODEL tasks=quick"),
        (["tasks=quick", "limit=3"], "tasks=quick: of which model? truing eval NAME=MODEL tasks=quick"),
    ],
)
def test_no_word_of_the_command_line_is_lost_or_taken_for_something_else(verb, arguments: list[str], expected: str):
    code, said, error = verb(*arguments)
    assert (code, said, error.count("error: ")) == (2, "", 1), error
    assert expected in error
    assert "needs a value" not in error


@pytest.mark.parametrize("half", [[], ["tasks=quick"]])
@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("refrence", "reference"), ("promts", "prompts"), ("reward_modle", "reward_model"), ("jugde", "judge"),
        ("dtaa", "data"), ("limmit", "limit"), ("anwsers.max_tokens", "answers"),
    ],
)  # fmt: skip
def test_a_misspelt_setting_is_no_model_though_its_value_is_a_path(verb, tmp_path: Path, half: list[str], wrong: str, meant: str):
    code, _, error = verb("base=x", "tuned=y", f"{wrong}={tmp_path}", *half)
    assert code == 2
    named = wrong.split(".")[0]
    assert f"{wrong}={tmp_path}: there is no setting {named}; did you mean {meant}? A model may not be called so" in error


def test_settings_that_nothing_takes_up_are_refused(verb, tmp_path: Path):
    old, new = (written(tmp_path / f"{name}.jsonl", [text] * 40) for name, text in (("old", "one"), ("new", "one two")))
    judge = ["judge=length", "judge.unit=words"]
    for more in ([f"reference={old}"], ["reward_model=nowhere"], ["category=subset"]):
        code, said, error = verb(f"old={old}", f"new={new}", asked(tmp_path), *judge, *more, f"out={tmp_path / 'out'}")
        assert (code, said) == (2, "")
        assert f"{more[0].partition('=')[0]}: " in error
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_with_the_words_is_said_at_once(verb):
    _, _, error = verb("base=x", "base=y", "refrence=z", "limit=3")
    assert re.findall(r"command line: (\S+):", error) == ["base=y", "refrence=z", "limit=3"]


def test_the_help_says_where_the_settings_are_and_they_are_there(capsys, monkeypatch):
    for half in ("eval", "tasks"):
        monkeypatch.setattr(sys, "argv", ["truing", "recipes", "show", half])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        shown = re.findall(r"^(\S+)  \(", capsys.readouterr().out, re.MULTILINE)
        assert {"models", "out"} <= set(shown)
        assert ("limit" in shown, "reference" in shown) == (half == "tasks", half == "eval")
    command = "import sys; sys.argv = ['truing', 'eval', '--help']\ntry: import truing.cli; truing.cli.main()\nfinally: "
    done = subprocess.run(
        [sys.executable, "-c", command + "assert 'torch' not in sys.modules"], capture_output=True, text=True, check=True
    )
    said = " ".join(done.stdout.split())
    assert "`truing recipes show eval` lists every setting of a comparison, `truing recipes show tasks` those of" in said


def test_for_programs_the_progress_is_lines_of_json_and_then_comes_the_result_as_it_is_kept(verb, tmp_path: Path):
    old, new = (written(tmp_path / f"{name}.jsonl", [text] * 40) for name, text in (("old", "one"), ("new", "one two")))
    out = tmp_path / "out"
    command = [f"old={old}", f"new={new}", asked(tmp_path), "judge=length", "judge.unit=words", f"out={out}", "--json"]
    code, said, error = verb(*command)
    assert code == 0, error
    kept = (out / "comparison.json").read_text()
    assert said.endswith(kept)
    assert all(isinstance(json.loads(line), dict) for line in said.removesuffix(kept).splitlines())


class Tags(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "onload", "onerror")]


def contender(name: str, texts: list[str], scores: list[float], keys: list[str] | None = None) -> Contender:
    setting = Setting(
        task="answers", model=name, weights="", data="", data_sha256="", template="", decoding={}, options={}, seeds={}, code={}
    )  # fmt: skip
    keys = keys or [str(i) for i in range(len(texts))]
    rows = [{"key": key, "answer": text, "finished": True} for key, text in zip(keys, texts, strict=True)]
    scored = [{"key": key, "score": score} for key, score in zip(keys, scores, strict=True)]
    return Contender(
        answers=Evaluation(setting=setting, rows=tuple(rows), figures={}),
        scores=Evaluation(setting=setting, rows=tuple(scored), figures={}),
    )


def test_the_page_escapes_every_text_and_fetches_nothing():
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    texts = [f"{evil} {i}" for i in range(8)]
    found = compare(
        {evil: contender(evil, texts, [0.0] * 8), "b": contender("b", texts[::-1], [float(i) for i in range(8)])},
        {str(i): f"{evil} prompt {i}" for i in range(8)},
        judge=evil,
        seed=0,
        draws=100,
    )
    text = page(found)
    parser = Tags()
    parser.feed(text)
    assert not {"script", "img", "iframe", "link", "object", "embed"} & set(parser.tags)
    assert parser.links == []
    assert parser.tags.count("svg") == 2
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in text
    assert "&lt;script&gt;" in text


def test_models_on_other_prompts_are_not_compared():
    one = contender("a", ["x", "y"], [0.0, 1.0])
    other = contender("b", ["x", "y"], [0.0, 1.0], keys=["0", "7"])
    with pytest.raises(ValueError, match="b has no answer to '1', which a has"):
        compare({"a": one, "b": other}, {}, judge="", seed=0)
    with pytest.raises(ValueError, match=r"row 1 \('0'\): score is not finite"):
        contender("c", ["x"], [float("nan")])


def test_one_may_look_while_verdicts_come_in_and_empty_answers_are_named():
    texts = [f"a {i}" for i in range(30)]
    found = compare(
        {"base": contender("base", ["", *texts[1:]], [0.0] * 30), "tuned": contender("tuned", texts, [1.0] * 30)},
        {str(i): f"prompt {i}" for i in range(30)},
        judge="the score",
        seed=0,
    )
    sequence = confidence_sequence([1.0] * 30)
    seen = found["against"]["tuned"]["at_any_time"]
    assert seen == {"low": sequence.low[-1], "high": sequence.high[-1], "decided": sequence.decided()}
    assert seen["low"] > 0.5
    said = text(found, Path("page.html"))
    row = rf"win rate, at any time of looking +\[{100 * seen['low']:.1f}, 100\.0\], told after {seen['decided']}\n"
    assert re.search(row, said)
    assert "1 of 30 answers of base are empty and judged as they stand, such as that to 'prompt 0'." in said


def test_few_losses_are_said_to_lean_on_the_prior():
    won = {"a": 10, "b": 9, "c": 0}
    models = {
        name: contender(name, [f"{name} {i}" for i in range(10)], [float(i < n) for i in range(10)]) for name, n in won.items()
    }
    found = compare(models, {str(i): f"prompt {i}" for i in range(10)}, judge="the score", seed=0)
    assert "prior holds its rating finite" in text(found, Path("page.html"))


def test_order_of_rows_does_not_matter():
    texts, scores = [f"answer {i}" for i in range(12)], [float(i % 5) for i in range(12)]
    keys = [str(i) for i in range(12)]
    base = contender("a", texts, [2.0] * 12)
    prompts = dict.fromkeys(keys, "?")
    one = compare({"a": base, "b": contender("b", texts, scores)}, prompts, judge="", seed=0, draws=100)
    two = compare({"a": base, "b": contender("b", texts[::-1], scores[::-1], keys[::-1])}, prompts, judge="", seed=0, draws=100)
    assert one["against"] == two["against"]
    assert one["against"]["b"]["win_rate"]["value"] == sum((s > 2) + 0.5 * (s == 2) for s in scores) / 12


def test_the_stage_that_align_leaves_is_what_its_folder_stands_for(runs: Path):
    assert recipe.stage_of(str(runs)) == str(runs / "preference")
    assert recipe.stage_of(str(runs / "sft")) == str(runs / "sft")


def test_ppo_from_the_learned_reward_stands_next_to_dpo_in_one_table(runs: Path):
    result = json.loads((runs / "result.json").read_text())
    assert result["models"].keys() == {"base", "sft", "tuned", "ppo"}
    assert result["against"]["name"] == "tuned"
    table = (runs / "report.txt").read_text()
    assert re.search(r"^held-out rows +base +after SFT +after DPO +after PPO$", table, re.MULTILINE)
    config = json.loads((runs / "ppo" / "config.json").read_text())
    assert config["reward"]["learned"]["run"] == str(runs / "reward_model")
    assert config["model"] == str(runs / "sft")
    rounds = [dict(row) for row in read_rows(runs / "ppo" / "metrics.jsonl")]
    assert [row["prompts"] for row in rounds] == [8.0] * (len(rounds) - 1) + [rounds[-1]["prompts"]]
    assert rounds[0]["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert rounds[0]["kl"] == pytest.approx(0, abs=1e-4)


def test_a_damaged_record_is_named(verb, runs: Path, tiny_model_folder: Path, tmp_path: Path):
    verb(*quick(tiny_model_folder, runs, tmp_path))
    (record, *_) = sorted((tmp_path / "kept").glob("answers-*/evaluation.json"))
    raw = json.loads(record.read_text())
    raw["rows"].append(raw["rows"][0])
    record.write_text(json.dumps(raw))
    code, _, error = verb(*quick(tiny_model_folder, runs, tmp_path))
    assert code == 2
    assert f"{record}: " in error
    assert "same key" in error
    shutil.rmtree(record.parent)
    assert verb(*quick(tiny_model_folder, runs, tmp_path))[0] == 0


def test_trap_07_the_judge_reads_the_very_tokens_and_a_cut_answer_gets_no_end(tiny_tokenizer):
    chat = ChatTokenizer.of(tiny_tokenizer)
    item = answers_module.Item(key="1", prompt=(Message(role="user", content="Is the kettle on?"),), tags={})
    whole = {"answer": "Yes", "tokens": [90, 91], "finished": True}
    kept = answers_module.read_by_judge(item, whole, chat, same=True)
    assert kept.branches[0].tokens == (90, 91)
    assert kept.trunk == chat.prompt_tokens(item.prompt)
    again = answers_module.read_by_judge(item, whole, chat, same=False).branches[0].tokens
    cut = answers_module.read_by_judge(item, {**whole, "finished": False}, chat, same=False).branches[0].tokens
    assert again == (*cut, chat.end_id)
