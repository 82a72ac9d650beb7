"""What every store has to hold, on a local disk, in memory and on three S3 servers, one of which ignores conditions.

Atomic visibility, exclusive creation, reading what was written, and nothing that hangs on a listing.
"""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from storage import conditions, datasets, files, lease, parts
from storage.errors import Conflict

STORES = ["local", "memory", "moto", "seaweed", "rclone"]
REMOTE = ["moto", "seaweed", "rclone"]
HONEST = ["local", "memory", "moto", "seaweed"]


@pytest.fixture(params=STORES)
def kind(request):
    return request.param


@pytest.fixture
def root(kind, place):
    """A new root on each kind of store."""
    url = files.open_root(place(kind))
    yield url
    lease.release(url)


def together(count, work):
    """Runs work(number) in that many threads that start at once; what they returned."""
    gate, done = threading.Barrier(count), {}

    def run(number):
        gate.wait()
        done[number] = work(number)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return [done[n] for n in range(count)]


def test_what_was_created_is_read_at_once_and_stays(root, source):
    assert files.publish(source(b"one"), f"{root}/a/object") and files.read(f"{root}/a/object") == b"one"
    assert not files.publish(source(b"one"), f"{root}/a/object")
    with pytest.raises(Conflict, match="object"):
        files.publish(source(b"two"), f"{root}/a/object")
    assert files.read(f"{root}/a/object") == b"one"


def test_an_object_appears_whole_or_not_at_all(root, source, monkeypatch):
    """A reader that looks all the time sees nothing or all of it, also of one that is uploaded in parts."""
    monkeypatch.setattr(conditions, "CHUNK", 5 << 20)
    data = random.Random(1).randbytes(12 << 20)
    writer = threading.Thread(target=files.publish, args=(source(data), f"{root}/object"))
    writer.start()
    seen = set()
    while writer.is_alive():
        try:
            seen.add(len(files.read(f"{root}/object")))
        except FileNotFoundError:
            seen.add(0)
        time.sleep(0.01)
    writer.join()
    assert seen <= {0, len(data)} and files.read(f"{root}/object") == data


def test_an_upload_in_more_than_two_parts_does_not_replace(root, source, monkeypatch):
    """The condition holds for uploads in parts, too."""
    monkeypatch.setattr(conditions, "CHUNK", 5 << 20)
    one, two = (random.Random(seed).randbytes(13 << 20) for seed in (1, 2))
    assert files.publish(source(one), f"{root}/large")
    assert not files.publish(source(one), f"{root}/large")
    with pytest.raises(Conflict):
        files.publish(source(two), f"{root}/large")
    assert files.read(f"{root}/large") == one


def test_of_racing_writers_exactly_one_creates(root):
    """Everybody else goes on with what the first one wrote."""
    for turn in range(2):
        url = f"{root}/object{turn}"
        won = together(6, lambda n, url=url: files.publish_bytes(bytes([n]) * 9000, url, same=False))
        assert won.count(True) == 1 and files.read(url) == bytes([won.index(True)]) * 9000


def test_of_racing_writers_exactly_one_swaps(root):
    url = f"{root}/pointer"
    for turn in range(2):
        old, tag = files.read_tagged(url)
        assert (old is None) == (turn == 0)
        won = together(6, lambda n, turn=turn, tag=tag: files.swap(f"{turn} {n}".encode(), url, tag))
        assert won.count(True) == 1 and files.read(url) == f"{turn} {won.index(True)}".encode()


def test_a_swap_with_an_old_tag_changes_nothing(root):
    url = f"{root}/pointer"
    assert files.swap(b"one", url, "") and not files.swap(b"two", url, "")
    _, tag = files.read_tagged(url)
    assert files.swap(b"two", url, tag) and not files.swap(b"three", url, tag)
    files.remove(url)
    assert not files.swap(b"four", url, tag) and not files.exists(url)


def test_no_update_of_racing_threads_is_lost(root):
    """Each adds one to what it read, as often as it takes."""
    url = f"{root}/count"

    def add(_):
        for _ in range(5):
            files.update(url, lambda old: str(int(old or 0) + 1).encode())

    together(4, add)
    assert files.read(url) == b"20"


ADD = """
import sys
from storage import files
root, times = sys.argv[1], int(sys.argv[2])
won = 0
for turn in range(times):
    files.update(f"{root}/count", lambda old: str(int(old or 0) + 1).encode())
    won += files.publish_bytes(sys.argv[3].encode(), f"{root}/object{turn}", same=False)
print(won)
"""


@pytest.mark.parametrize("kind", ["local", *(kind for kind in REMOTE if kind != "moto")])
def test_no_update_of_racing_processes_is_lost(kind, root):
    """Where the store ignores conditions, the children of the one writer share its lease.

    moto is left out: it looks at a condition and puts in two steps, with other threads between them.
    """
    add = [sys.executable, "-c", ADD, root, "12"]
    writers = [subprocess.Popen([*add, name], stdout=subprocess.PIPE, text=True) for name in ("one", "two")]
    won = [int(writer.communicate()[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert files.read(f"{root}/count") == b"24" and sum(won) == 12


def test_ranges_are_those_of_a_slice(root):
    files.replace(b"0123456789", f"{root}/object")
    for start, end in [(0, 10), (3, 5), (0, 0), (9, 12), (10, 12), (50, 60), (4, None)]:
        assert files.read(f"{root}/object", start, end) == b"0123456789"[start:end]


@pytest.mark.parametrize(
    "name", ["a b", "a+b", "ü🎬", "50%25 off", "a?b", "a#b", "a*[x]", "$(x);", "a&b<c>", "a'b", "a:b", "~x", "x" * 255]
)
def test_odd_names_are_kept(root, name):
    url = f"{root}/odd/{name}"
    assert files.publish_bytes(b"one", url) and not files.publish_bytes(b"one", url)
    _, tag = files.read_tagged(url)
    assert files.swap(b"two", url, tag) and files.read(url, 1, 3) == b"wo"
    assert files.names(f"{root}/odd") == [name]
    files.remove(url)
    assert not files.exists(url)


def test_a_folder_of_more_objects_than_one_answer_lists_is_listed_whole(kind, root, monkeypatch):
    """S3 lists a thousand at a time; moto is told to list forty."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "40")
    fs, path = files.locate(f"{root}/many")
    wanted = [f"{n:04d}" for n in range(50 if kind == "moto" else 1050)]
    fs.makedirs(path, exist_ok=True)
    fs.pipe({f"{path}/{name}": b"" for name in wanted})
    assert files.names(f"{root}/many") == wanted


def _clips(folder, seed=0):
    media = folder / f"clip{seed}"
    media.write_bytes(random.Random(seed).randbytes(5000))
    keys = {"source": "s", "path": "p", "content_id": "c", "time_base": "1/20", "split": "train", "labelled": "none"}
    row = (
        dict.fromkeys(parts.INDEX.names)
        | keys
        | {"key": f"key{seed}", "start": 0.0, "end": 1.0, "labels": [], "metadata": "{}"}
    )
    return [row], [media]


def test_nothing_hangs_on_a_listing(root, tmp_path, monkeypatch):
    """A store whose listings are stale, here for ever empty, changes nothing about what is committed."""
    fs, _ = files.locate(root)
    for name in ("ls", "_ls", "find", "_find"):
        if hasattr(type(fs), name):
            monkeypatch.setattr(type(fs), name, lambda *_, **__: [])
    rows, media = _clips(tmp_path)
    part = parts.commit(root, "p1", rows, media, tmp_path)
    part.verify()
    assert parts.find(root, "p1") == part and parts.committed(root, "p1")
    frozen = datasets.freeze(root, "d", [part], {})
    assert datasets.load(root, "d").version == frozen.version


def test_two_writers_of_one_part_and_one_dataset_end_with_the_same(root, tmp_path):
    """One tar, one index, one list and one pointer, whoever wrote which."""

    def write(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows, media = _clips(folder)
        part = parts.commit(root, "p1", rows, media, folder)
        return part, datasets.freeze(root, "d", [part], {"by": "x"})

    (one, first), (two, second) = together(2, write)
    assert one == two and first == second and datasets.load(root, "d") == first
    assert files.names(f"{root}/parts") == ["p1.parquet", "p1.tar"]
    assert files.names(f"{root}/datasets/d") == sorted([f"{first.version}.json", "latest.json"])


def test_racing_datasets_leave_a_pointer_to_one_of_them(root, tmp_path):
    found = []
    for seed in range(4):
        rows, media = _clips(tmp_path, seed)
        found.append(parts.commit(root, f"p{seed}", rows, media, tmp_path))
    frozen = together(4, lambda n: datasets.freeze(root, "d", [found[n]], {}))
    assert datasets.load(root, "d") in frozen
    assert [datasets.load(root, "d", one.version) for one in frozen] == frozen
    assert len(files.names(f"{root}/datasets/d")) == 5, "each list is there, whoever won"


@pytest.mark.parametrize("kind", HONEST)
def test_a_store_with_conditions_needs_no_lease(kind, root, capfd):
    assert conditions.honoured(f"{root}/object") and files.names(f"{root}/writers") == []
    assert capfd.readouterr().err == ""


def test_a_lock_on_a_network_file_system_is_a_hidden_file(tmp_path, monkeypatch):
    import fcntl

    flock = fcntl.flock

    def refuse(handle, how):
        if Path(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}").is_dir():
            raise OSError(9, "Bad file descriptor")
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", refuse)
    url = str(tmp_path / "count")
    together(4, lambda _: [files.update(url, lambda old: str(int(old or 0) + 1).encode()) for _ in range(10)])
    assert files.read(url) == b"40" and files.names(str(tmp_path)) == ["count"]
