"""Scores say what is in a clip, are the same every time, and are computed once a part."""

import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from storage import columns, datasets, files
from storage.errors import Damaged
from storage.media import scores
from storage.media.encoder import Encoder
from storage.media.sandbox import Sandbox, mine
from storage.media.video import Rejected
from tasks import score
from tests.films import encode, film, moving, prepare_films

CHECKOUT = Path(__file__).parent.parent


def scored(frames, **options):
    return scores.measure(encode(frames, **options))


@pytest.fixture(scope="module")
def still():
    return film(7001)[0]


def test_a_still_picture_has_no_motion_and_repeats_itself(still):
    measured, looks, moves = scored([still] * 24)
    assert measured.motion < 0.005 and measured.static > 0.9 and measured.frames == 24
    assert (looks.reshape(scores.VIEWS, -1)[0] != 0).all() and (moves == 0).all()


def test_motion_is_the_same_whatever_the_frame_rate():
    slow, _, _ = scored(moving(7002, 48, fps=12), fps=12)
    fast, _, _ = scored(moving(7002, 96, fps=24), fps=24)
    assert slow.motion > 0.03 and slow.motion == pytest.approx(fast.motion, rel=0.25)


def test_a_slow_film_has_its_moments_at_their_times():
    """At two frames a second every other moment shows the frame before."""
    looks = scored(moving(7007, 6, fps=2), fps=2)[1].reshape(scores.VIEWS, -1)[0]
    assert len(looks) == 11 and (looks[1::2] == looks[:-1:2]).all() and len(set(looks.tolist())) == 6


def test_frames_shown_twice_are_counted():
    frames = moving(7003, 24)
    twice = [frames[i - i % 2] for i in range(24)]
    measured, _, _ = scored(twice)
    assert measured.static == pytest.approx(12 / 23, abs=0.05) and scored(frames)[0].static < 0.1
    assert measured.duplicate_frames <= round(measured.static * 23)


def test_black_is_the_share_of_black_frames(still):
    black = np.zeros_like(still)
    measured, looks, _ = scored([black] * 6 + [still] * 18)
    assert measured.black == pytest.approx(0.25)
    looks = looks.reshape(scores.VIEWS, -1)[0]
    assert (looks[:2] == 0).all() and (looks[3:] != 0).all(), "a black moment looks like nothing"


def test_a_blurred_picture_is_less_sharp_at_any_contrast():
    sharp = film(7004)[0].astype(float)
    blurred = sharp.copy()
    for _ in range(6):
        blurred = (blurred + np.roll(blurred, 1, 0) + np.roll(blurred, 1, 1) + np.roll(blurred, -1, 0)) / 4
    pale = 110 + (sharp - sharp.mean()) * 0.5
    values = [scored([np.clip(f, 0, 255).astype(np.uint8)] * 8, crf=10)[0].sharpness for f in (sharp, blurred, pale)]
    assert values[1] < 0.5 * values[0] and values[2] == pytest.approx(values[0], rel=0.3)


def test_luma_is_that_of_the_pixels():
    measured, _, _ = scored([np.full((48, 64, 3), 128, np.uint8)] * 6)
    assert measured.luma_mean == pytest.approx(16 + 128 * 219 / 255, abs=1.5) and measured.luma_std < 1


def test_the_sandbox_gives_what_the_function_gives():
    data = encode(moving(7005, 24))
    here, there = scores.measure(data), mine().score(data)
    assert here[0] == there[0] and all((a == b).all() for a, b in zip(here[1:], there[1:], strict=True))


def test_what_is_no_clip_is_rejected():
    with pytest.raises(Rejected):
        mine().score(b"no clip at all" * 100)


def test_an_answer_that_is_none_is_a_crash_of_the_decoder(monkeypatch):
    monkeypatch.setattr(Sandbox, "call", lambda *_: ({"scores": {"motion": 1}}, b"123"))
    with pytest.raises(Rejected, match="decoder_crash"):
        Sandbox().score(b"")


def test_padding_at_the_end_of_lines_is_no_picture():
    """Frames of odd widths have lines that end in padding; white ones must score as white."""
    measured, _, _ = scored([np.full((50, 70, 3), 255, np.uint8)] * 6)
    assert measured.luma_mean == pytest.approx(235, abs=1) and measured.luma_std < 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    films = {f"{i}/{i}.mp4": moving(7100 + i, 24) for i in range(4)}
    return prepare_films(folder, films)


def test_a_part_has_one_row_of_scores_a_clip(prepared):
    root, dataset = prepared
    version, done = score.score_dataset(root, dataset)
    assert done.decoded == dataset.clips == 4 and len(dataset.parts) > 1
    for part in dataset.parts:
        table = columns.read(root, "scores", version, part)
        assert table.column_names == ["key", "duration", *scores.NAMES, "looks", "moves"]
        for row, mine_ in zip(part.rows(), table.to_pylist(), strict=True):
            assert mine_["frames"] == row["frames"] and mine_["duration"] == row["duration"]
            assert len(mine_["looks"]) == len(mine_["moves"]) == 8 * scores.VIEWS
    assert score.score_dataset(root, dataset)[1].items == 0


def test_a_killed_scoring_ends_with_the_same_bytes(prepared, tmp_path):
    """SIGKILL after a part is committed; the next run does the rest, and all bytes are those of one run."""
    root, dataset = prepared
    version, _ = score.score_dataset(root, dataset)
    folder = Path(root) / "columns" / "scores" / version
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    copy = tmp_path / "root"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("scores"))
    program = (
        "import os, signal; from storage import columns, datasets; from tasks import pool, score\n"
        "pool.workers = lambda: 1\nwrite = columns.write\n"
        "def once(*a, **k):\n    write(*a, **k)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"columns.write = once\nscore.score_dataset({str(copy)!r}, datasets.load({str(copy)!r}, 'a'))"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True)
    there = files.names(str(copy / "columns" / "scores" / version), ".parquet")
    assert killed.returncode == -9 and len(there) == 1
    _, done = score.score_dataset(str(copy), datasets.load(str(copy), "a"))
    assert done.items == dataset.clips - next(p.samples for p in dataset.parts if f"{p.id}.parquet" in there)
    after = {path.name: path.read_bytes() for path in (copy / "columns" / "scores" / version).iterdir()}
    assert {n: d for n, d in after.items() if not n.startswith(".")} == before


def test_a_clip_that_does_not_decode_names_its_part(prepared, tmp_path, monkeypatch):
    root, _ = prepared
    shutil.copytree(root, tmp_path / "root", ignore=shutil.ignore_patterns("scores"))
    dataset = datasets.load(str(tmp_path / "root"), "a")

    def broken(self, data):
        raise Rejected("decode_error", "planted")

    monkeypatch.setattr(Sandbox, "score", broken)
    with pytest.raises(Damaged, match=f"part ({'|'.join(p.id for p in dataset.parts)}): clip .* does not decode"):
        score.score_dataset(str(tmp_path / "root"), dataset)
    assert not columns.has(str(tmp_path / "root"), "scores", scores.version(), dataset.parts[0].id)


def test_the_encoder_of_the_tests_writes_what_it_is_given(tmp_path):
    """A control: were the test's own films black, many of the checks above would say nothing."""
    with Encoder(tmp_path / "x.mp4", 64, 48, Fraction(12)) as encoder:
        for t, frame in enumerate(moving(7006, 4)):
            encoder.write(frame, Fraction(t, 12))
    frames, _, _ = mine().sample((tmp_path / "x.mp4").read_bytes())
    assert frames.std() > 10 and frames.shape == (4, 48, 64, 3)
