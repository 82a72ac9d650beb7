"""Check every byte under a root, or a sample of it, against the digests that were written with it."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Annotated

from pydantic import Field

from storage import datasets, files, soundness
from storage.errors import Damaged, NewerSchema, StoreError
from storage.listed import Seen
from storage.parts import Part
from storage.soundness import Finding, Unit
from tasks import pool
from tasks.report import progress, say

ALWAYS = ("marker", "datasets")  # small, and everything hangs on them
SHOWN = 200  # findings on the terminal


def chosen(units: list[Unit], sample: float, seed: int) -> set[Unit]:
    """The units that are read whole: a share by a hash of their names, and at least one of every kind."""

    def place(unit: Unit) -> float:
        return int(files.digest(f"verify\0{seed}\0{unit.url}".encode())[:13], 16) / 16**13

    found = {unit for unit in units if unit.kind in ALWAYS or place(unit) < sample}
    for kind in {unit.kind for unit in units}:
        found.add(min((unit for unit in units if unit.kind == kind), key=place))
    return found


def examine(root: str, dataset: str | None, sample: float, seed: int) -> tuple[list[Finding], str]:
    """What is wrong under a root, and one line on what was looked at."""
    if dataset is not None and dataset not in datasets.names(root):
        datasets.load(root, dataset)  # names those that are there
    everything = soundness.units(root)
    units = everything if dataset is None else soundness.of_dataset(root, dataset, everything)
    whole = chosen(units, sample, seed)
    seen = Seen(root, frozenset(unit.url for unit in everything))
    findings: list[Finding] = []
    failed: list[str] = []
    bundles = [tuple((unit, unit in whole) for unit in some) for some in soundness.bundles(units)]
    with progress("verify", len(units), "objects") as state:
        for some, result in pool.run(partial(_check, root=root), bundles):
            if isinstance(result, Exception):
                failed.append(f"{some[0][0].url}: {type(result).__name__}: {result}")
            else:
                findings += result[0]
                seen.facts |= result[1]
            state.advance(len(some))
        lists = [unit for unit in units if unit.kind in soundness.LISTS]
        for unit, found in _lists(lists, root, whole, seen):
            if isinstance(found, Exception):
                failed.append(f"{unit.url}: {type(found).__name__}: {found}")
            else:
                findings += found
            state.advance()
    if failed:  # the store's trouble, which says nothing about the bytes
        raise StoreError(f"{len(failed)} objects could not be read, try again: {'; '.join(sorted(failed)[:3])}")
    counts = Counter(unit.kind for unit in units)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    looked = f"{len(units)} objects ({kinds}); {len(whole)} read whole, {len(units) - len(whole)} by name and size"
    return sorted(set(findings), key=lambda f: (f.kind, f.url, f.problem)), looked


def _check(bundle: tuple[tuple[Unit, bool], ...], *, root: str) -> tuple[list[Finding], dict[str, Part | None]]:
    """What is wrong with objects that need the same index, and what the index says."""
    seen = Seen(root)
    return [finding for unit, whole in bundle for finding in soundness.check(unit, root, whole, seen)], seen.facts


def _lists(
    lists: list[Unit], root: str, whole: set[Unit], seen: Seen
) -> Iterator[tuple[Unit, list[Finding] | Exception]]:
    """What is wrong with lists, pointers after what they may point to."""

    def check(unit: Unit) -> list[Finding] | Exception:
        try:
            return soundness.check(unit, root, unit in whole, seen)
        except NewerSchema:  # this version cannot judge such a root
            raise
        except Exception as error:  # of the store
            return error

    for pointers in (False, True):
        some = [unit for unit in lists if unit.url.endswith("/latest.json") is pointers]
        yield from zip(some, files.at_once(check, some), strict=True)


def verify(
    root: Annotated[str, Field(description="Folder or URL to check; it is only read.")],
    dataset: Annotated[str | None, Field(description="Only what belongs to this dataset.")] = None,
    sample: Annotated[float, Field(description="Share of the objects that is read whole.", ge=0, le=1)] = 1.0,
    seed: Annotated[int, Field(description="Which objects a sample takes.")] = 0,
) -> str:
    """Check what is stored against the digests written with it: tars and every clip, indexes, columns, ledger, plans.

    Exits with 1 where anything is damaged, and says for each object what to do; `reelmill repair` does it.
    """
    root = files.existing_root(root)
    findings, looked = examine(root, dataset, sample, seed)
    for finding in findings[:SHOWN]:
        say(f"  {finding.kind:<12} {finding.url}\n    problem: {finding.problem}\n    remedy:  {finding.remedy}")
    if findings:
        first = findings[0]
        raise Damaged(f"{len(findings)} findings in {looked}; the first: {first.url}: {first.problem}")
    return f"nothing is damaged: {looked}"
