"""The floor of each part of a round: the products with the weights that it cannot do without, timed on this machine.

    python -m benchmarks.rounds_floor SPEC.json RESULT.json

Each product is timed at the rows that the part computes at once, so that decoding a few rows, which waits for the memory that the
weights lie in, is not held against the rate of large products. Attention, norms, sampling and the optimizer count as nothing.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

REPEATS = 5


def seconds_of(part: Mapping[str, Any], shapes: Sequence[Sequence[int]], taken: Any) -> float:
    """Seconds of one part; `taken(out, width, rows, gradients)` are those of one product with as many of its gradients."""
    *body, head = shapes
    gradients = {"": 0, "adapters": 1, "all": 2}[part["trained"]]
    layers = sum(count * taken(out, width, part["tokens"], gradients) for out, width, count in body) if part["tokens"] else 0.0
    scored = taken(head[0], head[1], part["scored"], gradients) if part["scored"] else 0.0
    return float(part["count"] * (part["layers"] * layers + scored))


def timer(dtype: str) -> Any:
    """Seconds of a product by its shape, each measured once; large numbers of rows are measured in part."""
    import torch

    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]

    @cache
    def taken(out: int, width: int, rows: int, gradients: int) -> float:
        some = min(rows, 2048)
        weight = torch.randn(out, width).to(kind)
        hidden, above = torch.randn(some, width).to(kind), torch.randn(some, out).to(kind)
        found = []
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            torch.nn.functional.linear(hidden, weight)
            if gradients:
                above @ weight
            if gradients > 1:
                above.T @ hidden
            found.append(time.perf_counter() - began)
        return median(found[1:]) * rows / some  # the first warms up

    return taken


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    taken = timer(spec["dtype"])
    found = {name: sum(seconds_of(part, spec["shapes"], taken) for part in parts) for name, parts in spec["parts"].items()}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
