"""The picture of an ablation table: each row's seeds as dots, their mean, and the thesis's figure on its own scale."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: its current figure is shared between threads

from tasks.ablations.rows import KINDS, Table
from tasks.ablations.verdict import Scores, order, points
from tasks.figures import SCORE, TRUTH, save


def draw(table: Table, scores: Scores, path: Path) -> Path:
    """Draws a table, a panel for each measure that the thesis has figures of."""
    kinds = table.measures()
    wide = 2 if len(kinds) > 1 else 1
    high = -(-len(kinds) // wide)
    size = (5.2 * wide + 1.6, (0.42 * len(table.rows) + 1.9) * high)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(high, wide, sharey=True, squeeze=False).flatten().tolist()
    for axes, kind in zip(panels, kinds, strict=False):
        _panel(axes, table, scores, kind)
        if len(kinds) > 1:
            axes.set_title(KINDS[kind], fontsize=9)
    figure.suptitle(f"Table {table.id}: {table.title}", fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return save(figure, path)


def _panel(axes: Axes, table: Table, scores: Scores, kind: str) -> None:
    """One measure: rows from top to bottom; our scale is below, the thesis's above."""
    names = [row.name for row in table.rows]
    other = axes.twiny()
    for place, name in enumerate(names):
        values = points(scores, name, kind)
        middle = sum(values) / len(values)
        axes.axhline(place, color="0.92", lw=0.8, zorder=0)
        first = place == 0
        axes.plot(values, [place + 0.12] * len(values), "o", color=TRUTH, alpha=0.45, ms=5, mew=0,
                  label="ours, a dot a seed" if first else None)  # fmt: skip
        axes.plot([middle], [place + 0.12], "|", color=TRUTH, ms=15, mew=2.2, label="our mean" if first else None)
        printed = table.figure(name, kind)
        if printed is not None:
            other.plot([printed], [place - 0.16], "D", color=SCORE, ms=5)
    axes.plot([], [], "D", color=SCORE, ms=5, label="thesis (upper scale)")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"our mAP, %  ·  Kendall's tau {order(table, scores, kind)[0]:+.2f}", color=TRUTH, fontsize=9)
    other.set_xlabel("thesis mAP, %", color=SCORE, fontsize=9)
    for scale, colour in ((axes, TRUTH), (other, SCORE)):
        scale.tick_params(axis="x", colors=colour, labelsize=8)
        scale.margins(x=0.08)
