"""`reelmill verify`: what is altered anywhere under a root is found and named, and nothing is said of a sound one."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from test_storage_reading import make

from flows.__main__ import main
from storage import (
    catalogue,
    checkpoints,
    columns,
    datasets,
    files,
    inventory,
    ledger,
    near,
    parts,
    plans,
    records,
    soundness,
    stores,
    tables,
)
from storage.errors import Damaged, NewerSchema
from storage.ledger import Entry
from storage.listed import Seen
from tasks.verify import examine, verify


def furnished(root):
    """A root with every kind of object."""
    root = files.open_root(root)
    data = make(root, count=3)
    for part in data.parts:
        keys = part.table(["key"])["key"]
        values = pa.array(np.random.default_rng(0).random((part.samples, 4)).tolist(), pa.list_(pa.float32()))
        columns.write(root, "features", "f1", part, pa.table({"key": keys, "embedding": values}), {"model": "m"})
        files.publish_bytes(tables.pack(pa.table({"key": keys}), {"m": 1}), f"{root}/segments/s1/{part.id}.parquet")
        ledger.write(root, "shard", part.id, [Entry(f"{key}.mp4", "kept", clips=1) for key in keys.to_pylist()])
    plan = tables.pack(pa.table({"path": ["a", "b"], "part": ["part0", "part1"]}))
    name = files.digest(plan)[:16]
    files.publish_bytes(plan, f"{root}/plans/d/{name}.parquet")
    files.replace_json({"plan": name}, f"{root}/plans/d/latest.json")
    checkpoints.save(root, "run", 3, {"w": torch.ones(3)}, {"step": 3}, {"spec": 1}, True)
    catalogue.build(root, data)
    ids = sorted(part.id for part in data.parts)
    pairs = pa.table({"part": ids[:1], "other_part": ids[1:2]})
    files.publish_bytes(tables.pack(pairs, {"parts": ids}), f"{root}/near/n1/{near.table_of(ids)}")
    files.replace_json({"table": near.table_of(ids)}, f"{root}/near/n1/d.json")
    files.publish_bytes(plans.asked({"0" * 32: 2}), plans.requeued_url(root, "d"))
    return root


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return furnished(str(tmp_path_factory.mktemp("sound") / "root"))


@pytest.fixture
def broken(sound, tmp_path):
    import shutil

    return files.absolute(str(shutil.copytree(sound, tmp_path / "root")))


def found(root, **options):
    return examine(root, options.get("dataset"), options.get("sample", 1.0), options.get("seed", 0))[0]


def test_a_sound_root_is_sound(sound):
    said = verify(sound)
    assert said.startswith("nothing is damaged: ") and "3 parts" in said and " 0 by name" in said
    assert {unit.kind for unit in soundness.units(sound)} == set(soundness.KINDS) - {"adopted", "forgotten"}


def test_a_sound_root_on_s3_is_sound_and_damage_there_is_found(s3):
    root = furnished(f"{s3}/verify")
    assert verify(root).startswith("nothing is damaged")
    part = datasets.load(root, "d").parts[1]
    data = files.read(part.media)
    files.replace(data[:700] + b"?" + data[701:], part.media)
    files.remove(columns.url(root, "features", "f1", "part0"))  # not there is not damaged
    files.remove(datasets.load(root, "d").parts[2].media)
    assert [(f.url, f.problem.split(":")[0]) for f in found(root)] == [
        (part.media, "1 of 5 clips differ from the index"),
        (datasets.load(root, "d").parts[2].media, "it is gone"),
    ]


def _objects(root):
    kinds = {}
    for path in sorted(Path(root).rglob("*")):
        if path.is_file():
            kind = path.relative_to(root).parts[0] + path.suffix + ("!" if path.name == "latest.json" else "")
            kinds.setdefault(kind, path)
    return kinds


KINDS = [
    "parts.tar", "parts.parquet", "columns.parquet", "segments.parquet", "ledger.parquet", "plans.parquet",
    "catalogues.parquet", "plans.json!", "datasets.json!", "datasets.json", "checkpoints.json",
    "checkpoints.safetensors", "checkpoints.pt", "reelmill.json.json", "near.parquet", "near.json", "requeued.json",
]  # fmt: skip


def test_every_kind_of_object_is_tried(sound):
    assert sorted(_objects(sound)) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_anywhere_is_found(kind, broken):
    """First and last bytes, and random places in between, of every kind of object."""
    path = _objects(broken)[kind]
    data = path.read_bytes()
    dice = random.Random(kind)
    footer = range(max(0, len(data) - 700), len(data))
    places = {0, len(data) - 1, *dice.sample(range(len(data)), min(len(data), 12))}
    places |= set(dice.sample(footer, min(len(footer), 12)))
    own = [u for u in soundness.units(broken) if _same(u, path, broken)]
    assert own and not [f for unit in own for f in soundness.check(unit, broken)]
    for at in sorted(places):
        altered = bytearray(data)
        altered[at] ^= 1 << dice.randrange(8)
        path.write_bytes(altered)
        findings = [f for unit in own for f in soundness.check(unit, broken)]
        assert findings and all(f.problem and f.remedy for f in findings), (at, data[max(0, at - 10) : at + 10])
    for cut in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        assert [f for unit in own for f in soundness.check(unit, broken)], cut


def _same(unit, path, root):
    """The unit that answers for a file."""
    if path.suffix in (".tar", ".safetensors", ".pt"):
        beside = path.with_suffix(".parquet") if path.suffix == ".tar" else path.parent / "manifest.json"
        return unit.url == str(beside)
    return unit.url == str(path)


def counted(monkeypatch):
    """The objects that are asked for from here on, and how often."""
    asked, told = Counter(), stores.answered

    def answered(what):
        method, _, path = what.partition(" ")
        asked[method, path] += 1
        return told(what)

    monkeypatch.setattr(stores, "answered", answered)
    return asked


def test_each_object_is_read_once(sound, monkeypatch):
    for version in range(3):  # each lists the same parts
        datasets.freeze(sound, f"e{version}", datasets.load(sound, "d").parts, {})
    asked = counted(monkeypatch)
    assert verify(sound).startswith("nothing is damaged")
    reads = Counter({path: n for (method, path), n in asked.items() if method == "cat_file"})
    names = {item.name for item in inventory.walk(sound) if not item.name.endswith(".tar")}
    assert reads.keys() == {f"{sound}/{name}" for name in names}
    assert {path for path, n in reads.items() if n > 1} == {f"{sound}/{files.MARKER}"}, "which is also how it begins"
    assert sum(asked.values()) - sum(reads.values()) == 3, "and the size of each tar"


def test_a_table_of_pairs_is_checked_against_its_parts(broken):
    table = next(Path(broken, "near", "n1").glob("*.parquet"))
    other = table.with_name(f"{'0' * 16}.parquet")
    table.rename(other)
    assert [(f.kind, f.url, f.problem.partition(" ")[0]) for f in found(broken)] == [
        ("near", str(other), "it"),
        ("near", f"{broken}/near/n1/d.json", "it"),
    ]
    packed = tables.pack(tables.read(str(other)), {"parts": []})
    files.replace(packed, f"{broken}/near/n1/{near.table_of([])}")
    assert any("pairs of parts that it was not made of" in f.problem for f in found(broken))


def test_a_lost_account_of_a_part_is_found(broken):
    plan = tables.pack(pa.table({"path": ["a"], "part": ["part0"]}))
    files.publish_bytes(plan, f"{broken}/plans/d/new.parquet")
    files.replace_json({"plan": "new"}, f"{broken}/plans/d/latest.json")
    account = ledger.url(broken, "shard", "part0")
    files.remove(account)
    assert [(f.kind, f.url, f.problem) for f in found(broken)] == [("ledger", account, "it is gone")]


def test_what_is_about_a_part_that_nothing_names_is_no_damage(broken):
    """Garbage collection may be stopped between a part and its columns."""
    column = columns.url(broken, "features", "f1", "part0")
    files.publish_bytes(files.read(column), columns.url(broken, "features", "f1", "f" * 16))
    assert found(broken) == []
    assert not parts.committed(broken, "f" * 16)


def test_what_was_put_under_a_wrong_name_is_found(broken):
    one, two = (Path(broken, "columns", "features", "f1", f"part{i}.parquet") for i in (0, 1))
    swapped = one.read_bytes(), two.read_bytes()
    two.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    Path(broken, "parts", "part0.parquet").write_bytes(Path(broken, "parts", "part2.parquet").read_bytes())
    problems = {(f.kind, f.url.rpartition("/")[2], f.problem) for f in found(broken)}
    assert {(kind, name) for kind, name, _ in problems} >= {("columns", "part1.parquet"), ("parts", "part0.parquet")}
    assert any("index is of part part2" in problem for _, _, problem in problems)


def test_a_flipped_byte_beside_the_clips_is_found(broken):
    part = datasets.load(broken, "d").parts[0]
    data = bytearray(Path(part.media).read_bytes())
    row = part.rows()[0]
    at = row["offset"] + -(-row["size"] // 512) * 512 + 512 + 20  # within the JSON behind the first clip
    data[at] ^= 1
    Path(part.media).write_bytes(data)
    assert [f.problem for f in found(broken)] == ["bytes beside the clips differ from what was committed"]


def test_a_part_that_is_gone_is_named_with_its_dataset(broken):
    for suffix in ("tar", "parquet"):
        Path(broken, "parts", f"part1.{suffix}").unlink()
    assert any(f.kind == "datasets" and "part1" in f.problem for f in found(broken))
    assert {f.url.rpartition("/")[2] for f in found(broken, dataset="d")} >= {"part1.parquet"}


def test_a_sample_reads_a_share_of_everything_and_sizes_of_the_rest(broken, monkeypatch):
    part = datasets.load(broken, "d").parts[0]
    data = Path(part.media).read_bytes()
    Path(part.media).write_bytes(data[:700] + b"?" + data[701:])
    seen = [bool(found(broken, sample=0.0, seed=seed)) for seed in range(20)]
    assert any(seen) and not all(seen)
    Path(part.media).write_bytes(data[:-1])
    assert all(found(broken, sample=0.0, seed=seed) for seed in range(5))


def test_a_list_of_a_later_version_is_no_damage_and_is_not_replaced(broken):
    """Its number is newer and it fits its digest; one whose number was altered is damaged as before."""
    before = datasets.load(broken, "d")
    folder = Path(broken, "datasets", "d")
    listing = json.loads((folder / f"{before.version}.json").read_text()) | {"schema": files.SCHEMA + 1}
    listing = records.seal({key: value for key, value in listing.items() if key != records.DIGEST})
    (folder / "0123456789abcdef.json").write_text(json.dumps(listing, sort_keys=True, indent=1))
    files.replace_json({"version": "0123456789abcdef"}, str(folder / "latest.json"))
    refused = f"dataset d 0123456789abcdef: written with schema {files.SCHEMA + 1}"
    for command in ("verify", "repair"):
        for more in ([], ["--dataset", "d"]):
            said = CliRunner().invoke(main, [command, "--root", broken, *more])
            assert said.exit_code == 2 and refused in said.stderr and "goes:" not in said.stdout
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for options in ({}, {"move": False}, {"before": before.version}):
        with pytest.raises(NewerSchema, match=refused):
            datasets.freeze(broken, "d", before.parts[:1], {}, **options)
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
    (folder / "0123456789abcdef.json").write_text(json.dumps(listing | {"schema": 9}, sort_keys=True, indent=1))
    assert any("0123456789abcdef" in finding.url for finding in found(broken))


def test_the_command_says_what_to_do_and_exits_with_one(broken):
    said = CliRunner().invoke(main, ["verify", "--root", broken, "--dataset", "d"])
    assert said.exit_code == 0 and "nothing is damaged" in said.output
    path = Path(broken, "parts", "part1.tar")
    path.write_bytes(path.read_bytes()[:-512] + bytes(511) + b"?")
    said = CliRunner().invoke(main, ["verify", "--root", broken])
    assert said.exit_code == 1 and "part1.tar" in said.stderr and "remedy:  remove it and its index" in said.stdout
    assert CliRunner().invoke(main, ["verify", "--root", broken, "--dataset", "nope"]).exit_code == 2


def test_the_seal_leaves_tables_readable_for_others(sound):
    import duckdb
    import pyarrow.parquet as pq

    url = str(Path(sound, "columns", "features", "f1", "part0.parquet"))
    assert tables.check(Path(url).read_bytes())
    assert pq.read_table(url).num_rows == duckdb.sql(f"select count(*) from '{url}'").fetchall()[0][0] == 5


def test_a_table_without_a_seal_is_still_read(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "old.parquet", write_page_checksum=True)
    assert tables.read(str(tmp_path / "old.parquet"))["key"].to_pylist() == ["a"]


def test_a_removed_seal_is_noticed(sound, tmp_path):
    data = Path(sound, "parts", "part0.parquet").read_bytes()
    at = data.index(tables.SEAL)
    (tmp_path / "x.parquet").write_bytes(data[:at] + b"x" * len(tables.SEAL) + data[at + len(tables.SEAL) :])
    with pytest.raises(Damaged, match="seal is gone"):
        tables.read(str(tmp_path / "x.parquet"))


def test_what_has_come_since_the_listing_is_there(tmp_path):
    """A writer moves a pointer while every byte is read: that is no damage, and nothing for repair to take away."""
    (tmp_path / "new.json").write_text("{}")
    seen = Seen(str(tmp_path), frozenset())
    assert seen.there(str(tmp_path / "new.json")) and not seen.there(str(tmp_path / "none.json"))
