"""What the scores of a table's rows over some seeds say: means, differences paired by seed, and whether they agree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from scipy.stats import kendalltau

from tasks.ablations.rows import MAP, Claim, Table

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]  # row: seed: measure: 0 to 1, or what it costs


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and their standard deviation (of a sample; NaN of one seed)."""

    mean: float
    sd: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        middle = mean(values)
        squares = sum((value - middle) ** 2 for value in values)  # NaN where a value is, which `stdev` does not take
        return cls(middle, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan, tuple(values))


def points(scores: Scores, row: str, kind: str = MAP) -> list[float]:
    """The mAP of a row in percent, by seed in rising order; NaN where no frame was of that kind."""
    return [100 * of_seed.get(kind, math.nan) for _, of_seed in sorted(scores[row].items())]


def gains(scores: Scores, row: str, base: str, kind: str = MAP) -> Spread:
    """How far a row is above another, by seed."""
    pairs = zip(points(scores, row, kind), points(scores, base, kind), strict=True)
    return Spread.of([own - other for own, other in pairs])


@dataclass(frozen=True)
class Finding:
    """What became of a claim: the thesis's difference, ours by seed, and in how many seeds the sign is the same."""

    claim: Claim
    thesis: float
    ours: Spread

    @property
    def agrees(self) -> int:
        return sum(value > 0 for value in self.ours.values)

    @property
    def holds(self) -> bool:
        """Whether it holds on average over the seeds."""
        return self.ours.mean > 0


def findings(table: Table, scores: Scores) -> list[Finding]:
    """Every claim of a table against the scores."""
    found = []
    for claim in table.claims:
        terms = [(sign, points(scores, name, kind)) for sign, name, kind in claim.terms()]
        seeds = range(len(terms[0][1]))
        ours = Spread.of([sum(sign * values[seed] for sign, values in terms) for seed in seeds])
        found.append(Finding(claim, table.claimed(claim), ours))
    return found


def order(table: Table, scores: Scores, kind: str = MAP) -> tuple[float, list[float]]:
    """Kendall's tau-b of our means, and of each seed by itself, against the thesis's figures of the same rows."""
    rows = [row.name for row in table.rows if table.figure(row.name, kind) is not None]
    figures = [table.figure(row, kind) for row in rows]
    ours = [points(scores, row, kind) for row in rows]
    by_seed = [float(kendalltau(figures, values).statistic) for values in zip(*ours, strict=True)]
    return float(kendalltau(figures, [mean(values) for values in ours]).statistic), by_seed
