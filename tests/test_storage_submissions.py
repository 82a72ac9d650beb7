"""Submission files: read back as written, frames where they belong, and refused by line."""

import numpy as np
import pytest

from storage.errors import InputError
from storage.submissions import gather, read, write


def scores(F=25, K=157, seed=0):
    return np.random.default_rng(seed).normal(size=(F, K)).astype(np.float32) * 10


def test_what_is_written_is_read_back_to_the_bit(tmp_path):
    url = str(tmp_path / "s.txt")
    videos = {"46GP8": scores(), "N11GT": scores(seed=1)}
    videos["N11GT"][3] = -np.inf
    assert write(url, videos.items()) == 50
    lines = (tmp_path / "s.txt").read_text().splitlines()
    assert lines[0].split()[:2] == ["46GP8", "1"] and len(lines[0].split()) == 159 and lines[49].split()[1] == "25"
    found, missing, others = gather(url, videos, 25, 157)
    assert (missing, others) == (0, 0)
    assert all(np.array_equal(found[id].astype(np.float32), videos[id]) for id in videos)


def test_submissions_live_on_any_store(s3):
    write(f"{s3}/submission.txt", [("a", scores(2, 3))])
    assert [(id, frame) for id, frame, _ in read(f"{s3}/submission.txt", 3)] == [("a", 1), ("a", 2)]


def test_frames_in_any_order_missing_ones_and_other_videos(tmp_path):
    (tmp_path / "s.txt").write_text("a 3 0.3 3\nb 1 9 9\na 1 0.1 1\n\nc 2 0 0\n")
    found, missing, others = gather(str(tmp_path / "s.txt"), ["a", "c"], 3, 2)
    assert np.allclose(found["a"], [[0.1, 1], [-np.inf, -np.inf], [0.3, 3]])
    assert np.isneginf(found["c"][[0, 2]]).all() and (found["c"][1] == 0).all()
    assert (missing, others) == (3, 1)


def test_scores_that_differ_stay_different(tmp_path):
    """Saturated probabilities, and logits beyond float32: their order is all that counts."""
    (tmp_path / "s.txt").write_text("a 1 0.9999999999 -1e39\na 2 0.9999999998 -2e39\n")
    found, *_ = gather(str(tmp_path / "s.txt"), ["a"], 2, 2)
    assert (found["a"][0] > found["a"][1]).all() and np.isfinite(found["a"]).all()


def test_frames_counted_from_zero_are_taken_as_the_official_evaluation_takes_them(tmp_path):
    (tmp_path / "s.txt").write_text("a 0 1\na 1 2\nb 1 5\n")
    found, missing, _ = gather(str(tmp_path / "s.txt"), ["a", "b"], 2, 1)
    assert found["a"].tolist() == [[1], [2]] and found["b"].tolist() == [[-np.inf], [5]] and missing == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a 1 0 0\na 2 0\n", "line 2: needs an id, a frame and 2 scores, has 3 words"),
        ("a one 0 0\n", "line 1: .*'one'"),
        ("a 1 0 x\n", "line 1: .*'x'"),
        ("a 1 0 nan\n", "line 1: frame 1 or a score is not allowed"),
        ("a 1 inf 0\n", "line 1: frame 1 or a score is not allowed"),
        ("a -1 0 0\n", "line 1: frame -1"),
        ("a 4 0 0\n", "frame 4 of a is beyond the 3 frames"),
        ("a 1 0 0\na 1 0 0\n", "frame 1 of a comes twice"),
        ("a 0 0 0\na 3 0 0\n", "has frame 0 and frame 3; count from 1 to 3"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, text, message):
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(InputError, match=f"s.txt.*{message}"):
        gather(str(tmp_path / "s.txt"), ["a"], 3, 2)


def test_files_and_ids_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        list(read(str(tmp_path / "none.txt"), 2))
    for id in ("", "two words"):
        with pytest.raises(InputError, match="must be one word"):
            write(str(tmp_path / "s.txt"), [(id, scores(1, 2))])
    assert not (tmp_path / "s.txt").exists()
