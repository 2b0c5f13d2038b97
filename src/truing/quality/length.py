"""Length bias: whether chosen answers are longer, and how well length alone tells them apart.

People and models alike take length for quality (Singhal et al. 2023, arXiv 2310.03716). Lengths are in characters, which every
script has.
"""

from array import array

import numpy as np

from truing.charts import Bars
from truing.quality.finding import Finding, Level
from truing.quality.sample import Sample
from truing.statistics import auc, wilson

EDGES = (20, 50, 100, 200, 400, 800, 1600, 3200)
WATCH, ACT = 0.58, 0.70
"""Share of longer chosen answers: human preferences over good answers mostly lie under 0.6, and length-driven sets over 0.7."""
FEWEST = 30


class LengthBias:
    """Pairs only: how often the chosen answer is the longer one, ties half."""

    def __init__(self) -> None:
        self.chosen, self.rejected = array("L"), array("L")

    def see(self, sample: Sample) -> None:
        """Two lengths of a pair."""
        if sample.pair:
            self.chosen.append(len(sample.pair[0]))
            self.rejected.append(len(sample.pair[1]))

    def findings(self) -> list[Finding]:
        """One finding, whose chart is the distribution on each side."""
        if not self.chosen:
            return []
        chosen, rejected = np.asarray(self.chosen, dtype=np.int64), np.asarray(self.rejected, dtype=np.int64)
        longer = float((chosen > rejected).sum() + (chosen == rejected).sum() / 2)
        share = wilson(longer, len(chosen))
        apart = auc(chosen.astype(float), rejected.astype(float))
        shorter = 1 - share.high
        bias = max(share.low, shorter)
        level: Level = "unknown" if len(chosen) < FEWEST else "act" if bias > ACT else "watch" if bias > WATCH else "fine"
        middle = [float(np.median(lengths)) for lengths in (chosen, rejected)]
        return [
            Finding(
                name="length_bias",
                level=level,
                said="pairs whose chosen answer is the longer one (ties half)",
                value=share,
                why="a reward model learns length instead of quality, and the policy learns to ramble (or to be curt)",
                mend="truing train METHOD data.length_factor=2, or loss=simpo, which divides by length" if level != "fine" else "",
                details=(
                    f"length alone tells a chosen from a rejected answer with AUC {apart:.3f} (0.5 is not at all)",
                    f"middle length: chosen {middle[0]:.0f} characters, rejected {middle[1]:.0f}",
                ),
                chart=_chart(chosen, rejected),
            )
        ]


def _chart(chosen: np.ndarray, rejected: np.ndarray) -> Bars:
    labels = (f"<{EDGES[0]}", *(f"{low}-" for low in EDGES))
    counts = {
        name: tuple(float(n) for n in np.bincount(np.searchsorted(EDGES, lengths, side="right"), minlength=len(labels)))
        for name, lengths in (("chosen", chosen), ("rejected", rejected))
    }
    return Bars(title="characters of an answer", labels=labels, series=counts)
