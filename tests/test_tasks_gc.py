"""Garbage collection: what nobody refers to goes after a time, and nothing else ever does."""

import fcntl
import os
import random
import time
import uuid
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from flows.__main__ import main
from storage import columns, datasets, files, inflight, inventory, ledger, parts, plans, tables
from storage.errors import InputError, StoreError
from storage.ledger import Entry
from tasks import gc, volumes

DAY = 24 * 3600.0


def part_id(number):
    return files.digest_of(["part", number])[:16]


def commit(root, number, folder, labelled="none"):
    media = folder / uuid.uuid4().hex
    media.write_bytes(random.Random(number).randbytes(2000))
    keys = {"source": "s", "path": "p", "content_id": "c", "time_base": "1/20", "split": "train"}
    row = dict.fromkeys(parts.INDEX.names) | keys | {"key": f"key{number}", "labels": [], "metadata": "{}"}
    row |= {"start": 0.0, "end": 1.0, "labelled": labelled}
    with files.scratch() as place:
        part = parts.commit(root, part_id(number), [row], [media], place)
    ledger.write(root, "shard", part.id, [Entry("p", "kept")])
    columns.write(root, "features", "v1", part, pa.table({"key": [row["key"]]}), {})
    return part


def plan(root, name, numbers):
    rows = [{"part": part_id(n), "path": str(n)} for n in numbers]
    packed = tables.pack(pa.Table.from_pylist(rows, schema=plans.PLAN))
    digest = files.digest(packed)[:16]
    files.publish_bytes(packed, f"{root}/plans/{name}/{digest}.parquet", same=False)
    files.replace_json({"plan": digest}, f"{root}/plans/{name}/latest.json")
    return f"plans/{name}/{digest}.parquet"


def age(root, seconds=2 * DAY):
    """Makes everything below a local root older."""
    for path in Path(root).rglob("*"):
        facts = path.stat()
        os.utime(path, (facts.st_atime, facts.st_mtime - seconds))


def names(root):
    return {item.name for item in inventory.walk(root)}


def of_part(number):
    id = part_id(number)
    return {
        f"parts/{id}.tar", f"parts/{id}.parquet", f"ledger/shard/{id}.parquet", f"columns/features/v1/{id}.parquet"
    }  # fmt: skip


@pytest.fixture
def root(tmp_path):
    return files.open_root(str(tmp_path / "root"))


def sweep(root, hours=24.0):
    return gc.gc(root, grace_hours=hours, dry_run=False, force=True)


def test_parts_of_no_dataset_and_no_plan_go_with_all_that_is_about_them(root, tmp_path):
    found = [commit(root, n, tmp_path) for n in range(4)]
    datasets.freeze(root, "d", [found[0]], {})
    old = plan(root, "d", [1, 2])
    plan(root, "d", [1])
    age(root)
    before = names(root)
    assert gc.gc(root) == f"would remove 9 of {len(before)} objects, " + gc.gc(root).partition("objects, ")[2]
    assert names(root) == before, "a dry run removes nothing"
    sweep(root)
    assert before - names(root) == of_part(2) | of_part(3) | {old}


def test_older_versions_of_a_dataset_keep_their_parts(root, tmp_path):
    """Every version counts, not only the latest."""
    found = [commit(root, n, tmp_path) for n in range(2)]
    datasets.freeze(root, "d", [found[0]], {})
    datasets.freeze(root, "d", [found[1]], {})
    age(root)
    before = names(root)
    sweep(root)
    assert names(root) == before


def test_nothing_goes_within_the_grace_period(root, tmp_path):
    commit(root, 1, tmp_path)
    (Path(root) / f".write-{uuid.uuid4().hex}").write_bytes(b"")
    age(root, 23 * 3600)
    before = names(root)
    sweep(root)
    assert names(root) == before
    sweep(root, 22)
    assert names(root) == {files.MARKER}


def test_a_jump_of_this_machines_clock_removes_nothing(root, tmp_path, monkeypatch):
    """Ages are those of the store."""
    commit(root, 1, tmp_path)
    before, now = names(root), time.time()
    for jump in (400 * DAY, -400 * DAY):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        sweep(root)
        assert names(root) == before


def test_temporary_files_of_killed_writers_go_and_those_of_living_ones_stay(root):
    folder = Path(root) / "parts"
    folder.mkdir()
    dead = [folder / f".{uuid.uuid4().hex}.tmp", folder / f".p.tar.{uuid.uuid4().hex}.tmp"]
    living, others = folder / f".{uuid.uuid4().hex}.tmp", [folder / ".tmp", folder / "notes.tmp", folder / ".hidden"]
    [path.write_bytes(b"x") for path in (*dead, living, *others)]
    age(root)
    with open(living) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sweep(root)
        assert set(folder.iterdir()) == {living, *others}
    sweep(root)
    assert set(folder.iterdir()) == set(others)


def test_a_tar_without_an_index_goes_only_where_nobody_will_go_on_with_it(root, tmp_path):
    for number in (1, 2):
        os.unlink(commit(root, number, tmp_path).index)
    plan(root, "d", [1])
    age(root)
    sweep(root)
    assert files.names(f"{root}/parts") == [f"{part_id(1)}.tar"]


def test_the_tar_of_an_earlier_encoder_goes_and_the_one_that_the_index_names_stays(root, tmp_path):
    files.publish_bytes(b"of another encoder", f"{root}/parts/{part_id(1)}.tar")
    part = commit(root, 1, tmp_path)
    plan(root, "d", [1])
    age(root)
    sweep(root)
    assert files.names(f"{root}/parts", ".tar") == [part.media.rsplit("/", 1)[1]]
    part.verify()


def test_what_a_killed_writer_had_in_hand_goes_unless_its_part_is_still_to_be_made(root, tmp_path):
    """Of the parts 1 (committed), 2 (planned), 3 (of no plan any more) and 4 (the same, within the grace period)."""
    datasets.freeze(root, "a", [commit(root, 1, tmp_path)], {})
    plan(root, "a", [1, 2])
    for number in (1, 2, 3):
        inflight.begin(root, part_id(number), "video.mp4", set())
    (Path(root) / "inflight" / "notes.json").write_text("not ours")
    age(root)
    inflight.begin(root, part_id(4), "video.mp4", set())
    said = gc.gc(root)
    assert said.startswith("would remove 2 of ")
    sweep(root)
    left = sorted([f"{part_id(2)}.json", f"{part_id(4)}.json", "notes.json"])
    assert sorted(os.listdir(f"{root}/inflight")) == left


def test_volumes_made_from_a_part_in_use_stay(root, tmp_path):
    part = commit(root, 1, tmp_path)
    datasets.freeze(root, "d", [part], {})
    settings = volumes._settings("mix", 1.0, 8, 16, 0)
    kept, lost = volumes.volume_id(part, settings), files.digest_of("of a part that is gone")[:16]
    for id in (kept, lost):
        made = parts.commit(root, id, [], [], tmp_path)
        columns.write(root, volumes.COLUMN, "mix", made, pa.table({"key": pa.array([], pa.string())}), settings)
    age(root)
    sweep(root)
    assert parts.committed(root, kept) and not parts.committed(root, lost)
    assert files.names(f"{root}/columns/{volumes.COLUMN}/mix") == [f"{kept}.parquet"]


def test_what_reelmill_did_not_write_stays(root, tmp_path):
    others = ["notes.txt", "checkpoints/run/step_1/weights.safetensors", "mlflow/a.tmp", "figures/x.png", "parts/a.tar"]
    for name in others:
        files.replace(b"x", f"{root}/{name}")
    age(root)
    sweep(root)
    assert set(others) <= names(root)


@pytest.mark.parametrize("seed", range(12))
def test_what_a_dataset_names_never_goes(root, tmp_path, seed):
    """Whatever else is there, however old: datasets load and verify as before, and a second sweep finds nothing."""
    draw = random.Random(seed)
    numbers = range(8)
    found = {n: commit(root, n, tmp_path) for n in numbers if draw.random() < 0.8}
    frozen = []
    for name in draw.sample("abc", draw.randint(1, 3)):
        for _ in range(draw.randint(1, 2)):
            frozen.append(
                datasets.freeze(root, name, draw.sample(list(found.values()), draw.randint(1, len(found))), {})
            )
    planned = draw.sample(numbers, draw.randint(0, 4))
    if planned:
        plan(root, "a", planned)
    for _ in range(draw.randint(0, 3)):
        victim = draw.choice([one for one in found.values()])
        if all(victim not in one.parts for one in frozen):
            files.remove(draw.choice([victim.index, victim.media]))
    for path in [path for path in Path(root).rglob("*") if path.is_file()]:
        back = draw.choice([0, 3, 400]) * DAY
        os.utime(path, (time.time(), path.stat().st_mtime - back))
    kept = {f"parts/{p.id}.{end}" for one in frozen for p in one.parts for end in ("tar", "parquet")}
    kept |= {name for number in planned for name in of_part(number)} & names(root)
    sweep(root)
    assert kept <= names(root)
    for one in frozen:
        assert datasets.load(root, one.name, one.version) == one
        for part in one.parts:
            part.verify()
            columns.read(root, "features", "v1", part)
    assert gc.gc(root).startswith("would remove 0 of")


def test_more_than_a_tenth_goes_only_when_forced(root, tmp_path):
    found = [commit(root, n, tmp_path) for n in range(3)]
    datasets.freeze(root, "d", found[:2], {})
    age(root)
    before = names(root)
    with pytest.raises(InputError, match="4 of 15 objects.*more than a tenth.*--force"):
        gc.gc(root, dry_run=False)
    assert names(root) == before


def test_what_is_referred_to_at_the_last_moment_stays(root, tmp_path):
    """A dataset that is frozen while the sweep is at work keeps its parts."""
    part = commit(root, 1, tmp_path)
    commit(root, 2, tmp_path)
    age(root)
    found = gc.find(root, DAY)
    datasets.freeze(root, "d", [part], {})
    gc.remove(root, found)
    assert of_part(1) <= names(root) and not of_part(2) & names(root)


def test_an_index_is_put_back_where_its_part_is_taken_up_in_that_moment(root, tmp_path, monkeypatch):
    part = commit(root, 1, tmp_path)
    age(root)
    found, remove = gc.find(root, DAY), files.remove

    def late(url):
        if url == part.index:
            datasets.freeze(root, "d", [part], {})
        remove(url)

    monkeypatch.setattr(files, "remove", late)
    gc.remove(root, found)
    assert datasets.load(root, "d").parts == [part] and part.rows()
    part.verify()


def test_a_tar_that_a_new_plan_will_go_on_with_stays(root, tmp_path, monkeypatch):
    """The plan is written while the sweep is at work."""
    monkeypatch.setattr(gc, "LOOK", 0.0)
    for number in range(4):
        os.unlink(commit(root, number, tmp_path).index)
    age(root)
    found, remove, gone = gc.find(root, DAY), files.remove, []

    def late(url):
        remove(url)
        gone.append(url)
        if len(gone) == 2:
            plan(root, "d", range(4))

    monkeypatch.setattr(files, "remove", late)
    gc.remove(root, found)
    assert len(gone) == 2 and len(files.names(f"{root}/parts", ".tar")) == 2


def test_a_list_that_cannot_be_read_stops_the_sweep(root, tmp_path):
    commit(root, 1, tmp_path)
    files.remove(f"{root}/{plan(root, 'd', [1])}")
    age(root)
    before = names(root)
    with pytest.raises(StoreError, match="nothing is removed"):
        sweep(root)
    assert names(root) == before


def test_unfinished_uploads_are_given_up_after_the_grace_period(at, seaweed):
    """A writer that was killed in the middle of an upload leaves nothing that costs."""
    root = files.open_root(at(seaweed))
    fs, path = files.locate(f"{root}/parts/p1.tar")
    bucket, key, _ = fs.split_path(path)
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    fs.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * 100)
    assert "1 uploads" not in gc.gc(root)
    time.sleep(1.1)
    assert "1 uploads" in gc.gc(root, grace_hours=0) and len(list(inventory.uploads(root))) == 1
    assert "1 uploads" in gc.gc(root, grace_hours=0, dry_run=False)
    assert not list(inventory.uploads(root)) and not files.exists(f"{root}/parts/p1.tar")


def test_a_sweep_on_object_storage_removes_the_same(at, seaweed, tmp_path, monkeypatch):
    root = files.open_root(at(seaweed))
    found = [commit(root, n, tmp_path) for n in range(2)]
    datasets.freeze(root, "d", found[:1], {})
    files.replace(b"", f"{root}/.write-{uuid.uuid4().hex}")
    before, now = names(root), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 400 * DAY)
    sweep(root)
    assert names(root) == before
    later = inventory.now(root) + 2 * DAY
    monkeypatch.setattr(inventory, "now", lambda _: later)
    sweep(root)
    assert {name for name in before - names(root) if ".write-" not in name} == of_part(1)
    found[0].verify()


def test_the_command_says_what_would_go(root, tmp_path):
    commit(root, 1, tmp_path)
    age(root)

    def call(*words):
        return CliRunner().invoke(main, ["gc", "--root", root, *words])

    done = call()
    assert done.exit_code == 0 and "would remove 4 of 5 objects" in done.output and len(names(root)) == 5
    done = call("--no-dry-run")
    assert done.exit_code == 2 and done.stderr.startswith("reelmill: ") and "--force" in done.stderr
    done = call("--no-dry-run", "--force")
    assert done.exit_code == 0 and "removed 4 objects" in done.output and names(root) == {files.MARKER}
