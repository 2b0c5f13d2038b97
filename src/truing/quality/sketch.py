"""Sketches of texts whose equal places estimate how much two texts share, and the search for the rows that share most.

One-permutation MinHash (Li, Owen and Zhang 2012, arXiv 1208.1259) over runs of 9 bytes, empty bins filled by their neighbour
(Shrivastava and Li 2014, arXiv 1406.4784), each bin kept as one byte (Li and König, WWW 2010); candidates by equal
bands of bins. All lies in flat arrays: a million pairs take some 260 MB, where tables of tables would take several GB.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8, UInt32, UInt64

RUN = 9
"""Bytes of a run: two words of a Latin script, three signs of a Chinese one."""
BINS, BANDS = 64, 16
"""64 bins give the share of equal runs to within 0.06. A band is three bins of the whole row and one of each answer: the 16 bands
meet in all but 1 of 10,000 pairs of which every part shares 0.85."""
_MIX = np.uint64(0x9E3779B97F4A7C15)
_POWERS = np.array([pow(0x100000001B3, RUN - 1 - i, 1 << 64) for i in range(RUN)], dtype=np.uint64)
_BIN = np.arange(BINS, dtype=np.uint64)
_EDGES = np.arange(4 * BINS, dtype=np.uint64) << np.uint64(56)
_ODD = _BIN * np.uint64(0xD1342543DE82EF94) + _MIX
_WITHOUT_PART = np.uint64((1 << 62) - 1)
_CHUNK = 1 << 15
_BLOCK = 4096

Least = UInt64[np.ndarray, "part bin"]
Sketch = UInt8[np.ndarray, " bin"]
Parts = Sequence[Sequence[str]]
"""A row taken apart, such as ((prompt,), (chosen,), (rejected,)); at most four, texts of a part each in its place."""


def sketch(text: str) -> Sketch:
    """The sketch of a text, the same for texts that differ only in case and white space."""
    return _bytes(_least(((text,),)))[0]


def shared(a: Sketch, b: Sketch) -> float:
    """The estimated share of runs that two texts have in common (Jaccard)."""
    return float((a == b).mean())


def _least(parts: Parts) -> Least:
    """The least hash of each bin of each part; an empty bin gets that of the part's next bin that has one, around the end."""
    texts = [[" ".join(text.casefold().split()).encode().ljust(RUN, b"\0") for text in part] for part in parts]
    signs = np.frombuffer(b"".join([text for part in texts for text in part]), np.uint8).astype(np.uint64)
    count = len(signs) - RUN + 1
    hashes = signs[:count] * _POWERS[0]
    for i in range(1, RUN):
        hashes += signs[i : i + count] * _POWERS[i]
    pieces, begin = [], 0
    ends: list[int] = []
    for part in texts:
        for place, text in enumerate(part):
            pieces.append(hashes[begin : begin + len(text) - RUN + 1] + np.uint64(place))
            begin += len(text)
        ends.append(sum(map(len, pieces[-len(part) :])) + (ends[-1] if ends else 0))
    hashes = _mixed(np.concatenate(pieces))
    # Sorted by part, bin and hash at once: two bits say the part, the next six the bin.
    hashes >>= np.uint64(2)
    for number, end in enumerate(ends[:-1], start=1):
        hashes[end : ends[number]] |= np.uint64(number << 62)
    hashes.sort()
    first = np.searchsorted(hashes, _EDGES[: BINS * len(parts)]).reshape(len(parts), BINS)
    for number, end in enumerate(ends):
        first[number, first[number] == end] = ends[number - 1] if number else 0
    least: Least = hashes[first] & _WITHOUT_PART
    return least


def _mixed(hashes: UInt64[np.ndarray, "*any"]) -> UInt64[np.ndarray, "*any"]:
    """The polynomial's high bits follow the first byte; bins are taken from the high bits, so they are mixed (splitmix64)."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes


def _bytes(least: Least) -> UInt8[np.ndarray, "part bin"]:
    """One byte of each bin's hash, multiplied with an odd number of the bin: texts of a single run fill all bins with it, and must
    not all be alike once in 256 pairs."""
    return ((least * _ODD) >> np.uint64(56)).astype(np.uint8)


def _keys(least: Least) -> UInt32[np.ndarray, " band"]:
    """A key for each band: three bins of the whole row and the fourth of each answer, so that the many answers to one long prompt
    do not hide each other."""
    if len(least) == 1:
        whole, answers = least[0], least
    else:
        there = (least >> np.uint64(56)) == _BIN
        whole, answers = np.where(there, least, _WITHOUT_PART).min(axis=0), least[1:]
        full = np.flatnonzero(there.any(axis=0))
        if len(full) < BINS:
            whole = whole[full[np.searchsorted(full, np.arange(BINS)) % len(full)]]
    keys = np.zeros(BANDS, dtype=np.uint64)
    bands = whole.reshape(BANDS, -1)
    for column in (bands[:, 0], bands[:, 1], bands[:, 2], *answers[:, 3 :: BINS // BANDS]):
        keys ^= column
        keys *= _MIX
        keys ^= keys >> np.uint64(29)
    return (keys >> np.uint64(8)).astype(np.uint32)


class Sketches:
    """Sketches in the order of their rows. Example: `sketches.repeats(0.85)` gives each row that repeats an earlier one.

    A row repeats another of its group when each of its parts shares enough with the same part there. Of three parts the last two
    must be more alike in their places than crosswise: the opposite of a preference is no repeat of it.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[UInt32[np.ndarray, "row band"], UInt8[np.ndarray, "row part bin"]]] = []
        self._used = 0

    def add(self, parts: Parts, group: int = 0) -> None:
        """One more row, of as many parts as every other; rows of different groups (at most 2^32) are never compared."""
        if self._used == _BLOCK * len(self._blocks):
            bins = np.empty((_BLOCK, len(parts), BINS), dtype=np.uint8)
            self._blocks.append((np.empty((_BLOCK, BANDS), dtype=np.uint32), bins))
        keys, rows = self._blocks[-1]
        place = self._used % _BLOCK
        least = _least(parts)
        keys[place] = _keys(least) ^ np.uint32(group)
        rows[place] = _bytes(least)
        self._used += 1

    def __len__(self) -> int:
        return self._used

    def _all(self) -> tuple[UInt32[np.ndarray, "row band"], UInt8[np.ndarray, "row part bin"]]:
        """All rows in one; a block is let go as soon as it is copied."""
        parts = self._blocks[0][1].shape[1] if self._blocks else 1
        keys, bins = np.empty((len(self), BANDS), dtype=np.uint32), np.empty((len(self), parts, BINS), dtype=np.uint8)
        self._blocks.reverse()
        for place in range(0, len(self), _BLOCK):
            found = self._blocks.pop()
            used = min(_BLOCK, len(self) - place)
            keys[place : place + used], bins[place : place + used] = found[0][:used], found[1][:used]
        return keys, bins

    def repeats(self, limit: float, *, first: int = 0) -> dict[int, int]:
        """Row -> an earlier row with which it shares at least `limit`; only rows from `first` on, against rows before `first`
        where that is not 0. Asked once: the sketches are gone afterwards."""
        bands, sketches = self._all()
        found: dict[int, int] = {}
        for keys in bands.T:
            order = np.argsort(keys, kind="stable")
            same = keys[order[1:]] == keys[order[:-1]]
            ends = np.flatnonzero(same) + 1
            if not len(ends):
                continue
            starts = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
            for earlier in (order[starts[ends]], order[ends - 1]):
                _compare(sketches, order[ends], earlier, limit, first, found)
        return found


def _compare(
    sketches: UInt8[np.ndarray, "row part bin"],
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
        here, there = sketches[a], sketches[b]
        straight = (here == there).mean(axis=2)
        enough = (straight >= limit).all(axis=1)
        if straight.shape[1] == 3:
            enough &= straight[:, 1:].sum(axis=1) >= (here[:, 1:] == there[:, :0:-1]).mean(axis=2).sum(axis=1)
        for row, before in zip(a[enough].tolist(), b[enough].tolist(), strict=True):
            found.setdefault(row, before)
