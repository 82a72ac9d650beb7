"""Listing and fingerprints: nothing hangs, nothing is lost, whatever the names and the things are."""

import os

import fsspec
import fsspec.implementations.local
import pytest

from storage import files, ledger, lists, plans
from storage.errors import InputError
from storage.media.limits import Rejected
from storage.media.sandbox import Sandbox
from storage.sources import content_id, fetch, listing
from tests.preparing import plan


def _touch(path, data=b"x"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def test_a_missing_archive_and_a_file(tmp_path, s3):
    with pytest.raises(InputError, match="no such archive; give the folder"):
        list(listing(str(tmp_path / "none")))
    with pytest.raises(InputError, match="no such archive; give the folder"):
        list(listing(f"{s3}/none-at-all"))
    (tmp_path / "file.mp4").write_text("x")
    with pytest.raises(InputError, match="no such archive; give the folder"):
        list(listing(str(tmp_path / "file.mp4" / "below")))
    with pytest.raises(InputError, match="a file; give the folder"):
        list(listing(str(tmp_path / "file.mp4")))


@pytest.mark.parametrize("url", ["dir://x", "hf://not a name/x"])
def test_a_url_that_its_library_cannot_read_is_one_line(url, tmp_path):
    """What these libraries raise is no OSError."""
    (tmp_path / "list.csv").write_text(f"url\n{url}/a.mp4\n")
    (row,) = lists.listing(str(tmp_path / "list.csv"))
    assert row.problem == "not_found", "one row costs no other"
    for found in (listing(url), lists.rows(f"{url}/list.csv")):
        with pytest.raises(InputError, match=f"^{url}.*: cannot be looked at .*; give a plain path or an s3") as caught:
            list(found)
        assert "\n" not in str(caught.value)


def test_an_empty_archive(tmp_path):
    assert list(listing(str(tmp_path))) == []


def test_hidden_files_and_folders_are_left_out(tmp_path):
    for name in (".hidden.mp4", ".git/a.mp4", "b/.c/d.mp4", "b/e.mp4"):
        _touch(tmp_path / name)
    assert [s.path for s in listing(str(tmp_path))] == ["b/e.mp4"]


def test_an_archive_below_a_hidden_folder_is_listed(tmp_path):
    _touch(tmp_path / ".cache" / "a.mp4")
    assert [s.path for s in listing(str(tmp_path / ".cache"))] == ["a.mp4"]


def test_the_stamp_follows_the_bytes(tmp_path):
    _touch(tmp_path / "a.mp4")
    os.symlink("a.mp4", tmp_path / "link.mp4")
    before = [s.stamp for s in listing(str(tmp_path))]
    _touch(tmp_path / "a.mp4", b"y")
    os.utime(tmp_path / "a.mp4", (1, 1))
    after = [s.stamp for s in listing(str(tmp_path))]
    assert before == [s for s in before if s not in after] and len(set(after)) == 1


def test_a_listing_of_s3(s3):
    fs, _ = files.locate(s3)
    for name in ("b.mp4", "folder/", "folder/a::b.mp4", "folder/ü 🎬.mp4", ".hidden/c.mp4"):
        fs.pipe_file(f"reel/listed/{name}", name.encode())
    found = {s.path: s for s in listing(f"{s3}/listed")}
    assert list(found) == ["b.mp4", "folder/a::b.mp4", "folder/ü 🎬.mp4"]
    assert all(not s.problem and content_id(s) == files.digest(p.encode()) for p, s in found.items())


def test_a_folder_that_cannot_be_read_stops_the_listing(tmp_path, monkeypatch):
    scandir = os.scandir
    _touch(tmp_path / "closed" / "a.mp4")

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="closed: cannot be listed"):
        list(listing(str(tmp_path)))


STRANGE = ("new\nline.mp4", "🎬 é.mp4", ";$(touch x)`y`.mp4", "-rf.mp4", "a::b.mp4", "s3:.mp4", "50%41.mp4", "x" * 251 + ".mp4")  # fmt: skip # noqa: E501


@pytest.fixture
def odd(tmp_path):
    """An archive of strange names and of things that are no files."""
    folder = tmp_path / "odd"
    for number, name in enumerate(STRANGE):
        _touch(folder / name, bytes([number]))
    _touch(os.fsencode(folder) + b"/\xff\xfe.mp4", b"bytes")
    _touch(folder / "good.mp4", b"good")
    _touch(folder / "notes.txt")
    _touch(folder / "folder.mp4" / "inside.mp4", b"inside")
    os.mkfifo(folder / "pipe.mp4")
    for name, target in {"dangling": "none", "self": "self.mp4", "device": "/dev/zero", "up": "..", "link": "good.mp4"}.items():  # fmt: skip # noqa: E501
        os.symlink(target, folder / f"{name}.mp4")
    os.symlink("..", folder / "loop")
    return folder


IRREGULAR = {f"{name}.mp4" for name in ("folder", "pipe", "dangling", "self", "device", "up")}


def test_strange_names_are_read_back(odd):
    found = {s.path: s for s in listing(str(odd))}
    for number, name in enumerate(STRANGE):
        assert content_id(found[name]) == files.digest(bytes([number]))
    assert content_id(found["%FF%FE.mp4"]) == files.digest(b"bytes")
    assert content_id(found["link.mp4"]) == files.digest(b"good") and content_id(found["folder.mp4/inside.mp4"])


def test_what_is_no_file_is_irregular(odd):
    assert {s.path for s in listing(str(odd)) if s.problem} == IRREGULAR | {"loop"}


def test_everything_listed_ends_in_the_ledger(odd, tmp_path):
    root = files.open_root(str(tmp_path / "root"))
    planned, report = plan(root, str(odd))
    entries = {e.item: e for e in ledger.read(root, "list", "a")}
    assert report.balanced and report.items == len(entries) == len(list(listing(str(odd))))
    assert {p for p, e in entries.items() if e.reason == "not_regular_file"} == IRREGULAR
    assert {p for p, e in entries.items() if e.verdict == "dropped"} == {"notes.txt", "loop", "link.mp4"}
    kept = {m.source.path for d in plans.drafts(root, "a", planned) for m in plans.members(d)}
    assert kept == {p for p, e in entries.items() if e.verdict == "kept"} >= {*STRANGE, "%FF%FE.mp4", "good.mp4"}


def test_an_escaped_name_cannot_pose_as_another(tmp_path):
    _touch(os.fsencode(tmp_path) + b"/\xff.mp4", b"one")
    _touch(tmp_path / "%FF.mp4", b"two")
    assert sorted((s.path, not s.problem) for s in listing(str(tmp_path))) == [("%FF.mp4", False), ("%FF.mp4", True)]


def test_strange_names_reach_the_decoder(odd, tmp_path):
    sandbox = Sandbox()
    for source in listing(str(odd)):
        path = fetch(source, str(tmp_path))
        with pytest.raises(Rejected) as caught:
            sandbox.cut(path, tmp_path, span=2.0, short_side=64)
        assert (caught.value.reason in ("not_regular_file", "not_found")) == bool(source.problem)
    sandbox.close()


class Hosted(fsspec.implementations.local.LocalFileSystem):
    """A real folder, behind a URL that names a host, as FTP, SFTP and others have it."""

    protocol = "hosted"

    def __init__(self, host, **more):
        super().__init__(**more)
        assert host == "far.away"

    @staticmethod
    def _get_kwargs_from_urls(url):
        return {"host": url.removeprefix("hosted://").partition("/")[0], "port": None}

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("hosted://far.away/").strip("/")


def test_a_file_system_is_told_the_host_that_its_url_names(tmp_path):
    (tmp_path / "archive" / "below").mkdir(parents=True)
    (tmp_path / "archive" / "below" / "a.mp4").write_bytes(b"12345")
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    url = f"hosted://far.away{tmp_path}/archive"
    assert [(s.path, s.url, s.size) for s in listing(url)] == [("below/a.mp4", f"{url}/below/a.mp4", 5)]
    assert files.read(f"{url}/below/a.mp4", 1, 3) == b"23"
