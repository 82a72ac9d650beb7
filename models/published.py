"""The costs that thesis 001 prints (Tables 3.2, 3.3, 4.4d), each beside what the systems here come to.

Ours are counted as built (models/cost.py), on the meta device. Where the two differ the row says why.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import floor

import models
from models.cost import Cost, count

EIGHTH = "the printed figure is that of 1/16, two strides of 4 in the head, which is the next row"


@dataclass(frozen=True)
class Row:
    """A printed figure, as text with its digits, beside ours; parameters in millions, None where none are printed."""

    table: str
    what: str
    macs: str
    ours: float
    params: str = ""
    our_params: float | None = None
    why: str = ""
    unit: str = "G"  # of MACs: giga, tera, peta

    def agrees(self) -> bool:
        """Whether ours, cut or rounded to the printed digits, are what is printed; the thesis does either."""
        return printed(self.ours, self.macs) and (self.our_params is None or printed(self.our_params, self.params))


def printed(value: float, text: str) -> bool:
    """Whether a value cut or rounded to as many digits as `text` has gives `text`; nothing printed agrees."""
    if not text:
        return True
    scale = 10 ** len(text.partition(".")[2])
    return round(float(text) * scale) in (round(value * scale), floor(value * scale))


@cache
def counted(system: str, frames: int = 128, pixels: int = 224, **options: object) -> Cost:
    """Return the cost of one video through a system with 157 classes; once for each."""
    return count(lambda: models.build(system, **options), (1, 3, frames, pixels, pixels))


def row(table: str, what: str, macs: str, cost: Cost, params: str = "", why: str = "") -> Row:
    """Return a row of one forward pass; parameters are ours where the thesis prints some."""
    return Row(table, what, macs, cost.conv_macs / 1e9, params, cost.params / 1e6 if params else None, why)


def published() -> Iterator[Row]:
    """Yield every figure, in the order of the thesis."""
    yield from single_streams()
    yield from coarse_only()
    yield from two_streams()
    yield from pretraining()


def single_streams() -> Iterator[Row]:
    """Yield X3D of Table 3.2."""
    yield row("3.2", "X3D-M, 128 frames", "37.96", counted("x3d"), "3.29")
    why = "at 312 x 312 pixels, with 73.40 at 224; no reading of the text gives 5.78 M parameters"
    yield row("3.2", "X3D-L, 128 frames", "147.04", counted("x3d", pixels=312, size="L"), "5.78", why)


def coarse_only() -> Iterator[Row]:
    """Yield the Coarse stream by itself, Tables 3.3d and 3.3e."""
    for pooling, name in (("max", "max pooling"), ("average", "average pooling"), ("stride", "striding")):
        cost = counted("coarse_fine", fusion="none", pooling=pooling)
        yield row("3.3e", f"Coarse only, {name}", "15.42", cost)
    yield row("3.3e", "Coarse only, Grid Pool", "16.53", counted("coarse_fine", fusion="none"))
    for frames, eighth, quarter in ((128, "10.43", "16.53"), (256, "20.63", "32.82")):
        for share, macs, why in ((8, eighth, EIGHTH), (16, eighth, ""), (4, quarter, "")):
            cost = counted("coarse_fine", frames, fusion="none", alpha=1 / share)
            yield row("3.3d", f"Coarse only, T = {frames}, alpha = 1/{share}", macs, cost, why=why)


def two_streams() -> Iterator[Row]:
    """Yield Fine-Fine, SlowFast_det and Coarse-Fine, Tables 3.2, 3.3a, c and f and section 3.3.3."""
    for fusion, macs in (("late", "77.15"), ("one_to_one", "81.80"), ("multi_stage", "94.80")):
        yield row("3.3a", f"Fine-Fine, {fusion}", macs, counted("fine_fine", fusion=fusion))
    for fusion, macs in (("late", "75.98"), ("multi_stage", "92.69")):
        yield row("3.3c", f"Fine-Fine, {fusion}, no mask", macs, counted("fine_fine", fusion=fusion, attention=False))
    yield row("3.2", "Fine-Fine", "94.80", counted("fine_fine", fusion="multi_stage"), "7.80")
    why = "the text does not describe the laterals; ours are two shift and two scale convolutions a level"
    yield row("3.2", "SlowFast_det", "54.31", counted("slowfast_det"), "7.41", why)
    why = "the printed figure adds the head of Grid Pool alone; built, the laterals run at 33 points and not 32"
    yield row("3.3f", "SlowFast_det with Grid Pool", "55.42", counted("slowfast_det", pooling="grid"), why=why)
    why = "the printed figure has the fusion at 128 points, where 72.26 comes out; built, it runs at 32"
    fused = counted("slowfast_det", fusion="multi_stage", attention=True, correspondence="gaussian")
    yield row("3.3f", "SlowFast_det with fusion", "72.16", fused, why=why)
    yield from coarse_fine()


def coarse_fine() -> Iterator[Row]:
    """Yield Coarse-Fine as built and as the thesis adds it up: X3D, coarse only, and the fusion of Fine-Fine."""
    why = "the printed figure has the fusion at 128 points, as the next row; built, it runs at the 33 of Grid Pool"
    yield row("3.2", "Coarse-Fine, as built", "73.37", counted("coarse_fine"), "7.82", why)
    x3d, both = counted("x3d").conv_macs, counted("fine_fine", fusion="multi_stage").conv_macs
    added = x3d + counted("coarse_fine", fusion="none").conv_macs + (both - 2 * x3d)
    yield Row("3.2", "Coarse-Fine, as the thesis adds it up", "73.37", added / 1e9)
    thumos = counted("coarse_fine", 1024).conv_macs / 1e12
    yield Row("3.3.3", "Coarse-Fine, as built, 1024 frames", "0.49", thumos, why="0.485 when it is built", unit="T")


def pretraining() -> Iterator[Row]:
    """Yield Table 4.4d: forward passes of X3D-M on batches of 64 clips of 16 frames."""
    clip = counted("x3d", 16)
    yield row("4.4d", "X3D-M, 16 frames", "", clip)
    for thousands, macs in ((300, "91.10"), (100, "30.36")):
        petas = thousands * 1000 * 64 * clip.conv_macs / 1e15
        yield Row("4.4d", f"Pretraining, {thousands},000 iterations of 64 clips", macs, petas, unit="P")


HEAD = ("table", "what", "thesis MACs", "ours", "unit", "thesis params (M)", "ours (M)", "agrees", "why not")


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, ours with five digits and parameters to the last one."""
    params = "" if row.our_params is None else f"{row.our_params:.6f}"
    agrees = "" if not row.macs else ("yes" if row.agrees() else "no")
    return (row.table, row.what, row.macs, f"{row.ours:.5f}", row.unit, row.params, params, agrees, row.why)


def as_markdown(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_csv(rows: list[Row]) -> str:
    """Return the rows as CSV with a header line."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([HEAD, *map(cells, rows)])
    return out.getvalue().rstrip("\n")
