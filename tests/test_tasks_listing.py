"""Incremental listing: moved and touched files are not done again, replaced ones are; lists, globs, long videos."""

import csv
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import carry, columns, datasets, files, ledger, parts, plans, sources, synthetic, tables
from storage.errors import InputError
from storage.sandbox import Sandbox
from tasks import score, shard
from tests.preparing import RECIPE, bytes_of, plan, prepare


@pytest.fixture(scope="module")
def clips(archive):
    """Eight small real videos."""
    return sorted((archive / "archive" / "weak").rglob("*.mp4"))[:8]


@pytest.fixture
def home(clips, tmp_path):
    """An archive of them in two folders, prepared."""
    for number, clip in enumerate(clips):
        folder = tmp_path / "archive" / ("one" if number % 2 else "two")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / clip.name)
    prepare(str(tmp_path / "root"), str(tmp_path / "archive"), units=3)
    return tmp_path


def again(home, **more):
    return prepare(str(home / "root"), str(home / "archive"), **{"units": 3, **more})


def contents(data):
    return sorted(row["content_id"] for part in data.parts for row in part.rows())


def test_an_unchanged_archive_has_the_same_plan_and_nothing_to_decode(home):
    before, plan_before = bytes_of(home / "root"), plans.latest(str(home / "root"), "a")
    data, report = again(home)
    assert report.decoded == 0 and bytes_of(home / "root") == before
    assert plans.latest(str(home / "root"), "a") == plan_before and data.clips == 8


def test_moved_and_renamed_files_are_not_decoded_again(home):
    """PR03."""
    before = contents(datasets.load(str(home / "root"), "a"))
    for number, path in enumerate(sorted((home / "archive").rglob("*.mp4"))):
        (home / "archive" / "three" / str(number)).mkdir(parents=True)
        path.rename(home / "archive" / "three" / str(number) / f"new name {number}.mp4")
    data, report = again(home)
    assert report.decoded == 0 and contents(data) == before
    for part in data.parts:
        part.verify()
        assert all(row["path"].startswith("three/") for row in part.rows())
        for entry in ledger.read(str(home / "root"), "shard", part.id):
            assert entry.verdict == "kept" and entry.detail.startswith("clips taken from part ")


def test_a_root_that_was_added_to_equals_one_made_at_once(home, tmp_path):
    for path in sorted((home / "archive").rglob("*.mp4")):
        path.rename(home / "archive" / f"x{path.name}")
    data, _ = again(home)
    fresh, report = prepare(str(tmp_path / "fresh"), str(home / "archive"), units=3)
    assert report.decoded == 8 and fresh.version == data.version
    assert [p.digest for p in fresh.parts] == [p.digest for p in data.parts]


def test_a_larger_part_size_joins_parts_without_decoding(home):
    data, report = again(home, units=100)
    assert report.decoded == 0 and len(data.parts) == 1 and data.clips == 8
    data.parts[0].verify()


def test_a_clip_that_cannot_be_taken_from_the_old_part_is_cut_again(home):
    old = datasets.load(str(home / "root"), "a")
    for part in old.parts:
        os.unlink(part.media)
    data, report = again(home, units=100)
    assert report.decoded == 8 and contents(data) == contents(old)


def test_another_recipe_takes_nothing_over(home):
    data, report = again(home, recipe={**RECIPE, "short_side": 48})
    assert report.decoded == 8
    assert max(min(row["height"], row["width"]) for part in data.parts for row in part.rows()) <= 48


def test_a_touched_file_is_not_decoded_again(home):
    for path in (home / "archive").rglob("*.mp4"):
        os.utime(path, (1, 1))
    _, report = again(home)
    assert report.decoded == 0


# Files over `sources.WHOLE` bytes: their fingerprint looks at three places only.


def _large(path, clip, seed=0, marks=()):
    """A real video with a free box of noise behind it; ``marks`` are bytes that no fingerprint looks at."""
    noise = bytearray(np.random.default_rng(seed).bytes(600_000))
    for mark in marks:
        noise[mark] ^= 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clip.read_bytes() + (len(noise) + 8).to_bytes(4, "big") + b"free" + bytes(noise))
    return path


@pytest.fixture
def large(clips, tmp_path):
    _large(tmp_path / "archive" / "a.mp4", clips[0])
    _large(tmp_path / "archive" / "b.mp4", clips[1], seed=1)
    data, report = again(tmp_path)
    assert report.decoded == 2
    return tmp_path


def test_bytes_that_no_fingerprint_looks_at_still_tell_a_replaced_file(large, clips):
    one, two = large / "archive" / "a.mp4", _large(large / "other.mp4", clips[0], marks=[150_000])
    assert sources.fingerprint_file(str(one)) == sources.fingerprint_file(str(two))
    before = contents(datasets.load(str(large / "root"), "a"))
    two.rename(one)
    data, report = again(large)
    assert report.decoded == 1 and len(set(contents(data)) - set(before)) == 1
    assert files.digest_file(one) in contents(data)
    _, report = again(large)
    assert report.decoded == 0


def test_a_large_file_that_moved_or_was_touched_is_not_decoded_again(large):
    (large / "archive" / "a.mp4").rename(large / "archive" / "moved.mp4")
    os.utime(large / "archive" / "b.mp4", (1, 1))
    _, report = again(large)
    assert report.decoded == 0


def test_two_large_files_of_one_fingerprint_are_told_apart(clips, tmp_path):
    _large(tmp_path / "archive" / "a.mp4", clips[0])
    _large(tmp_path / "archive" / "b.mp4", clips[0], marks=[150_000])
    _large(tmp_path / "archive" / "c.mp4", clips[0])
    data, report = again(tmp_path)
    entries = {e.item: e for e in ledger.read(str(tmp_path / "root"), "list", "a")}
    assert (entries["c.mp4"].verdict, entries["c.mp4"].reason) == ("dropped", "duplicate")
    assert "same bytes as a.mp4" in entries["c.mp4"].detail and len(set(contents(data))) == report.decoded == 2


def test_a_newcomer_with_a_known_fingerprint_is_told_apart(large, clips):
    _large(large / "archive" / "c.mp4", clips[0], marks=[150_000])
    data, report = again(large)
    assert report.decoded == 1 and len(set(contents(data))) == 3


# Sources


def test_a_glob_is_an_archive(home):
    found, report = plan(files.open_root(str(home / "g")), f"{home}/archive/*/*.mp4")
    assert report.kept == 8
    _, report = plan(files.open_root(str(home / "g2")), f"{home}/archive/one/*.mp4")
    assert report.kept == 4
    with pytest.raises(InputError, match="the archive is empty"):
        plan(files.open_root(str(home / "g3")), f"{home}/archive/*/*.mkv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_list_with_labels_and_metadata_is_an_archive(home, kind):
    names = sorted(str(p.relative_to(home)) for p in (home / "archive").rglob("*.mp4"))
    rows = [{"path": name, "label": "wave", "city": f"Basel {n}", "take": str(n)} for n, name in enumerate(names)]
    rows += [{"path": "archive/gone.mp4", "label": "wave", "city": "", "take": ""}]
    target = home / f"list.{kind}"
    if kind == "csv":
        with open(target, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), target)
    data, report = prepare(str(home / "listed"), str(target))
    found = {row["path"]: row for part in data.parts for row in part.rows()}
    assert report.items == 8 and set(found) == set(names)
    assert json.loads(found[names[3]]["metadata"]) == {"city": "Basel 3", "take": "3"}
    assert {row["labels"][0]["label"] for row in found.values()} == {"wave"}
    entries = {e.item: e.reason for e in ledger.read(str(home / "listed"), "list", "a")}
    assert entries["archive/gone.mp4"] == "not_found"


def test_a_list_of_urls_without_labels_is_an_archive(home):
    paths = sorted((home / "archive").rglob("*.mp4"))[:3]
    (home / "list.csv").write_text("url\n" + "".join(f"file://{path}\n" for path in paths))
    data, _ = prepare(str(home / "listed"), str(home / "list.csv"))
    assert sorted(row["source"] for part in data.parts for row in part.rows()) == [f"file://{path}" for path in paths]


def test_webdataset_tars_are_an_archive(home, clips, tmp_path):
    """Rows 109–112 of the corpus: links, unsafe and doubled names are quarantined, pickles never opened."""
    import io
    import tarfile

    def add(tar, name, data):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for number, clip in enumerate(clips[:3]):
            add(tar, f"s{number}.json", json.dumps({"label": "wave", "city": number}).encode())
            add(tar, f"s{number}.mp4", clip.read_bytes())
            add(tar, f"s{number}.pkl", b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
        add(tar, "../out.mp4", clips[3].read_bytes())
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, "twice.mp4", clips[4].read_bytes())
        add(tar, "other.mp4", clips[5].read_bytes())
        add(tar, "twice.mp4", clips[6].read_bytes())
    (tmp_path / "shards" / "1.tar").write_bytes((tmp_path / "shards" / "0.tar").read_bytes()[:20_000])
    data, report = prepare(str(tmp_path / "tarred"), str(tmp_path / "shards"))
    rows = {row["path"]: row for part in data.parts for row in part.rows()}
    assert set(rows) == {"0.tar/s0.mp4", "0.tar/s1.mp4", "0.tar/s2.mp4", "0.tar/other.mp4"}
    assert rows["0.tar/s1.mp4"]["content_id"] == files.digest_file(clips[1])
    assert json.loads(rows["0.tar/s1.mp4"]["metadata"]) == {"city": 1}
    assert rows["0.tar/s1.mp4"]["labels"][0]["label"] == "wave" and rows["0.tar/other.mp4"]["labels"] == []
    entries = {e.item: e.reason for e in ledger.read(str(tmp_path / "tarred"), "list", "a") if e.verdict != "kept"}
    assert entries.pop("1.tar") == "bad_shard" and set(entries.values()) == {"bad_member"}
    assert {name.removeprefix("0.tar/") for name in entries} == {"../out.mp4", "link.mp4", "twice.mp4"}
    _, report = prepare(str(tmp_path / "tarred"), str(tmp_path / "shards"))
    assert report.decoded == 0


@pytest.mark.parametrize(
    "text, message",
    [("path,x\n,1\n", "row 1: neither path nor url"), ("path\na.mp4,x\n", "row 1: not a row"), ("", "is empty")],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        plan(files.open_root(str(tmp_path / "root")), str(tmp_path / "list.csv"))


def test_a_bucket_of_more_than_a_page_is_listed_whole(s3):
    fs, _ = files.locate(s3)
    for number in range(1203):
        fs.pipe_file(f"reel/pages/{number % 7}/{number:05d}.mp4", b"x")
    found = list(sources.listing(f"{s3}/pages"))
    assert len(found) == len({s.path for s in found}) == 1203


# Long videos


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    dense = synthetic.scripts(0, 1, 1, 0.0)[-1]
    synthetic.render(dense, folder / "archive")
    return folder / "archive"


def test_a_long_video_is_many_units_with_the_clips_of_one(long, tmp_path):
    whole, _ = prepare(str(tmp_path / "whole"), str(long), recipe={**RECIPE, "span": 1.0})
    data, report = prepare(str(tmp_path / "root"), str(long), recipe={**RECIPE, "span": 1.0}, unit=2.0, units=2)
    assert report.items > 2 and len(data.parts) > 1

    def of(data):
        return {row["key"]: row["sha256"] for part in data.parts for row in part.rows()}

    assert of(data) == of(whole) and len(of(data)) > 4
    entries = [e for part in data.parts for e in ledger.read(str(tmp_path / "root"), "shard", part.id)]
    assert any("#t=2,4" in e.item for e in entries)
    assert {e.content_id for e in entries} == {files.digest_file(next(long.rglob("*.mp4")))}


# Suspects


def test_a_source_found_in_flight_is_cut_in_a_process_of_its_own(home, monkeypatch):
    """Row 4: being there when a worker died is no proof; only the death of a process of its own quarantines."""
    from storage import inflight, sandbox
    from storage.limits import Rejected

    root = files.open_root(str(home / "fresh"))
    planned, listed = plan(root, str(home / "archive"), units=3)
    alone = []

    def cut_alone(path, folder, **options):
        alone.append(path)
        if len(alone) == 1:
            raise Rejected("worker_killed", "signal 9")
        return Sandbox().cut(path, folder, **options)

    monkeypatch.setattr(sandbox, "cut_alone", cut_alone)
    drafts = plans.drafts(root, "a", planned)
    draft = max(drafts, key=lambda d: d.units)
    first, second = plans.members(draft)[:2]
    inflight.begin(root, draft.id, second.name, {first.name})
    data, report = prepare(root, str(home / "archive"), units=3)
    assert report.quarantined == {"worker_killed": 1} and report.kept == 7
    assert alone == [first.source.url, second.source.url]
    assert files.names(files.join(root, "inflight")) == []


def test_the_journal_names_the_source_at_work(home, monkeypatch):
    """Row 1: what was in hand at a kill is known afterwards, and a leftover of a committed part is swept."""
    from storage import inflight

    seen = []
    cut = Sandbox.cut

    def watch(self, path, folder, **options):
        seen.extend(files.read_json(files.join(root, "inflight", n))["item"] for n in files.names(f"{root}/inflight"))
        return cut(self, path, folder, **options)

    monkeypatch.setattr(Sandbox, "cut", watch)
    monkeypatch.setattr("tasks.pool.workers", lambda: 1)
    root = files.open_root(str(home / "fresh"))
    data, _ = prepare(root, str(home / "archive"), units=3)
    assert sorted(seen) == sorted(row["path"] for part in data.parts for row in part.rows())
    inflight.begin(root, data.parts[0].id, "left over", set())
    prepare(root, str(home / "archive"), units=3)
    assert files.names(files.join(root, "inflight")) == []


def test_what_a_part_was_made_from_is_not_needed_for_it(home):
    again(home, units=100)
    data = datasets.load(str(home / "root"), "a")
    assert parts.find(str(home / "root"), data.parts[0].id).samples == 8


# What was computed of a clip goes with it


def frozen(home, **more):
    root = files.open_root(str(home / "root"))
    planned, listed = plan(root, str(home / "archive"), **{"units": 3, **more})
    found, _ = shard.shard_archive(root, "a", planned, recipe=RECIPE, failure_budget=1.0, listed=listed)
    about = {"before": datasets.latest(root, "a")}
    return root, datasets.freeze(root, "a", found, about)


def test_scores_go_with_their_clips_into_new_parts(home, tmp_path):
    root, data = frozen(home)
    name, report = score.score_dataset(root, data)
    assert report.decoded == 8
    for path in sorted((home / "archive").rglob("*.mp4"))[:5]:
        path.rename(home / "archive" / f"moved {path.name}")
    root, data = frozen(home, units=5)
    _, report = score.score_dataset(root, data)
    assert report.items == 8 and report.decoded == 0
    made = {p.id: columns.read(root, "scores", name, p) for p in data.parts}
    fresh, same = frozen(home_with(tmp_path / "fresh", home / "archive"), units=5)
    score.score_dataset(fresh, same)
    assert len(same.parts) == len(made) > 1
    for part in same.parts:
        assert columns.read(fresh, "scores", name, part).equals(made[part.id])


def home_with(folder, archive):
    shutil.copytree(archive, folder / "archive")
    return folder


def test_only_the_clips_that_are_new_are_computed(home, archive):
    root, data = frozen(home)
    score.score_dataset(root, data)
    newcomer = sorted((archive / "archive" / "weak").rglob("*.mp4"))[9]
    shutil.copy(newcomer, home / "archive" / "new.mp4")
    root, data = frozen(home, units=100)
    _, report = score.score_dataset(root, data)
    assert report.items == 9 and report.decoded == 1


def test_a_clip_of_other_bytes_takes_nothing_over(home):
    root, data = frozen(home)
    name, _ = score.score_dataset(root, data)
    root, joined = frozen(home, units=100)
    (part,) = joined.parts
    assert carry.known(root, "scores", name, part, carry.replaced(root, joined)).num_rows == 8
    other = tables.read(part.index)
    column = other.schema.get_field_index("sha256")
    facts = tables.about(part.index)
    altered = other.set_column(column, "sha256", pa.array(["0" * 64] * 8))
    files.replace(tables.pack(altered, facts), part.index)
    assert carry.known(root, "scores", name, part, carry.replaced(root, joined)) is None


def test_quarantined_videos_are_tried_again_on_request(home, monkeypatch):
    """PR11: the verdict before stays in the ledger; the others of its part are not decoded."""
    from storage.limits import Rejected
    from tasks.requeue import requeue

    root = files.open_root(str(home / "fresh"))
    bad = sorted((home / "archive").rglob("*.mp4"))[2]
    cut = Sandbox.cut

    def slow(self, path, folder, **options):
        if path == str(bad):
            raise Rejected("timeout", "no sign of life")
        return cut(self, path, folder, **options)

    monkeypatch.setattr(Sandbox, "cut", slow)
    before, report = prepare(root, str(home / "archive"), units=100)
    assert report.quarantined == {"timeout": 1}
    monkeypatch.setattr(Sandbox, "cut", cut)
    _, report = prepare(root, str(home / "archive"), units=100)
    assert report.quarantined == {"timeout": 1} and report.decoded == 0
    assert "1 timeout" in requeue(root, "a")
    assert requeue(root, "a", ["oom"]).startswith("0 videos")
    assert requeue(root, "a", ["timeout"]).startswith("1 videos")
    after, report = prepare(root, str(home / "archive"), units=100)
    assert report.kept == 8 and report.decoded == 1 and after.clips == before.clips + 1
    old = {e.item: e.reason for e in ledger.read(root, "shard", before.parts[0].id)}
    assert old[str(bad.relative_to(home / "archive"))] == "timeout"
    _, report = prepare(root, str(home / "archive"), units=100)
    assert report.decoded == 0
    with pytest.raises(InputError, match="no such reason"):
        requeue(root, "a", ["bad luck"])
    with pytest.raises(InputError, match="no dataset 'other'"):
        requeue(root, "other", ["timeout"])


def test_a_source_that_is_gone_when_it_is_cut_has_a_reason(home):
    """Row 29."""
    root = files.open_root(str(home / "fresh"))
    planned, listed = plan(root, str(home / "archive"), units=3)
    gone = next((home / "archive").rglob("*.mp4"))
    gone.unlink()
    _, report = shard.shard_archive(root, "a", planned, recipe=RECIPE, failure_budget=1.0, listed=listed)
    assert report.quarantined == {"not_found": 1} and report.kept == 7
