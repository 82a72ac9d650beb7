"""What a step asks of a store: an index once, and what the store does not answer is never called damage."""

import errno
from pathlib import Path

import pyarrow as pa
import pytest

from storage import carry, catalogue, columns, datasets, files, plans
from storage.errors import Damaged, StoreError
from storage.ranges import opened
from storage.stores import UNKNOWN
from tasks import score
from tests.made_parts import commit, flip
from tests.preparing import prepare


@pytest.fixture
def asked(monkeypatch):
    """The URLs that are read, in order."""
    found: list[str] = []
    read = files.read
    monkeypatch.setattr(files, "read", lambda url, *span: found.append(url) or read(url, *span))
    return found


@pytest.fixture
def broken(monkeypatch):
    """Makes the store fail as a disk or a connection does."""

    def fail(number):
        def read(*_):
            raise OSError(number, "the store")

        monkeypatch.setattr(files, "read", read)

    return fail


def _measured(part, rows, spent=None):
    return pa.table({"key": [row["key"] for row in rows], **{name: [1.0] * len(rows) for name in score.SHOWN}})


@pytest.mark.parametrize("again", [False, True], ids=["first", "carried"])
def test_a_column_asks_for_the_index_of_its_part_once(tmp_path, monkeypatch, asked, again):
    root, name = str(tmp_path), score.scores.version()
    monkeypatch.setattr(score, "_measured", _measured)
    before = None
    if again:  # the same clips in a part of another name, whose scores are there
        old = commit(root, "p0")
        first = datasets.freeze(root, "d", [old], {})
        columns.write(root, "scores", name, old, _measured(old, old.rows()), {})
    part = commit(root)
    if again:
        before = carry.replaced(root, datasets.freeze(root, "d", [part], {"before": first.version}))
    asked.clear()
    done = score.score_part(part, root=root, before=before)
    assert done.decoded == (0 if again else part.samples)
    assert asked.count(part.index) == 1
    assert columns.read(root, "scores", name, part)["motion"].to_pylist() == [1.0] * part.samples


def test_a_column_of_other_rows_is_refused_also_where_they_are_known(tmp_path):
    part = commit(tmp_path)
    with pytest.raises(Damaged, match="its keys are not those"):
        columns.write(str(tmp_path), "scores", "v1", part, _measured(part, part.rows()[::-1]), {}, part.rows())


@pytest.fixture(scope="module")
def planned(archive, tmp_path_factory):
    """A root with one dataset, its plan and its catalogue."""
    root = str(tmp_path_factory.mktemp("planned") / "root")
    data, _ = prepare(root, str(archive / "archive" / "dense"))
    catalogue.build(root, data)
    return root, data


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.EACCES])
def test_a_catalogue_that_cannot_be_read_now_is_not_made_again(planned, broken, number):
    root, data = planned
    place = Path(catalogue.url(root, data))
    was = (place.stat().st_ino, place.stat().st_mtime_ns)
    broken(number)
    with pytest.raises(StoreError, match="cannot be read now") as caught:
        catalogue.Catalogue(root, data)
    assert not isinstance(caught.value, Damaged) and was == (place.stat().st_ino, place.stat().st_mtime_ns)


def test_a_plan_that_cannot_be_read_now_is_not_called_damaged(planned, tmp_path, monkeypatch):
    """The same plan: on a disk that fails, on a store that does, and with a byte that flipped."""
    root, data = planned
    (draft,) = plans.drafts(root, data.name, plans.latest(root, data.name))[:1]
    assert len(plans.members(draft)) == draft.units
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(Path(draft.plan).read_bytes())
    flip(bad, bad.stat().st_size - 20)
    with pytest.raises(Damaged, match="remove it and prepare again"):
        plans.members(plans.Draft(draft.id, str(bad), draft.units, draft.bytes))

    class Failing:
        closed = False

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __getattr__(self, name):
            raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(plans, "opened", lambda url: Failing())
    with pytest.raises(StoreError, match="cannot be read now") as caught:
        plans.members(draft)
    assert not isinstance(caught.value, Damaged)


def test_what_is_opened_on_a_store_is_read_as_everything_else(asked):
    """Ranges of a block through `files.read`, which has the limits in time; at any place, and to the end."""
    data = bytes(range(256)) * 40
    files.replace(data, "memory://requests/a")
    with opened("memory://requests/a", 1000) as file:
        assert file.read(10) == data[:10] and len(asked) == 1
        assert file.read(900) == data[10:910] and len(asked) == 1
        file.seek(-300, 2)
        assert file.read() == data[-300:]
        before = len(asked)
        assert file.read(1) == b"" and len(asked) == before, "nothing is asked for beyond the end"
        file.seek(5000)
        assert file.read(3000) == data[5000:8000]
    with pytest.raises(FileNotFoundError):
        opened("memory://requests/none")


def test_an_object_that_became_shorter_is_no_end_of_file():
    files.replace(b"x" * 5000, "memory://requests/b")
    with opened("memory://requests/b", 1000) as file:
        assert len(file.read(1000)) == 1000
        files.replace(b"x" * 1500, "memory://requests/b")
        with pytest.raises(StoreError, match="became shorter"):
            file.read()


def test_a_copy_costs_no_request_for_a_size_that_is_known(tmp_path, monkeypatch):
    files.replace(b"abc", "memory://requests/c")
    monkeypatch.setattr(files, "info", None)
    for size in (3, UNKNOWN):
        assert Path(files.local_path("memory://requests/c", tmp_path / "c", size)).read_bytes() == b"abc"
