"""List the archive and plan its parts: what is there, what it is labelled, which part it belongs to."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from storage import files, ledger, lists, parts, plans, sources, tables
from storage.errors import InputError
from storage.labels import Labels, check_classes, check_paths, read_labels
from storage.ledger import Report
from storage.media.limits import Rejected
from storage.media.sandbox import mine
from storage.planning import Planning
from storage.plans import Limits
from storage.secrets import refuse_credentials
from storage.sources import Source
from tasks import pool
from tasks.identify import identify
from tasks.report import progress, say
from tasks.spending import staged

USUAL = Limits()
ALWAYS = (-math.inf, math.inf)
CHUNK = 64  # sources probed in one call of the pool
WHOLE = 8 << 20  # bytes of packets that are read to know how long a video is; of more the header says it
HEADER = 1 << 20  # bytes of a remote file's head and tail that its header is looked for in


def between(first: str | None, last: str | None) -> tuple[float, float]:
    """Two days (``2026-01-31``, in UTC, the last included) or times as seconds; `InputError` where one is none."""
    found = []
    for option, text, unset, more in (
        ("--modified-from", first, ALWAYS[0], 0.0),
        ("--modified-to", last, ALWAYS[1], 86400.0),
    ):
        try:
            when = datetime.fromisoformat(text) if text else None
        except ValueError as error:
            raise InputError(f"{option} {text}: give a day such as 2026-01-31, or 2026-01-31T08:00") from error
        whole = more if len(text or "") == 10 else 0.0
        found.append(unset if when is None else (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() + whole)
    if found[0] >= found[1]:
        raise InputError(f"--modified-from {first} is not before --modified-to {last}")
    return found[0], found[1]


def listing(archive: str) -> Iterator[Source]:
    """The videos of an archive: a folder or glob on any URL, or a list of files."""
    return lists.listing(archive) if lists.is_list(archive) else sources.listing(archive)


def labels_of(archive: str, labels: str | None, classes: list[str]) -> dict[str, Labels]:
    """The labels of a file, or those in the list that is the archive."""
    url = labels or (archive if lists.is_list(archive) and lists.has_labels(archive) else None)
    found = read_labels(url) if url else {}
    check_classes(found, url or "", classes)
    return found


@dataclass(frozen=True)
class Planned:
    """A plan before it is in the store: local files of its sources and of the listing's ledger."""

    path: Path
    book: Path
    report: Report
    before: str  # digest of the plan that counted when this one was begun
    parts: int


@contextmanager
def planned(
    root: str,
    name: str,
    archive: str,
    labels_url: str | None,
    *,
    classes: list[str],
    held_out: float,
    recipe: dict[str, Any],
    limits: Limits = USUAL,
    unit: float = 600.0,
    dates: tuple[float, float] = ALWAYS,
) -> Iterator[Planned]:
    """Lists, identifies and groups the sources, in a scratch folder: nothing under the root is changed."""
    labels = labels_of(archive, labels_url, classes)
    before = plans.latest(root, name)  # before anything is listed: whoever plans from here on has newer news
    with files.scratch() as folder:
        planning = Planning(folder)
        try:
            count = planning.listed(_counted(listing(archive)), labels, held_out)
            if not count:
                raise InputError(f"{archive}: the archive is empty; put videos there or give another --archive")
            if not planning.videos():
                raise InputError(f"{archive}: {count} files, none with the name of a video")
            check_paths(planning.unlisted(labels), labels_url or archive)
            planning.requeue(plans.requeued(root, name))
            same = _recall(planning, root, name, before, recipe)
            if dates != ALWAYS:
                _put_off(planning, archive, dates)
            identify(planning, root)
            window = max(1, math.ceil(unit / recipe["span"])) * recipe["span"]
            probe(planning, window)
            number = planning.assign(recipe, limits, window)
            moved = planning.moved() if same else []
            there = files.at_once(lambda part: parts.committed(root, part), moved)
            committed = [part for part, found in zip(moved, there, strict=True) if found]
            book, report = planning.account()
            yield Planned(planning.write(recipe, committed), book, report, before, number)
        finally:
            planning.close()


def plan_archive(
    root: str,
    name: str,
    archive: str,
    labels_url: str | None,
    *,
    recipe: dict[str, Any],
    **options: Any,
) -> tuple[str, Report]:
    """Lists, identifies and groups the sources; returns the plan's digest and the counts. Options: see `planned`.

    ``recipe`` is how clips are cut, ``unit`` the seconds of video that one piece of work has at most, about twice.
    New files that were not modified between the two ``dates`` (seconds since 1970) are left for another run.
    Every file listed is in the ledger: kept, dropped (``unknown_extension``, ``duplicate``) or quarantined.
    """
    with planned(root, name, archive, labels_url, recipe=recipe, **options) as made:
        plan = plans.save(root, name, made.path, made.before)
        if plan != files.digest_file(made.path)[:16]:
            say("  list         another run has planned this dataset meanwhile; this one goes on with its plan")
            plan = plans.newest(root, name, recipe)
        files.replace(made.book.read_bytes(), ledger.url(root, "list", name))
    report = made.report
    say(f"  list         {report.items} files: {report.kept} to shard in {made.parts} parts")
    return plan, report


def _counted(found: Iterable[Source]) -> Iterator[Source]:
    with progress("list", 0, "files") as state:
        for source in found:
            yield source
            state.advance()


def _put_off(planning: Planning, archive: str, dates: tuple[float, float]) -> None:
    later, timeless = planning.only(*dates)
    if timeless:
        raise InputError(f"{archive}: its store does not say when {timeless} files were modified; give no dates")
    if not planning.videos():
        raise InputError(f"{archive}: none of {later} files was modified on those days; give others")
    say(f"  list         {later} new files are of other dates and wait for another run")


def _recall(planning: Planning, root: str, name: str, before: str, recipe: dict[str, Any]) -> bool:
    """Takes in the plan before; whether it cut clips in the same way, so that they may be used again."""
    if not before:
        return False
    try:
        about, batches = tables.batches(plans.url(root, name, before))
        planning.recall(batch.select(plans.PLAN.names) for batch in batches)
        return bool(about["recipe"] == recipe)
    except (FileNotFoundError, KeyError):
        return False  # of an older schema: everything is looked at again


def probe(planning: Planning, window: float) -> None:
    """Reads the headers of what is new, to know how long it is; what has none is cut in one go."""
    fresh = planning.unprobed()
    chunks = iter(lambda: list(islice(fresh, CHUNK)), [])
    while some := list(islice(chunks, pool.workers() * 4)):
        for chunk, result in pool.run(partial(_probe, window=window), [tuple(chunk) for chunk in some]):
            if isinstance(result, Exception):
                raise result
            planning.probed((source.path, *facts) for source, facts in zip(chunk, result, strict=True))


def _probe(chunk: tuple[Source, ...], window: float) -> list[tuple[dict[str, Any], str]]:
    """Facts of each source; and the content id of one that will be cut in windows, so that it is taken once."""
    found = []
    for source in chunk:
        content = ""
        with files.scratch() as folder:
            try:
                path = sources.outline(source, str(folder), HEADER)
                facts = mine().probe(path, max_bytes=WHOLE)
                if facts["duration"] >= 2 * window:
                    content = sources.content_id(source)
            except Rejected as error:  # the cut will say so, on the whole file
                facts = {"problem": error.reason}
        found.append((facts, content))
    return found


@task(task_run_name="list · {archive}", cache_policy=NO_CACHE)
@staged("list")
def list_archive(
    root: str,
    name: str,
    archive: str,
    labels: str | None,
    classes: list[str],
    held_out: float,
    per_part: int,
    part_bytes: int,
    recipe: dict[str, Any],
    dates: tuple[float, float] = ALWAYS,
) -> tuple[str, Report]:
    """Lists the archive and plans its parts of about ``per_part`` sources; see `plan_archive`."""
    for option, url in (("--archive", archive), ("--labels", labels)):  # a run from a form passed no other check
        refuse_credentials(url or "", option)
    limits = Limits(units=per_part * 3 // 2, bytes=part_bytes)
    options: dict[str, Any] = {"classes": classes, "held_out": held_out, "recipe": recipe, "limits": limits}
    return plan_archive(root, name, archive, labels, **options, dates=dates)
