"""Answers are those of transformers' own greedy generation, or exact draws, whatever the batch and the prompts' lengths."""

import logging
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from conftest import make_tiny_llama
from truing.data.tree import Branch, Tree, TreeBatch
from truing.models import attention
from truing.models.load import load_causal, load_tokenizer
from truing.models.lora import LoRA, add_lora
from truing.models.policy import Policy, probe
from truing.records import Completion
from truing.rollouts import sampler
from truing.rollouts.cache import Cache, parted
from truing.rollouts.sampler import Decoding, sample

END = frozenset({2})
NEVER = frozenset({299})


def policy_of(model: PreTrainedModel) -> Policy:
    found = probe(model)
    assert found.reason_for_plain is None
    return found.policy


def peaked(seed: int = 0, **options: int) -> PreTrainedModel:
    """A tiny model whose likeliest tokens stand clear of rounding: its embedding is larger than it is made."""
    model = make_tiny_llama(seed=seed, **options)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(8)
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.mul_(4)
    return model


def prompts_of(lengths: list[int], shared: int = 0) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    start = torch.randint(3, 290, (shared,), generator=generator).tolist()
    return [(*start, *torch.randint(3, 290, (n,), generator=generator).tolist()) for n in lengths]


@torch.no_grad()
def by_transformers(model: PreTrainedModel, prompt: tuple[int, ...], max_tokens: int, stop_ids: frozenset[int]) -> Completion:
    """The oracle: one prompt alone, without padding, transformers' attention and cache."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    settings = GenerationConfig(max_new_tokens=max_tokens, do_sample=False, eos_token_id=sorted(stop_ids), pad_token_id=0)
    out = model.generate(inputs=torch.tensor([prompt]), generation_config=settings, use_cache=True)
    model.set_attn_implementation(attention)
    tokens = tuple(out[0, len(prompt) :].tolist())
    return Completion(tokens=tokens, stop="end" if tokens[-1] in stop_ids else "length")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("shared", [0, 40])
def test_greedy_answers_are_those_of_transformers(kv_heads: int, shared: int) -> None:
    """Prompts of 1 to 300 tokens together, some of them twice."""
    policy = policy_of(peaked(kv_heads=kv_heads))
    prompts = prompts_of([1, 30, 2, 7, 300, 7, 90, 5], shared=shared)
    prompts += prompts[3:5]
    expected = [by_transformers(policy.model, prompt, 12, NEVER) for prompt in prompts]
    assert len({answer.tokens for answer in expected}) >= 6
    for batch_size in (1, 3, 128):
        assert sample(policy, prompts, Decoding(max_tokens=12), stop_ids=NEVER, batch_size=batch_size) == expected


def test_rows_leave_one_by_one_and_the_others_go_on_unchanged() -> None:
    """With a sixth of the vocabulary as stop tokens, answers end at many different places; alone, no row ever moves."""
    policy, stop_ids = policy_of(make_tiny_llama(seed=1)), frozenset(range(0, 300, 6))
    prompts = prompts_of([9, 4, 30, 12, 5, 6, 7, 8, 20, 11, 13, 3])
    decoding = Decoding(max_tokens=40, temperature=1.0)
    alone = sample(policy, prompts, decoding, stop_ids=stop_ids, batch_size=1)
    assert len({len(answer.tokens) for answer in alone}) >= 5
    assert {answer.stop for answer in alone if len(answer.tokens) < 40} == {"end"}
    assert sample(policy, prompts, decoding, stop_ids=stop_ids) == alone


def test_prompts_that_wait_take_the_rows_of_those_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers as alone, in fewer passes than batch after batch, and a row is never left to one that waits in vain."""
    policy, stop_ids = policy_of(make_tiny_llama(seed=1)), frozenset(range(0, 300, 6))
    prompts = prompts_of([9, 4, 30, 12, 5, 6, 7, 8, 20, 11, 13, 3] * 3, shared=6)
    decoding = Decoding(max_tokens=40, temperature=1.0)
    alone = sample(policy, prompts, decoding, stop_ids=stop_ids, batch_size=1)
    rows: list[int] = []
    choose = sampler._choose

    def counting(logits: torch.Tensor, temperature: float, seeds: list[int]) -> tuple[list[int], list[float]]:
        rows.append(len(logits))
        return choose(logits, temperature, seeds)

    monkeypatch.setattr(sampler, "_choose", counting)
    assert sample(policy, prompts, decoding, stop_ids=stop_ids, batch_size=8) == alone
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [[len(alone[i].tokens) for i in order[at : at + 8]] for at in range(0, len(order), 8)]
    assert sum(rows) == sum(map(sum, batches)), "a pass for each token of each answer"
    assert len(rows) < 0.8 * sum(map(max, batches))
    assert max(rows) == 8
    assert sum(count <= 6 for count in rows[: -max(batches[-1])]) == 0, "rows are filled up once a quarter is free"


def test_a_long_prompt_is_read_in_pieces_and_rows_keep_to_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(peaked(seed=2))
    prompts = prompts_of([5, 61, 8, 47, 33], shared=20)
    expected = [by_transformers(policy.model, prompt, 6, NEVER) for prompt in prompts]
    for name, value in (("PIECE", 7), ("READ", 16), ("SLOTS", 150), ("WORTH_READING", 1)):
        monkeypatch.setattr(sampler, name, value)
    assert sample(policy, prompts, Decoding(max_tokens=6), stop_ids=NEVER) == expected
    # with answers 31, 34, 59, 73 and 87 tokens: 2 x 34 and 2 x 73 fit into 150, 3 x 59 and 3 x 87 do not

    def taken(waiting: list[int], going: list[int], batch_size: int) -> list[int]:
        found = deque((i, prompts[i]) for i in waiting)
        return list(sampler._next(found, [prompts[i] for i in going], 6, batch_size))

    assert taken([0, 2, 4, 3, 1], [], 128) == [0, 2]
    assert taken([4, 3, 1], [], 128) == [4, 3]
    assert taken([2, 4], [0], 128) == [2]
    assert taken([0], [1], 128) == [], "the long one that goes on has room for none beside it"
    assert taken([1], [], 128) == [1]
    assert taken([0, 2], [], 1) == [0]


def small(family: str, **settings: float) -> PreTrainedModel:
    """A random model of two layers."""
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **heads, **settings)).float().eval()


@pytest.mark.parametrize("family", ["mistral", "phimoe"])
def test_a_sliding_window_hides_what_it_hides_in_transformers(family: str) -> None:
    """Layers of the one are told of it, of the other only their mask is."""
    model = small(family, sliding_window=9)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    policy = Policy(model, layout="tree")  # unprobed: experts of a mixture round by how many tokens they get
    prompts = prompts_of([4, 25, 11])
    expected = [by_transformers(model, prompt, 15, NEVER) for prompt in prompts]
    assert sample(policy, prompts, Decoding(max_tokens=15), stop_ids=NEVER) == expected


def test_rows_attend_to_no_more_slots_than_their_group_fills_where_that_saves_enough() -> None:
    assert parted([100, 90, 40, 30, 20, 10, 9]) == [(slice(0, 2), 100), (slice(2, 4), 40), (slice(4, 6), 20), (slice(6, 8), 9)]
    assert parted([120, 119, 118, 117]) == [(slice(None), 120)]
    assert parted([50]) == [(slice(None), 50)]


def test_longer_rows_come_first_when_prompts_join() -> None:
    """So that neighbours are alike: rows of 1 to 60 tokens, of which some end early, and others that join."""
    policy = policy_of(peaked())
    prompts = prompts_of([1, 30, 2, 7, 60, 9, 40, 5, 3, 20, 50, 4])
    calls: list[list[int]] = []
    actual = Cache.grow

    def grow(store: Cache, first: int, counts: Sequence[int]) -> Any:
        if first and calls:
            calls.append(list(store.lengths[:first]))
        calls.append([])
        return actual(store, first, counts)

    stops = frozenset(range(3, 300, 8))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Cache, "grow", grow)
        found = sample(policy, prompts, Decoding(max_tokens=12), stop_ids=stops, batch_size=4)
    assert found == [by_transformers(policy.model, prompt, 12, stops) for prompt in prompts]
    joined = [lengths for lengths in calls if len(lengths) > 1]
    assert joined
    assert all(lengths == sorted(lengths, reverse=True) for lengths in joined)


def test_capped_scores_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's scores, of every row at once and of one after the other; one prompt is longer than the window."""
    model = small("gemma2", sliding_window=9, head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=2.0)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    policy, prompts = policy_of(model), prompts_of([4, 25, 11, 1])
    expected = [by_transformers(model, prompt, 12, NEVER) for prompt in prompts]
    assert len({answer.tokens for answer in expected}) == 4
    for scores in (1 << 19, 1):
        monkeypatch.setattr("truing.rollouts.cache.SCORES", scores)
        assert sample(policy, prompts, Decoding(max_tokens=12), stop_ids=NEVER) == expected


def test_no_answer_may_pass_the_length_at_which_rope_changes() -> None:
    policy = policy_of(peaked())
    policy.reach = 40
    (prompt,) = prompts_of([30])
    sample(policy, [prompt], Decoding(max_tokens=10), stop_ids=NEVER)
    with pytest.raises(ValueError, match=r"41 tokens of prompt and response: past 40 .* lower max_tokens"):
        sample(policy, [prompt], Decoding(max_tokens=11), stop_ids=NEVER)


def test_stop_reasons_and_limits() -> None:
    """`end` only when a stop token was sampled in time: as the very first one, as the last one allowed, or not."""
    policy = policy_of(peaked(seed=3))
    (prompt,) = prompts_of([6])
    tokens = by_transformers(policy.model, prompt, 5, NEVER).tokens
    fresh = next(place for place in range(4, 0, -1) if tokens[place] not in tokens[:place])

    def ask(stop: int, most: int) -> Completion:
        (said,) = sample(policy, [prompt], Decoding(max_tokens=most), stop_ids=frozenset({stop}))
        return said

    assert ask(tokens[0], 5) == Completion(tokens=tokens[:1], stop="end")
    assert ask(tokens[0], 1) == Completion(tokens=tokens[:1], stop="end")
    assert ask(299, 1) == Completion(tokens=tokens[:1], stop="length")
    assert ask(tokens[fresh], fresh + 1) == Completion(tokens=tokens[: fresh + 1], stop="end")
    assert ask(tokens[fresh], fresh) == Completion(tokens=tokens[:fresh], stop="length")
    assert sample(policy, [], Decoding(), stop_ids=END) == []
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sample(policy, [prompt, ()], Decoding(), stop_ids=END)


def test_draws_depend_on_seed_and_place_alone() -> None:
    policy = policy_of(make_tiny_llama())
    prompts = prompts_of([3, 9, 5, 5, 14, 2, 7])

    def draw(**options: int) -> list[Completion]:
        return sample(policy, prompts, Decoding(max_tokens=10, temperature=1.0), stop_ids=END, **options)

    before = torch.get_rng_state()
    first = draw(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert draw(seed=1) == draw(seed=1, batch_size=1) == draw(seed=1, batch_size=3) == first
    assert draw(seed=2) != first
    twice = sample(policy, [prompts[0]] * 2, Decoding(max_tokens=10, temperature=1.0), stop_ids=END)
    assert twice[0] != twice[1]


def test_every_token_of_the_tail_can_be_drawn() -> None:
    """One likely token and a million of 1e-9 each: the number says which, to the token."""
    logits = torch.full((3, 1_000_001), -20.723)
    logits[:, 0] = 0.0
    before, each = logits.clone(), float(torch.tensor(-20.723).exp())
    numbers = (0.9992, 0.9995, 0.9998)
    chosen, log_probs = sampler._choose(logits, 1.0, [int(number * 2**63) for number in numbers])
    assert log_probs == pytest.approx([-20.723 - math.log(1 + 1_000_000 * each)] * 3, abs=1e-5)
    expected = [1 + int((number * (1 + 1_000_000 * each) - 1) / each) for number in numbers]
    assert min(expected) > 100_000
    assert max(abs(a - b) for a, b in zip(chosen, expected, strict=True)) <= 1
    assert torch.equal(logits, before)


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        sampler._choose(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), 0.0, [0, 0])


def test_progress_counts_every_answer() -> None:
    seen: list[tuple[int, int]] = []
    sample(
        policy_of(make_tiny_llama()),
        prompts_of([3, 4, 5]),
        Decoding(max_tokens=2),
        stop_ids=END,
        batch_size=2,
        progress=lambda done, all_of_them: seen.append((done, all_of_them)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trap_19_a_rollout_leaves_the_weights_dtype_alone(dtype: torch.dtype) -> None:
    """And the attention and the decoding settings, also when it is broken off."""
    model = make_tiny_llama().to(dtype)
    add_lora(model, LoRA(rank=4), seed=0)
    policy = policy_of(model)
    attention, settings = model.config._attn_implementation, model.generation_config
    before = {name: (p.dtype, p.requires_grad, p.detach().clone()) for name, p in policy.named_parameters()}

    def stop(done: int, _all: int) -> None:
        raise KeyboardInterrupt(done)

    sample(policy, prompts_of([3, 4]), Decoding(max_tokens=3, temperature=1.0), stop_ids=NEVER)
    with pytest.raises(KeyboardInterrupt):
        sample(policy, prompts_of([3, 4]), Decoding(max_tokens=3), stop_ids=NEVER, progress=stop)
    assert model.config._attn_implementation == attention
    assert model.generation_config is settings
    for name, parameter in policy.named_parameters():
        kind, trained, values = before[name]
        assert (parameter.dtype, parameter.requires_grad) == (kind, trained)
        assert torch.equal(parameter, values)


def test_an_adapter_that_was_trained_speaks() -> None:
    model = peaked(seed=4)
    plain = policy_of(model)
    prompts = prompts_of([5, 12])
    without = sample(plain, prompts, Decoding(max_tokens=8), stop_ids=NEVER)
    add_lora(model, LoRA(rank=4), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    found = sample(plain, prompts, Decoding(max_tokens=8), stop_ids=NEVER)
    assert found == [by_transformers(model, prompt, 8, NEVER) for prompt in prompts]
    assert found != without


@pytest.mark.filterwarnings("ignore")
def test_a_state_space_model_answers_through_transformers() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = AutoConfig.for_model("mamba", vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
    policy = probe(model).policy
    assert policy.layout == "plain"
    prompts = prompts_of([6, 6, 9])
    found = sample(policy, prompts, Decoding(max_tokens=5), stop_ids=NEVER, batch_size=1)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert answer == Completion(tokens=tuple(ids[len(prompt) :]), stop="length")


def drawn_log_probs(
    policy: Policy, prompts: list[tuple[int, ...]], said: list[Completion], temperature: float
) -> list[list[float]]:
    """The scorer's log-probabilities of the same tokens."""
    trees = [
        Tree(trunk=prompt, branches=(Branch(tokens=one.tokens, scored=(True,) * len(one.tokens)),))
        for prompt, one in zip(prompts, said, strict=True)
    ]
    batch = TreeBatch.of(trees)
    with torch.no_grad():
        found = policy.log_probs(batch, temperature=temperature)
    return [found[batch.response == number].tolist() for number in range(len(trees))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["tree", "plain"])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_trap_14_the_log_probs_of_what_was_drawn_are_the_scorers_at_that_temperature(layout: str, temperature: float) -> None:
    model = peaked(seed=5)
    policy = policy_of(model) if layout == "tree" else Policy(model, layout="plain")
    prompts, stop_ids = prompts_of([3, 9, 5, 5, 14]), frozenset(range(0, 300, 6))
    said = sample(policy, prompts, Decoding(max_tokens=12, temperature=temperature), stop_ids=stop_ids, seed=3)
    assert len({len(one.tokens) for one in said}) > 1
    for one, expected in zip(said, drawn_log_probs(policy, prompts, said, temperature), strict=True):
        assert one.log_probs == pytest.approx(expected, abs=2e-4)
    (greedy,) = sample(policy, prompts[:1], Decoding(max_tokens=3), stop_ids=stop_ids)
    assert greedy.log_probs == ()


def test_k_samples_of_a_prompt_differ_and_the_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(make_tiny_llama())
    prompts = [prompt for prompt in prompts_of([90, 200]) for _ in range(4)]
    read: list[int] = []
    hidden = sampler._hidden

    def counting(policy: Policy, pieces: list[tuple[int, ...]], *rest: object) -> torch.Tensor:
        read.append(sum(map(len, pieces)))
        return hidden(policy, pieces, *rest)

    monkeypatch.setattr(sampler, "_hidden", counting)
    said = sample(policy, prompts, Decoding(max_tokens=6, temperature=1.0), stop_ids=NEVER)
    assert len({one.tokens for one in said}) == 8
    answered = sum(len(one.tokens) - 1 for one in said)
    assert sum(read) == 89 + 199 + 8 + answered, "each prompt once, its last token for each sample, and each answer but its end"


def test_samples_of_a_prompt_start_together_where_they_fit() -> None:
    """Rows for 8, of which a quarter is refilled at once: two samples of a prompt wait for two rows, three do not wait."""

    def taken(*waiting: tuple[int, int], going: int) -> list[list[int]]:
        found = deque((10 * kind + i, (kind, 7)) for kind, count in waiting for i in range(count))
        first = list(sampler._next(found, [(9, 9, 9)] * going, 6, 8))
        return [first, [place for place, _ in found]]

    assert taken((1, 2), (2, 2), going=4) == [[10, 11, 20, 21], []]
    assert taken((1, 2), (2, 2), going=5) == [[10, 11], [20, 21]]
    assert taken((1, 2), going=7) == [[], [10, 11]], "one of them would be read apart"
    assert taken((1, 3), going=7) == [[10], [11, 12]], "those who ask for many rows would leave them empty for long"
    assert taken((1, 3), going=8) == [[], [10, 11, 12]]
    assert taken((1, 9), going=0) == [list(range(10, 18)), [18]]


def test_no_prompt_is_read_twice_where_its_samples_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve prompts of four samples through rows for 18, which four do not divide."""
    policy = policy_of(make_tiny_llama(seed=1))
    prompts = [prompt for prompt in prompts_of([30 + i for i in range(12)]) for _ in range(4)]
    found: list[tuple[tuple[int, ...], ...]] = []
    read = sampler._read

    def listening(policy: Policy, joining: list[tuple[int, ...]], *rest: object) -> torch.Tensor:
        found.append(tuple(joining))
        return read(policy, joining, *rest)

    monkeypatch.setattr(sampler, "_read", listening)
    sample(policy, prompts, Decoding(max_tokens=9, temperature=1.0), stop_ids=frozenset(range(0, 300, 6)), batch_size=18)
    assert len(found) > 2
    assert sum(len(set(joining)) for joining in found) == 12


def test_places_say_what_is_drawn_so_that_ranks_can_share_prompts() -> None:
    policy, prompts = policy_of(make_tiny_llama()), prompts_of([3, 9, 5, 5, 14, 2, 7])
    decoding = Decoding(max_tokens=10, temperature=1.0)
    whole = sample(policy, prompts, decoding, stop_ids=END, seed=1)
    for rank in range(2):
        share = sample(policy, prompts[rank::2], decoding, stop_ids=END, seed=1, places=range(rank, 7, 2))
        assert share == whole[rank::2]


@pytest.mark.smollm2
def test_smollm2_says_what_it_says_in_transformers(smollm2_folder: Path) -> None:
    """Eight chat prompts with a system prompt in common, in fp32."""
    model, tokenizer = load_causal(smollm2_folder, dtype=torch.float32), load_tokenizer(smollm2_folder)
    asked = ("Why is the sky blue?", "2+2?", "Name a fruit.", "Is Paris in Italy?", "Say hi.", "What is tea?", "Who wrote Hamlet?")
    prompts = [
        tuple(tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False))
        for text in (*asked, "Tell me, in a few words, " + "and then again, " * 20 + "what a kettle is for.")
    ]
    policy, stop_ids = policy_of(model), frozenset({int(tokenizer.eos_token_id)})
    expected = [by_transformers(model, prompt, 12, stop_ids) for prompt in prompts]
    assert {answer.stop for answer in expected} >= {"length"}
    assert sample(policy, prompts, Decoding(max_tokens=12), stop_ids=stop_ids) == expected
