"""The training loop: the only one. It knows steps, batches and when things are due; it knows no method, model or file."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from truing.data.tree import TreeBatch
from truing.objectives import RememberingObjective
from truing.parallel.world import World
from truing.runs.run import Part, Run
from truing.train.early_stop import EarlyStop
from truing.train.floor import Floor
from truing.train.learner import NonFiniteError


@runtime_checkable
class Source(Part, Iterable[Any], Protocol):
    """Yields the work of one step after another, from where its state says: micro-batches of one update, or a round of rollouts."""


@runtime_checkable
class Trainee(Part, Protocol):
    """What learns from the source's work: `truing.train.learner.Learner`, or `truing.train.replay.ReplayLearner`."""

    @property
    def world(self) -> World:
        """The ranks that learn together."""
        ...

    def update(self, objective: Any, work: Any, /) -> dict[str, float]:
        """Learns from the work of one step; returns its metrics."""
        ...


BAD_BATCH = "bad_batch.json"
Evaluate = Callable[[], Mapping[str, float]]


def train(
    run: Run,
    learner: Trainee,
    objective: Any,
    source: Source,
    *,
    evaluate: Evaluate | None = None,
    early_stop: EarlyStop | None = None,
    floor: Floor | None = None,
) -> None:
    """Train from where an earlier process left the run until its last step, or until `early_stop` ends it with the best weights.

    With a `floor`, which says what the steps take at least, the log says what share of their time that is.
    """
    parts: dict[str, Part] = {"learner": learner, "source": source}
    if isinstance(objective, RememberingObjective):
        parts |= objective.memory
    if early_stop:
        parts["early_stop"] = early_stop
    run.restore(parts)
    if evaluate and run.evaluate_every and run.step == 0:
        run.log(0, _held_out(evaluate))
    for step, work in () if early_stop and early_stop.over else _steps(run, source):
        try:
            metrics = learner.update(objective, work)
        except NonFiniteError as error:
            found = learner.world.gather([_described(batch) for batch in error.batches])
            run.write(BAD_BATCH, {"step": step, "batches": found})
            raise NonFiniteError(f"{error}; the batch is in {run.folder / BAD_BATCH}; lower optimizer.lr", error.batches) from error
        if evaluate and run.due_evaluation(step):
            metrics |= _held_out(evaluate)
        tokens, least = _work(work, learner.world, floor)
        run.log(step, metrics, tokens=tokens, least=least)
        if early_stop:
            early_stop.observe(step, metrics)
        if run.due_save(step):
            run.save(step, parts)
        if early_stop and early_stop.over:
            break
    if early_stop:
        early_stop.take_best()
    run.finish(parts)


def _steps(run: Run, source: Source) -> Iterator[tuple[int, Any]]:
    # the run is asked first: at its last step nothing more is drawn from the source, whose position is saved
    return zip(run.remaining_steps(), source, strict=False)


def _work(work: Any, world: World, floor: Floor | None) -> tuple[float | None, float | None]:
    """Tokens of the micro-batches of all ranks, prompts once a tree, and the least seconds that they take.

    None for a round, which is computed several times over.
    """
    if not isinstance(work, list):
        return None, None
    tokens = float(sum(tree.size for batch in work for tree in batch.trees))
    tokens, operations, rate = world.sum([tokens, floor.operations(work) if floor else 0.0, floor.rate if floor else 0.0])
    return tokens, operations / rate if floor else None


def _held_out(evaluate: Evaluate) -> dict[str, float]:
    return {f"held_out_{name}": value for name, value in evaluate().items()}


def _described(batch: TreeBatch) -> dict[str, Any]:
    return {"records": [tree.key for tree in batch.trees], "tokens": batch.tokens.tolist(), "length": batch.length.tolist()}
