"""An archive taken in piece by piece, by days of modification, and no more than so many parts at a time."""

import os
import threading
import time
from datetime import UTC, datetime

import pytest

from storage import files, ledger
from storage.errors import InputError
from tasks import listing, pool
from tests import lamps
from tests.preparing import prepare


@pytest.fixture
def dated(tmp_path):
    """An archive of six videos, one of each day from the first of March."""
    lamps.render(tmp_path, train=2, held_out=1, weak=3)
    for day, path in enumerate(sorted((tmp_path / "archive").rglob("*.mp4")), 1):
        then = datetime(2026, 3, day, 12, tzinfo=UTC).timestamp()
        os.utime(path, (then, then))
    return tmp_path


def of_days(folder, first, last):
    where = (str(folder / "root"), str(folder / "archive"), str(folder / "labels.csv"))
    dataset, _ = prepare(*where, dates=listing.between(first, last))
    return sorted({row["path"] for part in dataset.parts for row in part.rows()})


def test_days_are_taken_in_one_after_the_other_and_nothing_is_lost(dated, capsys):
    assert of_days(dated, "2026-03-02", "2026-03-03") == ["dense/01.mp4", "dense/02.mp4"]
    assert "4 new files are of other dates" in capsys.readouterr().out
    assert of_days(dated, "2026-03-05", None) == ["dense/01.mp4", "dense/02.mp4", "weak/01.mp4", "weak/02.mp4"]
    before = {path: files.digest_file(path) for path in (dated / "root" / "parts").glob("*.tar")}
    assert len(of_days(dated, None, "2026-03-04")) == 6
    whole = of_days(dated, None, None)
    assert len(whole) == 6 and before and all(files.digest_file(path) == was for path, was in before.items())
    assert len(ledger.read(str(dated / "root"), "list", "a")) == 6


def test_a_file_that_was_taken_in_stays_when_it_changes_on_another_day(dated):
    of_days(dated, "2026-03-02", "2026-03-03")
    os.utime(dated / "archive" / "dense" / "01.mp4")
    assert of_days(dated, "2026-03-01", "2026-03-01") == ["dense/00.mp4", "dense/01.mp4", "dense/02.mp4"]


def test_days_without_a_file_are_said(dated):
    with pytest.raises(InputError, match="none of 6 files was modified on those days"):
        of_days(dated, "2027-01-01", "2027-12-31")
    assert not (dated / "root" / "datasets").exists()


def test_a_store_that_tells_no_times_is_said(dated, monkeypatch):
    monkeypatch.setattr(files, "modified", lambda facts: None)
    with pytest.raises(InputError, match="does not say when 6 files were modified; give no dates"):
        of_days(dated, "2026-03-02", None)


def test_a_day_is_whole_and_in_utc():
    begin, end = listing.between("2026-03-01", "2026-03-01")
    assert begin == datetime(2026, 3, 1, tzinfo=UTC).timestamp() and end - begin == 86400
    assert listing.between("2026-03-01T05:00", "2026-03-01T08:00+02:00") == (begin + 18000, begin + 21600)
    assert listing.between(None, None) == listing.ALWAYS


@pytest.mark.parametrize("days", [("2026-3-1", None), (None, "tomorrow"), ("2026-03-02", "2026-03-01")])
def test_what_is_no_day_is_refused(days):
    with pytest.raises(InputError, match="--modified-"):
        listing.between(*days)


def test_times_are_read_as_stores_give_them():
    then = datetime(2026, 3, 1, tzinfo=UTC)
    for facts in ({"LastModified": then}, {"mtime": then.timestamp()}, {"mtime": int(then.timestamp() * 1e9)}):
        assert files.modified(facts) == then.timestamp()
    assert files.modified({"size": 3, "LastModified": None}) is None


@pytest.mark.seconds
@pytest.mark.parametrize(("limit", "most"), [(1, 1), (2, 2), (None, 4)])
def test_no_more_than_so_many_at_a_time(limit, most):
    now, highest, lock = 0, 0, threading.Lock()

    def work(_):
        nonlocal now, highest
        with lock:
            now += 1
            highest = max(highest, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    with pool.at_most(limit):
        assert len(list(pool.run(work, list(range(12)), width=4))) == 12
    assert highest == most


@pytest.mark.seconds
def test_the_limit_holds_on_a_cluster(monkeypatch):
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=4, processes=False, dashboard_address=None) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        with pool.at_most(2):
            found = [result for _, result in pool.run(_at_a_time, list(range(8)))]
    assert max(found) == 2 and len(found) == 8


_now = {"n": 0}


def _at_a_time(_):
    _now["n"] += 1
    most = _now["n"]
    time.sleep(0.1)
    most = max(most, _now["n"])
    _now["n"] -= 1
    return most
