"""What ablations hand back: MLflow's runs, and every table as Markdown, CSV and a figure, beside the thesis's."""

import csv
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from prefect.futures import PrefectFuture

from storage import files
from storage.timing import during
from tasks import account, report, tracking
from tasks.ablations.drawing import draw
from tasks.ablations.rows import KINDS, MAP, Table
from tasks.ablations.runs import BUDGETS, Budget, settings
from tasks.ablations.verdict import Finding, Scores, Spread, findings, gains, order, points
from tasks.footprint import MEASURES
from tasks.summary import settled

HEAD = """# Ablations of thesis 001 on rendered videos

Every table is written by `reelmill ablate`; the command above each makes it again. Ours is the mAP on every frame of
held-out videos, in percent, as mean ± standard deviation over seeds; a seed decides the archive and the weights, and
differences are taken within a seed. The thesis's figures are X3D-M on Charades, ours X3D TINY on 24 x 24 pixels of
rendered shapes: only order and sign can be compared. MACs, latency (one thread, median) and peak memory are of one
clip as it is evaluated. Speed, memory and exact counts of the whole are in [bench.md](bench.md): `make bench` takes
them, and `bench/expected.yaml` says which must hold.
"""


def begin(root: str, table: Table, budget: Budget, seeds: list[int]) -> str:
    """The MLflow run of a table, that of an earlier run with the same settings where there is one."""
    plain = settings(table, budget, seeds)
    identity = f"ablation-{files.digest_of(plain)[:16]}"
    report.say(f"\ntable {table.id}: {table.title}")
    return tracking.resume_or_start(root, f"ablate {table.id}", identity, plain, {"title": table.title}, "")


def awaited(root: str, run: str, trained: list[PrefectFuture], measured: list[PrefectFuture]) -> None:
    """Waits for all of a table and says how long the rest takes; raises what the first that failed raised."""
    with report.progress("ablate", len(trained) + len(measured), "trainings and measurements") as state:
        for future in (*trained, *measured):
            with during("wait"):  # their own runs say what they spend their time on
                future.wait()
            state.advance()
    settled(root, run, *trained, *measured)


def finish(
    root: str, run: str, table: Table, budget: Budget, name: str, found: dict[tuple[str, int], dict[str, float]]
) -> dict[str, Any]:
    """Writes a table and its figure under the root and to MLflow, and prints it; returns what of it holds and where."""
    scores: dict[str, dict[int, dict[str, float]]] = {}
    for (row, seed), metrics in found.items():
        scores.setdefault(row, {})[seed] = metrics
    seeds = sorted(next(iter(scores.values())))
    text = markdown(table, scores, command(table, budget, name, seeds))
    with files.scratch() as folder:
        paths = [folder / f"table.{kind}" for kind in ("md", "csv", "png")]
        paths[0].write_text(text)
        paths[1].write_text(as_csv(table, scores))
        draw(table, scores, paths[2])
        for path in paths:
            files.replace(path.read_bytes(), files.join(root, "tables", table.id, path.name))
        tracking.log_files(root, run, paths, "table")
    tracking.log_metrics(root, run, dict(_summary(table, scores)))
    tracking.end(root, run)
    report.markdown(f"ablate-{table.id}", text, table.title)
    told = _account(root, run, table, scores, seeds)
    report.markdown(f"ablate-{table.id}-run", told, f"what the ablation of table {table.id} did")
    report.say(f"\n{text}")
    figure = files.join(root, "tables", table.id, "table.png")
    came = {"holds": _holds(findings(table, scores)), "mlflow": tracking.run_url(root, run)}
    return {"table": table.id, "markdown": text, "figure": figure, **came}


def _holds(of_claims: list[Finding]) -> str:
    return f"{sum(found.holds for found in of_claims)} of {len(of_claims)} claims hold"


def _account(root: str, run: str, table: Table, scores: Scores, seeds: list[int]) -> str:
    """The page of a table's run in Prefect: what went in, what came out, what did not come out as the thesis has it."""
    of_claims = findings(table, scores)
    missed = [found.claim for found in of_claims if not found.holds]
    given = f"{len(table.rows)} rows of table {table.id}, {table.title}, seeds {', '.join(map(str, seeds))}"
    said = {
        "What went in": [given],
        "What came out": [
            _holds(of_claims),
            f"the table in {files.join(root, 'tables', table.id, 'table.md')}",
        ],
        "What does not hold": [f"{' + '.join(claim.plus)} above {' + '.join(claim.minus)}" for claim in missed],
        "What was dropped, and why": [],
    }
    return account.text(f"Ablation of table {table.id}", said, {"MLflow": tracking.run_url(root, run)})


def command(table: Table, budget: Budget, name: str, seeds: list[int]) -> str:
    """The command that makes a table again."""
    usual = BUDGETS[name]
    changed = {key: value for key, value in vars(budget).items() if value != getattr(usual, key)}
    words = [f"--table {table.id}", f"--seeds {','.join(map(str, seeds))}"]
    words += [f"--budget {name}"] if name != "default" else []
    return " ".join(["reelmill ablate", *words, *(f"--{key.replace('_', '-')} {n}" for key, n in changed.items())])


def _summary(table: Table, scores: Scores) -> Iterator[tuple[str, float]]:
    """What MLflow keeps on the parent run."""
    for kind in table.measures():
        yield f"kendall_tau_{kind}", order(table, scores, kind)[0]
        yield from ((f"{_key(row.name)}_{kind}", Spread.of(points(scores, row.name, kind)).mean) for row in table.rows)
    of_claims = findings(table, scores)
    yield "claims", len(of_claims)
    yield "claims_that_hold", sum(found.holds for found in of_claims)


def _key(name: str) -> str:
    """A row's name as MLflow takes it."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in name)


def shown(spread: Spread, sign: bool = False) -> str:
    """A mean and its standard deviation, of several seeds."""
    text = f"{spread.mean:{'+' if sign else ''}.1f}"
    return text if math.isnan(spread.sd) else f"{text} ± {spread.sd:.1f}"


def markdown(table: Table, scores: Scores, made_by: str) -> str:
    """A table as people read it: rows, what becomes of the thesis's claims, and what the data can show."""
    seeds = len(next(iter(scores.values())))
    lines = [f"## Table {table.id}: {table.title}", "", f"`{made_by}`", ""]
    for kind in table.measures():
        if table.measures() != [MAP]:
            lines += [f"mAP of {KINDS[kind]}:", ""]
        lines += _rows(table, scores, kind)
    found = findings(table, scores)
    held = sum(one.holds for one in found)
    lines += [f"The thesis's order holds on average over {seeds} seeds in {held} of {len(found)} comparisons.", ""]
    lines += ["| comparison | thesis | ours | seeds that agree | agrees |", "|---|---|---|---|---|"]
    for one in found:
        verdict = "yes" if one.holds else "no"
        lines.append(
            f"| {_said(one)} | {one.thesis:+.2f} | {shown(one.ours, True)} | {one.agrees} of {seeds} | {verdict} |"
        )
    return "\n".join([*lines, "", table.note, ""])


def _rows(table: Table, scores: Scores, kind: str) -> list[str]:
    head = ("", "ours", "ours - base", "thesis", "thesis - base", *MEASURES.values(), "thesis GFLOPs")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    base = table.figure(table.base, kind)
    for row in table.rows:
        figure = table.figure(row.name, kind)
        own = row.name == table.base
        ahead = "" if figure is None or base is None or own else f"{figure - base:+.2f}"
        cells = [
            row.name,
            shown(Spread.of(points(scores, row.name, kind))),
            "" if own else shown(gains(scores, row.name, table.base, kind), True),
            "" if figure is None else f"{figure:.2f}",
            ahead,
            *(f"{_middle(scores, row.name, measure):.3g}" for measure in MEASURES),
            row.gflops,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    tau, by_seed = order(table, scores, kind)
    each = ", ".join(f"{value:+.2f}" for value in by_seed)
    return [
        *lines,
        "",
        f"Kendall's tau of the order against the thesis's: {tau:+.2f} of the means, {each} by seed.",
        "",
    ]


def _middle(scores: Scores, row: str, measure: str) -> float:
    """The median over seeds of what a row costs."""
    return median(of_seed[measure] for of_seed in scores[row].values())


def _said(found: Finding) -> str:
    claim = found.claim
    of = f" ({KINDS[claim.kind]})" if claim.kind != MAP and not claim.other_kind else ""
    if len(claim.plus) == 1:
        return f"{claim.plus[0]} > {claim.minus[0]}{of}"
    if claim.other_kind:
        return f"{claim.plus[0]} gains more on {KINDS[claim.kind]} than on {KINDS[claim.other_kind]}"
    return f"{claim.plus[0]} - {claim.minus[0]} > {claim.minus[1]} - {claim.plus[1]}"


def as_csv(table: Table, scores: Scores) -> str:
    """A line for every row and measure, with each seed's mAP and the costs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    seeds = sorted(next(iter(scores.values())))
    writer.writerow(["table", "row", "measure", "thesis", "mean", "sd", *(f"seed {s}" for s in seeds), *MEASURES])
    for row in table.rows:
        costs = [f"{_middle(scores, row.name, measure):.6g}" for measure in MEASURES]
        for kind in KINDS:
            spread, figure = Spread.of(points(scores, row.name, kind)), table.figure(row.name, kind)
            printed = "" if figure is None else f"{figure:.2f}"
            numbers = [f"{value:.3f}" for value in (spread.mean, spread.sd, *spread.values)]
            writer.writerow([table.id, row.name, kind, printed, *numbers, *costs])
    return out.getvalue()


def write(root: str, found: list[dict[str, Any]], out: str | None) -> None:
    """Writes the tables of a run as one Markdown file with the figures beside it."""
    if not out:
        return
    path = Path(os.path.abspath(out))
    path.parent.mkdir(parents=True, exist_ok=True)
    pieces = [HEAD]
    for one in found:
        name = f"{path.stem}-{one['table']}.png"
        (path.parent / name).write_bytes(files.read(one["figure"]))
        pieces.append(f"{one['markdown']}\n![Table {one['table']}]({name})\n")
    path.write_text("\n".join(pieces))
    report.say(f"  written      {out}")
