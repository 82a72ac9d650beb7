"""`reelmill status`: one page of what a root holds, lost and lacks, which asks no server and changes nothing."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage import claims, columns, datasets, files, inflight
from storage.errors import InputError
from tasks import status
from tasks.audits import contents, stale
from tests import made_parts

CHECKOUT = Path(__file__).parent.parent


def small(root: str) -> datasets.Dataset:
    """A dataset of two parts with a version before it, made without a frame."""
    files.open_root(root)
    one, two = (made_parts.commit(root, name, seed=n) for n, name in enumerate(("p1", "p2")))
    before = datasets.freeze(root, "films", [one], {})
    return datasets.freeze(root, "films", [one, two], {"before": before.version})


@pytest.fixture(scope="module")
def copied(traced, tmp_path_factory):
    """A root with a champion, by itself: tests add to it."""
    return shutil.copytree(traced / "root", tmp_path_factory.mktemp("status") / "root")


def snapshot(root: str | Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


def test_a_root_without_models_is_said_at_once_and_loads_none_of_the_large_libraries(tmp_path):
    root = str(tmp_path / "root")
    small(root)
    code = (
        "import sys; from tasks import status; print(status.status(sys.argv[1]));"
        "heavy = {'torch', 'prefect', 'mlflow', 'dask'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, root], cwd=CHECKOUT, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr
    assert "detector has none" in done.stdout and "6 in" in done.stdout and "left 6" in done.stdout


def test_growth_is_against_the_version_before(tmp_path):
    root = str(tmp_path / "root")
    data = small(root)
    found = contents.growth(root, data)
    assert (found["clips"], found["parts_new"], found["parts_gone"]) == (3, 1, 0)
    assert found["bytes"] == data.parts[1].bytes or found["bytes"] == data.parts[0].bytes
    files.remove(files.join(root, "datasets", "films", f"{data.about['before']}.json"))
    assert "gone" in contents.growth(root, data)["since"]


def test_the_version_that_covers_most_is_current_and_others_are_stale(tmp_path):
    import pyarrow as pa

    root = str(tmp_path / "root")
    data = small(root)
    for version, parts in (("old", data.parts[:1]), ("new", data.parts)):
        for part in parts:
            keys = [row["key"] for row in part.rows()]
            columns.write(root, "features", version, part, pa.table({"key": keys, "x": [1.0] * 3}), {})
    listed = stale.survey(root, data)
    (facts,) = stale.coverage(data, listed).values()
    assert (facts["version"], facts["clips"], facts["of"]) == ("new", 6, 6)
    assert list(facts["stale"]) == ["old"] and facts["stale"]["old"] > 0
    lagging = stale.coverage(data, listed, "x" * 12)
    assert lagging == {"features": facts}, "the champion's version is of the column predictions alone"


def test_the_funnel_counts_what_the_ledgers_of_the_newest_plan_say(copied):
    root = str(copied)
    data = datasets.load(root, "a")
    found = contents.funnel(root, data)
    assert found["listed"] == 10 and found["by_reason"] == {"dropped: duplicate": 1}
    assert found["kept"] + found["dropped"] + found["quarantined"] == found["listed"]


def test_the_champion_and_what_lacks_its_predictions(copied):
    root = str(copied)
    data = datasets.load(root, "a")
    assert stale.behind(root, data, "detector")["clips_without_predictions"] == 0
    assert "all" in status.page(status.gather(root, "a", "detector"), "detector")
    name = stale.behind(root, data, "detector")["version"]
    part = max(data.parts, key=lambda p: p.samples)
    taken = Path(files.locate(columns.url(root, "predictions", name, part.id))[1])
    kept = taken.read_bytes()
    taken.unlink()
    try:
        found = status.gather(root, "a", "detector")
    finally:
        taken.write_bytes(kept)
    assert found["predictions"]["clips_without_predictions"] == part.samples
    assert found["columns"]["predictions"]["clips"] == data.clips - part.samples
    assert f"{part.samples} of {data.clips} clips lack its predictions" in status.page(found, "detector")


def test_what_is_in_hand_and_who_has_it(tmp_path):
    root = str(tmp_path / "root")
    small(root)
    assert contents.in_hand(root) == {}
    inflight.begin(root, "p9", "films/now.mp4", {"films/bad.mp4"})
    with claims.claimed(root, "retrain-x"):
        found = contents.in_hand(root)
    assert found["part p9"] == "films/now.mp4, after 1 suspects"
    assert "claimed by process" in found["retrain-x"] and "in_hand" not in contents.in_hand(root)
    assert list(contents.in_hand(root)) == ["part p9"]


def test_the_last_retraining_is_the_newest(tmp_path):
    root = str(tmp_path / "root")
    small(root)
    assert contents.last_retraining(root, "m") is None
    for number, decision in enumerate(("promoted", "refused")):
        gates = {"none": {"decision": decision, "why": "so"}}
        found = {"dataset": f"films@{number}", "champion": 1, "gates": gates}
        files.replace_json({"found": found}, files.join(root, "retrained", "m", f"{number}.json"))
        time.sleep(0.02)
    last = contents.last_retraining(root, "m")
    assert last and last["gates"] == {"none": "refused, so"} and last["dataset"] == "films@1"


def test_json_is_for_programs_and_nothing_under_the_root_changes(tmp_path):
    root = str(tmp_path / "root")
    data = small(root)
    before = snapshot(root)
    found = json.loads(status.status(root, as_="json"))
    (one,) = found["datasets"]
    assert one["freshness"]["version"] == data.version and one["clips"] == {"train": 6}
    status.status(root)
    assert snapshot(root) == before


def test_names_from_outside_do_nothing_to_a_terminal(tmp_path):
    root = str(tmp_path / "root")
    small(root)
    found = status.gather(root, "films", "detector")
    found["funnel"]["by_reason"] = {"quarantined: bad\x1b[2J": 1}
    assert "\x1b" not in status.page(found, "detector") and "bad\N{REPLACEMENT CHARACTER}[2J" in status.page(found, "m")


def test_a_root_without_datasets_and_a_name_that_is_none(tmp_path):
    root = files.open_root(str(tmp_path / "root"))
    with pytest.raises(InputError, match="no dataset yet"):
        status.status(root)
    with pytest.raises(InputError, match="there are"):
        small(str(tmp_path / "other"))
        status.status(str(tmp_path / "other"), "nothing")


def test_it_works_on_object_storage(s3, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = f"{s3}/status"
    small(root)
    assert "6 in" in status.status(root)
