"""`reelmill status`: what an audit finds, as one page on the terminal, at once and without a server."""

import json
import os
from io import StringIO
from typing import Annotated, Any, Literal

from pydantic import Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from storage import datasets, files
from storage.errors import InputError
from storage.inventory import in_units
from storage.secrets import printable
from storage.timing import Spent, shares
from tasks.audits import contents, stale

CLASSES = 8  # of a split; the page says how many more there are
WIDTH = 100


def gather(root: str, dataset: str, model: str) -> dict[str, Any]:
    """What there is to say about one dataset, as plain values; nothing under the root is changed."""
    data = datasets.load(root, dataset)
    counts = contents.labels(root, data)
    predictions = stale.behind(root, data, model)
    listed = stale.survey(root, data)
    return {
        "dataset": dataset,
        "freshness": contents.freshness(root, data),
        "growth": contents.growth(root, data),
        "funnel": contents.funnel(root, data),
        "clips": contents.clips(data),
        "bytes": sum(part.bytes for part in data.parts),
        "labels": counts,
        "label_drift": contents.drift(counts),
        "columns": stale.coverage(data, listed, predictions.get("version", "")),
        "predictions": predictions,
        "times": {flow: _plain(contents.times(root, flow, dataset)) for flow in ("prepare", "retrain", "infer")},
        "in_hand": contents.in_hand(root),
        "last_retraining": contents.last_retraining(root, model),
    }


def status(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str | None, Field(description="Name of the dataset; none: every one.")] = None,
    model: Annotated[str, Field(description="Name in the model registry.")] = "detector",
    as_: Annotated[Literal["page", "json"], Field(description="For people, or for programs.")] = "page",
) -> str:
    """Say what is there, what was lost and what is behind, at once: neither Prefect nor any frame is asked.

    Drift of embeddings and what nobody refers to take longer; `reelmill audit` has them.
    """
    root = files.existing_root(root)
    names = [dataset] if dataset else datasets.names(root)
    if not names:
        raise InputError(f"{root} has no dataset yet; run `reelmill prepare` first")
    found = [gather(root, name, model) for name in names]
    if as_ == "json":
        return json.dumps({"root": root, "model": model, "datasets": found}, indent=1)
    return "\n".join(page(each, model) for each in found)


def page(found: dict[str, Any], model: str) -> str:
    """The page of one dataset; in colours only where a terminal shows them."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for title, lines in sections(found, model).items():
        for number, line in enumerate(lines or ["none"]):
            grid.add_row("" if number else title, Text(printable(line)))
    out = StringIO()
    plain = "NO_COLOR" in os.environ or not os.isatty(1)
    console = Console(file=out, width=WIDTH, force_terminal=not plain, no_color=plain, highlight=False)
    console.print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def sections(found: dict[str, Any], model: str) -> dict[str, list[str]]:
    """The lines of the page under their titles."""
    fresh, funnel, lag = found["freshness"], found["funnel"], found["predictions"]
    age = "" if fresh["age_hours"] is None else f", moved {fresh['moved']} ({_age(fresh['age_hours'])} ago)"
    splits = ", ".join(f"{n:,} {split}" for split, n in found["clips"].items())
    lines = {"dataset": [f"{found['dataset']} @ {fresh['version']}{age}", _grown(found["growth"])]}
    listed = contents.in_files(funnel["listed"], funnel["pieces"])
    kept = f"{listed}: {funnel['kept']:,} kept, {funnel['dropped']:,} dropped, "
    lines["archive"] = [f"{kept}{funnel['quarantined']:,} quarantined"]
    lines["archive"] += [f"  {n:,} {reason}" for reason, n in funnel["by_reason"].items()]
    lines["clips"] = [f"{fresh['clips']:,} in {in_units(found['bytes'])}: {splits}"]
    lines["classes"] = [f"{split}: {_top(counts)}" for split, counts in found["labels"].items() if counts]
    if found["label_drift"] is not None:
        lines["classes"].append(f"drift between train and held out {found['label_drift']:.3f} of 1")
    lines["columns"] = [_column(name, facts) for name, facts in found["columns"].items()]
    lines["champion"] = [_champion(lag, model)]
    last = found["last_retraining"]
    lines["retrained"] = [f"{last['when']} on {last['dataset']}"] if last else [f"{model} never"]
    lines["retrained"] += [f"  {kind}: {why}" for kind, why in last["gates"].items()] if last else []
    for flow, took in found["times"].items():
        lines |= {f"{flow} took": [_took(name, facts, took) for name, facts in took.items()]} if took else {}
    lines["in hand"] = [f"{name}: {who}" for name, who in found["in_hand"].items()] or ["nothing"]
    return lines


def _plain(took: dict[str, Spent]) -> dict[str, dict[str, Any]]:
    return {
        name: {"seconds": one.seconds, "of_the_run": one.part, "clips": one.items, "into": dict(one.into.most_common())}
        for name, one in took.items()
    }


def _took(name: str, facts: dict[str, Any], all_: dict[str, Any]) -> str:
    share = 100 * facts["of_the_run"] / max(1e-9, sum(one["of_the_run"] for one in all_.values()))
    return f"{share:.0f} % {name}, {facts['seconds']:.1f} s: {shares(facts['into'])}"


def _column(name: str, facts: dict[str, Any]) -> str:
    whole = "all clips" if facts["clips"] == facts["of"] else f"{facts['clips']:,} of {facts['of']:,} clips"
    stale = f"; {len(facts['stale'])} stale, {in_units(sum(facts['stale'].values()))}" if facts["stale"] else ""
    return f"{name} {facts['version']}: {whole}{stale}"


def _champion(lag: dict[str, Any], model: str) -> str:
    if lag["champion"] is None:
        return f"{model} has none; `reelmill retrain` makes one"
    missing, clips = lag["clips_without_predictions"], lag["clips"]
    said = f"{missing:,} of {clips:,} clips lack its predictions" if missing else f"all {clips:,} clips are predicted"
    return f"{model} version {lag['champion']}: {said}"


def _grown(growth: dict[str, Any]) -> str:
    if "clips" not in growth:
        return f"since the version before: {growth['since']}"
    parts = f"{growth['parts_new']} parts came, {growth['parts_gone']} went"
    return f"since {growth['since']}: {growth['clips']:+,} clips, {parts}"


def _top(counts: dict[str, int]) -> str:
    order = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    more = f" and {len(order) - CLASSES} more" if len(order) > CLASSES else ""
    return ", ".join(f"{name} {n:,}" for name, n in order[:CLASSES]) + more


def _age(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
