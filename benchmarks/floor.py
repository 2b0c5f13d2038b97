"""The floor: the least time that a piece of work can take, from its useful operations and the machine's matrix-product rate.

Useful are the products with the weights: 2 operations a parameter and token going forward, 4 more where everything is trained,
2 more where adapters are trained and the rest only passes gradients on. Tokens are those of the tree layout (a prompt counts once
for all its responses), and the LM head counts for scored tokens alone. Attention, norms, the optimizer and all else count as
nothing, so the share of the floor that a program reaches is below what the hardware is busy with.

    python -m benchmarks.floor SPEC.json RESULT.json      # measures the rate
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

REPEATS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Parameters that are multiplied with every token. SmolLM2-135M: 106 million in its layers, 28 million in its head."""

    body: int
    """In the matrices of the layers."""
    head: int
    """In the LM head; vocabulary times width."""
    adapters: int | None = None
    """In trained adapters, while the rest is frozen; None when everything is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens of the tree layout over all passes: with gradient, and without."""

    trained: int
    trained_scored: int
    read: int = 0
    read_scored: int = 0


def forward(weights: Weights, tokens: int, scored: int) -> int:
    """Operations of reading so many tokens, of which some are scored."""
    return 2 * (weights.body * tokens + weights.head * scored)


def operations(weights: Weights, tokens: Tokens) -> int:
    """Useful operations of a piece of work."""
    read = forward(weights, tokens.read, tokens.read_scored)
    trained = forward(weights, tokens.trained, tokens.trained_scored)
    if weights.adapters is None:
        return read + 3 * trained
    return read + 2 * trained + 6 * weights.adapters * tokens.trained


def share(operations: int, rate: float, seconds: float) -> float:
    """Time at the machine's rate (operations a second) over the time that was taken. Example: `share(10, 5.0, 4.0)` is 0.5."""
    return operations / rate / seconds


def measured_rate(spec: Mapping[str, Any]) -> float:
    """Operations a second of the products that training the model consists of: forward, and both of its gradients.

    `spec` has the shapes of the weights with how many there are of each, the rows of a typical micro-batch, dtype and device.
    """
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[spec["dtype"]]
    device = torch.device(spec["device"])

    def seconds(out: int, width: int, rows: int) -> float:
        weight = torch.randn(out, width, device=device).to(dtype)
        hidden = torch.randn(rows, width, device=device).to(dtype)
        above = torch.randn(rows, out, device=device).to(dtype)
        taken = []
        for _ in range(REPEATS + 1):
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            torch.nn.functional.linear(hidden, weight)
            above @ weight
            above.T @ hidden
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return median(taken[1:])  # the first warms up

    total = spent = 0.0
    for out, width, count, rows in spec["shapes"]:
        total += 6.0 * out * width * rows * count
        spent += seconds(out, width, rows) * count
    return total / spent


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps({"operations_per_second": measured_rate(spec)}))


if __name__ == "__main__":
    main()
