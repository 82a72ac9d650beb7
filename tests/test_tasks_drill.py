"""The drill: on a real object store nothing is lost, and it notices when something is."""

import random

import pytest

from storage import files, inventory, ledger
from tasks import drill
from tasks.verify import examine


@pytest.mark.long
def test_nothing_is_lost_on_object_storage(seaweed, at):
    """two writers at once on SeaweedFS, killed at random, end as one in peace."""
    url = at(seaweed)
    assert drill.drill(url, kills=2, videos=16) == "nothing was lost"
    assert list(inventory.walk(url)) == []


@pytest.fixture(scope="module")
def prepared(archive, tmp_path_factory):
    root = str(tmp_path_factory.mktemp("drilled") / "root")
    drill.prepare(root, str(archive / "archive"), str(archive / "labels.csv"))
    return root


def test_what_it_damages_is_found_and_made_again(prepared, archive):
    expected = drill.state(prepared)
    hurt = drill.corrupt(prepared, random.Random(5))
    findings, _ = examine(prepared, None, 1.0, 0)
    assert all(any(drill._names(finding, url) for finding in findings) for _, url in hurt)
    drill.mend(prepared, findings)
    drill.prepare(prepared, str(archive / "archive"), str(archive / "labels.csv"))
    assert drill.state(prepared) == expected


def test_a_loss_is_noticed(prepared):
    """The comparison can fail: a part less, a verdict more, other bytes."""
    expected = drill.state(prepared)
    part = next(iter(drill.committed(prepared)))
    index, book = files.read(part.index), files.read(ledger.url(prepared, "shard", part.id))
    files.remove(part.index)
    assert f"parts/{part.id}.parquet differs here" in drill._differences(expected, drill.state(prepared), "here")
    files.replace(index, part.index)
    entries = ledger.read(prepared, "shard", part.id)
    ledger.write(prepared, "shard", part.id, entries[1:])
    assert drill._differences(expected, drill.state(prepared), "") == [f"ledger/shard/{part.id}.parquet differs "]
    files.replace(book, ledger.url(prepared, "shard", part.id))
    assert drill.state(prepared) == expected
