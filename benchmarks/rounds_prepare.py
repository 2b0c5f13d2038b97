"""What both sides of a row of `benchmarks.rounds` ask: prompts in files, and a reward model where one scores.

    python -m benchmarks.rounds_prepare SPEC.json RESULT.json

Writes `prompts.jsonl`: messages, and their tokens as the chat template makes them; `demonstrations.jsonl`: with answers. The reward
model is one step of `truing train reward_model`, which is enough for a thing that costs what a trained one costs; with adapters
where the policy has them.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.prepare import as_trained, hh, lengthened, messages, model_folder, weights, write
from truing.data.chat import ChatTokenizer
from truing.models.load import load_tokenizer
from truing.records import Preference


def chosen(spec: Mapping[str, Any], chat: ChatTokenizer) -> list[tuple[Preference, tuple[int, ...]]]:
    """The first pairs whose prompts fit, brought to their length. Raises ValueError when there are too few."""
    row = spec["row"]
    wanted, found, seen = row["prompts"] * row["rounds"], [], set()
    pool = [record for record in hh(Path(spec["data_folder"])) if isinstance(record, Preference)]
    for record in pool:
        one = lengthened(record, pool[:64], chat, row["prompt_tokens"]) if row["prompt_tokens"] else record
        assert isinstance(one, Preference)
        tokens = chat.prompt_tokens(one.prompt)
        if len(tokens) < row["below"] and tokens not in seen:
            found.append((one, tokens))
            seen.add(tokens)
        if len(found) == wanted:
            return found
    raise ValueError(f"{len(found)} prompts are below {row['below']} tokens, {wanted} are wanted")


def reward_model(spec: Mapping[str, Any], model: Path, pairs: Path) -> str:
    """The run of a reward model that has made one step."""
    from truing.recipes import commands

    run = Path(spec["folder"]) / "reward_model"
    lora = [setting for setting in spec["row"]["settings"] if setting.startswith("lora.")]
    same = [f"data.path={pairs}", f"model={model}", f"run={run}", f"dtype={spec['row']['dtype']}", "data.held_out_share=0"]
    commands.train("reward_model", [*same, "max_steps=1", "batch_size=2", "evaluate_every=0", "measure_before=false", *lora], [])
    return str(run)


def demonstration(pair: Preference, chat: ChatTokenizer, tokens: int) -> dict[str, object]:
    """The prompt with an answer that is as long as one of the row: what is said costs the same whatever it is."""
    words = chat.tokenizer(" ".join([pair.prompt[-1].content] * tokens), add_special_tokens=False)["input_ids"]
    return {"messages": [*messages(pair.prompt), {"role": "assistant", "content": chat.decode(words[: tokens - 1])}]}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["folder"])
    model = model_folder(spec, folder / "model")
    chat = ChatTokenizer.of(load_tokenizer(model))
    found = chosen(spec, chat)
    write(folder / "prompts.jsonl", [{"prompt": messages(one.prompt)} for one, _ in found])
    write(folder / "tokens.jsonl", [{"input_ids": list(tokens)} for _, tokens in found])
    write(folder / "demonstrations.jsonl", [demonstration(one, chat, spec["row"]["new_tokens"]) for one, _ in found])
    scored = None
    if spec["row"]["learned"]:
        write(folder / "pairs.jsonl", [row for one, _ in found[:4] for row in as_trained(one)])
        scored = reward_model(spec, model, folder / "pairs.jsonl")
    body, head, shapes = weights(model)
    result = {
        "model": str(model),
        "reward_model": scored,
        "prompt_tokens": sum(len(tokens) for _, tokens in found),
        "body": body,
        "head": head,
        "shapes": shapes,
        "layers": json.loads((model / "config.json").read_bytes())["num_hidden_layers"],
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
