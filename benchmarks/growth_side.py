"""One point of a curve: the part of Truing whose cost grows, run once.

python -m benchmarks.growth_side SPEC.json RESULT.json
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import truing_side
from benchmarks.prepare import as_read, hh, lengthened, model_folder, rasbt, write
from truing.data.chat import ChatTokenizer, encode_all
from truing.models.load import load_tokenizer
from truing.records import Preference

RESPONSE = 200
"""Tokens of the longest sequence that a prompt leaves to its responses, about."""
PROMPT_TOKENS, RESPONSE_TOKENS = 512, 128
"""Of the trees whose number of responses grows."""
PAIRS_OF_A_STEP = 4


def trained(spec: Mapping[str, Any], model: Path, rows: list[dict[str, object]], *settings: str) -> dict[str, Any]:
    """One step of DPO over the rows, by `truing train dpo`."""
    folder = Path(spec["folder"])
    write(folder / "rows.jsonl", rows)
    fixed = ("data.held_out_share=0", "evaluate_every=0", "save_every=0", "measure_before=false")
    paths = (f"data.path={folder / 'rows.jsonl'}", f"model={model}", f"run={folder / 'run'}", f"batch_size={len(rows)}")
    report = truing_side.measure({"method": "dpo", "settings": [*paths, *fixed, *settings]})
    return {"seconds": report["seconds"], "parts": report["parts"], "tokens": report["tokens"]}


def length(spec: Mapping[str, Any]) -> dict[str, Any]:
    """DPO of one pair whose prompt and longest response have about so many tokens together."""
    model = model_folder(spec, Path(spec["folder"]) / "model")
    chat = ChatTokenizer.of(load_tokenizer(model))
    pairs = list(hh(Path(spec["data_folder"])))[:64]
    room = spec["at"] - RESPONSE
    fitting = (pair for pair in pairs if longest(pair, chat) <= room)
    pair = lengthened(next(fitting), pairs, chat, room)
    return trained(spec, model, [as_read(pair)], f"data.max_tokens={2 * spec['at']}")


def longest(record: object, chat: ChatTokenizer) -> int:
    """Tokens of a pair's prompt, or above any limit where its responses are longer than what is left for them."""
    assert isinstance(record, Preference)
    ((tree,), _) = encode_all([record], chat, max_tokens=1_000_000)
    short = max(len(branch.tokens) for branch in tree.branches) <= RESPONSE
    return len(tree.trunk) if short else sys.maxsize


def vocabulary(spec: Mapping[str, Any]) -> dict[str, Any]:
    """One step of DPO of a random model with SmolLM2's layers, on the same tokens for every vocabulary."""
    pairs = [record for record in rasbt(Path(spec["data_folder"])) if isinstance(record, Preference)]
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected, *(m.content for m in pair.prompt))]
    shape = "tiny" if spec["model"] == "tiny" else "135m"
    made = {"model": shape, "vocabulary": spec["at"], "texts": texts}
    model = model_folder(made, Path(spec["folder"]) / "model")
    return trained(spec, model, [as_read(pair) for pair in pairs[:PAIRS_OF_A_STEP]])


def responses(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Log-probabilities of so many responses to one prompt, forward and backward; no optimizer."""
    import torch

    from truing.data.tree import Branch, Tree, TreeBatch
    from truing.recipes.fit import load_policy
    from truing.recipes.settings import torch_dtype

    policy, _ = load_policy(model_folder(spec, Path(spec["folder"]) / "model"), torch_dtype("auto"))
    generator = torch.Generator().manual_seed(0)

    def run(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(100, 10_000, (count,), generator=generator).tolist())

    branches = tuple(Branch(tokens=run(RESPONSE_TOKENS), scored=(True,) * RESPONSE_TOKENS) for _ in range(spec["at"]))
    batch = TreeBatch.of([Tree(trunk=run(PROMPT_TOKENS), branches=branches)], policy.device)
    now = truing_side.clock(torch)
    taken: dict[str, float] = {}
    for _ in range(2):  # the first warms up
        start = now()
        total = policy.response_log_probs(batch).sum()
        middle = now()
        total.backward()
        taken = {"forward": middle - start, "backward": now() - middle}
        policy.zero_grad(set_to_none=True)
    return {"seconds": sum(taken.values()), "parts": taken}


def pairs(spec: Mapping[str, Any]) -> dict[str, Any]:
    """So many short pairs read, checked, encoded and packed into the micro-batches of one epoch, as training does it."""
    from truing.data.source import TreeSource
    from truing.recipes.examples import examples
    from truing.recipes.settings import Data

    path = Path(spec["folder"]) / "rows.jsonl"
    write(path, many(Path(spec["data_folder"]), spec["at"]))
    chat = ChatTokenizer.of(load_tokenizer(model_folder(spec, Path(spec["folder"]) / "model")))
    began = time.perf_counter()
    found = examples(Data(path=str(path), held_out_share=0.0), chat, (Preference,))
    encoded = time.perf_counter()
    source = TreeSource(found.train.trees, batch_size=16, micro_tokens=2048, seed=0)
    trees = sum(len(batch.trees) for batches in islice(iter(source), source.steps_per_epoch) for batch in batches)
    packed = time.perf_counter()
    assert trees == spec["at"], f"{trees} of {spec['at']} pairs were packed"
    parts = {"reading and encoding": encoded - began, "packing": packed - encoded}
    return {"seconds": packed - began, "parts": parts}


def many(data: Path, count: int) -> Iterator[dict[str, object]]:
    """Short pairs over and over, each with a number of its own in its prompt."""
    known = [record for record in rasbt(data) if isinstance(record, Preference)]
    for number in range(count):
        pair = known[number % len(known)]
        first, *rest = pair.prompt
        yield as_read(replace(pair, prompt=(replace(first, content=f"{number}. {first.content}"), *rest)))


PARTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "length": length,
    "vocabulary": vocabulary,
    "responses": responses,
    "pairs": pairs,
}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(PARTS[spec["part"]](spec)))


if __name__ == "__main__":
    main()
