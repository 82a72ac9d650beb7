"""`reelmill repair`: what is damaged and can be made again is made again, byte for byte; the rest is said."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from flows.__main__ import main
from storage import catalogue, columns, datasets, files, inventory, ledger, parts, plans
from storage.errors import Damaged
from storage.ledger import VOLATILE
from tasks import duplicates, score, select
from tasks.repair import remedies, repair
from tasks.requeue import requeue
from tasks.verify import examine
from tests.preparing import prepare


def run(root, archive):
    """What `reelmill prepare` does up to the selection, three sources to a part; and a catalogue."""
    data, report = prepare(root, archive, units=3)
    version, _ = score.score_dataset(root, data)
    duplicates.find_duplicates(root, data, version)
    select.select_dataset(root, data, version, select.Thresholds(min_duration=0.1))
    for name in files.names(f"{root}/datasets/a", ".json"):
        catalogue.Catalogue(root, datasets.load(root, "a", name.removesuffix(".json")))
    return report


@pytest.fixture(scope="module")
def home(archive, tmp_path_factory):
    """An archive of seven small real videos and one that is broken, and the root it was prepared into."""
    home = tmp_path_factory.mktemp("repair")
    (home / "archive").mkdir()
    for clip in sorted((archive / "archive" / "weak").rglob("*.mp4"))[:7]:
        shutil.copy(clip, home / "archive" / clip.name)
    (home / "archive" / "broken.mp4").write_bytes(b"no video")
    run(str(home / "root"), str(home / "archive"))
    requeue(str(home / "root"), "a", [next(iter(_reasons(str(home / "root"))))])
    run(str(home / "root"), str(home / "archive"))
    return home


def _reasons(root):
    from tasks.requeue import quarantined

    return {reason for _, reason in quarantined(root, "a").values()}


@pytest.fixture
def root(home, tmp_path):
    return str(shutil.copytree(home / "root", tmp_path / "root"))


def content(root):
    """Everything under a root; of accounts what does not differ from run to run, without those of repairs."""
    found = {}
    for item in inventory.walk(root):
        kind, *rest = item.name.split("/")
        if kind == "ledger":
            entries = ledger.read(root, rest[0], rest[1].removesuffix(".parquet"))
            found[item.name] = [{k: v for k, v in vars(e).items() if k not in VOLATILE} for e in entries]
        else:
            found[item.name] = files.read(files.join(root, item.name))
    return {name: value for name, value in found.items() if not name.startswith("ledger/repair/")}


def one(root, pattern, place=-1):
    """The largest file, of those as large the last one that was written: a dataset before has tables of its own."""

    def order(path):
        return path.stat().st_size, path.stat().st_mtime_ns, path.name

    return str(sorted(Path(root).glob(pattern), key=order)[place])


def flip(url):
    data = bytearray(files.read(url))
    data[len(data) // 3] ^= 4
    files.replace(bytes(data), url)


def cut(url):
    files.replace(files.read(url)[:-9], url)


DAMAGE = [
    ("parts/*.tar", flip), ("parts/*.tar", cut), ("parts/*.tar", files.remove), ("parts/*.parquet", flip),
    ("parts/*.parquet", files.remove), ("columns/scores/*/*.parquet", flip), ("columns/selection/*/*.parquet", cut),
    ("ledger/shard/*.parquet", flip), ("ledger/select/*.parquet", flip), ("ledger/list/a.parquet", cut),
    ("near/*/*.parquet", flip), ("near/*/a.json", cut), ("catalogues/a/*.parquet", flip),
    ("datasets/a/latest.json", cut), ("requeued/a.json", flip),
]  # fmt: skip


@pytest.mark.parametrize("pattern, harm", DAMAGE, ids=[f"{p} {h.__name__}" for p, h in DAMAGE])
def test_what_is_damaged_is_made_again_byte_for_byte(root, home, pattern, harm):
    before = content(root)
    victim = one(root, pattern)
    harm(victim)
    listing = {item.name for item in inventory.walk(root)}
    assert "would go; --no-dry-run does it" in repair(root)
    assert {item.name for item in inventory.walk(root)} == listing, "a dry run removes nothing"
    assert "findings can be mended" in repair(root, dry_run=False)
    run(root, str(home / "archive"))
    assert examine(root, None, 1.0, 0)[0] == []
    after = content(root)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []


def test_the_selected_version_and_a_lost_account_are_made_again(root, home):
    before, data = content(root), datasets.load(root, "a")
    flip(f"{root}/datasets/a/{data.version}.json")
    files.remove(ledger.url(root, "shard", data.parts[0].id))
    repair(root, dry_run=False)
    run(root, str(home / "archive"))
    assert content(root) == before and datasets.load(root, "a") == data


@pytest.mark.parametrize("pointer", [False, True])
def test_a_damaged_plan_is_made_again_and_nothing_is_decoded(root, home, pointer):
    before = content(root)
    cut(f"{root}/plans/a/latest.json" if pointer else f"{root}/plans/a/{plans.latest(root, 'a')}.parquet")
    repair(root, dry_run=False)
    assert run(root, str(home / "archive")).decoded == 0
    assert examine(root, None, 1.0, 0)[0] == []
    assert {n: v for n, v in content(root).items() if n[:6] != "plans/"} == {
        n: v for n, v in before.items() if n[:6] != "plans/"
    }


def test_what_goes_is_written_down_first(root, monkeypatch):
    part = datasets.load(root, "a").parts[0]
    flip(part.media)

    def refuse(url):
        raise OSError("the store is away")

    monkeypatch.setattr(files, "remove", refuse)
    with pytest.raises(OSError, match="away"):
        repair(root, dry_run=False)
    monkeypatch.undo()
    [name] = files.names(f"{root}/ledger/repair")
    entries = ledger.read(root, "repair", name.removesuffix(".parquet"))
    assert [(e.item, e.verdict, e.reason) for e in entries] == [
        (f"parts/{part.id}.{end}", "dropped", "damaged") for end in ("parquet", "tar")
    ]
    assert all("clips differ" in entry.detail for entry in entries)


def test_a_part_whose_sources_are_gone_or_changed_is_left_and_said(home, tmp_path):
    shutil.copytree(home / "archive", tmp_path / "archive")
    root = str(tmp_path / "fresh")
    prepare(root, str(tmp_path / "archive"), units=3)
    data = datasets.load(root, "a")
    one, two = [part for part in data.parts if part.samples][:2]
    for part in (one, two):
        flip(part.media)
    os.unlink(one.rows()[0]["source"])
    Path(two.rows()[0]["source"]).write_bytes(b"another video")
    before = content(root)
    with pytest.raises(Damaged, match="2 of 2 findings cannot be mended.*sources are gone or changed"):
        repair(root, dry_run=False)
    assert content(root) == before


def test_what_only_older_versions_list_is_left_and_said(root, home):
    data = datasets.load(root, "a")
    later = f"{root}-later"
    shutil.copytree(home / "archive", later)
    shutil.copy(data.parts[0].rows()[0]["source"], f"{later}/again.mkv")
    with open(f"{later}/again.mkv", "ab") as file:
        file.write(b"\0" * 8)
    prepare(root, later, units=100)
    flip(data.parts[0].media)
    (found,) = remedies(root, None, "detector")
    assert not found.possible and "gc --keep-versions" in found.said and not found.remove


def test_a_part_is_not_called_unnamed_while_a_list_is_damaged(root):
    """Nothing that a damaged list may name is taken away."""
    data = datasets.load(root, "a")
    files.remove(f"{root}/plans/a/latest.json")
    for path in Path(root, "datasets", "a").glob("*[0-9a-f].json"):
        flip(str(path)) if path.stem == data.version else path.unlink()
    flip(data.parts[0].media)
    [part] = [found for found in remedies(root, None, "detector") if found.finding.kind == "parts"]
    assert not part.possible and "repair again" in part.said


def test_values_from_elsewhere_and_foreign_tars_are_left_and_said(root, tmp_path):
    data = datasets.load(root, "a")
    table = pa.table({"key": data.parts[0].table(["key"])["key"]})
    columns.write(root, "ratings", "r1", data.parts[0], table, {"file": "r.csv", "digest": "0"})
    flip(columns.url(root, "ratings", "r1", data.parts[0].id))
    (found,) = remedies(root, None, "detector")
    assert not found.possible and "column-add" in found.said


def test_on_object_storage_a_damaged_part_is_made_again(home, at, seaweed):
    root = files.open_root(at(seaweed))
    prepare(root, str(home / "archive"), units=3)
    before, part = content(root), datasets.load(root, "a").parts[0]
    data = files.read(part.media)
    files.replace(data[:700] + bytes([data[700] ^ 1]) + data[701:], part.media)
    assert "1 of 1 findings can be mended, 2 objects went" in repair(root, dry_run=False)
    assert not parts.committed(root, part.id)
    prepare(root, str(home / "archive"), units=3)
    assert content(root) == before and examine(root, None, 1.0, 0)[0] == []


def test_the_command_says_what_it_would_do_and_ends_with_one_where_something_is_left(root):
    def call(*words):
        return CliRunner().invoke(main, ["repair", root, *words])

    assert call().exit_code == 0 and call().output.endswith("nothing is damaged\n")
    part = datasets.load(root, "a").parts[0]
    flip(part.media)
    said = call()
    assert said.exit_code == 0 and "`reelmill prepare` of dataset a makes it again" in said.output
    assert f"goes:    {part.media}" in said.output and files.exists(part.media)
    shutil.rmtree(f"{root}/plans")
    said = call("--no-dry-run")
    assert said.exit_code == 1 and "cannot be mended here" in said.stderr and files.exists(part.media)
