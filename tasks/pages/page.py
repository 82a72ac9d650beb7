"""The report page: one HTML file with all that a root says of a dataset and its model, and nothing from elsewhere.

No text in it can run or load anything: the template escapes every value, and the page's policy allows one script by
its digest, pictures that are inlined, and no address at all.
"""

import base64
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from prefect.runtime import flow_run
from pydantic import Field

from storage import datasets, files, ledger, plans, timing
from storage.datasets import Dataset
from storage.errors import InputError
from storage.inventory import in_units
from storage.secrets import redact, shown
from storage.timing import Spent
from tasks import report, spending
from tasks.audits import contents
from tasks.lineage import ancestry
from tasks.pages import archive, models
from tasks.pages.archive import ROWS
from tasks.pages.models import Standing
from tasks.predict import version

HERE = Path(__file__).parent
FOLDER = "reports"
FLOWS = ("prepare", "retrain", "infer")
KINDS = (*timing.KINDS, timing.OTHER)


def page(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str, Field(description="Name of the dataset.")] = "archive",
    model: Annotated[str, Field(description="Name in the model registry.")] = "detector",
    out: Annotated[str | None, Field(description="File or URL to write; none: under the root, in reports/.")] = None,
) -> str:
    """Make the report page of a root as it is now: one HTML file that needs no network."""
    root = files.existing_root(root)
    made = render(root, "state", dataset, model)
    url = files.absolute(out) if out else _url(root, "state", dataset, made.version)
    files.replace(made.html.encode(), url)
    return f"{url} ({in_units(len(made.html.encode()))})"


def told(
    root: str,
    flow: str,
    dataset: str,
    model: str = "",
    run: str = "",
    *,
    failure: str = "",
    note: str = "",
    unchanged: str = "",
) -> str:
    """Makes the page of a run, keeps it under the root and with the MLflow run, and says where; its URL.

    ``failure`` says why the run failed, ``note`` what else is to be said first. A run does not fail over its page: why
    it could not be made is said in a line, and the URL is empty. Where there is a page of the version ``unchanged``,
    it stays as it is: nothing was done since.
    """
    try:
        failed = _url(root, flow, dataset, "failed")
        if unchanged and files.exists(url := _url(root, flow, dataset, unchanged)):
            files.remove(failed)
            report.say(f"  page         {url} (as it was)")
            return redact(url)
        with spending.measuring("page"):
            made = render(root, flow, dataset, model, run, failure, note)
        url = failed if failure else _url(root, flow, dataset, made.version)
        files.replace(made.html.encode(), url)
        if not failure:
            files.remove(failed)  # of a run before this one
        if run:
            from tasks import tracking

            with files.scratch() as folder:
                (folder / "page.html").write_text(made.html)
                tracking.log_files(root, run, [folder / "page.html"], "report")
    except Exception as error:  # whatever it is, the run's work is done
        report.say(
            f"  page         could not be made ({type(error).__name__}: {error}); the run is complete without it"
        )
        return ""
    report.say(f"  page         {url}")
    return redact(url)


def link(url: str) -> str:
    """The page as a line of markdown; empty where there is none."""
    address = Path(url).as_uri() if url.startswith("/") else url
    return f"\n[Report page](<{address}>): {report.escape(url)}\n" if url else ""


def _url(root: str, flow: str, dataset: str, of: str) -> str:
    return files.join(root, FOLDER, f"{flow}-{dataset}-{of}.html")


@dataclass(frozen=True)
class Page:
    """A page, and the version that its name has: of the dataset, and of the model where the flow has one."""

    html: str
    version: str


def dataset_of(root: str, name: str) -> Dataset:
    """A dataset, or one without parts where there is a listing of that name alone. Raises `InputError` for neither."""
    try:
        return datasets.load(root, name)
    except InputError:
        if not plans.latest(root, name) and not files.exists(ledger.url(root, "list", name)):
            raise
        return Dataset(name, "none yet", [], {})


def render(root: str, flow: str, dataset: str, model: str, run: str = "", failure: str = "", note: str = "") -> Page:
    """The page of a dataset and of a model; where none is given, of one that was trained on the dataset."""
    data = dataset_of(root, dataset)
    known = models.standing(root, model or _shown(root, dataset))
    facts = _models(root, data, known)
    clips = archive.counted(root, data, facts.column)
    name = f"version {known.champion} of {known.name}" if known.champion else ""
    steps = archive.funnel(root, data, clips, name)
    bad, quarantined = archive.quarantined(root, data)
    others = [known.tags[number].get("dataset", "") for number in known.reigns if number in known.tags]
    now = datetime.now(UTC)
    values = {
        "flow": flow, "dataset": data, "model": known, "made": now.strftime("%Y-%m-%d %H:%M UTC"), "root": root,
        "links": _links(root, run), "totals": _totals(data, clips, steps, facts, known, quarantined), "steps": steps,
        "bad": bad, "quarantined": quarantined, "moved": archive.moved(root, data, others), "facts": facts,
        "clips": clips, "history": archive.history(root, data)[:ROWS], "trained": _trained(root, known),
        "most": ROWS, "failure": failure, "note": note, "times": _times(root, flow, dataset), "kinds": KINDS,
    }  # fmt: skip
    of = data.version if flow in ("prepare", "state") or not known.champion else f"{data.version}-v{known.champion}"
    return Page(_template().render(values), of)


def _times(root: str, flow: str, dataset: str) -> list[tuple[str, float, list[dict[str, Any]]]]:
    """(flow, seconds, stages) of this run and of the last runs that did something, the longest stage first."""
    mine = {name: took for name, took in spending.spent().items() if name != "page" and report.in_run()}
    kept = {one: contents.times(root, one, dataset) for one in FLOWS}
    found = []
    for one, took in (kept | ({flow: mine} if mine else {})).items():
        whole = sum(stage.part for stage in took.values())
        order = sorted(took.items(), key=lambda stage: -stage[1].part)
        stages = [
            {"name": name, "seconds": stage.seconds, "share": stage.part / whole, "said": timing.shares(stage.into),
             "into": [(kind, share * stage.part / whole) for kind, share in _parts(stage)]}
            for name, stage in order if stage.part >= 0.005 * whole
        ]  # fmt: skip
        found += [(one, whole, stages)] if stages else []
    return found


def _parts(stage: Spent) -> list[tuple[str, float]]:
    """Shares of what a stage's time went into, in the order of the legend; all of it where that was not measured."""
    whole = sum(stage.into[kind] for kind in KINDS if stage.into[kind] > 0)
    known = [(kind, float(stage.into[kind]) / whole) for kind in KINDS if stage.into[kind] > 0]
    return known or [(timing.OTHER, 1.0)]


def _shown(root: str, dataset: str) -> str:
    """The model of a run that has none: the last to be trained on the dataset, or else the usual name."""
    known = ancestry.models(root)
    names = [one.name for one in known if one.tags.get("dataset", "").partition("@")[0] == dataset]
    return "detector" if not names or "detector" in names else names[-1]


def _template() -> Any:
    """The template; every value that it prints is escaped, printable, and without credentials."""
    script, style = ((HERE / name).read_text() for name in ("page.js", "page.css"))
    made = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    made.filters |= {"percent": _percent, "seconds": _seconds, "thousands": lambda value: f"{value:,}"}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {"script": Markup(script), "style": Markup(style), "digest": digest}
    return made.get_template("page.html.j2")


def _percent(value: float | None, sign: bool = False) -> str:
    return "–" if value is None else f"{value:+.1f}".replace("-", "−") if sign else f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else report.clock(value)


@dataclass
class Models:
    """All that is shown of a model; ``why`` says in a sentence what is missing, by section."""

    column: str | None
    why: dict[str, str]
    mean: float | None = None
    mean_before: float | None = None
    before: int | None = None
    videos: int = 0
    rows: list[models.ClassRow] | None = None
    intervals: str = ""
    curves: list[models.Curve] | None = None
    timelines: list[models.Timeline] | None = None
    unsure: list[models.Unsure] | None = None
    read: tuple[int, int] = (0, 0)


def _models(root: str, data: Dataset, known: Standing) -> Models:
    sections = ("classes", "curves", "timelines", "unsure")
    if known.champion is None:
        where = (
            f"No version of {known.name} is champion yet" if known.versions else f"No model {known.name} is registered"
        )
        return Models(None, dict.fromkeys(sections, f"{where}; reelmill retrain trains and judges one."))
    checkpoint = models.checkpoint_of(root, known, known.champion)
    if checkpoint is None:
        gone = f"The checkpoint of version {known.champion} of {known.name}, the champion, is gone from the store."
        return Models(None, dict.fromkeys(sections, gone))
    made = Models(version(checkpoint), {})
    now = models.measured(root, data, known, known.champion)
    if isinstance(now, str):
        made.why |= dict.fromkeys(("classes", "curves", "timelines"), now)
    else:
        _measured(root, data, known, made, now)
    made.unsure, *read = models.unsure(root, data, made.column or "", checkpoint.about["classes"])
    made.read = (read[0], read[1])
    if not made.unsure:
        made.why["unsure"] = "No clip has predictions of the champion yet; reelmill infer makes them."
    return made


def _measured(root: str, data: Dataset, known: Standing, made: Models, now: models.Measured) -> None:
    decision = known.decisions.get(now.number) or {}
    made.before = decision.get("champion_version") or next((n for n in known.reigns if n != now.number), None)
    rival = models.measured(root, data, known, made.before) if made.before else "none"
    before = None if isinstance(rival, str) else rival
    made.rows, made.intervals = models.class_rows(now, before, decision)
    made.curves = models.curves(now, before, made.rows)
    made.timelines = models.timelines(models.held_out(data), now.videos, now.classes, True)
    aps = [row.ap for row in made.rows if row.ap is not None]
    made.mean, made.videos = (sum(aps) / len(aps) if aps else None), len(now.videos)
    older = [row.before for row in made.rows if row.before is not None and row.ap is not None]
    made.mean_before = sum(older) / len(older) if len(older) == len(aps) and older else None


def _links(root: str, run: str) -> list[tuple[str, str]]:
    """Pages of this run elsewhere, as (name, address); those that are no web address are shown, not linked."""
    found = []
    if run:
        from tasks import tracking

        found.append(("MLflow", tracking.run_url(root, run)))
    if flow_run.id and str(address := flow_run.ui_url).startswith("http"):  # a server of the run's own has no page
        found.append(("Prefect", str(address)))
    return found


def _totals(
    data: Dataset,
    clips: archive.Clips,
    steps: list[archive.Step],
    facts: Models,
    known: Standing,
    bad: int,
) -> list[tuple[str, str, str]]:
    """(what, number, remark) of the figures that stand first."""
    hours = clips.seconds / 3600
    size = in_units(sum(part.bytes for part in data.parts))
    share = f"{100 * clips.predicted / clips.selected:.0f} %" if clips.selected else "–"
    gain = (
        ""
        if facts.mean is None or facts.mean_before is None
        else f"{facts.mean - facts.mean_before:+.1f} over version {facts.before}"
    )
    return [
        ("Files listed", f"{steps[0].count:,}", f"{steps[1].count:,} kept"),
        ("Quarantined", f"{bad:,}", f"{100 * bad / max(1, steps[0].count):.2g} % of the files"),
        ("Clips", f"{clips.all:,}", f"{clips.selected:,} selected"),
        (
            "Video",
            f"{hours:.1f} h" if hours >= 1 else f"{clips.seconds / 60:.1f} min",
            f"{size} in {len(data.parts)} parts",
        ),
        ("Classes", f"{len(clips.classes):,}", f"{clips.labelled:,} clips labelled"),
        ("Champion", f"v{known.champion}" if known.champion else "none", known.name),
        ("mAP", "–" if facts.mean is None else f"{facts.mean:.1f}", gain or "on held-out videos"),
        ("Predicted", share, f"{clips.predicted:,} of {clips.selected:,} clips"),
    ]


def _trained(root: str, known: Standing) -> list[dict[str, Any]]:
    """The trainings behind the champion, the last first."""
    checkpoint = known.champion and models.checkpoint_of(root, known, known.champion)
    if not checkpoint:
        return []
    found = []
    try:
        for one in ancestry.trainings(root, checkpoint.url):
            columns = ", ".join(f"{column} {made}" for column, made in sorted(one.columns.items()))
            found.append({"name": one.name, "objective": one.objective, "parts": len(one.parts), "columns": columns})
    except ValueError as error:
        found.append({"name": str(error), "objective": "gone", "parts": 0, "columns": ""})
    return found[:ROWS]
