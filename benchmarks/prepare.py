"""What both sides train on: the rows in files, in the order in which Truing takes them, and what there is to compute.

    python -m benchmarks.prepare SPEC.json RESULT.json

Writes `ours.jsonl` (rows as read), `theirs.jsonl` (in the order of training, rankings as pairs) and, if asked, a random model.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from truing.data.chat import ChatTokenizer, encode_all
from truing.data.read import read
from truing.data.source import TreeSource
from truing.data.tree import Tree, TreeBatch
from truing.models.load import load_tokenizer
from truing.models.resolve import resolve
from truing.records import Demonstration, Feedback, Message, Messages, Preference, Ranking, Record

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TOKENS_OF_ANY_VOCABULARY = 16_384
"""Of the tokenizer where the model's vocabulary varies: the same tokens for all."""
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}
"""Random Llamas with SmolLM2's tokenizer, or one made as it was, by name."""


def hh(data: Path) -> Iterable[Record]:
    """Multi-turn pairs of harmless-base."""
    return read(data / "hh_rlhf" / "harmless-base.jsonl.gz", on_bad_row="skip", kind=Preference).records


def hh_feedback(data: Path) -> Iterable[Record]:
    """One answer a row: the chosen and the rejected one in turn."""
    for number, pair in enumerate(hh(data)):
        assert isinstance(pair, Preference)
        yield pair.as_feedback()[number % 2]


def rasbt(data: Path) -> Iterable[Record]:
    """Short single-turn pairs."""
    return read(data / "rasbt_instruction" / "instruction-data-with-preference.json", on_bad_row="skip", kind=Preference).records


def rankings(data: Path) -> Iterable[Record]:
    """Rankings of 4 to 9 answers, in Chinese."""
    found = read(data / "oaast_rm_zh" / "oaast_rm_zh.json", on_bad_row="skip").records
    return (r for r in found if isinstance(r, Ranking) and 4 <= len(r.responses) <= 9)


def demonstrations(data: Path) -> Iterable[Record]:
    """Demonstrations of mixed length."""
    return read(data / "dolly_hhrlhf_small" / "dolly_hhrlhf_train_small.jsonl", on_bad_row="skip", kind=Demonstration).records


DATA: dict[str, Callable[[Path], Iterable[Record]]] = {
    "hh": hh,
    "hh_feedback": hh_feedback,
    "rasbt": rasbt,
    "rankings": rankings,
    "demonstrations": demonstrations,
}


def with_answers(records: Iterable[Record], count: int) -> Iterable[Record]:
    """Rankings of so many answers each: a pair's prompt with the chosen answers of the pairs from it on."""
    pairs = [r for r in records if isinstance(r, Preference)]
    for start in range(len(pairs)):
        answers = [pairs[(start + i) % len(pairs)].chosen for i in range(count)]
        yield Ranking(prompt=pairs[start].prompt, responses=tuple(answers))


def lengthened(record: Record, others: Sequence[Record], chat: ChatTokenizer, tokens: int) -> Record:
    """The pair with as many words of other prompts before its own as bring it to so many tokens, or just below."""
    assert isinstance(record, Preference)
    words = [word for other in others if isinstance(other, Preference) for m in other.prompt for word in m.content.split()]
    while len(words) < tokens:
        words += words

    def after(count: int) -> Preference:
        first, *rest = record.prompt
        return replace(record, prompt=(replace(first, content=" ".join([*words[:count], first.content])), *rest))

    low, high = 0, tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(chat.prompt_tokens(after(middle).prompt)) <= tokens else (low, middle - 1)
    return after(low)


def chosen(spec: Mapping[str, Any], chat: ChatTokenizer) -> tuple[list[Record], list[Tree]]:
    """The first rows that fit uncut, and their trees. Raises ValueError when there are too few."""
    found = DATA[spec["data"]](Path(spec["data_folder"]))
    if spec.get("answers"):
        found = with_answers(found, spec["answers"])
    records: list[Record] = []
    trees: list[Tree] = []
    pool = list(found)
    for record in pool:
        if spec["prompt_tokens"]:
            record = lengthened(record, pool[:64], chat, spec["prompt_tokens"])
        (encoded, _) = encode_all([record], chat, max_tokens=1_000_000)
        if encoded and len(encoded[0].trunk) + max(len(b.tokens) for b in encoded[0].branches) <= spec["max_tokens"]:
            records.append(record)
            trees.append(replace(encoded[0], key=len(trees)))
        if len(records) == spec["rows"]:
            return records, trees
    raise ValueError(f"{spec['data']}: {len(records)} rows fit into {spec['max_tokens']} tokens, {spec['rows']} are wanted")


def messages(turns: Messages) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in turns]


def said(text: str) -> list[dict[str, str]]:
    return messages((Message(role="assistant", content=text),))


def as_read(record: Record) -> dict[str, object]:
    """A row of a file that Truing reads."""
    match record:
        case Ranking():
            return {"prompt": messages(record.prompt), "responses": list(record.responses)}
        case Demonstration():
            return {"messages": messages(record.messages)}
        case _:
            return as_trained(record)[0]


def as_trained(record: Record) -> list[dict[str, object]]:
    """The rows that TRL's trainers take."""
    match record:
        case Preference():
            return [{"prompt": messages(record.prompt), "chosen": said(record.chosen), "rejected": said(record.rejected)}]
        case Feedback():
            return [{"prompt": messages(record.prompt), "completion": said(record.response), "label": record.desirable}]
        case Ranking():
            return [row for pair in record.pairs() for row in as_trained(pair)]
        case Demonstration():
            return [{"prompt": messages(record.messages[:-1]), "completion": messages(record.messages[-1:])}]
        case _:
            raise AssertionError(f"nothing trains on {type(record).__name__}")


def model_folder(spec: Mapping[str, Any], folder: Path) -> Path:
    """The named model, or a random one of the named shape with SmolLM2's tokenizer."""
    start = resolve(SMOLLM2)
    if spec["model"] == SMOLLM2:
        return start
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(start)
    if "vocabulary" in spec:
        tokenizer = tokenizer.train_new_from_iterator(spec["texts"], TOKENS_OF_ANY_VOCABULARY)
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(SHAPES[spec["model"]])
    config = LlamaConfig(
        **shape,
        vocab_size=spec.get("vocabulary", len(tokenizer)),
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weights(folder: Path) -> tuple[int, int, list[list[int]]]:
    """Parameters of the layers' matrices and of the head, and the shapes of both with how many there are of each."""
    config = json.loads((folder / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    of_head = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = of_head * config["num_attention_heads"], of_head * config["num_key_value_heads"]
    layers = config["num_hidden_layers"]
    shapes = [[queries, width, layers], [keys, width, 2 * layers], [width, queries, layers]]
    shapes += [[inner, width, 2 * layers], [width, inner, layers]]
    head = [config["vocab_size"], width, 1]
    return sum(a * b * n for a, b, n in shapes), head[0] * head[1], [*shapes, head]


def counts(source: TreeSource, steps: int) -> dict[str, int]:
    """What there is to compute in one epoch."""
    batches = [TreeBatch.of([source.trees[place] for place in group]) for group in source.first_epoch()]
    sequences = [len(t.trunk) + len(b.tokens) for t in source.trees for b in t.branches]
    return {
        "tree_tokens": sum(len(batch.tokens) for batch in batches),
        "scored_tokens": sum(len(batch.target) for batch in batches),
        "response_tokens": sum(len(b.tokens) for t in source.trees for b in t.branches),
        "sequence_tokens": sum(sequences),
        "sequences": len(sequences),
        "micro_batches": len(batches),
        "steps": steps,
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["folder"])
    model = model_folder(spec, folder / "model")
    chat = ChatTokenizer.of(load_tokenizer(model))
    records, trees = chosen(spec, chat)
    source = TreeSource(trees, batch_size=spec["batch"], micro_tokens=spec["micro_tokens"], seed=spec["seed"])
    write(folder / "ours.jsonl", [as_read(record) for record in records])
    write(folder / "theirs.jsonl", [row for i in source.order(0) for row in as_trained(records[i])])
    body, head, shapes = weights(model)
    result = {
        "model": str(model),
        "body": body,
        "head": head,
        "shapes": shapes,
        **counts(source, source.steps_per_epoch),
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
