"""What `test_ranks.py` runs on each rank."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from trees import branch, random_trees, tiny_policy
from truing.data.source import TreeSource
from truing.data.tree import Tree, TreeBatch
from truing.losses.nll import NLL
from truing.objectives import Imitation, LossOutput
from truing.parallel.world import World
from truing.runs.run import Run
from truing.train.checkpoint import Checkpoints
from truing.train.learner import Learner, NonFiniteError
from truing.train.loop import BAD_BATCH, train
from truing.train.optim import Optimizer


def tell(path: Path, world: World, value: object) -> None:
    path.with_suffix(f".{world.rank}").write_text(json.dumps(value))


def learner(world: World) -> Learner:
    return Learner(tiny_policy(), Optimizer(lr=1e-4, warmup=0.0, eps=1e-6), total_steps=10, world=world)


def one_and_a_hundred_tokens(path: str) -> None:
    """One response of 1 token, one of 100, and a step in which the second rank has nothing to do."""
    world = World.here()
    trees = [Tree(trunk=(5, 6), branches=(branch([7]),), key=0), Tree(trunk=(8,), branches=(branch(range(9, 109)),), key=1)]
    mine = learner(world)
    metrics = []
    for step in (trees, trees[:1]):
        share = step[world.rank :: world.size]
        metrics.append(mine.update(Imitation(loss=NLL()), [TreeBatch.of([tree]) for tree in share]))
    weights = {name: p.double().sum().item() for name, p in mine.trained.items()}
    tell(Path(path), world, {"metrics": metrics, "weights": weights})


def collectives(path: str) -> None:
    """Sums, the largest, lists of unequal lengths, shares in order, and gradients of which no rank, one or all have some."""
    world = World.here()
    nobody, one, both = (nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.float32, torch.bfloat16))
    both.grad = torch.tensor([1.0, 10.0], dtype=torch.bfloat16) * (world.rank + 1)
    if world.rank == world.size - 1:
        one.grad = torch.tensor([5.0, 6.0])
    world.sum_gradients([nobody, one, both])
    found = {
        "sum": world.sum([1.0 + world.rank, 0.5]),
        "largest": [world.largest(world.rank), world.largest(-world.rank)],
        "gather": world.gather(["a"] * world.rank + [f"rank {world.rank}"]),
        "spread": [world.spread(range(n), lambda share: [10 * i for i in share]) for n in (0, 1, 5)],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in (nobody, one, both)],
    }
    tell(Path(path), world, found)


@dataclass(frozen=True, kw_only=True)
class Spoilt:
    """Imitation, but not a number where record 3 is in the batch."""

    def units(self, batch: TreeBatch) -> int:
        return len(batch.target)

    def __call__(self, model: nn.Module, batch: TreeBatch) -> LossOutput:
        output = Imitation(loss=NLL())(model, batch)
        return replace(output, total=output.total * float("nan")) if any(tree.key == 3 for tree in batch.trees) else output


def a_loss_that_is_not_a_number(path: str) -> None:
    """In every step on one of the ranks: what both say of it, and that rank 0 wrote it down."""
    world = World.here()
    folder = Path(path).with_name("run")
    pace = {"max_steps": 9, "save_every": 0, "evaluate_every": 0, "store": Checkpoints, "largest": world.largest}
    run = Run.open(folder, {"seed": 0}, fingerprints={}, **pace) if world.rank == 0 else None
    world.wait()
    mine = learner(world)
    source = TreeSource(random_trees(6, branches=1), batch_size=6, micro_tokens=40, seed=0, rank=world.rank, ranks=world.size)
    said = ""
    with run or Run.follow(folder, **pace) as opened:
        try:
            train(opened, mine, Spoilt(), source)
        except NonFiniteError as error:
            said = str(error)
    world.wait()
    tell(Path(path), world, {"said": said, "skipped": mine.skipped, "written": json.loads((folder / BAD_BATCH).read_bytes())})
