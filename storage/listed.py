"""What lists and pointers name, and whether it is there: dataset versions, plans, tables of pairs.

They are checked after everything else, with what was read of the parts by then, so that nothing is read twice.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow.compute as pc

from storage import datasets, files, ledger, near, parts, records, tables
from storage.errors import Damaged
from storage.parts import Part

AGAIN = "`reelmill prepare` makes it again from unchanged sources"


@dataclass
class Seen:
    """What is known of a root while it is checked: each index is read once, and a listing says what is there."""

    root: str
    listing: frozenset[str] | None = None  # URLs; without one the store is asked
    indexes: dict[str, tuple[Part, Any] | None] = field(default_factory=dict)  # with their rows
    facts: dict[str, Part | None] = field(default_factory=dict)  # of indexes that were read elsewhere
    planned: dict[str, list[str]] = field(default_factory=dict)  # the parts of each plan, by its URL

    def index(self, part: str) -> tuple[Part, Any] | None:
        """A part and the rows of its index, None where it is gone. Raises `Damaged`."""
        if part not in self.indexes:
            self.facts[part] = None  # if what follows raises, it is damaged
            self.indexes[part] = found = parts.whole(self.root, part)
            self.facts[part] = found and found[0]
        return self.indexes[part]

    def part(self, part: str) -> Part | None:
        """A part; None where its index is gone or damaged, which is said of the index itself."""
        if part not in self.facts:
            try:
                self.facts[part] = parts.find(self.root, part)
            except Damaged:
                self.facts[part] = None
        return self.facts[part]

    def there(self, url: str) -> bool:
        """Whether an object is there; the store is asked where it has come since the listing."""
        return (self.listing is not None and url in self.listing) or files.exists(url)


def document(url: str) -> tuple[Any, list[str]]:
    """A JSON document and what is wrong with its bytes. Raises `Damaged`."""
    data = files.read(url)
    try:
        value = json.loads(data)
        if not records.as_written(data):
            return value, ["its bytes are not as they were written"]
    except ValueError as error:
        raise Damaged(f"it is not JSON ({error})") from error
    return value, [] if records.fits(value) else ["it differs from the digest in it"]


class Problem(NamedTuple):
    """What is wrong with an object; ``part`` if it is about one, ``gone`` if that, or the object, is not there."""

    url: str
    said: str
    part: str = ""
    gone: bool = False


def dataset(url: str, seen: Seen) -> Iterator[Problem]:
    """A version against its digest and the indexes of its parts; a pointer against what is there."""
    value, wrong = document(url)
    yield from (Problem(url, said) for said in wrong)
    name, file = url.split("/")[-2:]
    if file == "latest.json":
        yield from _pointer(url, f"{value['version']}.json", seen)
        return
    for part in datasets.parse(seen.root, name, file.removesuffix(".json"), value).parts:
        if not seen.there(part.index):
            yield Problem(url, f"it lists part {part.id}, which is not in the store; {AGAIN}", part.id, True)
        elif (found := seen.part(part.id)) is not None and found != part:
            yield Problem(url, f"it lists part {part.id} with other bytes than its index has", part.id)


def _pointer(url: str, name: str, seen: Seen) -> Iterator[Problem]:
    beside = files.join(url.rpartition("/")[0], name)
    if not seen.there(beside):
        yield Problem(url, f"it points to {name}, which is not there")


def plan(url: str, seen: Seen) -> Iterator[Problem]:
    """A plan's bytes; a pointer, and the accounts of the parts that are made of the plan that it names."""
    if url.endswith(".parquet"):
        seen.planned[url] = pc.unique(tables.read(url)["part"]).to_pylist()
        return
    value, wrong = document(url)
    yield from (Problem(url, said) for said in wrong)
    if not url.endswith("/latest.json"):
        return
    name = f"{value['plan']}.parquet"
    yield from _pointer(url, name, seen)
    for part in seen.planned.get(files.join(url.rpartition("/")[0], name), ()):
        if part and seen.there(parts.part_urls(seen.root, part)[1]):
            account = ledger.url(seen.root, "shard", part)
            if not seen.there(account):
                yield Problem(account, "it is gone", part, True)


def pairs(url: str, seen: Seen) -> Iterator[Problem]:
    """A table of pairs against its name and the parts it was made of; a pointer against what is there."""
    if url.endswith(".json"):
        value, wrong = document(url)
        yield from (Problem(url, said) for said in wrong)
        yield from _pointer(url, str(value["table"]), seen)
        return
    table, about = tables.both(url)
    if near.table_of(about["parts"]) != url.rpartition("/")[2]:
        yield Problem(url, "it is of other parts than its name says")
    named = {*table["part"].to_pylist(), *table["other_part"].to_pylist()} - set(about["parts"])
    if named:
        yield Problem(url, f"it has pairs of parts that it was not made of ({', '.join(sorted(named)[:3])})")


CHECKS: dict[str, Callable[[str, Seen], Iterator[Problem]]] = {"datasets": dataset, "plans": plan, "near": pairs}
