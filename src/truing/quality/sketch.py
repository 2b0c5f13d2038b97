"""Sketches of texts whose equal places estimate how much two texts share, and the search for the rows that share most.

One-permutation MinHash (Li, Owen and Zhang 2012, arXiv 1208.1259) over runs of 9 bytes, empty bins filled by their neighbour
(Shrivastava and Li 2014, arXiv 1406.4784); candidates by equal bands of bins. All bands lie in flat arrays: a million rows take
some 300 MB, where tables of tables would take several GB.
"""

import numpy as np
from jaxtyping import Int, UInt32, UInt64

RUN = 9
"""Bytes of a run: two words of a Latin script, three signs of a Chinese one."""
BINS, BANDS = 64, 16
"""64 bins give the share of equal runs to within 0.06; 16 bands of 4 meet in all but 1 of 10,000 pairs that share 0.8."""
_MIX = np.uint64(0x9E3779B97F4A7C15)
_POWERS = np.array([pow(0x100000001B3, RUN - 1 - i, 1 << 64) for i in range(RUN)], dtype=np.uint64)
_EDGES = (np.arange(BINS, dtype=np.uint64)) << np.uint64(58)
_CHUNK = 1 << 16

Sketch = UInt32[np.ndarray, " bin"]


def sketch(text: str) -> Sketch:
    """The sketch of a text, the same for texts that differ only in case and white space."""
    signs = np.frombuffer(" ".join(text.casefold().split()).encode().ljust(RUN, b"\0"), np.uint8).astype(np.uint64)
    count = len(signs) - RUN + 1
    hashes = signs[:count] * _POWERS[0]
    for i in range(1, RUN):
        hashes += signs[i : i + count] * _POWERS[i]
    # The polynomial's high bits follow the first byte; bins are taken from the high bits, so they are mixed (splitmix64).
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    hashes.sort()
    # The first hash of each bin is its least; an empty bin gets the first of the next bin that has one, around the end.
    first = np.searchsorted(hashes, _EDGES)
    return hashes[np.where(first < count, first, 0)].astype(np.uint32)


def shared(a: Sketch, b: Sketch) -> float:
    """The estimated share of runs that two texts have in common (Jaccard)."""
    return float((a == b).mean())


class Sketches:
    """Sketches in the order of their rows. Example: `sketches.repeats(0.85)` gives each row that repeats an earlier one."""

    def __init__(self) -> None:
        self._blocks: list[UInt32[np.ndarray, "row bin"]] = []
        self._block: UInt32[np.ndarray, "row bin"] = np.empty((4096, BINS), dtype=np.uint32)
        self._used = 0

    def add(self, text: str) -> None:
        """One more row."""
        if self._used == len(self._block):
            self._blocks.append(self._block)
            self._block, self._used = np.empty((4096, BINS), dtype=np.uint32), 0
        self._block[self._used] = sketch(text)
        self._used += 1

    def __len__(self) -> int:
        return sum(map(len, self._blocks)) + self._used

    def _all(self) -> UInt32[np.ndarray, "row bin"]:
        found = np.empty((len(self), BINS), dtype=np.uint32)
        place = 0
        for block in [*self._blocks, self._block[: self._used]]:
            found[place : place + len(block)] = block
            place += len(block)
        self._blocks = []
        return found

    def repeats(self, limit: float, *, first: int = 0) -> dict[int, int]:
        """Row -> an earlier row with which it shares at least `limit`; only rows from `first` on, against rows before `first`
        where that is not 0. Asked once: the sketches are gone afterwards."""
        sketches = self._all()
        found: dict[int, int] = {}
        width = BINS // BANDS
        for band in range(BANDS):
            keys = _band_keys(sketches[:, band * width : (band + 1) * width])
            order = np.argsort(keys, kind="stable")
            same = keys[order[1:]] == keys[order[:-1]]
            ends = np.flatnonzero(same) + 1
            if not len(ends):
                continue
            starts = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
            for earlier in (order[starts[ends]], order[ends - 1]):
                _compare(sketches, order[ends], earlier, limit, first, found)
        return found


def _band_keys(band: UInt32[np.ndarray, "row width"]) -> UInt64[np.ndarray, " row"]:
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        keys = (keys ^ column.astype(np.uint64)) * _MIX
        keys ^= keys >> np.uint64(29)
    return keys


def _compare(
    sketches: UInt32[np.ndarray, "row bin"],
    rows: Int[np.ndarray, " candidate"],
    earlier: Int[np.ndarray, " candidate"],
    limit: float,
    first: int,
    found: dict[int, int],
) -> None:
    """Adds the candidates that do share enough."""
    if first:
        across = (rows >= first) & (earlier < first)
        rows, earlier = rows[across], earlier[across]
    for start in range(0, len(rows), _CHUNK):
        a, b = rows[start : start + _CHUNK], earlier[start : start + _CHUNK]
        enough = (sketches[a] == sketches[b]).mean(axis=1) >= limit
        for row, before in zip(a[enough].tolist(), b[enough].tolist(), strict=True):
            found.setdefault(row, before)
