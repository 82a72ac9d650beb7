"""Pointers: of writers that decided on the same ground one wins, and the others go on with what it made."""

import pytest

from storage import conditions, datasets, files, plans
from storage.errors import Conflict
from tests.made_parts import commit
from tests.preparing import RECIPE, plan


@pytest.fixture(params=["local", "moto"])
def root(request, place):
    return files.open_root(place(request.param))


STEPS = [
    (files, "ask"),
    (conditions, "read_settled"),
    (conditions, "create"),
    (conditions, "swap"),
]


def between(monkeypatch, moment, act):
    """Runs ``act`` before the step number ``moment`` from here on; returns a list that has its result once it ran."""
    count, ran = [0], []

    def stepping(real):
        def step(*args, **kwargs):
            count[0] += 1
            if count[0] == moment:
                ran.append(act())
            return real(*args, **kwargs)

        return step

    for module, name in STEPS:
        monkeypatch.setattr(module, name, stepping(getattr(module, name)))
    return ran


def interleaved(monkeypatch, begin, one, two):
    """Lets ``two`` run as a whole before each step of ``one`` in turn, and once after; yields both results."""
    for moment in range(1, 100):
        begin(moment)
        with monkeypatch.context() as patch:
            ran = between(patch, moment, lambda moment=moment: two(moment))
            first = one(moment)
        done = bool(ran)
        yield moment, first, ran[0] if done else two(moment)
        if not done:
            return
    raise AssertionError("it never ended")


def test_of_two_datasets_decided_on_the_same_ground_one_wins_at_every_step(root, monkeypatch):
    old, mine, theirs = (commit(root, name) for name in ("p0", "p1", "p2"))
    before = {}

    def begin(moment):
        before[moment] = datasets.freeze(root, f"d{moment}", [old], {}).version

    def one(moment):
        return datasets.freeze(root, f"d{moment}", [mine], {}, before=before[moment])

    def two(moment):
        return datasets.freeze(root, f"d{moment}", [theirs], {}, before=before[moment])

    winners = set()
    for moment, first, second in interleaved(monkeypatch, begin, one, two):
        assert first == second == datasets.load(root, f"d{moment}"), moment
        assert first.version != before[moment]
        winners.add(first.parts[0].id)
    assert winners == {"p1", "p2"} and moment > 4


def test_of_two_plans_made_from_the_same_one_wins_at_every_step(root, monkeypatch, tmp_path):
    written = []
    for number in range(3):
        written.append(tmp_path / str(number))
        written[-1].write_bytes(b"plan %d" % number)
    before = {}

    def begin(moment):
        before[moment] = plans.save(root, f"d{moment}", written[0], "")

    def one(moment):
        return plans.save(root, f"d{moment}", written[1], before[moment])

    def two(moment):
        return plans.save(root, f"d{moment}", written[2], before[moment])

    winners = set()
    for moment, first, second in interleaved(monkeypatch, begin, one, two):
        assert first == second == plans.latest(root, f"d{moment}") != before[moment], moment
        winners.add(first)
    assert len(winners) == 2 and moment > 3


def test_a_dataset_is_never_moved_back(root):
    """Whoever began earlier and ends later goes on with what has come since."""
    parts = [commit(root, f"p{n}") for n in range(3)]
    first = datasets.freeze(root, "d", parts[:1], {}, before="")
    newer = datasets.freeze(root, "d", parts, {}, before=first.version)
    assert datasets.freeze(root, "d", parts[:2], {}, before=first.version) == newer
    assert datasets.freeze(root, "d", parts[:2], {}, before="") == newer
    assert datasets.latest(root, "d") == newer.version


def test_a_pointer_that_is_gone_is_written_and_one_that_stays_is_left(root):
    url = f"{root}/pointer.json"
    assert files.point({"a": 1}, url, {"a": 0}) == {"a": 1}
    assert files.point({"a": 2}, url, None) == {"a": 1}
    assert files.point({"a": 1}, url, {"a": 0}) == {"a": 1}
    assert files.point({"a": 2}, url, {"a": 1}) == {"a": 2} == files.read_json(url)


def test_a_pointer_that_a_person_wrote_moves_on_by_what_it_says(root):
    url = f"{root}/pointer.json"
    files.replace(b'{"a":   0}\n', url)
    assert files.point({"a": 1}, url, {"a": 0}) == {"a": 1} == files.read_json(url)


def test_a_run_that_was_overtaken_goes_on_with_the_newer_plan(archive, tmp_path, monkeypatch, capsys):
    """An older listing never becomes the newest plan."""
    clips = sorted((archive / "archive" / "weak").rglob("*.mp4"))[:3]
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "0.mp4").symlink_to(clips[0])
    root = files.open_root(str(tmp_path / "root"))
    save, seen = plans.save, []

    def overtaken(*args):
        if not seen:
            seen.append("")
            (folder / "1.mp4").symlink_to(clips[1])
            seen[0] = plan(root, str(folder))[0]
        return save(*args)

    monkeypatch.setattr(plans, "save", overtaken)
    mine, _ = plan(root, str(folder))
    assert mine == seen[0] == plans.latest(root, "a") and "goes on with its plan" in capsys.readouterr().out
    assert sum(draft.units for draft in plans.drafts(root, "a", mine)) == 2


def test_a_newer_plan_with_other_options_is_said(archive, tmp_path):
    clip = sorted((archive / "archive" / "weak").rglob("*.mp4"))[0]
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "0.mp4").symlink_to(clip)
    root = files.open_root(str(tmp_path / "root"))
    digest, _ = plan(root, str(tmp_path / "archive"))
    assert plans.newest(root, "a", RECIPE) == digest
    with pytest.raises(Conflict, match="other options"):
        plans.newest(root, "a", {**RECIPE, "span": 1.0})
