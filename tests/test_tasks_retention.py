"""Garbage collection of what is about old versions of datasets, and of these versions where that is asked for."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from test_tasks_gc import DAY, age, commit, names, of_part, part_id, plan, sweep

from flows.__main__ import main
from storage import catalogue, columns, datasets, files, inventory, ledger, near, parts, stores, tables
from storage.ledger import Entry
from tasks import gc, volumes
from tasks.registry import ModelVersion
from tasks.verify import examine


@pytest.fixture
def root(tmp_path):
    return files.open_root(str(tmp_path / "root"))


def grown(root, folder, count=4, first=0):
    """A dataset of which each version has a new part and the one that was new in the version before."""
    found = []
    for number in range(first, first + count):
        made = [commit(root, n, folder) for n in range(max(first, number - 1), number + 1)]
        found.append(datasets.freeze(root, "d", made, {}))
        age(root)
    return found


def lists(root):
    return {name.removesuffix(".json") for name in files.names(f"{root}/datasets/d", ".json")} - {"latest"}


def total(root):
    return sum(item.size for item in inventory.walk(root))


def test_versions_beyond_the_newest_go_first_and_their_parts_after_the_grace_period(root, tmp_path):
    found = grown(root, tmp_path, 5)
    before, size = names(root), total(root)
    planned = gc.find(root, DAY, keep=2)
    assert "and let 3 versions go" in gc.gc(root, keep_versions=2) and names(root) == before
    assert "; 3 versions let go" in gc.gc(root, keep_versions=2, dry_run=False)
    assert lists(root) == {one.version for one in found[3:]}
    gone = {f"datasets/d/{one.version}.json" for one in found[:3]}
    left = {name.replace("datasets/", "retired/") for name in gone}
    assert names(root) == before - gone | left, "the parts are there, for whoever reads them now"
    sweep(root)
    assert names(root) == before - gone | left
    age(root)
    sweep(root)
    assert names(root) == before - gone - of_part(0) - of_part(1)
    assert size - total(root) == planned.freed > 0, "as many bytes as were said"
    assert examine(root, None, 1.0, 0)[0] == []
    sweep(root)
    assert {part.id for part in datasets.load(root, "d").parts} == {part_id(3), part_id(4)}


def test_without_being_asked_no_version_goes(root, tmp_path):
    found = grown(root, tmp_path)
    sweep(root)
    assert lists(root) == {one.version for one in found}


def test_what_latest_points_at_stays_however_old(root, tmp_path):
    found = grown(root, tmp_path)
    datasets.freeze(root, "d", found[0].parts, {})
    age(root)
    gc.gc(root, keep_versions=1, dry_run=False)
    assert lists(root) == {found[0].version, found[3].version}


def test_what_the_champion_was_judged_on_stays(root, tmp_path, monkeypatch):
    found = grown(root, tmp_path)
    best = ModelVersion("detector", 3, "run", {"dataset": f"d@{found[1].version}", "checkpoint": "c"})
    monkeypatch.setattr(gc, "champion", lambda root, model: best if model == "detector" else None)
    gc.gc(root, keep_versions=1, dry_run=False)
    assert lists(root) == {found[1].version, found[3].version}


def test_a_young_version_stays_and_the_one_that_it_follows_on(root, tmp_path):
    """Whoever made it takes columns over from the one before."""
    found = grown(root, tmp_path)
    young = datasets.freeze(root, "d", [commit(root, 9, tmp_path)], {"before": found[1].version}, move=False)
    datasets.freeze(root, "d", [commit(root, 8, tmp_path)], {})
    latest = datasets.latest(root, "d")
    gc.gc(root, keep_versions=1, dry_run=False)
    assert lists(root) == {found[1].version, young.version, latest}


def test_a_dataset_without_a_pointer_keeps_all(root, tmp_path):
    found = grown(root, tmp_path)
    files.remove(f"{root}/datasets/d/latest.json")
    gc.gc(root, keep_versions=1, dry_run=False)
    assert lists(root) == {one.version for one in found}


def test_a_version_that_latest_moves_to_in_that_moment_stays(root, tmp_path, monkeypatch):
    found = grown(root, tmp_path)
    remove, url = files.remove, f"{root}/datasets/d/{found[0].version}.json"

    def late(gone):
        remove(gone)
        if gone == url:
            files.replace_json({"version": found[0].version}, f"{root}/datasets/d/latest.json")

    monkeypatch.setattr(files, "remove", late)
    gc.gc(root, keep_versions=1, dry_run=False)
    assert datasets.load(root, "d") == found[0]


def test_a_version_let_go_while_it_is_frozen_again_is_written_again(root, tmp_path, monkeypatch):
    found = grown(root, tmp_path)
    point = files.point
    url = f"{root}/datasets/d/{found[0].version}.json"

    def late(*args):
        files.remove(url)
        return point(*args)

    monkeypatch.setattr(files, "point", late)
    datasets.freeze(root, "d", found[0].parts, {})
    assert datasets.load(root, "d") == found[0]


def furnish(root, data, name, shard):
    """What is about a version beside its parts: pairs, a catalogue, accounts, an adopted shard's record."""
    part = data.parts[0]
    ids = sorted(one.id for one in data.parts)
    made = {f"near/n1/{near.table_of(ids)}", f"near/n1/{name}.json", f"catalogues/{name}/{data.version}.parquet"}
    files.publish_bytes(tables.pack(pa.table({"part": ids}), {"parts": ids}), f"{root}/near/n1/{near.table_of(ids)}")
    files.replace_json({"table": near.table_of(ids)}, f"{root}/near/n1/{name}.json")
    catalogue.build(root, data)
    columns.write(root, "selection", "select-1a", part, pa.table({"key": part.table(["key"])["key"]}), {})
    ledger.write(root, "select", f"{part.id}-select-1a", [Entry("k", "kept")])
    ledger.write(root, "adopt", shard, [Entry("k", "kept")])
    files.replace_json({"parts": ids}, f"{root}/adopted/{shard}-{shard}.json")
    files.replace(b"", f"{root}/adopted/{shard}.parquet")
    made |= {f"ledger/select/{part.id}-select-1a.parquet", f"columns/selection/select-1a/{part.id}.parquet"}
    return made | {f"ledger/adopt/{shard}.parquet", f"adopted/{shard}.parquet", f"adopted/{shard}-{shard}.json"}


def test_what_is_about_a_version_goes_with_it_and_with_nothing_else(root, tmp_path):
    shards = ["a" * 16, "b" * 16]
    data = [datasets.freeze(root, "de"[n], [commit(root, n, tmp_path)], {"adopted": [shards[n]]}) for n in (0, 1)]
    made = [furnish(root, one, one.name, shard) for one, shard in zip(data, shards, strict=True)]
    age(root)
    before = names(root)
    assert made[0] | made[1] <= before
    sweep(root)
    assert names(root) == before, "nothing that is referred to goes"
    shutil.rmtree(f"{root}/datasets/e")
    sweep(root)
    of_list = {"datasets/e/latest.json", f"datasets/e/{data[1].version}.json"}
    assert before - names(root) == made[1] | of_part(1) | of_list


def test_an_account_of_a_dropped_selection_goes(root, tmp_path):
    part = commit(root, 1, tmp_path)
    datasets.freeze(root, "d", [part], {})
    for version in ("select-1a", "select-2b"):
        columns.write(root, "selection", version, part, pa.table({"key": part.table(["key"])["key"]}), {})
        ledger.write(root, "select", f"{part.id}-{version}", [Entry("k", "kept")])
    files.remove(columns.url(root, "selection", "select-2b", part.id))
    age(root)
    sweep(root)
    assert files.names(f"{root}/ledger/select") == [f"{part.id}-select-1a.parquet"]


def test_the_last_table_of_pairs_of_a_dataset_stays(root, tmp_path):
    """The next comparison goes on from it, though the dataset has other parts by now."""
    datasets.freeze(root, "d", [commit(root, 1, tmp_path)], {})
    for ids in (["a"], ["b"]):
        files.publish_bytes(
            tables.pack(pa.table({"part": ids}), {"parts": ids}), f"{root}/near/n1/{near.table_of(ids)}"
        )
    files.replace_json({"table": near.table_of(["a"])}, f"{root}/near/n1/d.json")
    age(root)
    sweep(root)
    assert files.names(f"{root}/near/n1") == sorted([near.table_of(["a"]), "d.json"])


class Killed(BaseException):
    pass


def test_a_kill_at_any_moment_leaves_a_sound_root_and_the_next_sweep_ends_the_same(root, tmp_path, monkeypatch):
    found = grown(root, tmp_path, 3)
    gc.gc(root, keep_versions=1, dry_run=False)
    age(root)
    found += grown(root, tmp_path, 2, first=10)  # more to let go in the same sweep
    os.unlink(commit(root, 7, tmp_path).index)
    age(root)
    remove, ends, removals = files.remove, set(), 0
    for last in range(200):
        copy = str(shutil.copytree(root, tmp_path / f"copy{last}"))
        left = [last]

        def killed(url, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            remove(url)

        monkeypatch.setattr(files, "remove", killed)
        try:
            gc.gc(copy, keep_versions=1, dry_run=False, force=True)
            removals = last
        except Killed:
            pass
        monkeypatch.setattr(files, "remove", remove)
        assert examine(copy, None, 1.0, 0)[0] == []
        assert datasets.load(copy, "d").parts == _moved(found[-1].parts, root, copy)
        for _ in range(2):
            gc.gc(copy, keep_versions=1, dry_run=False, force=True)
            age(copy)
        sweep(copy)
        ends.add(frozenset(names(copy)))
        shutil.rmtree(copy)
        if removals:
            break
    assert len(ends) == 1 and removals > 9


def _moved(found, root, copy):
    def there(url):
        return url.replace(root, copy)

    return [replace(part, media=there(part.media), index=there(part.index)) for part in found]


def test_a_sweep_asks_for_its_lists_now_and_then_and_not_for_each_object(root, tmp_path, monkeypatch):
    data = datasets.freeze(root, "d", [commit(root, 0, tmp_path)], {})
    settings = volumes._settings("mix", 1.0, 8, 16, 0)
    table = pa.table({"key": pa.array([], pa.string())})
    for number in range(1, 31):
        commit(root, number, tmp_path)
    for mode in ("mix", "cut", "freeze"):
        how = {**settings, "mode": mode}
        made = parts.commit(root, volumes.volume_id(data.parts[0], how), [], [], tmp_path)
        columns.write(root, "volume_labels", mode, made, table, how)
    age(root)
    asked: Counter = Counter()
    told = stores.answered

    def answered(what):
        asked[what.split()[0]] += 1
        return told(what)

    monkeypatch.setattr(stores, "answered", answered)
    monkeypatch.setattr(gc, "LOOK", 60.0)
    gc.find(root, DAY)
    assert asked["ls"] == 0 and asked["cat_file"] <= 5, "the list and what the volumes were made from"
    walked = []
    walk = inventory.walk
    monkeypatch.setattr(inventory, "walk", lambda url: walked.append(url) or walk(url))
    sweep(root)
    assert len(walked) <= 1 + 3 * 6, "and each of three folders of lists a few times"
    assert len(files.names(f"{root}/parts", ".parquet")) == 4


def test_the_same_on_object_storage(at, seaweed, tmp_path, monkeypatch):
    root = files.open_root(at(seaweed))
    for number in range(3):
        datasets.freeze(root, "d", [commit(root, number, tmp_path)], {})
    plan(root, "d", [2])
    real, days = inventory.now, [2]
    monkeypatch.setattr(inventory, "now", lambda url: real(url) + days[0] * DAY)
    assert "2 versions let go" in gc.gc(root, keep_versions=1, dry_run=False)
    days[0] = 0
    sweep(root)
    assert len(files.names(f"{root}/parts", ".tar")) == 3
    days[0] = 4
    sweep(root)
    assert files.names(f"{root}/parts", ".tar") == [f"{part_id(2)}.tar"]
    assert examine(root, None, 1.0, 0)[0] == []


def test_the_command_says_how_much_would_come_free(root, tmp_path):
    found = grown(root, tmp_path)
    said = CliRunner().invoke(main, ["gc", root, "--keep-versions", "1"])
    assert said.exit_code == 0 and f"datasets/d/{found[0].version}.json" in said.output
    assert "kB  versions of datasets; their parts stay for 24 hours more" in said.output
    assert "and let 3 versions go; --no-dry-run removes them" in said.output
    assert CliRunner().invoke(main, ["gc", root, "--keep-versions", "0"]).exit_code == 2
    assert Path(root, "datasets", "d", f"{found[0].version}.json").exists()
