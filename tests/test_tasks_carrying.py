"""What goes over from one preparation to the next: suspects, verdicts, and what was computed of a clip."""

import shutil

import pyarrow as pa
import pytest

from storage import carry, columns, datasets, files, inflight, ledger, parts, plans, tables
from storage.errors import InputError
from storage.media import sandbox
from storage.media.limits import Rejected
from storage.media.sandbox import Sandbox
from tasks import score, shard
from tasks.requeue import requeue
from tests.preparing import RECIPE, again, plan, prepare, two_folders


@pytest.fixture
def home(archive, tmp_path):
    """An archive of eight small real videos in two folders, prepared."""
    return two_folders(sorted((archive / "archive" / "weak").rglob("*.mp4"))[:8], tmp_path)


# Suspects


def test_a_source_found_in_flight_is_cut_in_a_process_of_its_own(home, monkeypatch):
    """Being there when a worker died is no proof; only the death of a process of its own quarantines."""
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
    """What was in hand at a kill is known afterwards, and a leftover of a committed part is swept."""
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
    assert carry.known(root, "scores", name, part.rows(), carry.replaced(root, joined)).num_rows == 8
    other = tables.read(part.index)
    column = other.schema.get_field_index("sha256")
    facts = tables.about(part.index)
    altered = other.set_column(column, "sha256", pa.array(["0" * 64] * 8))
    files.replace(tables.pack(altered, facts), part.index)
    assert carry.known(root, "scores", name, part.rows(), carry.replaced(root, joined)) is None


def test_quarantined_videos_are_tried_again_on_request(home, monkeypatch, capsys):
    """The verdict before stays in the ledger; the others of its part are not decoded."""
    root = files.open_root(str(home / "fresh"))
    bad = sorted((home / "archive").rglob("*.mp4"))[2]
    bad = bad.rename(bad.with_name("new\nline.mp4"))
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
    capsys.readouterr()
    assert requeue(root, "a", ["timeout"]).startswith("1 videos")
    assert capsys.readouterr().out == f"  again        {bad.parent.name}/new\N{REPLACEMENT CHARACTER}line.mp4\n"
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
    root = files.open_root(str(home / "fresh"))
    planned, listed = plan(root, str(home / "archive"), units=3)
    gone = next((home / "archive").rglob("*.mp4"))
    gone.unlink()
    _, report = shard.shard_archive(root, "a", planned, recipe=RECIPE, failure_budget=1.0, listed=listed)
    assert report.quarantined == {"not_found": 1} and report.kept == 7
