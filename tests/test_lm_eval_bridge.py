"""The bridge to lm-eval, on a small stand-in of its interface (0.4.13): its requests, its results, and what is kept of them."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from conftest import make_tiny_llama
from test_tasks_choice import silent
from truing.cli import app
from truing.data.tree import Tree
from truing.evals.tasks.evaluate import Manner, Model
from truing.evals.tasks.lm_eval_bridge import Bridge, bridged, decoding_of, read, windows

CPU = torch.device("cpu")


class LM:
    """As lm_eval.api.model.LM: without a subclass of it `simple_evaluate` refuses."""

    rank, world_size = 0, 1


@dataclass
class Instance:
    args: tuple[Any, ...]


ASKED: list[Any] = []
"""What the stand-in was given, for the tests to look at."""


def simple_evaluate(*, model: Any, tasks: Sequence[str], limit: int | None, log_samples: bool, **more: Any) -> Mapping[str, Any]:
    """Two questions of two choices, one continuation alone, one text, two prompts; results in the form of the real one."""
    assert isinstance(model, LM)
    ASKED.append((tasks, limit, more))
    pairs = [("The kettle is", " on"), ("The kettle is", " off"), ("Is it?", " yes"), ("Is it?", " no"), ("", "The kettle")]
    said = model.loglikelihood([Instance(args=pair) for pair in pairs])
    (text,) = model.loglikelihood_rolling([Instance(args=("The kettle is on. " * 60,))])
    options = {"until": ["\n"], "max_gen_toks": 4}
    words = model.generate_until([Instance(args=("Say:", options)), Instance(args=("Say again:", {**options, "max_gen_toks": 2}))])
    right = [float(said[0][0] > said[1][0]), float(said[2][0] > said[3][0])]
    shared = {"filter": "none", "metrics": ["acc"], "arguments": [1, 2], "resps": [1, 2], "doc_hash": "ab"}
    (name,) = tasks
    return {
        "results": {
            name: {
                "alias": name,
                "acc,none": sum(right) / 2,
                "acc_stderr,none": 0.1,
                "exact_match,none": 0.0,
                "word_perplexity,none": math.exp(-text / 240),
                "word_perplexity_stderr,none": "N/A",
                "f1,none": 0.5,
                "f1_stderr,none": 0.1,
            }
        },
        "samples": {name: [{"doc_id": i, "acc": value, **shared} for i, value in enumerate(right)]},
        "said": (said, text, words),
    }


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package, api, models, tasks = (ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.tasks"))
    package.simple_evaluate, package.__version__ = simple_evaluate, "0.4.13"  # type: ignore[attr-defined]
    models.LM, tasks.TaskManager = LM, lambda include_path: f"tasks of {include_path}"  # type: ignore[attr-defined]
    for module in (package, api, models, tasks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    ASKED.clear()
    yield
    ASKED.clear()


def tiny(folder: Path) -> Model:
    return Model(name="tiny", path=folder, dtype=torch.float32, device=CPU)


def asked(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> Any:
    return bridged("own", tiny(folder), Manner(limit=2), Bridge(), out, bar=silent)


def by_hand(model: Model, context: str, continuation: str) -> float:
    """One forward pass over context and continuation."""
    tokenizer = model.chat.tokenizer
    trunk = tokenizer(context)["input_ids"] if context else [tokenizer.bos_token_id or tokenizer.eos_token_id]
    whole = tokenizer(context + continuation)["input_ids"] if context else [*trunk, *tokenizer(continuation)["input_ids"]]
    with torch.no_grad():
        logs = make_tiny_llama()(torch.tensor([whole])).logits[0].log_softmax(-1)
    return float(sum(logs[i - 1, whole[i]] for i in range(len(trunk), len(whole))))


def test_what_lm_eval_asks_is_answered_by_trees_and_sampler(stand_in: None, tmp_path: Path, tiny_model_folder: Path) -> None:
    found = asked(tiny_model_folder, tmp_path)
    model = tiny(tiny_model_folder)
    (home,) = tmp_path.iterdir()
    kept = {name: [json.loads(line)["value"] for line in (home / name).read_text().splitlines()] for name in KEPT}
    values = [value for group in kept["alternatives.jsonl"] for value in group["log_probs"]]
    for value, pair in zip(values[:4], [("The kettle is", " on"), ("The kettle is", " off"), ("Is it?", " yes")], strict=False):
        assert value == pytest.approx(by_hand(model, *pair), abs=1e-4)
    assert [group["greedy"] for group in kept["alternatives.jsonl"]][:2] == [False, False]
    assert len(kept["answers.jsonl"]) == 2
    assert math.isfinite(kept["texts.jsonl"][0])
    assert ASKED[0][0] == ["own"]
    assert ASKED[0][1] == 2
    assert {row["key"] for row in found.evaluation.rows} == {"own/0", "own/1"}


KEPT = ("alternatives.jsonl", "texts.jsonl", "answers.jsonl")


def test_figures_have_their_own_intervals_or_lm_evals_and_say_which(
    stand_in: None, tmp_path: Path, tiny_model_folder: Path
) -> None:
    figures = asked(tiny_model_folder, tmp_path).evaluation.figures
    assert figures["acc"].method == "Wilson score interval, 95%"
    assert figures["acc"].n == 2
    assert (figures["f1"].low, figures["f1"].high) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=1e-4)
    assert figures["f1"].method == "lm-eval's standard error, normal, 95%"
    assert not figures["word_perplexity"].known
    assert "exact_match" not in figures


def test_a_finished_task_is_found_again_and_a_stopped_one_asks_the_model_nothing_twice(
    stand_in: None, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked(tiny_model_folder, tmp_path)
    assert asked(tiny_model_folder, tmp_path).evaluation == first.evaluation
    assert len(ASKED) == 1
    (home,) = tmp_path.iterdir()
    (home / "evaluation.json").unlink()
    for name in ("log_likelihoods", "sample", "per_tree"):
        monkeypatch.setattr(f"truing.evals.tasks.lm_eval_bridge.{name}", None)
    assert asked(tiny_model_folder, tmp_path).evaluation == first.evaluation


def test_the_verb_takes_tasks_of_lm_eval_beside_its_own(stand_in: None, tmp_path: Path, tiny_model_folder: Path) -> None:
    models = [f"base={tiny_model_folder}", f"tuned={tiny_model_folder}"]
    command = ["eval", *models, "tasks=lm_eval:own,feedback", "limit=2", f"out={tmp_path}", "dtype=fp32", "lm_eval.shots=3"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "lm_eval:own: acc" in done.stdout
    assert "tuned against base, lm_eval:own: no difference can be told" in done.stdout
    assert ASKED[0][2]["num_fewshot"] == 3
    with pytest.raises(ValueError, match="bridged tasks are asked in plain style"):
        CliRunner().invoke(app, [*command, "style=chat"], catch_exceptions=False)


def test_without_lm_eval_the_extra_is_named_before_anything_is_computed(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'truing\[lm-eval\]'"):
        CliRunner().invoke(
            app, ["eval", str(tiny_model_folder), "tasks=feedback,lm_eval:own", f"out={tmp_path}"], catch_exceptions=False
        )
    assert not list(tmp_path.iterdir())


def test_windows_score_every_token_once_with_a_full_context() -> None:
    """The example of lm-eval's documentation: ten tokens, four at a time."""
    parts: list[Tree] = list(windows((99,), tuple(range(10)), 4))
    assert [(tree.trunk, tree.branches[0].tokens) for tree in parts] == [
        ((99,), (0, 1, 2, 3)),
        ((3,), (4, 5, 6, 7)),
        ((5, 6, 7), (8, 9)),
    ]


def test_decoding_is_read_from_the_task() -> None:
    assert decoding_of({"until": "\n", "temperature": 0.0, "do_sample": False}) == (decoding_of({})[0], ("\n",))
    drawn, marks = decoding_of({"do_sample": True, "temperature": 0.7, "max_gen_toks": 9, "until": ["a", "b"]})
    assert (drawn.temperature, drawn.max_tokens, marks) == (0.7, 9, ("a", "b"))
    with pytest.raises(ValueError, match="draws with top_p or top_k"):
        decoding_of({"do_sample": True, "top_p": 0.9})


def test_groups_name_their_tasks_and_nothing_at_all_is_an_error() -> None:
    results = {"results": {"one": {"acc,none": 0.5, "acc_stderr,none": 0.1}}, "groups": {"both": {"acc,strict": 0.4}}}
    _, figures = read(results, "both", 0)
    assert set(figures) == {"one: acc", "acc, strict"}
    with pytest.raises(ValueError, match="lm-eval gave no figure that is a number"):
        read({"results": {"one": {"alias": "one"}}}, "one", 0)
