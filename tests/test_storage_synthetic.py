"""The rendered archive: its labels are right by construction, and one frame tells nothing."""

import csv
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from storage.media import cutting, probing, sampling, scenes, synthetic
from storage.media.limits import Rejected

STILL = 2.0  # mean difference of a frame's liveliest block that the codec makes by itself


@pytest.fixture(scope="module")
def rows(archive):
    """The label rows by path."""
    found = defaultdict(list)
    with open(archive / "labels.csv", newline="") as file:
        for row in csv.DictReader(file):
            found[row["path"]].append(row)
    return found


def _frames(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def _liveliness(frames):
    """How much each frame differs from the one before: the mean of its liveliest 8 x 8 block."""
    T, H, W, _ = frames.shape
    change = abs(np.diff(frames.astype(np.int16), axis=0)).mean(3)
    blocks = change[:, : H // 8 * 8, : W // 8 * 8].reshape(T - 1, H // 8, 8, W // 8, 8).mean((2, 4))
    return blocks.max((1, 2))


def _scripts(kind, seed=0, count=6):
    counts = {"weak": 0, "dense": 0, "long": 0} | {kind: count}
    return synthetic.scripts(seed, **counts)


@pytest.mark.parametrize(
    "script", _scripts("dense") + _scripts("long", count=2) + _scripts("brief", count=2), ids=lambda s: s.path
)
def test_drawn_frames_change_inside_the_segments_and_nowhere_else(script):
    scene = replace(synthetic.staged(script), camera=None, shake=None, distractors=[])
    frames = np.stack(list(scene.draw()))
    changed = abs(np.diff(frames.astype(np.int16), axis=0)).max((1, 2, 3)) > 0
    inside = np.zeros(scene.frames, bool)
    for segment in scene.segments():
        first, last = round(segment.start * scene.fps + 0.5), round(segment.end * scene.fps + 0.5)
        inside[max(0, first) : last] = True
        assert changed[max(0, first - 1) : last - 1].any(), segment
    # Frame t differs from t - 1 where t is acted in, or where an actor that blinked is back again.
    back = np.zeros(scene.frames, bool)
    back[1:] = inside[:-1]
    assert not changed[~(inside | back)[1:]].any() and inside.any() and not inside.all()


def test_decoded_frames_are_still_outside_all_segments(archive, rows):
    checked = 0
    for path in sorted((archive / "archive" / "dense").rglob("*.mp4")):
        fps = probing.probe(str(path))["fps"]
        frames = _frames(path)
        inside = np.zeros(len(frames) + 1, bool)
        for row in rows[str(path.relative_to(archive / "archive"))]:
            inside[int(float(row["start"]) * fps) : int(np.ceil(float(row["end"]) * fps)) + 1] = True
        moves, acted = _liveliness(frames), inside[1 : len(frames)]
        assert np.quantile(moves[acted], 0.5) > 4 * STILL
        checked += (~acted).sum()
        assert np.quantile(moves[~acted], 0.9) < STILL if (~acted).any() else True
    assert checked > 50


def test_something_moves_all_through_a_weak_video(archive):
    for path in sorted((archive / "archive" / "weak").rglob("*.mp4")):
        moves = _liveliness(_frames(path))
        longest = max(len(run) for run in "".join("01"[int(m > STILL)] for m in moves).split("1"))
        assert longest < len(moves) / 3, path  # a blinking actor rests between two blinks


def test_labels_name_every_rendered_video_and_its_class(archive, rows):
    made = {str(p.relative_to(archive / "archive")) for p in (archive / "archive").rglob("*.mp4")}
    assert rows.keys() == {p for p in made if p.startswith(("weak/", "dense/"))}
    for path, found in rows.items():
        if path.startswith("weak/"):
            assert [r["label"] for r in found] == [path.split("/")[1]] and found[0]["start"] == ""
        assert {r["split"] for r in found} == {path.split("/")[1] if path.startswith("dense/") else "train"}


def test_segments_lie_within_their_video(archive, rows):
    for path, found in rows.items():
        if path.startswith("dense/"):
            end = probing.probe(str(archive / "archive" / path))["duration"]
            assert all(0 <= float(r["start"]) < float(r["end"]) <= end for r in found)


def test_every_class_occurs_in_both_sets(archive, rows):
    counts = {kind: Counter(r["label"] for p, f in rows.items() if p.startswith(kind) for r in f) for kind in ("weak", "dense")}  # fmt: skip # noqa: E501
    assert set(counts["weak"]) == set(counts["dense"]) == set(synthetic.CLASSES)


def test_actions_overlap(archive):
    scenes = [synthetic.staged(script) for script in _scripts("dense")]
    pairs = [(a, b) for s in scenes for a in s.segments() for b in s.segments() if a.start < b.start < a.end]
    assert pairs


def test_in_a_long_video_little_happens_for_a_short_time():
    scenes = [synthetic.staged(script) for script in _scripts("long", count=20)]
    acted = [sum(s.end - s.start for s in scene.segments()) / (scene.frames / scene.fps) for scene in scenes]
    longest = max(s.end - s.start for scene in scenes for s in scene.segments())
    assert all(20 < scene.frames / scene.fps < 41 for scene in scenes)
    assert 0.1 < np.mean(acted) < 0.5 and longest < 1.5


def test_its_camera_wanders_and_a_shape_sways_slower_than_any_action():
    for script in _scripts("long", count=8):
        scene = synthetic.staged(script)
        bare = replace(scene, actors=[], distractors=[], frames=min(scene.frames, 8 * scene.fps))
        frames = np.stack(list(bare.draw()))
        assert frames.shape[1:] == (scene.height, scene.width, 3)
        assert (abs(np.diff(frames.astype(np.int16), axis=0)).max((1, 2, 3)) > 0).mean() > 0.1
        for sway in [scene.camera, *(sway for _, sway in scene.distractors)]:
            places = np.array([sway.at(t / 100) for t in range(1000)])
            fastest = abs(np.diff(places, axis=0)).max() * 100
            assert 0.02 < fastest < 0.35 / 2  # of the shorter side in a second; the slowest action makes 0.35


def test_a_hand_shakes_every_frame_of_a_brief_video_and_little_else_happens():
    scenes = [synthetic.staged(script) for script in _scripts("brief", count=20)]
    acted = [sum(s.end - s.start for s in scene.segments()) / (scene.frames / scene.fps) for scene in scenes]
    assert 0.05 < np.mean(acted) < 0.25 and max(s.end - s.start for scene in scenes for s in scene.segments()) < 1.1
    scene = scenes[0]
    bare = list(replace(scene, actors=[], frames=9).draw())
    short = min(scene.width, scene.height)
    across, down = np.round(scene.shake[:9] * short).astype(int).T
    assert len(set(zip(across.tolist(), down.tolist(), strict=True))) > 5 and abs(across).max() <= scene.margin
    for frame, x, y in zip(bare, across, down, strict=True):
        top, left = scene.margin - y, scene.margin - x
        assert (frame == scene.background[top : top + scene.height, left : left + scene.width]).all()


@pytest.mark.parametrize("kind", ["weak", "dense", "long", "brief"])
def test_the_same_seed_gives_the_same_bytes(tmp_path, kind):
    made = []
    for seed, place in ((0, "a"), (0, "b"), (1, "c")):
        script = _scripts(kind, seed, 1)[0]
        rows = synthetic.render(script, tmp_path / place)
        made.append((rows, (tmp_path / place / script.path).read_bytes()))
    assert made[0] == made[1] and made[0][1] != made[2][1]


def test_a_video_does_not_depend_on_how_many_there_are():
    assert set(synthetic.scripts(0, 8, 0)) <= set(synthetic.scripts(0, 80, 0))


def test_rendered_in_processes_and_here_alike(archive):
    script = synthetic.scripts(0, 16, 6)[3]
    here = archive / "again"
    synthetic.render(script, here)
    assert (here / script.path).read_bytes() == (archive / "archive" / script.path).read_bytes()


def test_labels_are_written_in_one_order(tmp_path):
    rows = [dict.fromkeys(("path", "start", "end", "label", "split"), str(n)) for n in range(9)]
    synthetic.write_labels(rows, tmp_path / "a.csv")
    synthetic.write_labels(rows[::-1], tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_broken_files_are_refused_for_five_causes(archive, tmp_path):
    found = {}
    for path in sorted((archive / "archive" / "broken").iterdir()):
        with pytest.raises(Rejected) as caught:
            cutting.cut(str(path), str(tmp_path))
        found[path.name] = caught.value.reason
    assert found == {
        "audio_only.mp4": "no_video_stream",
        "empty.mp4": "empty",
        "noise.mp4": "not_video",
        "text.mp4": "not_video",
        "truncated.mp4": "truncated",
    }


def test_rendered_files_are_what_they_are_said_to_be(archive):
    sizes = set()
    for path in (archive / "archive" / "weak").rglob("*.mp4"):
        facts = probing.probe(str(path))
        sizes.add((facts["width"], facts["height"]))
        assert facts["codec"] == "h264" and round(facts["fps"], 6) in scenes.FRAME_RATES
    assert len(sizes) > 1 and sizes <= set(scenes.SIZES)


def test_one_frame_says_nothing():
    """Nearest class mean and nearest neighbour on single drawn frames stay near chance."""
    features, labels = [], []
    for n in range(len(synthetic.CLASSES) * 30):
        label = synthetic.CLASSES[n % len(synthetic.CLASSES)]
        scene = synthetic.staged(synthetic.Script("x", (7, 0, n), "weak", label))
        frames = list(scene.draw())
        frame = next(f for t, f in enumerate(frames) if t == n % len(frames)).astype(float)
        middle = frame[[*range(0, scene.height, 9)][:8]][:, [*range(0, scene.width, 9)][:8]]
        features.append(np.concatenate([middle.ravel(), frame.std((0, 1)) * 8, frame.mean((0, 1)) * 8]))
        labels.append(n % len(synthetic.CLASSES))
    x, y = np.stack(features), np.array(labels)
    half = len(x) // 2
    means = np.stack([x[:half][y[:half] == k].mean(0) for k in range(len(synthetic.CLASSES))])
    by_mean = ((x[half:, None] - means) ** 2).sum(2).argmin(1)
    by_neighbour = y[:half][((x[half:, None] - x[None, :half]) ** 2).sum(2).argmin(1)]
    for guess in (by_mean, by_neighbour):
        assert (guess == y[half:]).mean() < 0.25  # chance is 0.125, three standard errors are 0.09


def test_real_clips_come_along_where_they_are_installed(archive):
    names = sorted(p.name for p in (archive / "archive" / "real").iterdir())
    assert "bikes.mp4" in names and len(names) >= 3


def test_times_of_rendered_frames_are_regular(archive):
    path = next((archive / "archive" / "weak").rglob("*.mp4"))
    times, rate = sampling.sample(path.read_bytes())[2], Fraction(probing.probe(str(path))["fps"])
    np.testing.assert_allclose(times, np.arange(len(times)) / float(rate), atol=1e-4)
