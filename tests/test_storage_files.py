"""The storage contract, the same on a local folder, in memory and on S3; and what a killed writer leaves behind."""

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from storage import files
from storage.errors import Conflict, Damaged, RootError


@pytest.fixture(params=["local", "memory", "s3"])
def root(request, tmp_path):
    """An empty place on each kind of store."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
    return str(tmp_path / "root") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_first_publish_creates(root, source):
    assert files.publish(source(b"one"), f"{root}/a/object") is True
    assert files.read(f"{root}/a/object") == b"one"


def test_same_bytes_again_are_no_conflict(root, source):
    files.publish(source(b"one"), f"{root}/object")
    assert files.publish(source(b"one"), f"{root}/object") is False


def test_other_bytes_are_a_conflict_that_names_the_object(root, source):
    files.publish(source(b"one"), f"{root}/object")
    with pytest.raises(Conflict, match="object"):
        files.publish(source(b"two"), f"{root}/object")
    assert files.read(f"{root}/object") == b"one"


def test_without_same_the_first_writer_stays(root):
    assert files.publish_bytes(b"one", f"{root}/object", same=False)
    assert not files.publish_bytes(b"two", f"{root}/object", same=False)
    assert files.read(f"{root}/object") == b"one"


def test_replace_makes_and_overwrites(root):
    for data in (b"long " * 1000, b"short", b""):
        files.replace(data, f"{root}/deep/er/object")
        assert files.read(f"{root}/deep/er/object") == data


def test_a_reader_never_sees_half_a_replacement(root):
    old, new = b"a" * 500_000, b"b" * 300_000
    files.replace(old, f"{root}/object")
    writer = threading.Thread(target=lambda: [files.replace(d, f"{root}/object") for d in (new, old) * 8])
    writer.start()
    while writer.is_alive():
        assert files.read(f"{root}/object") in (old, new)
    writer.join()


def test_names_are_sorted_and_only_of_this_level(root):
    for name in ("b.json", "a.json", "c.tar", "deep/d.json"):
        files.replace(b"x", f"{root}/{name}")
    assert files.names(root) == ["a.json", "b.json", "c.tar", "deep"]
    assert files.names(root, ".json") == ["a.json", "b.json"]
    assert files.names(f"{root}/nothing") == []


def test_another_writers_object_is_seen_at_once(root):
    assert files.names(root) == [] and not files.exists(f"{root}/object")
    fs, path = files.locate(f"{root}/object")
    type(fs)(skip_instance_cache=True).makedirs(os.path.dirname(path), exist_ok=True) if path[0] == "/" else None
    type(fs)(skip_instance_cache=True).pipe_file(path, b"x")
    assert files.names(root) == ["object"] and files.exists(f"{root}/object")


def test_a_folder_is_no_object(root):
    files.replace(b"x", f"{root}/folder/object")
    assert files.exists(f"{root}/folder/object") and not files.exists(f"{root}/folder")


@pytest.mark.parametrize("start, end", [(0, 10), (3, 5), (0, 0), (9, 12), (10, 12), (50, 60), (4, None)])
def test_ranges_are_those_of_a_slice(root, start, end):
    files.replace(b"0123456789", f"{root}/object")
    assert files.read(f"{root}/object", start, end) == b"0123456789"[start:end]


def test_reading_what_is_not_there(root):
    with pytest.raises(FileNotFoundError):
        files.read(f"{root}/object")
    files.remove(f"{root}/object")


def test_json_that_is_none_is_damaged(root):
    files.replace(b'{"half": ', f"{root}/object.json")
    with pytest.raises(Damaged, match="object.json"):
        files.read_json(f"{root}/object.json")


def test_racing_writers_have_one_winner(root):
    gate, won = threading.Barrier(6), []

    def write(number):
        data = bytes([number]) * 20_000
        gate.wait()
        won.extend([data] * files.publish_bytes(data, f"{root}/object", same=False))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(won) == 1 and files.read(f"{root}/object") == won[0]


def test_a_new_root_is_marked_and_opens_again(root):
    assert files.open_root(root) == files.open_root(root) == files.existing_root(root)
    assert files.read_json(f"{root}/{files.MARKER}") == {"schema": files.SCHEMA}
    assert files.names(root) == [files.MARKER]


@pytest.mark.parametrize("check", [files.open_root, files.existing_root])
def test_a_newer_root_is_refused(root, check):
    files.replace_json({"schema": files.SCHEMA + 1}, f"{root}/{files.MARKER}")
    with pytest.raises(RootError, match=f"schema {files.SCHEMA + 1}.*matching Reelmill version or another --root"):
        check(root)


@pytest.mark.parametrize("marker", ["[]", "null", "{}", '"1"'])
def test_a_marker_of_another_kind_is_refused(root, marker):
    files.replace(marker.encode(), f"{root}/{files.MARKER}")
    with pytest.raises(RootError, match="schema None"):
        files.open_root(root)


def test_a_missing_root_says_what_to_run(root):
    with pytest.raises(RootError, match="reelmill prepare --root"):
        files.existing_root(root)


def test_a_file_in_the_way_of_a_root(tmp_path):
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RootError, match="a file is in the way.*another --root"):
            files.open_root(str(root))


def test_a_root_that_cannot_be_written():
    with pytest.raises(RootError, match="/proc/reelmill.*"):
        files.open_root("/proc/reelmill")


def test_a_root_without_permission(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(RootError, match="no permission to write.*mend its rights"):
        files.open_root(str(tmp_path))


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(RootError, match="s3://nowhere-at-all/root: cannot be used"):
        files.open_root("s3://nowhere-at-all/root")


def test_a_store_that_fails_is_not_an_empty_one(tmp_path, monkeypatch):
    fs, _ = files.locate(str(tmp_path))

    def fail(*_, **__):
        raise OSError(121, "SlowDown")

    monkeypatch.setattr(type(fs), "info", fail)
    with pytest.raises(OSError, match="SlowDown"):
        files.exists(str(tmp_path / "object"))


@pytest.mark.parametrize(
    "url", ["simplecache::s3://b/x", "zip://a.mp4::file:///x.zip", "filecache::file:///x", "nonsense://x", "zip://x"]
)
def test_chained_and_unknown_urls_are_refused(url):
    with pytest.raises(RootError, match="plain path, file://, s3:// or memory://"):
        files.locate(url)


@pytest.mark.parametrize("name", ["a::b", "http:", "50% off", "a\nb", "$(x);", "🎬", "x" * 200])
def test_a_local_name_is_never_taken_for_a_url(tmp_path, name):
    files.replace(b"x", str(tmp_path / name))
    assert files.read(str(tmp_path / name)) == b"x" and files.names(str(tmp_path)) == [name]


def test_a_percent_encoded_name_is_read(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff%41.mp4"
    with open(path, "wb") as file:
        file.write(b"x")
    assert files.read(files.LOCALHOST + files.percent(os.fsdecode(path))[1:]) == b"x"


KILLER = """
import os, signal, sys, time
from storage import files

for line in sys.stdin:  # one writer each, killed some time after it began
    source, target, delay = line.split()
    said, say = os.pipe()
    child = os.fork()
    if not child:
        files.publish(source, target)
        os.write(say, b"done")
        time.sleep(60)
    time.sleep(float(delay))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(say)
    print(os.read(said, 9).decode(), flush=True)
    os.close(said)
"""


@pytest.fixture
def kill_a_writer():
    """Publishes in a process that is killed after a delay; whether it came to say that it was done."""
    child = subprocess.Popen([sys.executable, "-c", KILLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(source, target, delay):
        child.stdin.write(f"{source} {target} {delay}\n")
        child.stdin.flush()
        return child.stdout.readline().strip() == "done"

    yield run
    child.stdin.close()
    child.wait()
    child.stdout.close()


def test_killed_writers_leave_nothing_or_everything(tmp_path, source, kill_a_writer):
    data = random.Random(0).randbytes(4_000_000)
    path, folder, draw, ends = str(source(data)), tmp_path / "parts", random.Random(1), set()
    began = time.monotonic()
    files.publish(path, str(folder / "unhurried"))
    reach = 0.005 + 2 * (time.monotonic() - began)
    for round in range(60):
        target = folder / f"object{round}"
        done = kill_a_writer(path, target, draw.uniform(0, reach))
        for name in files.names(str(folder)):
            assert (folder / name).read_bytes() == data, "half an object has a visible name"
        assert target.exists() or not done
        ends.add(target.exists())
        [left.unlink() for left in folder.glob("*")]
    assert ends == {True, False}, "the kills must fall before and after the commit"


def test_a_writer_after_a_killed_one_commits(tmp_path, source):
    path, target = str(source(b"x" * 1_000_000)), tmp_path / "object"
    (tmp_path / f".object.{uuid.uuid4().hex}.tmp").write_bytes(b"x" * 1000)  # what a kill leaves
    assert files.publish(path, str(target)) and json.dumps(files.names(str(tmp_path), "object")) == '["object"]'


def test_an_error_while_writing_leaves_nothing(tmp_path, source, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.publish(source(b"x"), str(tmp_path / "folder" / "object"))
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("marked", [True, False])
def test_a_web_server_that_only_says_when_is_believed(tmp_path, marked):
    """Another file of the same size has another stamp; where the server says neither, the stamp ends in a colon."""

    class Quiet(SimpleHTTPRequestHandler):
        def send_header(self, name, value):
            if marked or name != "Last-Modified":
                super().send_header(name, value)

        def log_message(self, *_):
            pass

    path = tmp_path / "a.mp4"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = []
        for second in (1_000_000_000, 1_000_000_001):
            path.write_bytes(b"x" * 10_113)
            os.utime(path, (second, second))
            facts = files.info(f"http://127.0.0.1:{server.server_port}/a.mp4")
            assert files.modified(facts) == (second if marked else None)
            found.append(files.stamp(facts))
        server.shutdown()
    assert len(set(found)) == (2 if marked else 1) and found[0].endswith(":") is not marked
