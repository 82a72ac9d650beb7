"""What an ablation table is: its rows and the networks behind them, the figures of the thesis, and what they claim.

Source: thesis 001. The tables themselves are in tasks/ablations/chapter_3.py and tasks/ablations/chapter_4.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Literal

import models
from tasks.training.spec import Auxiliary

MAP = "every_frame_map"
KINDS = {  # measure: what it is the mAP of
    MAP: "every frame",
    f"{MAP}_single": "frames of one action",
    f"{MAP}_several": "frames of several actions",
    f"{MAP}_away": "frames away from boundaries",
    f"{MAP}_boundary": "frames near boundaries",
}
# How a stream is pretrained: the objective, and of detection the augmentation with its options.
PRETRAININGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classification": ("classification", "none", {}),
    "freeze": ("detection", "freeze", {}),
    "freeze_two": ("detection", "freeze", {"segments": 2}),
    "mixup": ("detection", "mixup", {}),
    "mixup_hard": ("detection", "mixup", {"seamless": False}),
    "mixup_manifold": ("detection", "manifold", {}),
    "cutmix": ("detection", "cutmix", {"window": "constant"}),  # transient views: the 18.99 of Table 4.2a is that
    "cutmix_window": ("detection", "cutmix", {"window": "transient"}),
    "joint": ("detection", "joint", {"window": "constant"}),
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network and how it is trained; what is not given is what all rows of all tables share.

    ``options`` are those of its `build` beside the size; ``pretraining`` is that of its only or Coarse stream, and
    ``fine`` that of a Fine stream, None the same. ``faster`` multiplies frames and rate.
    """

    system: str = "x3d"
    options: dict[str, Any] = field(default_factory=dict)
    pretraining: str = "classification"
    fine: str | None = None
    faster: int = 1
    auxiliary: Auxiliary = "none"
    clips: Literal["short", "wide"] = "short"  # the frames of X3D's clips, or of those that are pooled

    @property
    def two_streams(self) -> bool:
        return self.system in models.TWO_STREAMS and self.options.get("fusion") != "none"

    def streams(self) -> tuple["Network", "Network"]:
        """The Coarse and the Fine stream of two, as networks that are trained alone."""
        config = import_module(models.SYSTEMS[self.system]).Config(**self.options)
        pooled = {"fusion": "none", "pooling": config.pooling, "alpha": config.alpha}
        coarse = replace(self, system="coarse_fine", options=pooled, fine=None, clips="wide")
        return coarse, Network(pretraining=self.fine or self.pretraining, clips=self.clips_of_fine(config.ratio))

    def clips_of_fine(self, ratio: int) -> Literal["short", "wide"]:
        """Short clips for a Fine stream beside a pooled one, the same clips beside another Fine one."""
        return "wide" if ratio == 1 else "short"


def coarse(pooling: str = "grid", *, alpha: float = 1 / 4, **more: Any) -> Network:
    """The Coarse stream by itself."""
    options = {"fusion": "none", "pooling": pooling, "alpha": alpha}
    return Network(system="coarse_fine", options=options, clips="wide", **more)


def fused(system: str, pretraining: str = "classification", fine: str | None = None, **options: Any) -> Network:
    """A network of two streams."""
    return Network(system=system, options=options, pretraining=pretraining, fine=fine, clips="wide")


@dataclass(frozen=True)
class Row:
    """A row: several networks are an ensemble. ``thesis`` has the figures as printed, by measure of `KINDS`.

    One with a sign is relative to the row ``to``.
    """

    name: str
    networks: tuple[Network, ...]
    thesis: dict[str, str]
    to: str = ""
    gflops: str = ""


@dataclass(frozen=True)
class Claim:
    """The sum of what stands in ``plus`` is above the sum in ``minus``: names of rows, of a kind where one is given."""

    plus: tuple[str, ...]
    minus: tuple[str, ...]
    kind: str = MAP
    other_kind: str = ""  # of the second half of ``plus`` and ``minus``

    def terms(self) -> Iterator[tuple[int, str, str]]:
        """(sign, row, measure) of each term."""
        for sign, names in ((1, self.plus), (-1, self.minus)):
            for place, name in enumerate(names):
                yield sign, name, self.other_kind if self.other_kind and 2 * place >= len(names) else self.kind


def above(*names: str, kind: str = MAP) -> tuple[Claim, ...]:
    """Each row above the next."""
    return tuple(Claim((high,), (low,), kind) for high, low in zip(names, names[1:], strict=False))


@dataclass(frozen=True)
class Table:
    """A table of the thesis: what its rows differ in from the base, what it claims, and what rendered data can show."""

    id: str
    title: str
    style: Literal["dense", "sparse", "brief"]  # of the videos that are fine-tuned on and measured
    base: str  # the row that differences are taken to
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str

    def row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def figure(self, name: str, kind: str = MAP) -> float | None:
        """The thesis's mAP of a row, what is printed relatively made absolute; None where none is printed."""
        row = self.row(name)
        text = row.thesis.get(kind)
        if text is None:
            return None
        value = float(text)
        return round(value + (self.figure(row.to, kind) or 0.0), 2) if text[0] in "+-" else value

    def measures(self) -> list[str]:
        """The measures that the table has figures of."""
        return [kind for kind in KINDS if any(kind in row.thesis for row in self.rows)]

    def claimed(self, claim: Claim) -> float:
        """What the thesis's figures make of a claim."""
        return round(sum(sign * (self.figure(name, kind) or 0.0) for sign, name, kind in claim.terms()), 2)
