"""The laboratory's policy: the 260K-parameter story model where it is at hand, else a tiny one made here; SFT to short stories.

What stands behind an opening and ends after two sentences is a demonstration; so answers end by themselves and have a length that a
policy can change. Both ways end in a run of `truing train sft`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.laboratory_gold import prompts
from benchmarks.stories260k import convert
from truing.data.chat import ChatTokenizer
from truing.models.load import load_tokenizer
from truing.randomness import counted_seed
from truing.recipes.fit import load_policy
from truing.rollouts.sampler import Decoding
from truing.rollouts.writer import LocalWriter

TWO_SENTENCES = re.compile(r"[^.!?]+[.!?]\"?\s+[^.!?]+[.!?]\"?")
END = "<|end|>"
WHO = ("She", "He", "The little friend", "Mom", "Dad", "They", "A big bird", "The old man")
DID = ("saw", "found", "liked", "took", "wanted", "played with", "loved", "helped", "hugged", "shared", "looked at", "asked for")
WHAT = ("ball", "flower", "tree", "cake", "toy", "book", "hat", "boat", "friend", "bird", "box", "sun", "house", "song")
HOW = ("big", "red", "happy", "small", "nice", "old", "pretty", "blue", "kind", "soft", "sad", "great")
THEN = ("It was fun.", "They smiled.", "It was cold.", "Then it was time to go home.", "They were very happy.", "It fell down.")


def of_the_260k(source: Path, folder: Path, draws: int) -> tuple[Path, list[dict[str, str]]]:
    """The converted model and demonstrations out of its own mouth."""
    convert(source, folder)
    chat = ChatTokenizer.of(load_tokenizer(folder), template="plain")
    writer = LocalWriter(policy=load_policy(folder, torch.float32)[0], chat=chat, decoding=Decoding(max_tokens=56, temperature=0.9))
    asked = prompts(0)
    return folder, [
        {"prompt": prompt.messages[0].content, "completion": short}
        for prompt, answers in zip(asked, writer(asked, samples=draws, seed=0), strict=True)
        for short in dict.fromkeys(filter(None, (first_two(answer.text) for answer in answers)))
    ]


def first_two(text: str) -> str:
    """The first two sentences; empty where there are none or they run over lines."""
    found = TWO_SENTENCES.match(text)
    return found.group() if found and "\n" not in found.group() else ""


def made_here(folder: Path, draws: int) -> tuple[Path, list[dict[str, str]]]:
    """A random Llama of 110,000 weights with a tokenizer of its own, and stories put together from word lists."""
    rows = [
        {"prompt": prompt.messages[0].content, "completion": _story(number)}
        for number, prompt in enumerate(prompt for prompt in prompts(0) for _ in range(draws))
    ]
    tokenizer = _tokenizer([f"{row['prompt']}\n\n{row['completion']}" for row in rows])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, rows


def _story(number: int) -> str:
    generator = np.random.Generator(np.random.PCG64(counted_seed(0, "story", number)))

    def one(of: Sequence[str]) -> str:
        return of[int(generator.integers(len(of)))]

    return f"{one(WHO)} {one(DID)} a {one(HOW)} {one(WHAT)}. {one(THEN)}"


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=END, model_max_length=256)


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
