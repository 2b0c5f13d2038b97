"""What training a reward model ends in: rewards around the demonstrations' zero, an early end, a result that tells its faults."""

import json
import math
from pathlib import Path

import pytest
import torch

from samples import Truing
from trees import branch, tiny_policy
from truing.data.tree import Tree, TreeBatch
from truing.models.heads import RewardModel
from truing.recipes import reward_report
from truing.recipes.reward_folder import ZERO, complete
from truing.records import Message, Preference, Ranking
from truing.runs.read import read_rows, read_status
from truing.train.early_stop import EarlyStop

ASKED = (Message(role="user", content="?"),)


def test_a_head_starts_with_a_deviation_of_1_over_the_root_of_d_plus_1() -> None:
    heads = torch.cat([RewardModel(tiny_policy(), seed=seed, members=4).head.weight.flatten() for seed in range(8)])
    assert float(heads.std()) == pytest.approx((64 + 1) ** -0.5, rel=0.05)
    assert float(heads.mean()) == pytest.approx(0.0, abs=0.01)


def test_it_is_shifted_so_that_what_stands_first_scores_0_on_average() -> None:
    """70 prompts of three answers: of every second one the first answer's rewards, member by member, have the mean 0."""
    model = RewardModel(tiny_policy(), seed=1, members=2)
    trees = [Tree(trunk=(5, 6 + i), branches=tuple(branch([9 + i, j]) for j in range(3)), key=i) for i in range(ZERO + 6)]
    files = complete(model, trees, None)
    assert json.loads(files["reward_model.json"])["members"] == 2
    with torch.no_grad():
        scores = model.member_scores(TreeBatch.of(trees[::2]))[:, ::3]
    assert scores.mean(1).tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_training_ends_when_the_figure_has_not_risen_and_the_best_weights_come_back() -> None:
    """0.5, 0.6, 0.6, 0.55 with a patience of 2: over, with the weights of the second evaluation, the first of the equals."""

    def made() -> tuple[dict[str, torch.Tensor], EarlyStop]:
        trained = {"a": torch.zeros(2)}
        return trained, EarlyStop(trained, 2)

    trained, stop = made()
    for step, accuracy in enumerate((0.5, 0.6, 0.6), 1):
        trained["a"].fill_(step)
        stop.observe(step, {"held_out_accuracy": accuracy})
        stop.observe(step, {"loss": 0.1})
    assert (stop.over, stop.waited) == (False, 1)
    again, other = made()
    other.load_state(
        {name: tensor.clone() for name, tensor in stop.state_tensors().items()}, json.loads(json.dumps(stop.state_dict()))
    )
    for one, weights in ((stop, trained), (other, again)):
        weights["a"].fill_(4.0)
        one.observe(4, {"held_out_accuracy": 0.55})
        assert (one.over, one.best, one.best_step) == (True, 0.6, 2)
        one.take_best()
        assert weights["a"].tolist() == [2.0, 2.0]
    empty, before = made()
    before.take_best()
    assert empty["a"].tolist() == [0.0, 0.0]
    assert not before.over


def test_the_report_by_hand() -> None:
    """Four pairs, three right; longer answers get higher rewards throughout, so the one whose better answer is shorter is wrong."""
    said = [("long answer", "no"), ("longer answer", "no"), ("no", "long answer"), ("the longest answer", "well")]
    records = [
        *(Preference(prompt=ASKED, chosen=a, rejected=b, tags={"kind": "manner"}) for a, b in said[:3]),
        Ranking(prompt=ASKED, responses=said[3]),
    ]
    trees = [Tree(trunk=(1,), branches=(branch(range(len(a))), branch(range(len(b)))), key=i) for i, (a, b) in enumerate(said)]
    scores = [[len(a) / 10, len(b) / 10] for a, b in said]
    found = reward_report.report(trees, scores, records, seed=0)
    assert {name: one["value"] for name, one in found["accuracy"].items()} == {"all": 0.75, "manner": pytest.approx(2 / 3)}
    assert found["correlation_reward_length"]["value"] == pytest.approx(1.0)
    assert (found["accuracy_where_better_is_longer"]["value"], found["accuracy_where_better_is_shorter"]["value"]) == (1.0, 0.0)
    assert found["ties"] == 0
    assert 0 < found["ece"] < 1
    assert sum(one["n"] for one in found["reliability"]) == 8, "each pair from both sides"
    told = "\n".join(reward_report.lines(found))
    assert "correlation of reward with length 1.00" in told
    assert "accuracy where the better answer is the shorter: 0.00" in told
    json.dumps(found, allow_nan=False)


def test_a_model_that_says_the_same_of_everything_has_a_report_too() -> None:
    records = [Preference(prompt=ASKED, chosen="a b", rejected="c")] * 3
    trees = [Tree(trunk=(1,), branches=(branch([2, 3]), branch([4])), key=i) for i in range(3)]
    found = reward_report.report(trees, [[0.0, 0.0]] * 3, records, seed=0)
    assert found["temperature"] is None
    assert "correlation_reward_length" not in found
    assert found["nll"]["value"] == pytest.approx(math.log(2))


def test_a_run_ends_early_with_its_best_weights_and_says_so(
    truing: Truing, tiny_model_folder: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """A rate that moves nothing: the first evaluation is the best, and a patience of 2 ends training at the third."""
    run = tmp_path / "run"
    common = (f"model={tiny_model_folder}", f"data.path={pairs_file}", "dtype=fp32", "batch_size=2", "data.held_out_share=0.3")
    settings = (*common, "evaluate_every=1", "optimizer.lr=1e-30", "patience=2", f"run={run}")
    code, said, told = truing("train", "reward_model", *settings)
    assert code == 0, told
    result = json.loads((run / "result.json").read_bytes())
    assert (result["best_step"], result["ended_at"]) == (1, 3)
    assert read_status(run).state == "finished"
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [0, 1, 2, 3]
    assert "weights of step 1, of 3 that were trained" in said
    assert "calibration error" in said
    assert {"ece", "reliability", "accuracy", "brier"} <= result["reward_model"].keys()
    (run / "result.json").unlink()
    code, _, told = truing("train", "reward_model", *settings)
    assert code == 0, told
    assert json.loads((run / "result.json").read_bytes()) == result, "ended stays ended"
    code, _, told = truing("train", "reward_model", *common, "evaluate_every=0", "patience=1", f"run={tmp_path / 'other'}")
    assert code != 0
    assert "evaluate_every=0 makes none" in told
