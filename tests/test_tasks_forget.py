"""A source that is taken down: nothing of it is left, all else is as it was, and it does not come back."""

import io
import shutil
import tarfile

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from flows.__main__ import main
from storage import columns, datasets, files, inventory, ledger, lineage, plans, tombstones
from storage.errors import InputError
from tasks import adopt, predict, registry, tracking, verify
from tasks.lineage import forget, trace
from tasks.training import finetune, pretrain, train
from tests import preparing, traced

GONE, COPY = "weak/02.mp4", "weak/copy of 02.mp4"


def run(*words):
    return CliRunner().invoke(main, ["forget", *words])


def clips_of(root):
    """Key to (path, bytes, rows of every column) of all clips of the newest dataset."""
    found = {}
    data = datasets.load(root, "a")
    for part in data.parts:
        for row, media in part.clips():
            found[row["key"]] = (row["path"], media, {})
        for (column, version), _ in lineage.made_of(root, [part.id]).items():
            if column not in ("segments", "selection"):
                for row in columns.read(root, column, version, part).to_pylist():
                    found[row["key"]][2][column, version] = row
    return found


def left(root, names, pieces):
    """What objects have of some names and bytes, looked for without the search that is tested."""
    found = []
    for item in inventory.walk(root):
        if not item.name.startswith("forgotten/"):
            data = files.read(files.join(root, item.name))
            text = data.decode("latin-1")
            if item.name.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(data))
                text += "\n".join(map(str, table.to_pylist())) + str(table.schema.metadata)
            found += [f"{item.name} has {name}" for name in names if name in text or name in item.name]
            found += [f"{item.name} has bytes" for piece in pieces if piece in data]
    return found


def pieces_of(before, path):
    """Pieces of a source's clips that no clip of another source has."""
    others = b"".join(media for other, media, _ in before.values() if other != path)
    mine = [media for other, media, _ in before.values() if other == path]
    cut = [media[at : at + 40] for media in mine for at in range(0, len(media) - 40, 40)]
    found = [piece for piece in cut if piece not in others]
    assert len(found) > 50
    return found


def plant(root):
    """What else may have something of the source: pictures, logs, an evaluation, what was asked for, old tars."""
    (row,) = [row for row in lineage.clips(root).to_pylist() if (row["path"], row["labelled"]) == (GONE, "video")]
    data = datasets.load(root, "a")
    for name in (f"figures/a/volumes-{data.version}.png", "figures/a/detection-0/timeline_0.png", "figures/b/x.png"):
        files.replace(b"\x89PNG", files.join(root, name))
    files.replace(b"a frame and no name", files.join(root, "reports/state-b-0.html"))
    leaks = [{"video": "dense/04.mp4", "training_video": GONE, "training_clip": row["key"]}, {"video": "dense/05.mp4"}]
    files.replace_json({"leaks": leaks, "metrics": {}}, files.join(root, "figures/a/detection-0/evaluation.json"))
    files.replace(f"cutting {GONE} now\nall is well\n".encode(), files.join(root, "logs/worker.log"))
    files.replace(plans.asked({row["identity"]: 2, "f" * 32: 1}), plans.requeued_url(root, "a"))
    files.replace_json({"item": GONE, "suspects": []}, files.join(root, f"inflight/{row['part']}.json"))
    media = next(part for part in data.parts if part.id == row["part"]).media
    files.replace(files.read(media), media.replace(".tar", "-0123456789abcdef.tar"))  # of another writer, killed
    entry = ledger.Entry("parts/x.tar", "dropped", "damaged", f"1 of its sources is gone ({GONE}, dense/01.mp4)")
    ledger.write(root, "repair", "2026", [entry, ledger.Entry("parts/y.tar", "dropped", "damaged", "dense/01.mp4")])
    return row


@pytest.fixture
def root(traced, tmp_path):
    """A copy of the root, at a place of its own."""
    shutil.copytree(traced / "root", tmp_path / "root")
    return str(tmp_path / "root")


@pytest.mark.parametrize("store", ["local", pytest.param("seaweed", marks=pytest.mark.long)])
def test_nothing_is_left_and_all_else_is_as_before(root, store, place, tmp_path, monkeypatch):
    before, tracked = clips_of(root), f"sqlite:///{root}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked)
    if store != "local":
        remote = place(store)
        for item in inventory.walk(root):
            if not item.name.startswith("mlflow/"):
                files.replace(files.read(files.join(root, item.name)), files.join(remote, item.name))
        root = remote
    row = plant(root)
    old = datasets.load(root, "a")
    said = run(COPY, "--root", root, "--reason", "asked for by the person who is seen")
    assert said.exit_code == 0 and "proved: " in said.output and "nothing is left of 1 sources" in said.output, (
        said.output
    )
    names = [GONE, COPY, row["identity"], row["content_id"], row["content_id"][:20], row["sha256"]]
    assert left(root, names, pieces_of(before, GONE)) == []
    after = clips_of(root)
    kept = {key: found for key, found in before.items() if found[0] != GONE}
    for key, (path, media, rows) in kept.items():
        now = after.pop(key)
        assert (path, media) == now[:2] and {name: now[2].get(name) for name in rows} == rows, key
    assert not after and len(kept) == len(before) - 1
    assert all(all(datasets.load(root, "a").kept(root, part)) for part in datasets.load(root, "a").parts)
    assert verify.verify(root).startswith("nothing is damaged")
    data = datasets.load(root, "a")
    assert [version for version, _ in lineage.versions(root)] == [data] and data.version != old.version
    assert files.names(files.join(root, "figures/a")) == ["detection-0"], "the sheet may show it"
    assert files.names(files.join(root, "reports")) == [], "a page may show it"
    assert files.names(files.join(root, "figures/a/detection-0")) == ["evaluation.json", "timeline_0.png"]
    assert files.read_json(files.join(root, "figures/a/detection-0/evaluation.json"))["leaks"] == [
        {"video": "dense/05.mp4"}
    ]
    assert files.exists(files.join(root, "figures/b/x.png")) and b"all is well" in files.read(
        files.join(root, "logs/worker.log")
    )
    assert plans.requeued(root, "a") == {"f" * 32: 1}
    (stone,) = tombstones.read(root)
    assert (stone.contents, stone.reason) == ([row["content_id"]], "asked for by the person who is seen")
    assert stone.proved["objects"] and stone.models == ["detector/1"]
    assert stone.versions[f"a@{old.version}"] == data.version
    for name in files.names(files.join(root, "forgotten")):
        assert GONE.encode() not in files.read(files.join(root, "forgotten", name))
    assert registry.versions(root, "detector")[1][tombstones.TAG] == stone.id
    assert f"run `reelmill retrain --root {root} --dataset a --model detector`" in said.output
    with pytest.raises(InputError, match="no source and no clip"):
        trace.of_source(root, GONE)
    rows, tree = trace.of_model(root, "models:/detector@champion")
    assert GONE not in rows["path"].to_pylist() and {"weak/00.mp4", "dense/00.mp4"} <= set(rows["path"].to_pylist())
    assert any(f"a@{data.version} followed" in line for line in tree) and any(stone.id in line for line in tree)
    everything = {item.name: item.size for item in inventory.walk(root) if not item.name.startswith("mlflow/")}
    again = run(GONE, "--root", root)
    assert again.exit_code == 0 and "removed      0 objects" in again.output, (
        "it is known by its name, which is nowhere"
    )
    assert {item.name: item.size for item in inventory.walk(root) if not item.name.startswith("mlflow/")} == everything
    assert "run `reelmill retrain" in again.output, "until there is another champion"
    other = registry.register(root, "detector", "runs:/1/m", "1", {"checkpoint_digest": "x"})
    registry.promote(root, "detector", other)
    assert "reelmill retrain" not in run(GONE, "--root", root).output


def test_it_does_not_come_back_under_any_name_and_the_rest_goes_on(root, request, tmp_path):
    home, archive = request.getfixturevalue("traced"), tmp_path / "archive"
    shutil.copytree(home / "archive", archive)
    first, _ = preparing.prepare(root, str(archive), str(home / "labels.csv"), units=4)
    champion = registry.champion(root, "detector")
    names = lambda data: {  # noqa: E731
        train.run_name(pretrain.spec_for(root, data, "detection", traced.RECIPE), "p"),
        train.run_name(finetune.spec_for(root, data, None, traced.RECIPE), "f"),
    }
    before = names(datasets.load(root, "a"))
    forget.forget([GONE, "dense/00.mp4"], root)
    after = datasets.load(root, "a")
    (archive / "elsewhere").mkdir()
    shutil.copy(archive / GONE, archive / "elsewhere" / "renamed.mp4")
    data, done = preparing.prepare(root, str(archive), str(home / "labels.csv"), units=4)
    assert data.parts == after.parts, "planned anew, the parts have the names that the take-down gave them"
    assert done.decoded == 0
    fresh = without_them(tmp_path, archive, home / "labels.csv")
    assert fresh == {(part.id, part.digest) for part in data.parts}, "the bytes of an archive that never had them"
    rows = [entry for entry in ledger.read(root, "list", "a") if entry.reason == "forgotten"]
    ids = sorted(stone.id for stone in tombstones.read(root))
    assert {entry.verdict for entry in rows} == {"dropped"} and len(rows) == 4
    assert sorted({entry.item for entry in rows}) == [f"forgotten source {id}" for id in ids]
    assert all(entry.detail.startswith("taken down on 20") for entry in rows)
    paths = {row["path"] for part in data.parts for row in part.rows()}
    assert paths == {f"dense/{n:02d}.mp4" for n in range(1, 6)} | {"weak/00.mp4", "weak/01.mp4"}
    assert verify.verify(root).startswith("nothing is damaged")
    assert run(GONE, "dense/00.mp4", "--root", root).exit_code == 0, "the ledger names nobody"
    datasets.freeze(root, "a", after.parts, after.about, after.selection)
    assert predict.predict.fn(root, "a", "detector", [])["predicted"] == 0
    assert registry.champion(root, "detector").version == champion.version
    assert not names(datasets.load(root, "a")) & before, "trainings on the same parts are other trainings now"


def without_them(tmp_path, archive, labels):
    """The parts of an archive that never had the sources that are taken down, in a root of its own."""
    shutil.copytree(archive, tmp_path / "never")
    for name in (GONE, COPY, "dense/00.mp4", "elsewhere/renamed.mp4"):
        (tmp_path / "never" / name).unlink()
    rows = [row for row in labels.read_text().splitlines(True) if not row.startswith((GONE, "dense/00.mp4"))]
    (tmp_path / "labels.csv").write_text("".join(rows))
    data, _ = preparing.prepare(str(tmp_path / "fresh"), str(tmp_path / "never"), str(tmp_path / "labels.csv"), units=4)
    return {(part.id, part.digest) for part in data.parts}


def test_a_dry_run_changes_nothing(root):
    before = {item.name: files.read(files.join(root, item.name)) for item in inventory.walk(root)}
    said = run(GONE, "--root", root, "--dry-run")
    assert said.exit_code == 0 and "2 clips in 2 parts, 2 versions of datasets, models detector/1" in said.output
    assert {item.name: files.read(files.join(root, item.name)) for item in inventory.walk(root)} == before


@pytest.mark.parametrize(
    "name", ["checkpoints/other/step_1/weights.safetensors", "parts/ffffffffffffffff.tar", "notes"]
)
def test_what_is_still_there_is_named_and_fails(root, name):
    data = datasets.load(root, "a")
    (part,) = data.select(split="train", labelled="video")
    (media,) = [media for row, media in part.clips() if row["path"] == GONE]
    files.replace(b"\0" * 77 + media[300:1500] + b"\0" * 99, files.join(root, name))
    said = run(GONE, "--root", root)
    assert said.exit_code == 1 and f"{name}: bytes of it" in said.output
    assert ("not written by Reelmill" in said.stderr) is (name == "notes")
    files.remove(files.join(root, name))
    assert run(GONE, "--root", root).exit_code == 0, "by its name, although the root has it no longer"


def test_by_indexes_no_tar_of_others_is_read_and_pictures_of_held_out_videos_go(root, tmp_path, monkeypatch):
    champion = registry.champion(root, "detector")
    for name in ("timeline_0.png", "losses.png"):
        (tmp_path / name).write_bytes(b"PNG")
        files.replace(b"PNG", files.join(root, "figures/a/detection-0", name))
    tracking.log_files(root, champion.run, [tmp_path / "timeline_0.png", tmp_path / "losses.png"], "figures")
    (tmp_path / "page.html").write_bytes(b"frames")
    tracking.log_files(root, champion.run, [tmp_path / "page.html"], "report")
    asked, read = [], files.read
    found = forget.proof.look
    monkeypatch.setattr(files, "read", lambda url, *ends: asked.append(url) or read(url, *ends))
    monkeypatch.setattr(forget.proof, "look", lambda *given: asked.clear() or found(*given))
    said = run("dense/04.mp4", "--root", root, "--search", "indexes")
    assert said.exit_code == 0 and "4 tars by their indexes" in said.output
    assert asked and not [url for url in asked if url.endswith(".tar")]
    assert files.names(files.join(root, "figures/a/detection-0")) == ["losses.png"]
    kept = [one.path for one in tracking.client(root).list_artifacts(champion.run, "figures")]
    assert kept == ["figures/losses.png"]
    assert not tracking.client(root).list_artifacts(champion.run, "report")
    assert tombstones.TAG not in registry.versions(root, "detector")[1], "it was measured on it, not trained"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["weak/99.mp4"], "the most like it are weak/0"),
        (["KEY"], "is a clip; a take-down is of its source, dense/00.mp4"),
    ],
)
def test_what_names_no_source_is_refused_before_anything_changes(root, words, said):
    key = next(row["key"] for row in lineage.clips(root).to_pylist() if row["path"] == "dense/00.mp4")
    result = run(*(word.replace("KEY", key) for word in words), "--root", root)
    assert result.exit_code == 2 and said in result.stderr and not tombstones.read(root)


def test_a_clip_of_an_adopted_shard_is_let_go_and_its_tar_is_left_alone(traced, tmp_path):
    root, folder = files.open_root(str(tmp_path / "root")), tmp_path / "theirs"
    folder.mkdir()
    data = datasets.load(str(traced / "root"), "a")
    media = [data for part in data.select(split="heldout") for _, data in part.clips()]
    with tarfile.open(folder / "shard-000.tar", "w") as tar:
        for number, clip in enumerate(media):
            member = tarfile.TarInfo(f"{number:06d}.mp4")
            member.size = len(clip)
            tar.addfile(member, io.BytesIO(clip))
    theirs = (folder / "shard-000.tar").read_bytes()
    adopt.adopt(root, [str(folder)], name="them")
    (row, *others) = lineage.clips(root).to_pylist()
    said = run(row["content_id"], "--root", root)
    assert said.exit_code == 0, said.output
    after = datasets.load(root, "them")
    assert [one["key"] for part in after.parts for one in part.rows()] == [one["key"] for one in others]
    assert left(root, [row["source"], row["key"], row["content_id"]], []) == []
    assert verify.verify(root).startswith("nothing is damaged") and (folder / "shard-000.tar").read_bytes() == theirs
    assert f"dataset them {after.version}: " in adopt.adopt(root, [str(folder)], name="them")
    shutil.copy(folder / "shard-000.tar", folder / "shard-001.tar")
    adopt.adopt(root, [str(folder / "shard-001.tar")], name="others")
    (part,) = datasets.load(root, "others").parts
    assert row["content_id"] not in part.table(["content_id"])["content_id"].to_pylist() and part.samples == len(others)
    books = [ledger.read(root, "adopt", name.removesuffix(".parquet")) for name in files.names(f"{root}/ledger/adopt")]
    (stone,) = tombstones.read(root)
    for book in books:
        (entry,) = [entry for entry in book if entry.reason == "forgotten"]
        assert (entry.item, entry.verdict) == (f"forgotten source {stone.id}", "dropped") and len(book) == len(media)
