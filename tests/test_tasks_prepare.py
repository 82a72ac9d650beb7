"""Preparing an archive: only what is missing, nothing lost, the same bytes whatever happened on the way."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from storage import columns, datasets, files, ledger, parts
from storage.errors import BudgetExceeded, Incomplete, StoreError
from storage.ledger import Report
from storage.media.sandbox import Sandbox
from tasks import label, shard, stage, volumes
from tests.forked import forks
from tests.preparing import RECIPE, bytes_of, plan, prepare
from tests.servers import until


@pytest.fixture(scope="module")
def done(archive, tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    dataset, report = prepare(str(root), str(archive / "archive"), str(archive / "labels.csv"))
    return root, dataset, report


def test_every_file_is_accounted_for(archive, done):
    root, dataset, report = done
    listed = ledger.tally(ledger.read(str(root), "list", "a"))
    on_disk = [p for p in (archive / "archive").rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert listed.items == len(on_disk) and listed.balanced
    assert report.balanced and report.items == listed.kept


def test_planted_bad_files_are_quarantined_with_their_reason(done):
    root, _, report = done
    assert report.quarantined == {"empty": 1, "truncated": 1, "no_video_stream": 1, "not_video": 2}
    assert not report.dropped


def test_clips_keep_their_place_on_the_source_clock(done):
    _, dataset, _ = done
    rows = [row for part in dataset.parts for row in part.rows() if row["path"].startswith("dense")]
    by_source: dict[str, list] = {}
    for row in rows:
        by_source.setdefault(row["path"], []).append(row)
    for clips in by_source.values():
        clips.sort(key=lambda row: row["start"])
        assert len(clips) > 1 and clips[0]["start"] == 0
        for before, after in zip(clips, clips[1:], strict=False):
            assert abs(before["end"] - after["start"]) < 1e-9


def test_a_second_run_decodes_nothing(archive, done):
    root, dataset, _ = done
    before = bytes_of(root)
    again, report = prepare(str(root), str(archive / "archive"), str(archive / "labels.csv"))
    assert report.decoded == 0 and again.version == dataset.version
    assert bytes_of(root) == before


def test_changing_one_source_rebuilds_one_part(archive, done, tmp_path):
    shutil.copytree(archive, tmp_path / "copy")
    shutil.copytree(done[0], tmp_path / "root")
    videos = sorted((tmp_path / "copy" / "archive" / "weak").rglob("*.mp4"))
    shutil.copyfile(sorted((tmp_path / "copy" / "archive" / "real").glob("*.mp4"))[-1], tmp_path / "other.mp4")
    (tmp_path / "other.mp4").open("ab").write(b"\0" * 8)  # other bytes than the clip in the archive
    shutil.copyfile(tmp_path / "other.mp4", videos[0])
    dataset, report = prepare(
        str(tmp_path / "root"), str(tmp_path / "copy" / "archive"), str(tmp_path / "copy" / "labels.csv")
    )
    old, new = {p.id for p in done[1].parts}, {p.id for p in dataset.parts}
    assert len(new - old) == 1 and len(old - new) == 1
    changed = next(p for p in dataset.parts if p.id in new - old)
    # The clips of its neighbours are taken from the part before; only the changed source is decoded.
    assert report.decoded == 1 and len({row["path"] for row in changed.rows()}) > 1


def test_the_same_archive_elsewhere_gives_the_same_dataset(archive, done, tmp_path):
    shutil.copytree(archive, tmp_path / "moved")
    root = str(tmp_path / "root")
    dataset, _ = prepare(root, str(tmp_path / "moved" / "archive"), str(tmp_path / "moved" / "labels.csv"))
    assert [p.digest for p in dataset.parts] == [p.digest for p in done[1].parts]


def test_s3_gives_the_same_bytes(archive, done, s3, tmp_path):
    fs, _ = files.locate(f"{s3}/x")
    fs.put(str(archive / "archive"), f"{s3.removeprefix('s3://')}/prep/archive", recursive=True)
    dataset, report = prepare(f"{s3}/prep/root", f"{s3}/prep/archive", str(archive / "labels.csv"))
    assert [p.digest for p in dataset.parts] == [p.digest for p in done[1].parts]
    assert report.quarantined == done[2].quarantined
    again, second = prepare(f"{s3}/prep/root", f"{s3}/prep/archive", str(archive / "labels.csv"))
    assert second.decoded == 0


PROGRAM = """
import sys
from tests.preparing import prepare
prepare(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def writers():
    with forks("import tests.preparing") as made:
        yield made


def test_killed_at_any_moment_the_end_is_the_same(archive, done, writers, tmp_path):
    words = (str(tmp_path / "root"), str(archive / "archive"), str(archive / "labels.csv"))
    rng, kills = random.Random(0), 0
    for _ in range(5):
        process = writers.run(*words, program=PROGRAM)
        for line in process.stdout:
            if "to do" in line:  # sharding begins here
                break
        time.sleep(rng.uniform(0.0, done[2].seconds / 8))  # two threads: a quarter of the time of a quiet run
        process.kill()
        kills += (code := process.wait()) == -signal.SIGKILL
        if code == 0:
            break
        for part in files.names(str(tmp_path / "root" / "parts"), ".parquet"):
            parts.find(str(tmp_path / "root"), part.removesuffix(".parquet")).verify()
    prepare(*words)
    assert kills >= 2
    assert bytes_of(tmp_path / "root") == bytes_of(done[0])


def test_too_many_bad_files_fail_after_the_good_ones_are_committed(archive, tmp_path):
    source = tmp_path / "archive"
    source.mkdir()
    good = sorted((archive / "archive" / "weak").rglob("*.mp4"))[0]
    shutil.copyfile(good, source / "good.mp4")
    for i in range(25):
        (source / f"bad{i}.mp4").write_bytes(f"no video {i}".encode())
    with pytest.raises(BudgetExceeded, match="25 of 26 files are quarantined"):
        prepare(str(tmp_path / "root"), str(source), None, budget=0.05)
    assert any(p.samples for n in files.names(str(tmp_path / "root" / "parts"), ".parquet")
               if (p := parts.find(str(tmp_path / "root"), n.removesuffix(".parquet"))))  # fmt: skip
    assert datasets.names(str(tmp_path / "root")) == []


def test_a_few_bad_files_are_within_any_budget(archive, tmp_path):
    source = tmp_path / "archive"
    source.mkdir()
    for i in range(19):
        (source / f"bad{i}.mp4").write_bytes(f"no video {i}".encode())
    _, report = prepare(str(tmp_path / "root"), str(source), None, budget=0.05)
    assert report.quarantined.total() == 19


def test_a_failing_store_quarantines_nothing(archive, tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise StoreError("no space left on device")

    monkeypatch.setattr(Sandbox, "cut", full)
    monkeypatch.setattr(stage.time, "sleep", lambda _: None)
    with pytest.raises(Incomplete, match="no space left"):
        prepare(str(tmp_path), str(archive / "archive"), str(archive / "labels.csv"))
    assert files.names(str(tmp_path / "parts")) == [] and files.names(str(tmp_path / "ledger" / "shard")) == []


def test_a_stage_believes_the_store_and_not_the_pool(monkeypatch):
    monkeypatch.setattr(stage.time, "sleep", lambda _: None)
    with pytest.raises(Incomplete, match="1 of 3 units are not committed \\(b\\)"):
        stage.cover("lie", ["a", "b", "c"], lambda unit: Report(), lambda unit: unit != "b", unit="units")


def test_a_source_that_changed_since_listing_waits_for_the_next_run(archive, tmp_path):
    shutil.copytree(archive, tmp_path / "copy")
    root, source = files.open_root(str(tmp_path / "root")), str(tmp_path / "copy" / "archive")
    planned, listed = plan(root, source, None)
    victim = next((tmp_path / "copy" / "archive" / "weak").rglob("*.mp4"))
    victim.write_bytes(victim.read_bytes() + b"\0")
    _, report = shard.shard_archive(root, "a", planned, recipe=RECIPE, failure_budget=1.0, listed=listed)
    assert report.quarantined["source_changed"] == 1
    _, report = prepare(str(tmp_path / "root"), source, None)
    assert report.quarantined["source_changed"] == 0


def test_the_same_bytes_under_two_names_are_one_clip(archive, tmp_path):
    source = tmp_path / "archive"
    source.mkdir()
    good = next((archive / "archive" / "weak").rglob("*.mp4"))
    for name in ("a.mp4", "b.mp4"):
        shutil.copyfile(good, source / name)
    dataset, _ = prepare(str(tmp_path / "root"), str(source), None)
    entries = {e.item: e for e in ledger.read(str(tmp_path / "root"), "list", "a")}
    assert dataset.clips == 1 and entries["b.mp4"].reason == "duplicate"


def test_pseudo_labels_are_the_video_label_on_every_frame(done):
    root, dataset, _ = done
    version, _ = label.label_dataset(str(root), dataset)
    part = dataset.select(labelled="video")[0]
    rows = columns.read(str(root), "pseudo_labels", version, part).to_pylist()
    for row, entry in zip(part.rows(), rows, strict=True):
        assert entry["labels"] == [row["labels"][0]["label"]] and entry["scores"] == [[1.0]] * row["frames"]
        assert "4.2.1" in entry["provenance"] and entry["confidence"] == 1.0
    _, again = label.label_dataset(str(root), dataset)
    assert again.items == 0


def test_materialised_volumes_are_a_part_with_its_label_curves(done):
    root, dataset, _ = done
    version, _ = label.label_dataset(str(root), dataset)
    part = dataset.select(split="train", labelled="video")[0]
    settings = volumes._settings("joint_single", 8.0, 16, 64, 0)
    classes = ["blink", "down", "grow", "left", "right", "shrink", "spin", "up"]
    volumes.materialise_part(part, root=str(root), labels=version, classes=classes, settings=settings)
    made = parts.find(str(root), volumes.volume_id(part, settings))
    made.verify()
    curves = columns.read(str(root), "volume_labels", "joint_single", made).to_pylist()
    assert made.samples == part.samples and len(curves[0]["labels"]) == 16
    for _row, data in made.clips():
        frames, _, times = Sandbox().sample(data)
        assert frames.shape == (16, 64, 64, 3)


def test_killing_the_run_kills_its_decoders(archive, writers, tmp_path):
    process = writers.run(str(tmp_path), str(archive / "archive"), str(archive / "labels.csv"), program=PROGRAM)
    for line in process.stdout:
        if "to do" in line:
            break
    children: set[int] = set()
    deadline = time.monotonic() + 60
    while not children and time.monotonic() < deadline:
        children = {int(pid) for pid in Path(f"/proc/{process.pid}/task").iterdir() for pid in _children(pid)}
    process.kill()
    process.wait()
    assert children
    until("nobody is left", lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and _alive(pid) for pid in children))


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []


def _alive(pid: int) -> bool:
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
