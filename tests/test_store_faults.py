"""What networks, servers and disks do to a store, rows 16 to 27: retried, or a clear error; never a wrong object."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import botocore.auth
import pyarrow as pa
import pytest

from storage import conditions, datasets, files, inventory, parts, plans, stores, tables
from storage.errors import Conflict, Damaged, InputError, RootError, StoreError
from tests import s3fault

LARGE = random.Random(7).randbytes(300_000)


@pytest.fixture(scope="module")
def proxy(seaweed):
    with s3fault.between(seaweed) as proxy:
        yield proxy


@pytest.fixture
def root(proxy, at, monkeypatch):
    """A root on SeaweedFS behind the proxy, with retries that do not wait long."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    proxy.faults.clear()
    url = files.open_root(at(proxy.endpoint))
    proxy.seen.clear()
    yield url
    proxy.faults.clear()


@pytest.mark.parametrize("kind", ["500", "503", "429", "reset", "409"])
def test_three_faults_in_a_row_are_waited_out(root, proxy, source, kind):
    """The object is there, once, and so is what is read."""
    proxy.next(kind, 3, method="PUT", path="/object")
    assert files.publish(source(LARGE), f"{root}/object") and proxy.met(kind) == 3
    if kind != "409":
        proxy.next(kind, 3, method="GET", path="/object")
    assert files.read(f"{root}/object") == LARGE


@pytest.mark.seconds
@pytest.mark.parametrize("kind", ["500", "503", "429", "reset"])
def test_a_fault_that_does_not_end_is_an_error_of_the_store(root, proxy, kind):
    """OSError or StoreError, within a limit; nothing is there."""
    proxy.next(kind, 1000, path="/object")
    began = time.monotonic()
    for act in (lambda: files.publish_bytes(b"x", f"{root}/object"), lambda: files.read(f"{root}/object")):
        with pytest.raises((OSError, StoreError)) as caught:
            act()
        assert not isinstance(caught.value, FileNotFoundError | FileExistsError | PermissionError | InputError)
    assert time.monotonic() - began < 30
    proxy.faults.clear()
    assert not files.exists(f"{root}/object")


@pytest.mark.seconds
def test_a_trickle_is_given_up(root, proxy, monkeypatch):
    """A server that sends five bytes a second keeps nobody waiting."""
    files.replace(LARGE, f"{root}/object")
    monkeypatch.setattr(stores, "PATIENCE", 1.0)
    monkeypatch.setattr(stores, "PACE", 1e12)
    proxy.next("slow", 1000, method="GET", path="/object")
    began = time.monotonic()
    with pytest.raises(StoreError, match="did not finish within 1 s"):
        files.read(f"{root}/object", 0, 1000)
    assert time.monotonic() - began < 5


@pytest.mark.seconds
def test_silence_is_given_up(seaweed, at, monkeypatch):
    """A server that takes a request and never answers."""
    monkeypatch.setattr(stores, "SILENCE", 0.3)
    monkeypatch.setattr(stores, "ATTEMPTS", 2)
    with s3fault.between(seaweed) as proxy:
        root = files.open_root(at(proxy.endpoint))
        proxy.next("silent", 1000, path="/object")
        began = time.monotonic()
        with pytest.raises(StoreError, match="did not answer"):
            files.read(f"{root}/object")
        assert time.monotonic() - began < 10


def test_a_name_that_leads_nowhere_is_an_error_in_one_line(at, monkeypatch):
    """No such host, and nobody listening."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    for endpoint in ("http://no-such-host.invalid:1", "http://127.0.0.1:9"):
        with pytest.raises(RootError, match="cannot be used as a root|did not answer") as caught:
            files.open_root(at(endpoint))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1000, 12_000_000])
def test_a_put_whose_reply_is_lost_counts_as_ours(root, proxy, source, monkeypatch, size):
    """It is sent again and refused, as our own object is there already; also for an upload in parts."""
    monkeypatch.setattr(conditions, "CHUNK", 5 << 20)
    data = random.Random(size).randbytes(size)
    proxy.next("lost", 1, method="PUT" if size < 10_000 else "POST", path="/object")
    created = files.publish(source(data), f"{root}/object")
    assert created is True and proxy.met("lost") == 1
    assert files.read(f"{root}/object") == data
    with pytest.raises(Conflict):
        files.publish(source(b"other"), f"{root}/object")


def test_a_swap_whose_reply_is_lost_counts_as_ours(root, proxy):
    """And one whose bytes another writer happens to have written does not."""
    proxy.next("lost", 1, method="PUT", path="/pointer")
    assert files.swap(b"one", f"{root}/pointer", "") and proxy.met("lost") == 1
    _, tag = files.read_tagged(f"{root}/pointer")
    proxy.next("lost", 1, method="PUT", path="/pointer")
    assert files.swap(b"two", f"{root}/pointer", tag) and proxy.met("lost") == 2
    assert not files.swap(b"two", f"{root}/pointer", tag)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_bytes_that_arrive_damaged_are_asked_for_again(root, proxy, kind):
    """Once, and then it is an error that names the object."""
    files.replace(LARGE, f"{root}/object")
    proxy.next(kind, 1, method="GET", path="/object")
    assert files.read(f"{root}/object") == LARGE and proxy.met(kind) == 1
    proxy.next(kind, 1000, method="GET", path="/object")
    with pytest.raises(StoreError, match="object"):
        files.read(f"{root}/object")


def test_a_copy_that_arrives_damaged_is_fetched_again(root, proxy, tmp_path):
    """The server is one that sends a checksum with the object."""
    files.replace(LARGE, f"{root}/object")
    proxy.next("flipped", 1, method="GET", path="/object")
    copy = files.local_path(f"{root}/object", tmp_path / "copy", len(LARGE))
    assert Path(copy).read_bytes() == LARGE and proxy.met("flipped") == 1
    proxy.next("flipped", 1000, method="GET", path="/object")
    with pytest.raises(Damaged, match="object"):
        files.local_path(f"{root}/object", tmp_path / "copy", len(LARGE))


def test_a_plan_that_arrives_damaged_is_asked_for_again(root, proxy):
    """Its rows are read in ranges, with which no checksum comes."""
    rows = [{"part": "p", "path": "a", "url": "/a", "offset": -1, "size": 1, "stamp": "1:", "metadata": "{}"}]
    rows[0] |= {"identity": "i", "split": "train", "start": 0.0, "content_id": "", "attempt": 0, "was": ""}
    files.replace(tables.pack(pa.Table.from_pylist(rows, schema=plans.PLAN)), f"{root}/plan.parquet")
    draft = plans.Draft("p", f"{root}/plan.parquet", 1, 1)
    wanted = plans.members(draft)
    proxy.next("flipped", 1, method="GET", path="/plan.parquet")
    assert plans.members(draft) == wanted and proxy.met("flipped") == 1
    proxy.next("flipped", 1000, method="GET", path="/plan.parquet")
    with pytest.raises(Damaged, match="remove it and prepare again"):
        plans.members(draft)


def test_a_range_that_arrives_damaged_is_asked_for_again(root, proxy):
    """Servers send no checksum with a range; ours is compared."""
    files.replace(LARGE, f"{root}/object")
    wanted = files.digest(LARGE[100:2000])
    proxy.next("flipped", 1, method="GET", path="/object")
    assert files.read_verified(f"{root}/object", wanted, 100, 2000) == LARGE[100:2000] and proxy.met("flipped") == 1
    proxy.next("flipped", 1000, method="GET", path="/object")
    with pytest.raises(Damaged, match="object: bytes 100 to 2000"):
        files.read_verified(f"{root}/object", wanted, 100, 2000)


@pytest.mark.parametrize("kind", ["403", "expired"])
def test_withdrawn_rights_are_for_a_person_and_tell_no_secret(root, proxy, kind, monkeypatch, caplog):
    """At once, with no retry, and it is no fault of any video."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "reelsecret")
    files.replace(b"x", f"{root}/object")
    proxy.next(kind, 1000, path="/object")
    before = len(proxy.seen)
    for write in (files.replace, files.publish_bytes, lambda data, url: files.swap(data, url, "")):
        with pytest.raises(RootError, match="no permission to write.*credentials") as caught:
            write(b"y", f"{root}/object")
        assert "reelsecret" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(PermissionError):
        files.read(f"{root}/object")
    assert len(proxy.seen) - before <= 6 and "reelsecret" not in caplog.text


def test_a_clock_that_is_wrong_is_named_and_not_the_rights(root, monkeypatch):
    """The server refuses what is signed an hour ahead: a HEAD, to which it may give no reason, and a PUT."""
    files.replace(b"1", f"{root}/object")
    signed, now = botocore.auth.get_current_datetime, time.time
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: signed(*a, **k) + timedelta(hours=1))
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    for refused in (files.exists, files.read, lambda url: files.replace(b"2", url)):
        with pytest.raises(RootError, match="this machine's clock differs from the store's") as caught:
            refused(f"{root}/object")
        assert "rights" not in str(caught.value) and "object" in str(caught.value)


def test_an_object_that_was_deleted_is_named(root, tmp_path):
    """The dataset lists it, the store has it no more."""
    media = tmp_path / "clip"
    media.write_bytes(LARGE)
    keys = {"source": "s", "path": "p", "content_id": "c", "time_base": "1/20", "split": "train", "labelled": "none"}
    row = dict.fromkeys(parts.INDEX.names) | keys | {"key": "k", "start": 0.0, "end": 1.0, "labels": []}
    part = parts.commit(root, "p1", [row | {"metadata": "{}"}], [media], tmp_path)
    datasets.freeze(root, "d", [part], {})
    files.remove(part.media)
    with pytest.raises(Damaged, match="p1.*is gone"):
        datasets.load(root, "d").parts[0].verify()


UPLOAD = """
import os, sys
from storage import conditions, files
conditions.CHUNK = 5 << 20
files.publish(sys.argv[1], sys.argv[2])
"""


def test_a_writer_killed_during_an_upload_leaves_nothing_that_is_seen(root, proxy, source):
    """The third of three parts never arrives; the next writer commits, and the sweep gives the upload up."""
    data = random.Random(3).randbytes(12 << 20)
    path = source(data)
    child = subprocess.Popen([sys.executable, "-c", UPLOAD, path, f"{root}/object"], stderr=subprocess.DEVNULL)
    while not any("uploadId" in path and method == "PUT" for method, path, _ in proxy.seen):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not files.exists(f"{root}/object") and len(list(inventory.uploads(root))) == 1
    assert files.publish(path, f"{root}/object") and files.read(f"{root}/object") == data
    [inventory.abort(root, upload) for upload in inventory.uploads(root)]
    assert not list(inventory.uploads(root)) and files.read(f"{root}/object") == data


FULL = """
import errno, resource, sys
from storage import files
root, source = sys.argv[1:]
files.publish_bytes(b"first", f"{root}/first")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
_, tag = files.read_tagged(f"{root}/first")
large = lambda: files.publish(source, f"{root}/large")
for write in (large, lambda: files.swap(b"x" * 200_000, f"{root}/first", tag)):
    try:
        write()
        print("wrote")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_a_full_disk_is_a_clear_error_and_what_was_committed_stays(tmp_path, source):
    """A write that the disk cuts short leaves no object, no temporary file, and the others whole."""
    root = str(tmp_path / "root")
    done = subprocess.run([sys.executable, "-c", FULL, root, source(LARGE)], capture_output=True, text=True)
    assert done.stdout.split() == ["EFBIG", "EFBIG"], done.stderr
    assert sorted(os.listdir(root)) == ["first"] and files.read(f"{root}/first") == b"first"
    assert files.publish(source(LARGE), f"{root}/large"), "there is room again"


def test_a_name_that_is_too_long_is_a_clear_error(tmp_path):
    with pytest.raises(OSError, match="too long") as caught:
        files.publish_bytes(b"x", str(tmp_path / ("x" * 256)))
    assert caught.value.errno == errno.ENAMETOOLONG and os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_for_a_person(tmp_path, monkeypatch):
    """The rights are refused by the system itself where the tests do not run as root."""
    folder = tmp_path / "root"
    files.open_root(str(folder))

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(RootError, match="no permission to write"):
        files.publish_bytes(b"x", str(folder / "object"))
    assert [path.name for path in Path(folder).iterdir()] == [files.MARKER]
