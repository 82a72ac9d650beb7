"""Mend what `verify` finds: what can be made again goes, so that the next run makes it; the rest is said."""

import time
from typing import Annotated

from pydantic import Field

from storage import files, ledger, soundness
from storage.errors import Damaged
from storage.ledger import Entry
from storage.remedies import Remedies, Remedy
from tasks.columns import champion
from tasks.report import say
from tasks.verify import examine

STEP = "repair"


def remedies(root: str, dataset: str | None, model: str) -> list[Remedy]:
    """What to do about everything that is wrong under a root."""
    findings, looked = examine(root, dataset, 1.0, 0)
    say(f"  looked at    {looked}")
    best = champion(root, model) if any(finding.kind == "checkpoints" for finding in findings) else None
    known = Remedies(root, best.checkpoint if best else "")
    return [known.of(finding) for finding in findings]


def _record(root: str, found: list[Remedy]) -> str:
    """Writes down what is about to go, and why, before it does."""
    entries = [
        Entry(url.removeprefix(root.rstrip("/") + "/"), "dropped", "damaged", f"{one.finding.problem}; {one.said}")
        for one in found
        for url in (*one.remove, *one.write)
    ]
    named = files.digest_of(sorted((entry.item, entry.detail) for entry in entries))[:8]
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{named}"
    ledger.write(root, STEP, name, entries)
    return ledger.url(root, STEP, name)


def _counted(some: list[Remedy], found: list[Remedy]) -> str:
    gone = {url for one in some for url in one.remove}
    return f"{len(some)} of {len(found)} findings can be mended, {len(gone)} objects"


def repair(
    root: Annotated[str, Field(description="Folder or URL that `prepare` has written to.")],
    dataset: Annotated[str | None, Field(description="Only what belongs to this dataset.")] = None,
    model: Annotated[str, Field(description="Model whose champion's checkpoint is left alone.")] = "detector",
    dry_run: Annotated[bool, Field(description="Only say what would be done.")] = True,
) -> str:
    """Take away what is damaged and can be made again, so that the next run makes it; say what cannot.

    Only says what, unless --no-dry-run is given. What goes is looked at once more, and written down under
    ledger/repair. Exits with 1 where something is left that cannot be mended here.
    """
    root = files.existing_root(root)
    found = remedies(root, dataset, model)
    for one in found:
        say(f"  {one.finding.kind:<12} {one.finding.url}\n    problem: {one.finding.problem}")
        say(f"    {'mend:   ' if one.possible else 'cannot: '} {one.said}")
        for url in one.remove:
            say(f"    goes:    {url}")
    if not found:
        return "nothing is damaged"
    left = [one for one in found if not one.possible]
    if dry_run:
        return f"{_counted([one for one in found if one.possible], found)} would go; --no-dry-run does it"
    mended = [one for one in found if one.possible and soundness.still(one.finding, root)]
    where = _record(root, mended) if mended else ""
    for one in mended:
        for url in one.remove:  # in the order given: an index before its tar
            files.remove(url)
        for url, data in one.write.items():
            files.replace(data, url)
    if left:
        raise Damaged(
            f"{len(left)} of {len(found)} findings cannot be mended here; the first: {left[0].finding.url}: "
            f"{left[0].said}" + (f"; what was mended is in {where}" if where else "")
        )
    if not mended:
        return "nothing is damaged any more: another run has made it again meanwhile"
    return f"{_counted(mended, found)} went, see {where}; run again what makes them"
