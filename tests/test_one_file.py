"""The one-file scripts themselves: numbers worked by hand, invariances, and that each runs from its command line.

That the package computes the same numbers is tested beside the package's own parts.
"""

import csv
import importlib.util
import json
import math
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[1] / "examples/one_file"
LN2 = math.log(2)
BOS, EOS = 0, 1

PAIRS = [
    ([0, 17, 40], [[41, 42, 43, 1], [44, 1]]),
    ([0, 9], [[10, 1], [11, 12, 13, 14, 15, 16, 1]]),
    ([0, 50, 51, 52, 53, 54], [[20, 21, 1], [22, 23, 1]]),
    ([0, 7, 8], [[30, 1], [31, 1]]),
]
DEMONSTRATIONS = [(context, answers[:1]) for context, answers in PAIRS]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"one_file_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sft, reward_model, dpo, kto = script("sft"), script("reward_model"), script("dpo"), script("kto")


def tiny(seed: int = 0, **changes: float) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, bos_token_id=BOS, eos_token_id=EOS, **shape, **changes))


def tiny_reward(seed: int = 0) -> nn.Module:
    return reward_model.RewardModel(tiny(seed))


def byte_tokenizer(template: bool) -> PreTrainedTokenizerFast:
    """One token per byte; <s> is 0 and </s>, which also pads, is 1."""
    vocabulary = {"<s>": BOS, "</s>": EOS} | {byte: i + 2 for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    if template:
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
    return tokenizer


class Bigram(nn.Module):
    """Log-probs known by hand: the next token depends on the last one alone."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


BIGRAM = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.125, 0.125, 0.75]]
# from the context [0]: good answer 1, 2 has 0.25 * 0.25 = 2^-4 in 2 tokens; bad answer 0 has 0.5 = 2^-1 in 1 token
HAND = [([0], [[1, 2], [0]])]


class LastToken(nn.Module):
    """The hidden state of a token is its id, so that a score says which token it was read from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.weight * input_ids[..., None].float())


def scorer(weight: float = 1.0, bias: float = 0.0) -> nn.Module:
    model = reward_model.RewardModel(SimpleNamespace(base_model=LastToken(), config=SimpleNamespace(hidden_size=1)))
    nn.init.constant_(model.head.weight, weight)
    nn.init.constant_(model.head.bias, bias)
    return model


# text to tokens


@pytest.mark.parametrize("module", [sft, dpo, reward_model])
@pytest.mark.parametrize("template", [True, False])
def test_trap_02_at_most_one_bos(module: ModuleType, template: bool) -> None:
    tokenizer = byte_tokenizer(template)
    context, answers = module.encode(tokenizer, {"prompt": "hi", "chosen": "yes", "rejected": "no"})
    assert tokenizer.decode(context) == ("<s>user: hi\nassistant: " if template else "hi")
    assert [tokenizer.decode(answer) for answer in answers] == ["yes</s>", "no</s>"][: len(answers)]
    assert len(answers) == (1 if module is sft else 2)


@pytest.mark.parametrize("module", [sft, dpo, reward_model])
def test_trap_03_end_token_counts_and_masks_come_from_lengths(module: ModuleType) -> None:
    """The padding id 0 stands at the start of every context too: a mask made from ids would hide it."""
    ids, mask, *scored = module.pad([([0, 5], [[6, 1]]), ([0], [[1]])])
    assert ids.tolist() == [[0, 5, 6, 1], [0, 1, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    expected = [[False, False, True, True], [False, True, False, False]]
    assert [x.tolist() for x in scored] == ([] if module is reward_model else [expected])


def test_answer_logps_are_those_of_an_unpadded_forward() -> None:
    model = tiny()
    logps, lengths = dpo.answer_logps(model, PAIRS)
    for i, (context, answers) in enumerate(PAIRS):
        for side, answer in enumerate(answers):
            table = model(torch.tensor([[*context, *answer]])).logits[0].log_softmax(-1)
            alone = sum(table[len(context) + t - 1, token] for t, token in enumerate(answer))
            assert logps[i, side].item() == pytest.approx(alone.item(), abs=1e-5)
            assert lengths[i, side] == len(answer)


@pytest.mark.parametrize("module", [sft, dpo, reward_model])
@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("empty.csv", "prompt,good_answer,bad_answer\nhi,yes,no\nhi,,no\n", 2),
        ("columns.csv", "prompt,good,bad\nhi,yes,no\n", 1),
        ("list.jsonl", '{"prompt": "hi", "chosen": ["yes"], "rejected": "no"}\n', 1),
    ],
)
def test_trap_06_an_empty_answer_is_an_error_with_its_row(
    module: ModuleType, name: str, text: str, row: int, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}, row {row}: no text for chosen"):
        module.read_rows(str(tmp_path / name))


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufeffprompt,good_answer,bad_answer\r\nhi,"yes,\nall of it",no\r\n', encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "hi", "chosen": "yes,\nall of it", "rejected": "no"}) + "\n\n")
    expected = [{"prompt": "hi", "chosen": "yes,\nall of it", "rejected": "no"}]
    assert dpo.read_rows(str(tmp_path / "a.csv")) == dpo.read_rows(str(tmp_path / "a.jsonl")) == expected
    assert sft.read_rows(str(tmp_path / "a.csv")) == [{"prompt": "hi", "chosen": "yes,\nall of it"}]


# losses by hand


def test_sft_by_hand() -> None:
    """One row of 2 tokens with 2^-2 each and one of 1 token with 2^-1: 5 ln 2 over 3 tokens, not the mean of 2 ln 2 and ln 2."""
    batch = [([0], [[1, 2]]), ([0], [[0]])]
    assert sft.loss_of(Bigram(BIGRAM), batch).item() == pytest.approx(5 / 3 * LN2, abs=1e-6)


def test_sft_of_a_model_that_knows_nothing_is_ln_vocabulary() -> None:
    model = tiny()
    nn.init.zeros_(model.lm_head.weight)
    assert sft.loss_of(model, DEMONSTRATIONS).item() == pytest.approx(math.log(300), abs=1e-5)


def test_answer_logps_by_hand() -> None:
    logps, lengths = dpo.answer_logps(Bigram(BIGRAM), HAND)
    assert logps.tolist() == [pytest.approx([-4 * LN2, -LN2], abs=1e-6)]
    assert lengths.tolist() == [[2, 1]]


def test_pair_losses_by_hand() -> None:
    """policy -3, -6 and reference -5, -4: log-ratios 2 and -2, h = 4, beta h = 2; per token 2/4 - -2/2 = 1.5, target 1."""
    policy, reference, lengths = torch.tensor([[-3.0, -6.0]]), torch.tensor([[-5.0, -4.0]]), torch.tensor([[4, 2]])

    def value(loss: str) -> float:
        return dpo.pair_losses(policy, reference, lengths, loss=loss, beta=0.5, label_smoothing=0.25).item()

    assert value("dpo") == pytest.approx(0.126928, abs=1e-6)  # ln(1 + e^-2)
    assert value("cdpo") == pytest.approx(0.75 * 0.126928 + 0.25 * 2.126928, abs=1e-6)
    assert value("ipo") == pytest.approx(0.25, abs=1e-6)
    with pytest.raises(ValueError, match="none of dpo, cdpo, ipo"):
        value("dop")


def test_dpo_numbers_by_hand() -> None:
    """Against a reference that gives every token 1/4: log-ratios 0 (2^-4 both) and ln 2, so with beta 0.1 a margin of -0.1 ln 2."""
    reference = Bigram([[0.25, 0.25, 0.25, 0.25]] * 3)
    loss, numbers = dpo.loss_of(Bigram(BIGRAM), reference, HAND, beta=0.1)
    assert loss.item() == pytest.approx(math.log(1 + 2**0.1), abs=1e-6)
    expected = {"accuracy": 0.0, "margin": -0.1 * LN2, "reward_chosen": 0.0, "reward_rejected": 0.1 * LN2}
    expected |= {"logp_chosen": -4 * LN2, "logp_rejected": -LN2, "length_chosen": 2.0, "length_rejected": 1.0}
    assert numbers == pytest.approx(expected, abs=1e-6)


def test_reward_loss_by_hand() -> None:
    """Scores are 0.5 times the last id: 4 against 2, ln(1 + e^-2); with the margin 2 the two are even."""
    batch = [([9], [[7, 8], [4]])]
    loss, numbers = reward_model.loss_of(scorer(0.5, bias=3.0), batch)
    assert loss.item() == pytest.approx(0.126928, abs=1e-6)
    assert numbers == pytest.approx({"accuracy": 1.0, "margin": 2.0, "reward_chosen": 7.0, "reward_rejected": 5.0})
    assert reward_model.loss_of(scorer(0.5), batch, margins=[2.0])[0].item() == pytest.approx(LN2, abs=1e-6)


def test_a_ranking_is_the_mean_of_its_pairs_and_weighs_as_one() -> None:
    """Scores 3, 1, 2 best first: differences 2, 1, -1. Beside it a pair with the difference 0."""
    batch = [([9], [[3], [1], [2]]), ([9], [[5], [5]])]
    terms = [math.log(1 + math.exp(-d)) for d in (2, 1, -1)]
    loss, numbers = reward_model.loss_of(scorer(), batch)
    assert loss.item() == pytest.approx((sum(terms) / 3 + LN2) / 2, abs=1e-6)
    assert numbers["accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert numbers["margin"] == pytest.approx((2 / 3 + 0) / 2)


def test_head_starts_small_and_without_bias() -> None:
    torch.manual_seed(0)
    width = 4095
    model = reward_model.RewardModel(SimpleNamespace(base_model=LastToken(), config=SimpleNamespace(hidden_size=width)))
    assert model.head.weight.std().item() == pytest.approx(1 / 64, rel=0.05)  # 1/sqrt(4095 + 1)
    assert model.head.bias.tolist() == [0.0]


# properties


def test_trap_08_micro_batches_and_padding_change_nothing() -> None:
    model, reward, reference = tiny(0), tiny_reward(0), tiny(1)
    alone = [sft.loss_of(model, [row]).item() for row in DEMONSTRATIONS]
    tokens = [len(answers[0]) for _, answers in DEMONSTRATIONS]
    weighted = sum(a * t for a, t in zip(alone, tokens, strict=True)) / sum(tokens)
    assert sft.loss_of(model, DEMONSTRATIONS).item() == pytest.approx(weighted, abs=1e-6)
    for of in (lambda rows: reward_model.loss_of(reward, rows)[0], lambda rows: dpo.loss_of(model, reference, rows)[0]):
        assert of(PAIRS).item() == pytest.approx(sum(of([row]).item() for row in PAIRS) / 4, abs=1e-6)


@pytest.mark.parametrize(("loss", "first"), [("dpo", LN2), ("cdpo", LN2), ("ipo", 25.0)])
def test_trap_09_policy_is_reference_at_the_first_step(loss: str, first: float) -> None:
    model = tiny(attention_dropout=0.5).train()
    step = dpo.train(model, [PAIRS], lr=1e-3, total_steps=1, loss=loss, beta=0.1)[0]
    assert step["loss"] == pytest.approx(first, abs=1e-5)
    assert step["margin"] == pytest.approx(0, abs=1e-6)


def test_trap_10_the_reference_stays_as_the_policy_was() -> None:
    model, start = tiny(), tiny()
    history = dpo.train(model, [PAIRS] * 3, lr=1e-3, total_steps=3, schedule="constant")
    loss, numbers = dpo.loss_of(model, start, PAIRS)
    assert loss.item() < history[-1]["loss"] < LN2 - 1e-3
    assert numbers["margin"] > history[-1]["margin"] > 0


def test_trap_11_ipo_means_and_dpo_sums() -> None:
    once = torch.tensor([[-3.0, -6.0]]), torch.tensor([[-5.0, -4.0]]), torch.tensor([[4, 2]])
    twice = tuple(2 * x for x in once)
    ipo = [dpo.pair_losses(*x, loss="ipo", beta=0.1, label_smoothing=0.0).item() for x in (once, twice)]
    assert ipo[0] == pytest.approx(ipo[1], abs=1e-6)
    assert dpo.pair_losses(*twice, loss="dpo", beta=0.5, label_smoothing=0.0).item() == pytest.approx(
        math.log(1 + math.exp(-4)), abs=1e-6
    )


def test_dpo_gradient_at_the_start_is_half_beta_times_the_difference() -> None:
    model = tiny()
    loss, _ = dpo.loss_of(model, tiny(), PAIRS[:1], beta=0.1)
    (got,) = torch.autograd.grad(loss, model.lm_head.weight)
    logps, _ = dpo.answer_logps(model, PAIRS[:1])
    (difference,) = torch.autograd.grad(logps[0, 0] - logps[0, 1], model.lm_head.weight)
    torch.testing.assert_close(got, -0.5 * 0.1 * difference, atol=1e-7, rtol=1e-5)


def test_trap_17_score_is_read_at_the_last_real_token_whatever_the_padding() -> None:
    scores = reward_model.scores_of(scorer(), [([9], [[7, 8], [4], [2, 3, 5, 6]])])
    assert scores[0].tolist() == [8.0, 4.0, 6.0]
    model = tiny_reward()
    together = torch.cat(reward_model.scores_of(model, PAIRS))
    alone = torch.cat([reward_model.scores_of(model, [(c, [a])])[0] for c, answers in PAIRS for a in answers])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


# training


@pytest.mark.parametrize("module", [sft, dpo, reward_model, kto])
def test_learning_rate_by_hand(module: ModuleType) -> None:
    def rates(schedule: str) -> list[float]:
        return [module.lr_at(s, lr=1.0, warmup_steps=2, total_steps=6, schedule=schedule) for s in range(6)]

    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert rates("constant") == pytest.approx([0.5, 1, 1, 1, 1, 1])


def test_first_adam_step_moves_each_weight_by_the_learning_rate() -> None:
    """m/(sqrt(v) + eps) is the sign of the gradient at the first step, clipped or not."""
    model = Bigram(BIGRAM)
    before = model.table.detach().clone()
    history = sft.train(model, [[([0], [[1]])]], lr=0.01, total_steps=1, schedule="constant", max_grad_norm=0.1)
    assert history[0]["grad_norm"] == pytest.approx(math.sqrt(0.75**2 + 0.5**2 + 0.25**2), abs=1e-6)  # p - onehot, before clipping
    assert (model.table.detach() - before)[0].tolist() == pytest.approx([-0.01, 0.01, -0.01], abs=1e-6)
    assert (model.table.detach() - before)[1:].abs().sum().item() == 0


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo"])
def test_ten_steps_learn_within_five_seconds(name: str) -> None:
    module, model = script(name), tiny_reward() if name == "reward_model" else tiny()
    batch = DEMONSTRATIONS if name == "sft" else PAIRS
    start = time.perf_counter()
    history = module.train(model, [batch] * 10, lr=1e-3, warmup_steps=2, total_steps=10)
    assert time.perf_counter() - start < 5
    assert len(history) == 10
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert all(math.isfinite(value) for step in history for value in step.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(path)
    byte_tokenizer(template=True).save_pretrained(path)
    with (path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "good_answer", "bad_answer"], ["Is it on?", "Yes.", "Look."], ["2+2?", "4", "5"]])
    with (path / "feedback.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion", "label"], ["Is it on?", "Yes.", "true"], ["2+2?", "5", "False"]])
    return path


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "kto"])
def test_runs_from_the_command_line(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    data = folder / ("feedback.csv" if name == "kto" else "pairs.csv")
    arguments = ["--model", str(folder), "--data", str(data), "--steps", "2", "--batch", "2", "--device", "cpu"]
    script(name).main([*arguments, "--out", str(out)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 2
    if name == "dpo":
        assert "loss 0.6931" in lines[0]
    if name == "kto":
        assert "loss 0.5" in lines[0]
    trained = LlamaModel.from_pretrained(out)
    assert trained.embed_tokens.weight.shape == (300, 64)
    assert (out / "head.safetensors").exists() == (name == "reward_model")


def test_a_mismatched_answer_is_the_next_one_of_another_prompt() -> None:
    first, second, third = ([0, 5], [9, 1], True), ([0, 5], [8, 1], False), ([0, 6], [7, 1], True)
    assert kto.mismatched([first, second, third]) == [([0, 5], [7, 1], True), ([0, 5], [7, 1], False), ([0, 6], [9, 1], True)]
    assert kto.mismatched([first, second]) == []


def test_unpaired_aot_by_hand() -> None:
    """Sorted, 1 meets 0 and 3 meets 2: twice log(1 + exp(-0.1)); one response against two meets each for half."""
    assert kto.aot_loss(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]), 0.1).item() == pytest.approx(0.6443967, abs=1e-6)
    halves = [math.log(1 + math.exp(-0.1)), math.log(1 + math.exp(0.1))]
    assert kto.aot_loss(torch.tensor([1.0]), torch.tensor([2.0, 0.0]), 0.1).item() == pytest.approx(sum(halves) / 2, abs=1e-6)
