"""Inference over an archive: what is missing and no more, a run's share of it, and tables of what is there now."""

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import columns, datasets, files, ledger, plans, tables
from storage.errors import Damaged, InputError
from tasks import calibration, precedence, predict, segment_tables, segments
from tasks.calibration import Calibration, Pair
from tests.preparing import CHECKOUT
from tests.test_storage_claims import HOLD

LOOSE = Calibration(others=Pair(0.2, 0.1))  # finds something with a model that knows nothing


@pytest.fixture
def root(traced, tmp_path, monkeypatch):
    """A prepared root whose champion has predicted nothing yet."""
    shutil.copytree(traced / "root", tmp_path / "root")
    for name in ("columns/predictions", "segments", "tables"):
        shutil.rmtree(tmp_path / "root" / name)
    monkeypatch.setattr(calibration, "load", lambda *_: LOOSE)
    return str(tmp_path / "root")


def infer(root, **more):
    return predict.predict.fn(root, "a", "detector", [], **more)


def rows(root, found):
    """How many rows each clip of the dataset has in the predictions."""
    data = datasets.load(root, "a")
    counts = [columns.read(root, predict.COLUMN, found["version"], part)["key"].to_pylist() for part in data.parts]
    return sorted(key for keys in counts for key in keys) == sorted(
        key for part in data.parts for key in part.table(["key"])["key"].to_pylist()
    )


def test_a_second_run_knows_before_it_begins_that_there_is_nothing_to_do(root, monkeypatch):
    found = infer(root)
    assert found["predicted"] == found["clips"] > 0 == found["left"] and found["segments"] > 0 and rows(root, found)
    before = files.read(found["segments_path"])
    monkeypatch.setattr(predict, "predict_parts", None)  # nothing is called
    monkeypatch.setattr(segment_tables, "_gathered", None)
    again = infer(root)
    assert again["predicted"] == again["left"] == 0 and again["segments"] == found["segments"]
    assert files.read(found["segments_path"]) == before


def test_other_thresholds_find_other_segments_and_score_nothing_again(root, monkeypatch):
    found = infer(root)
    monkeypatch.setattr(calibration, "load", lambda *_: Calibration(others=Pair(1.1, 1.1)))
    monkeypatch.setattr(predict, "scored", None)
    again = infer(root)
    assert again["predicted"] == 0 and again["segments"] == 0 < found["segments"]
    assert again["version"] == found["version"]


def test_a_run_stops_when_its_hours_are_over_and_the_next_goes_on(root, monkeypatch, capsys):
    began, asked = time.time(), []

    def clock():
        asked.append(1)
        return began if len(asked) <= 3 else began + 7200

    monkeypatch.setattr(predict, "time", SimpleNamespace(time=clock))
    found = infer(root, max_hours=1)
    assert 0 < found["predicted"] < found["clips"] and found["left"] == found["clips"] - found["predicted"]
    assert f"{found['left']} clips in" in (said := capsys.readouterr().out) and "--max-hours 1 are over" in said
    monkeypatch.setattr(predict, "time", time)
    again = infer(root)
    assert again["predicted"] == found["left"] and again["left"] == 0 and rows(root, again)


def test_what_another_run_has_is_left_to_it(root, capsys):
    data, checkpoint = datasets.load(root, "a"), predict.registry.champion(root, "detector").checkpoint
    part = data.parts[0]
    name = f"infer-{predict.version(predict.checkpoints.describe(checkpoint))}-{part.id}"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, root, name, "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT
    ) as other:
        assert other.stdout.readline() == b"holds\n"
        found = infer(root)
        other.kill()
    assert found["left"] == part.samples == found["clips"] - found["predicted"]
    assert "another run has them" in capsys.readouterr().out
    assert tables.about(found["segments_path"])["parts"] == len(data.parts) - 1
    again = infer(root)  # the other one died: its claim is free
    assert again["predicted"] == part.samples and rows(root, again) and again["segments"] > found["segments"]


def test_the_newest_the_oldest_or_the_most_watched_come_first(root):
    data = datasets.load(root, "a")
    when = {}
    for row in plans.members_of(root, "a", plans.latest(root, "a")).items():
        when[row[0]] = max(Path(member.source.url).stat().st_mtime_ns for member in row[1])
    newest = precedence.in_order(root, data, data.parts, "newest")
    assert [when[part.id] for part in newest] == sorted((when[p.id] for p in data.parts), reverse=True)
    assert precedence.in_order(root, data, data.parts, "oldest") != newest
    with pytest.raises(InputError, match="no source has 'views'"):
        precedence.in_order(root, data, data.parts, "watched")
    assert precedence._weight({"metadata": '{"views": "12"}'}, "watched") == 12
    assert precedence.stamped("9:2026-01-02 03:04:05+00:00") == 1767323045 and precedence.stamped('9:"etag"') is None


def test_the_part_of_the_most_watched_source_comes_first_and_those_of_unknown_ones_last(traced, monkeypatch):
    root, known = str(traced / "root"), precedence.planned
    data = datasets.load(root, "a")
    parts = sorted(data.parts, key=lambda part: part.id)
    views = {part.id: 10 * number for number, part in enumerate(parts)}  # those of the first are not known

    def rows(*given):
        for row in (row for row in known(*given) if row["part"] in views):
            said = {"views": views[row["part"]] if row["path"] == first[row["part"]] else 1}
            yield row | {"metadata": json.dumps(said if views[row["part"]] else {})}

    first = {row["part"]: row["path"] for row in known(root, data) if row["part"] in views}
    monkeypatch.setattr(precedence, "planned", rows)
    assert precedence.in_order(root, data, data.parts, "watched") == [*parts[:0:-1], parts[0]]


def test_a_store_that_lists_etags_is_asked_for_the_times(root, monkeypatch, capsys, s3):
    data, planned = datasets.load(root, "a"), precedence.planned
    first = precedence.in_order(root, data, data.parts, "newest")
    monkeypatch.setattr(precedence, "planned", lambda *given: (row | {"stamp": '9:"0a1b"'} for row in planned(*given)))
    assert precedence.in_order(root, data, data.parts, "newest") == first
    assert precedence.in_order(root, data, data.parts, "oldest") != first and not capsys.readouterr().out
    files.publish_bytes(b"bytes", f"{s3}/one.mp4")
    assert "ETag" in files.info(f"{s3}/one.mp4") and abs(precedence.asked(f"{s3}/one.mp4") - time.time()) < 100
    monkeypatch.setattr(precedence, "asked", lambda _: None)
    assert precedence.in_order(root, data, data.parts[:2], "newest") == sorted(data.parts[:2], key=lambda part: part.id)
    count = sum(row["part"] in {part.id for part in data.parts[:2]} for row in planned(root, data))
    assert f"of {count} of {count} sources nobody says how old they are: they come last" in capsys.readouterr().out


def test_a_source_that_goes_takes_its_rows_along(root):
    found, data = infer(root), datasets.load(root, "a")
    gone = data.parts[0]
    lost = set(gone.table(["path"])["path"].to_pylist())
    assert lost & set(pq.read_table(found["segments_path"])["path"].to_pylist())
    rest = datasets.freeze(root, "a", data.parts[1:], data.about, data.selection)
    segment_tables.refresh(root, rest)
    left = set(pq.read_table(found["segments_path"])["path"].to_pylist())
    assert left and not lost & left and tables.about(found["segments_path"])["version"] == rest.version


def test_a_damaged_clip_is_in_the_ledger_and_stops_no_other_part(root):
    data = datasets.load(root, "a")
    part = max(data.parts, key=lambda part: part.samples)
    row, other = part.rows()[0], replace(part, index="")
    tar = Path(other.media)
    whole = tar.read_bytes()
    tar.write_bytes(whole[: row["offset"] + 40] + bytes([whole[row["offset"] + 40] ^ 1]) + whole[row["offset"] + 41 :])
    with pytest.raises(Damaged, match=f"1 of {len(data.parts)} parts: part {part.id}"):
        infer(root)
    (entry,) = ledger.read(root, "infer", part.id)
    assert (entry.verdict, entry.reason, entry.item.partition("#")[0]) == ("quarantined", "damaged", row["path"])
    about = tables.about(segment_tables.url(root, "a", "detector"))
    assert about["parts"] == len(data.parts) - 1
    tar.write_bytes(whole)
    found = infer(root)
    assert found["predicted"] == part.samples and rows(root, found) and not files.names(f"{root}/ledger/infer")


def test_a_query_for_one_class_and_one_day_reads_little(root, monkeypatch):
    """And all queries run as README prints them."""
    rng, N = np.random.default_rng(0), 60_000
    table = pa.table({
        "key": ["k"] * N, "path": [f"{n % 4000}" for n in range(N)], "source": ["s"] * N,
        "class": rng.choice(["up", "down", "a/b '..\\"], N), "start": rng.uniform(size=N), "end": np.ones(N),
        "score": rng.uniform(size=N), "peak": rng.uniform(size=N), "frames": [1] * N,
    }).cast(segments.SCHEMA)  # fmt: skip

    def gathered(*given):
        given[-1].take("whole", table)
        given[-1].date((f"{n}", date(2026, 5, 27) + timedelta(n % 200)) for n in range(4000))

    monkeypatch.setattr(segment_tables, "_gathered", gathered)
    place = infer(root)["segments_path"]
    meta = pq.read_metadata(place)
    day = np.datetime64("2026-11-22")
    held = [
        g for g in range(meta.num_row_groups)
        for a, b in [[meta.row_group(g).column(c).statistics for c in (0, 1)]]
        if a.min <= "up" <= a.max and (a.min < "up" or a.max > "up" or b.min <= day <= b.max)
    ]  # fmt: skip
    assert meta.num_row_groups >= 14 and len(held) <= 3
    block = re.search(
        r"Predictions are plain tables.*?:\n\n```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.S
    )
    imports, _, *lines = block[1].replace("ROOT", root).replace("/mine/", "/a/").splitlines()
    names: dict[str, object] = {}
    exec(imports, names)
    one, days, frames, same, scores = [eval(line, names) for line in lines]
    assert {row[0] for row in one.fetchall()} == {"up"} and len(days.fetchall()) == 3 * 200
    assert set(same["class"]) == {"up"} and len(same) == table["class"].to_pylist().count("up")
    clips = datasets.load(root, "a").clips
    assert (
        len(frames.fetchall()) == scores.num_rows == clips and scores["scores"].type.value_type.value_type == "float16"
    )


def test_the_ledger_answers_the_questions_that_readme_asks_it(traced):
    root = str(traced / "root")
    block = re.search(r"The ledger answers.*?:\n\n```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.S)
    assert block
    dataset = datasets.load(root, "a")
    text = block[1].replace("ROOT", root).replace("VERSION", dataset.version).replace("/mine", "/a")
    *imports, listed, steps = ast.parse(text).body
    names: dict[str, object] = {}
    exec(compile(ast.Module(imports, []), "README.md", "exec"), names)
    one, other = (
        eval(compile(ast.Expression(q.value), "README.md", "eval"), names).fetchall() for q in (listed, steps)
    )
    parts = [part.id for part in dataset.parts]
    kept = ledger.total(root, "shard", parts, 0)[0].kept
    counts = {(step, verdict): (count, motion) for step, verdict, _, count, _, motion in other}
    assert {verdict: count for verdict, _, count in one}["kept"] > 0
    assert counts["shard", "kept"][0] == kept > 0
    clips, motion = counts["score", "kept"]
    assert clips == dataset.clips and motion > 0


def test_segments_are_those_of_the_predictions_as_they_are_committed(traced):
    """Though they are found in the scores before these are read again."""
    from storage import checkpoints
    from tasks import registry

    root = str(traced / "root")
    champion, found = registry.champion(root, "detector"), 0
    checkpoint = checkpoints.describe(champion.checkpoint)
    thresholds = calibration.load(checkpoint.url, champion.tags.get(calibration.TAG, ""))
    name = predict.version(checkpoint)
    for part in datasets.load(root, "a").parts:
        wanted = [
            {"key": key, **piece}
            for key, clock, scores in predict.read_predictions(root, name, part)
            for piece in segments.find(scores, clock, checkpoint.about["classes"], thresholds)
        ]
        kept = segments.read(root, segments.version(name, thresholds), part).drop_columns(["path", "source"])
        assert kept.to_pylist() == pa.Table.from_pylist(wanted, schema=kept.schema).to_pylist()
        found += len(wanted)
    assert found
