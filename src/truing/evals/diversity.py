"""How varied a model's answers are: self-BLEU over answers to one prompt or many. Distinct n-grams are `statistics.distinct_n`."""

import math
from collections import Counter
from collections.abc import Sequence

ORDER = 4


def self_bleu(texts: Sequence[str], *, order: int = ORDER) -> float:
    """Mean BLEU of each text against all others (Zhu et al. 2018, arXiv 1802.01886): 1 where all say the same, lower when varied.

    Words are what white space divides. BLEU as Papineni et al. (2002) define it, with one added to matches and totals beyond
    single words (Lin and Och 2004), so that short texts have one. Compare only sets of as many texts of like length.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU of {len(texts)} texts; it needs two or more")
    words = [text.split() for text in texts]
    counts = [[_grams(said, n) for n in range(1, order + 1)] for said in words]
    lengths = [len(said) for said in words]
    # The largest count of each n-gram and the second largest with who holds the largest: the others' maximum without a second pass.
    best: list[dict[tuple[str, ...], tuple[int, int, int]]] = [{} for _ in range(order)]
    for i, of_text in enumerate(counts):
        for table, grams in zip(best, of_text, strict=True):
            for gram, count in grams.items():
                first, holder, second = table.get(gram, (0, -1, 0))
                table[gram] = (count, i, first) if count > first else (first, holder, max(second, count))
    return sum(_bleu(i, counts[i], best, lengths) for i in range(len(texts))) / len(texts)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _bleu(
    i: int,
    own: Sequence[Counter[tuple[str, ...]]],
    best: Sequence[dict[tuple[str, ...], tuple[int, int, int]]],
    lengths: Sequence[int],
) -> float:
    if not lengths[i]:
        return 0.0
    logs = []
    for n, (grams, table) in enumerate(zip(own, best, strict=True)):
        matches = 0
        for gram, count in grams.items():
            first, holder, second = table[gram]
            matches += min(count, second if holder == i else first)
        total = sum(grams.values())
        matches, total = (matches, total) if n == 0 else (matches + 1, total + 1)
        if not matches:
            return 0.0
        logs.append(math.log(matches / total))
    others = [length for j, length in enumerate(lengths) if j != i]
    closest = min(others, key=lambda length: (abs(length - lengths[i]), length))
    brevity = 1.0 if lengths[i] >= closest else math.exp(1 - closest / lengths[i])
    return brevity * math.exp(sum(logs) / len(logs))
