"""What a run looks at again: files that were away, copies that do not decode, accounts and tars that went astray."""

import csv
import os
import shutil

import av
import pytest

from storage import datasets, files, ledger, plans
from storage.errors import Damaged, StoreError
from storage.media import scores
from tasks import gc, score, shard
from tasks.verify import verify
from tests.preparing import RECIPE, again, plan, prepare, two_folders
from tests.videos import make

COPY = shard.recipe(2.0, 64, "span", "copy")


@pytest.fixture
def home(archive, tmp_path):
    return two_folders(sorted((archive / "archive" / "weak").rglob("*.mp4"))[:8], tmp_path)


def replan(home, **more):
    root = files.open_root(str(home / "fresh"))
    return root, *plan(root, str(home / "archive"), units=3, **more)


def test_a_disk_that_was_away_for_a_while_costs_nothing(home):
    root, planned, listed = replan(home)
    (home / "archive").rename(home / "away")
    _, report = shard.shard_archive(root, "a", planned, recipe=RECIPE, failure_budget=1.0, listed=listed)
    assert report.quarantined == {"not_found": 8}
    (home / "away").rename(home / "archive")
    data, report = prepare(root, str(home / "archive"), units=3)
    assert report.kept == report.decoded == 8 and data.clips == datasets.load(str(home / "root"), "a").clips
    _, report = prepare(root, str(home / "archive"), units=3)
    assert report.decoded == 0


def test_a_file_that_was_another_for_a_while_is_taken_up_when_it_is_back(home):
    root, planned, listed = replan(home)
    one = min((home / "archive").rglob("*.mp4"))
    data, facts = one.read_bytes(), one.stat()
    one.write_bytes(data + bytes(64))
    _, report = shard.shard_archive(root, "a", planned, recipe=RECIPE, failure_budget=1.0, listed=listed)
    assert report.quarantined == {"source_changed": 1}
    one.write_bytes(data)
    os.utime(one, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    _, report = prepare(root, str(home / "archive"), units=3)
    assert report.kept == 8 and report.decoded == 1


def test_a_file_that_stays_unreadable_rebuilds_nothing(home, monkeypatch):
    """It is asked for again by each run, which finds that at the listing and leaves all parts as they are."""
    from storage import sources
    from storage.media.limits import Rejected

    one = str(min((home / "archive").rglob("*.mp4")))
    fetch, fingerprint = sources.fetch, sources.fingerprint

    def refused(source, *rest):
        if source.url.endswith(one):
            raise Rejected("permission", "planted")
        return (fetch if rest else fingerprint)(source, *rest)

    monkeypatch.setattr(sources, "fetch", refused)
    root = files.open_root(str(home / "fresh"))
    _, report = prepare(root, str(home / "archive"), units=3)
    assert report.quarantined == {"permission": 1}
    monkeypatch.setattr(sources, "fingerprint", refused)
    seen = []
    for _ in range(3):
        data, report = prepare(root, str(home / "archive"), units=3)
        assert report.decoded == 0 and report.kept == 7
        seen.append([part.id for part in data.parts])
    assert seen[0] == seen[1] == seen[2]
    monkeypatch.undo()
    _, report = prepare(root, str(home / "archive"), units=3)
    assert report.decoded == 1 and report.kept == 8


@pytest.fixture
def damaged(tmp_path):
    """A root of three sources that are copied; the packets of one are whole, and what is in some of them is not."""
    (tmp_path / "archive").mkdir()
    for number, name in enumerate(("a.mp4", "b.mp4", "c.mp4")):
        path = make(tmp_path / "archive" / name, frames=120, edit=_coded)
        path.write_bytes(path.read_bytes() + (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big"))
    with av.open(str(tmp_path / "archive" / "b.mp4")) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray((tmp_path / "archive" / "b.mp4").read_bytes())
    for begin, size in places[50:80]:
        for at in range(begin + size // 2, begin + size):
            data[at] ^= 0x55
    (tmp_path / "archive" / "b.mp4").write_bytes(data)
    return tmp_path


def _coded(stream, _):
    stream.options = {"g": "20", "bf": "0"}


def test_copied_packets_that_do_not_decode_cost_their_source_alone(damaged):
    root = files.open_root(str(damaged / "root"))
    data, report = prepare(root, str(damaged / "archive"), recipe=COPY, units=12)
    assert report.kept == 3, "a copy looks at no picture"
    _, done = score.score_dataset(root, data, last=False)
    assert done.quarantined.total() >= 1
    data, report = prepare(root, str(damaged / "archive"), recipe=COPY, units=12)
    assert report.kept == 2 and report.quarantined.keys() <= {"corrupt_frames", "decode_error", "truncated"}
    assert report.decoded == 1, "the clips of the others are taken from the part before"
    version, done = score.score_dataset(root, data)
    assert not done.quarantined and version == scores.version()
    rows = [entry for part in data.parts for entry in ledger.read(root, "score", part.id)]
    assert len(rows) == data.clips and all(entry.scores["frames"] > 0 and entry.seconds > 0 for entry in rows)
    _, report = prepare(root, str(damaged / "archive"), recipe=COPY, units=12)
    assert report.decoded == 0


def test_of_two_writers_the_account_of_the_one_that_commits_stays(home, monkeypatch):
    """A writer that saw a file changed writes its account, and loses; the part has the account of its clips."""
    root, planned, _ = replan(home)
    draft = plans.drafts(root, "a", planned)[0]
    one = plans.members(draft)[0].source.url
    data, facts = files.read(one), os.stat(one)
    commit = shard.parts.commit_tar

    def slower(root, part, tar, account=""):
        monkeypatch.setattr(shard.parts, "commit_tar", commit)
        os.utime(one, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        with open(one, "ab") as file:
            file.write(bytes(8))
        shard.ledger.write(root, "shard", part, [])  # of another writer that was killed
        return commit(root, part, tar, account)

    monkeypatch.setattr(shard.parts, "commit_tar", slower)
    shard.shard_part(draft, root=root, recipe=RECIPE)
    first = ledger.read(root, "shard", draft.id)
    assert len(first) == draft.units and {entry.verdict for entry in first} == {"kept"}
    monkeypatch.setattr(shard.parts, "committed", lambda *_: False)  # it looked before the other had committed
    shard.shard_part(draft, root=root, recipe=RECIPE)
    assert ledger.digest(ledger.read(root, "shard", draft.id)) == ledger.digest(first)
    assert files.read(one) != data


def test_an_account_of_other_clips_is_found(home):
    root = str(home / "root")
    assert verify(root).startswith("nothing is damaged")
    one, other = (part.id for part in datasets.load(root, "a").parts[:2])
    shutil.copy(ledger.url(root, "shard", one), ledger.url(root, "shard", other))
    with pytest.raises(Damaged, match="not the account of its part"):
        verify(root)


def test_a_writer_that_stood_still_until_its_tar_was_removed_commits_nothing(home, monkeypatch):
    root, planned, _ = replan(home)
    draft = plans.drafts(root, "a", planned)[0]
    publish = files.publish_bytes

    def late(data, url, **more):
        if url.endswith(f"parts/{draft.id}.parquet"):
            prepare(root, str(home / "archive"), units=12)  # the archive is planned otherwise meanwhile
            for path in (home / "fresh").rglob("*"):
                os.utime(path, (1.6e9, 1.6e9))
            gc.gc(root, dry_run=False, force=True)
            monkeypatch.setattr(files, "publish_bytes", publish)
        return publish(data, url, **more)

    monkeypatch.setattr(files, "publish_bytes", late)
    with pytest.raises(StoreError, match="was removed while its part was committed"):
        shard.shard_part(draft, root=root, recipe=RECIPE)
    assert verify(root).startswith("nothing is damaged")
    data, _ = prepare(root, str(home / "archive"), units=3)
    assert data.clips == datasets.load(str(home / "root"), "a").clips
    for part in data.parts:
        part.verify()


def test_a_ledger_that_is_gone_is_named(home):
    root = str(home / "root")
    gone = ledger.url(root, "shard", datasets.load(root, "a").parts[0].id)
    os.unlink(gone)
    with pytest.raises(Damaged, match=r"is gone; run `reelmill repair`"):
        again(home)


def _labels(home, rows):
    with open(home / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "start", "end", "label", "split"), *rows])
    return str(home / "labels.csv")


def test_of_the_same_bytes_the_held_out_and_the_labelled_file_counts(home, tmp_path):
    """A training copy of a held-out video is a leak; an unlabelled copy says nothing."""
    films = sorted((home / "archive").rglob("*.mp4"))
    (tmp_path / "other" / "archive").mkdir(parents=True)
    for name, film in (("a_train.mp4", 0), ("b_held.mp4", 0), ("c_plain.mp4", 1), ("d_said.mp4", 1)):
        shutil.copy(films[film], tmp_path / "other" / "archive" / name)
    rows = [
        ("a_train.mp4", 0, 1, "up", "train"),
        ("b_held.mp4", 0, 2, "down", "heldout"),
        ("d_said.mp4", 0, 1, "up", ""),
    ]
    root = files.open_root(str(tmp_path / "other" / "root"))
    data, _ = prepare(root, str(tmp_path / "other" / "archive"), _labels(tmp_path, rows))
    kept = {row["path"]: row for part in data.parts for row in part.rows()}
    assert kept.keys() == {"b_held.mp4", "d_said.mp4"}
    assert kept["b_held.mp4"]["split"] == "heldout" and kept["d_said.mp4"]["labels"][0]["label"] == "up"
    said = {entry.item: entry.detail for entry in ledger.read(root, "list", "a")}
    assert said["a_train.mp4"] == "same bytes as b_held.mp4, which is held out, whose labels count"
    assert said["c_plain.mp4"] == "same bytes as d_said.mp4"


def test_a_store_without_marks_of_change_is_looked_at_each_time(home, monkeypatch):
    monkeypatch.setattr(files, "stamp", lambda facts: f"{facts['size']}:")
    root = files.open_root(str(home / "fresh"))
    prepare(root, str(home / "archive"), units=3)
    _, report = prepare(root, str(home / "archive"), units=3)
    assert report.decoded == 0
    one, other = sorted((home / "archive").rglob("*.mp4"))[:2]
    data = one.read_bytes()
    one.write_bytes(data[:-8] + bytes(8) if len(data) > 8 else data)
    before = plans.latest(root, "a")
    plan(root, str(home / "archive"), units=3)
    assert plans.latest(root, "a") != before and other.exists()


def test_labels_after_the_end_of_a_video_are_told(home, tmp_path):
    one, other = (path.relative_to(home / "archive") for path in sorted((home / "archive").rglob("*.mp4"))[:2])
    labels = _labels(
        tmp_path, [(one, 0, 1, "up", "train"), (one, 900, 901, "up", "train"), (other, 0, 1, "up", "train")]
    )
    data, _ = again(home, labels=labels)
    said = {e.item: e.detail for part in data.parts for e in ledger.read(str(home / "root"), "shard", part.id)}
    assert "1 labels begin after its end at" in said[str(one)] and "labels begin" not in said[str(other)]
