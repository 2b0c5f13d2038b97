"""Trees on disk: their tokens in one flat file, written once in order and read tree by tree, so that data does not fill memory.

In memory stay a few numbers a tree: where it begins, how long its trunk and branches are, its record and what judges said. A store
holds several parts (training, held out). What is kept beside the trees, and when a store may be used again, is for the callers.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load, save

from truing.data.lazy_trees import LazyTrees
from truing.data.tree import Branch, Tree
from truing.runs.durable import Manifest, read_entry, storage_errors
from truing.runs.flat import FlatFile

TOKENS, INDEX = "tokens.u32", "index.safetensors"
SCORED = np.uint32(1 << 31)
"""The highest bit of a token says whether it is scored."""
KIND = np.dtype("<u4")
NO_LABEL = -1
FLUSH_TOKENS = 1 << 20


@dataclass(slots=True)
class _Part:
    """The numbers of one part's trees, as they come."""

    starts: "array[int]" = field(default_factory=lambda: array("q"))
    branches: "array[int]" = field(default_factory=lambda: array("i"))
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    scored: "array[int]" = field(default_factory=lambda: array("q"))
    keys: "array[int]" = field(default_factory=lambda: array("q"))
    margins: "array[float]" = field(default_factory=lambda: array("d"))
    probabilities: "array[float]" = field(default_factory=lambda: array("d"))
    labels: "array[int]" = field(default_factory=lambda: array("b"))


class TreeWriter:
    """Fills a folder, which the caller makes durable (`durable.adopt_folder`) once this is closed."""

    def __init__(self, folder: Path, parts: Iterable[str]) -> None:
        self._folder = folder
        self._parts = {name: _Part() for name in parts}
        self._tokens: list[int] = []
        self._scored: list[bool] = []
        self._written = 0
        with storage_errors(folder):
            self._file = (folder / TOKENS).open("wb")

    def append(self, part: str, tree: Tree) -> None:
        """Adds a tree, its key, margin, probability and labels to a part; its reference is not kept."""
        into = self._parts[part]
        into.starts.append(self._written + len(self._tokens))
        into.branches.append(len(tree.branches))
        into.lengths.append(len(tree.trunk))
        into.lengths.extend(len(branch.tokens) for branch in tree.branches)
        into.scored.append(sum(tree.scored))
        into.keys.append(tree.key)
        into.margins.append(np.nan if tree.margin is None else tree.margin)
        into.probabilities.append(np.nan if tree.probability is None else tree.probability)
        into.labels.extend([NO_LABEL] * len(tree.branches) if tree.desirable is None else tree.desirable)
        self._tokens += tree.trunk
        self._scored += [False] * len(tree.trunk)
        for branch in tree.branches:
            self._tokens += branch.tokens
            self._scored += branch.scored
        if len(self._tokens) >= FLUSH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        row = np.array(self._tokens, KIND) | np.where(self._scored, SCORED, np.uint32(0)).astype(KIND)
        with storage_errors(self._folder):
            self._file.write(row.tobytes())
        self._written += len(row)
        self._tokens.clear()
        self._scored.clear()

    def close(self) -> None:
        """Writes the rest and the index."""
        self._flush()
        index: dict[str, np.ndarray] = {}
        for name, part in self._parts.items():
            index |= {f"{name}.{column}": np.array(getattr(part, column)) for column in _Part.__slots__}
        with storage_errors(self._folder):
            self._file.close()
            (self._folder / INDEX).write_bytes(save(index))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredTrees(LazyTrees):
    """One part of a store. Example: `StoredTrees.open(folder, inspect_folder(folder), "train")[0]`. Safe to read from threads."""

    tokens: FlatFile
    starts: Int[np.ndarray, " tree"]
    """Where each tree's tokens begin: trunk, then branches."""
    branches: Int[np.ndarray, " tree"]
    """How many branches each has."""
    lengths: Int[np.ndarray, " run"]
    """Of each tree's trunk, then of its branches."""
    runs: Int[np.ndarray, " tree"]
    """Where each tree's trunk stands in `lengths`."""
    scored: Int[np.ndarray, " tree"]
    """Scored tokens of all branches of each."""
    keys: Int[np.ndarray, " tree"]
    margins: Float[np.ndarray, " tree"]
    """NaN where nobody said."""
    probabilities: Float[np.ndarray, " tree"]
    """NaN where nobody said."""
    labels: Int[np.ndarray, " branch"]
    """1 desirable, 0 not, -1 not judged."""
    sizes: Int[np.ndarray, " tree"]
    """`Tree.size` of each."""
    fingerprint: str
    """Changes with any token."""

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, part: str) -> "StoredTrees":
        """A part of a whole store."""
        index = load(read_entry(folder, manifest[INDEX]))
        columns = {name: index[f"{part}.{name}"] for name in _Part.__slots__}
        counts = columns["branches"].astype(np.int64)
        runs = np.cumsum(counts + 1) - counts - 1
        lengths = columns["lengths"]
        return cls(
            **columns,
            tokens=FlatFile.open(folder / TOKENS, KIND),
            runs=runs,
            sizes=np.add.reduceat(lengths.astype(np.int64), runs) if len(runs) else np.empty(0, np.int64),
            fingerprint=f"{manifest[TOKENS].sha256} {manifest[INDEX].sha256} {part}",
        )

    def __len__(self) -> int:
        return len(self.starts)

    def tree(self, number: int) -> Tree:
        count, run = int(self.branches[number]), int(self.runs[number])
        row = self.tokens.read(int(self.starts[number]), int(self.sizes[number]))
        ids, scored = (row & ~SCORED).tolist(), (row >= SCORED).tolist()
        trunk, *rest = self.lengths[run : run + count + 1].tolist()
        branches, at = [], trunk
        for length in rest:
            branches.append(Branch(tokens=tuple(ids[at : at + length]), scored=tuple(scored[at : at + length])))
            at += length
        margin, probability = float(self.margins[number]), float(self.probabilities[number])
        labels = self.labels[run - number : run - number + count].tolist()
        return Tree(
            trunk=tuple(ids[:trunk]),
            branches=tuple(branches),
            key=int(self.keys[number]),
            margin=None if margin != margin else margin,
            probability=None if probability != probability else probability,
            desirable=None if NO_LABEL in labels or not labels else tuple(map(bool, labels)),
        )

    @property
    def uncertain(self) -> bool:
        """Whether a pair says how probable its order is."""
        return bool((self.probabilities == self.probabilities).any())

    @property
    def desirable(self) -> int | None:
        """How many responses were approved of; None where they are not judged one by one."""
        return int((self.labels == 1).sum()) if (self.labels != NO_LABEL).any() else None
