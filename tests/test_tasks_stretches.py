"""A video in clips is scored as the one video that it is: by windows that go over the borders of clips."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from tasks.scorer import BATCH, Context, at_source_rate, frame_logits, load
from tasks.training import stretches, videos, views
from tasks.training.loader import Decoded, Footage, decode
from tasks.training.videos import whole
from tests.made_parts import flip
from tests.test_tasks_predict import Clockwork
from tests.test_tasks_views import SPEC, split, untrained  # noqa: F401  the fixture

FPS, LENGTH = SPEC.fps, SPEC.frames


class Neighbours(Clockwork):
    """Answers with what it sees around each frame and with its place in the window, as a model of video does."""

    def forward(self, video):
        seen = video.mean((1, 3, 4))
        around = torch.stack([seen.roll(by, 1) for by in range(-3, 4)]).mean(0) * torch.arange(1, seen.shape[1] + 1)
        return {"logits": around[..., None]}


def made(counts, fps=8.0):
    """Clips of so many frames that follow each other, and their frames."""
    rng, clips, frames, start = np.random.default_rng(0), [], {}, 0.0
    for n, count in enumerate(counts):
        row = {"key": f"{n:03d}", "start": start, "end": start + count / fps, "fps": fps, "frames": count}
        start = row["end"]
        clips.append((None, row))
        times = np.arange(count) / fps
        pixels = torch.from_numpy(rng.integers(0, 256, (count, 3, 4, 4), dtype=np.uint8))
        frames[row["key"]] = Decoded(pixels, times, times)
    return clips, frames


def answered(model):
    from tasks.scorer import answer

    return lambda windows, starts: answer(model, windows, starts, None)


@pytest.mark.parametrize("length", [6, 15, 16])
@pytest.mark.parametrize(
    "counts", [[5], [6], [16], [40], [3, 4, 5], [24] * 9, [7, 1, 30, 2, 2, 2, 19], [1] * 20, [200, 3]]
)
def test_clips_together_have_the_scores_of_one_pass(counts, length):
    """Whichever of them are asked for, and the frames that are held are few."""
    clips, frames = made(counts)
    video = torch.cat([found.frames for found in frames.values()])
    times = np.arange(len(video)) / 8.0
    truth = at_source_rate(frame_logits(Neighbours(), video, length).numpy(), times, times)
    ends = np.cumsum([0, *counts])
    for first in range(len(clips)):
        for last in {first, len(clips) - 1}:
            left, look = stretches.Ends(answered(Neighbours())), lambda clip: frames[clip[1]["key"]]
            over = chain(stretches.scored(clips, first, last, look, left, length, 8.0, None), left.flush())
            place = first
            for key, clock, scores in over:
                assert key == f"{place:03d}" and np.allclose(clock, times[ends[place] : ends[place + 1]])
                assert np.allclose(scores, truth[ends[place] : ends[place + 1]], atol=1e-5)
                place += 1
            assert place == last + 1


def test_few_frames_of_a_long_video_are_held(monkeypatch):
    clips, frames = made([24] * 200)
    held = []
    add = stretches.Pass.add

    def watched(over, some):
        add(over, some)
        held.append(len(over._frames))

    monkeypatch.setattr(stretches.Pass, "add", watched)
    look = lambda clip: frames[clip[1]["key"]]  # noqa: E731
    ends = stretches.Ends(answered(Neighbours()))
    assert len(list(stretches.scored(clips, 0, 199, look, ends, 16, 8.0, None)) + list(ends.flush())) == 200
    assert max(held) < 200


def test_windows_of_several_sources_fill_a_batch_and_each_has_its_own_scores():
    """And less than a batch of windows is held from one source to the next, whatever number of them there are."""
    sizes, given, found, held = [], {}, {}, []

    def watched(windows, starts):
        sizes.append(len(windows))
        return answered(Neighbours())(windows, starts)

    ends = stretches.Ends(watched)
    for number, counts in enumerate([[5], [16], [24, 3], [30], [200], [9], [1], [40]] * 3):
        clips, frames = made(counts)
        clips = [(part, row | {"key": f"{number}-{row['key']}"}) for part, row in clips]
        video = [torch.randint(0, 256, one.frames.shape, dtype=torch.uint8) for one in frames.values()]
        seen = {row["key"]: replace(one, frames=pixels)
                for (_, row), one, pixels in zip(clips, frames.values(), video, strict=True)}  # fmt: skip
        given |= one_pass(clips, seen)
        for key, _, scores in stretches.scored(
            clips, 0, len(clips) - 1, lambda clip, seen=seen: seen[clip[1]["key"]], ends, 16, 8.0, None
        ):
            found[key] = scores
        held.append(len(ends._windows))
        assert all(not over._frames.numel() for over, _ in ends._stretches)
    assert len(found) < len(given) and max(held) < BATCH
    found |= {key: scores for key, _, scores in ends.flush()}
    assert found.keys() == given.keys() and all(np.allclose(found[key], given[key], atol=1e-5) for key in given)
    assert sizes[:-1] == [BATCH] * (len(sizes) - 1), "only the last batch of all is not full"
    assert list(ends.flush()) == []


def one_pass(clips, frames):
    """Scores of a stretch by key, as one pass over all of it has them."""
    video = torch.cat([frames[row["key"]].frames for _, row in clips])
    clock = np.arange(len(video)) / 8.0
    scores = at_source_rate(frame_logits(Neighbours(), video, 16).numpy(), clock, clock)
    ends = np.cumsum([len(frames[row["key"]].frames) for _, row in clips])[:-1]
    return {row["key"]: scores for (_, row), scores in zip(clips, np.split(scores, ends), strict=True)}


def truth(root, clips, checkpoint, video=None):
    """One pass over all frames of clips, as they are decoded, within their video: scores by key."""
    found = [decode(*clip, FPS, SPEC.size) for clip in clips]
    context, start = None, 0
    if checkpoint.about["system"] == "coarse_fine":
        context = Context(whole(video or clips, Footage(FPS, SPEC.size), SPEC.whole))
        start = context.whole.begins[clips[0][1]["key"]]
    frames = torch.cat([clip.frames for clip in found])
    logits = frame_logits(load(checkpoint.url), frames, LENGTH, context, start).numpy()
    starts = [row["start"] for _, row in clips]
    sampled = np.concatenate([clip.sampled + start for clip, start in zip(found, starts, strict=True)])
    return {
        row["key"]: at_source_rate(logits, sampled, clip.times + row["start"])
        for (_, row), clip in zip(clips, found, strict=True)
    }


def among(part, parts):
    return videos.Neighbours(part, tuple(other for other in parts if other.id != part.id))


def scores(root, parts, checkpoint):
    return {
        key: scores
        for part in parts
        for key, _, scores in views.scored(root, among(part, parts), part.rows(), checkpoint)
    }


def by_video(parts):
    found = {}
    for part in parts:
        for row in part.rows():
            found.setdefault(row["path"], []).append((part, row))
    return [sorted(clips, key=lambda clip: clip[1]["start"]) for clips in found.values()]


@pytest.mark.parametrize("system", ["x3d", "coarse_fine"])
def test_a_video_in_parts_has_the_scores_of_one_pass(split, system):  # noqa: F811
    root, thirds = split
    checkpoint = untrained(root, system, whole=SPEC.whole if system == "coarse_fine" else 0)
    found = scores(root, thirds, checkpoint)
    for clips in by_video(thirds):
        for key, of_clip in truth(root, clips, checkpoint).items():
            assert np.abs(found[key] - of_clip).max() < 1e-5
        alone = truth(root, clips[:1], checkpoint)
        assert np.abs(found[clips[0][1]["key"]] - next(iter(alone.values()))).max() > 1e-4


@pytest.mark.parametrize("system", ["x3d", "coarse_fine"])
def test_a_video_whose_neighbours_are_missing_is_scored_as_what_is_there(split, system):  # noqa: F811
    root, (one, _, three) = split
    checkpoint = untrained(root, system, whole=SPEC.whole if system == "coarse_fine" else 0)
    there, runs = scores(root, [one, three], checkpoint), 0
    for clips in by_video([one, three]):
        for run in stretches.stretches(clips):
            runs += 1
            for key, of_clip in truth(root, run, checkpoint, clips).items():
                assert np.abs(there[key] - of_clip).max() < 1e-5
    assert runs == 4  # both videos have lost their middle


def test_damage_in_a_part_costs_the_parts_beside_it_no_more_than_their_context(split, tmp_path):  # noqa: F811
    """As if it was not there: its own prediction tells of the damage."""
    root, (one, two, three) = split
    checkpoint = untrained(root, "x3d", whole=0)
    there = scores(root, [one, three], checkpoint)
    broken = tmp_path / "two.tar"
    broken.write_bytes(Path(two.media).read_bytes())
    for row in two.rows():
        flip(broken, row["offset"] + 40)
    for part in (one, three):
        unit = among(part, [replace(two, media=str(broken)), one, three])
        again = views.scored(root, unit, part.rows(), checkpoint)
        assert all(np.abs(scores - there[key]).max() < 1e-5 for key, _, scores in again)


def test_every_thread_uses_one_core_and_all_share_one_model(split):  # noqa: F811
    """Also threads that have used torch before, whose number of cores no other thread changes."""
    root, thirds = split
    checkpoint, before, after = untrained(root, "x3d", whole=0), [], []
    torch.set_num_threads(2)
    load.cache_clear()
    ready = Barrier(3)

    def work(part):
        torch.ones(1 << 16).exp().sum()
        before.append(torch.get_num_threads())
        ready.wait()
        list(views.scored(root, videos.Neighbours(part), part.rows(), checkpoint))
        after.append(torch.get_num_threads())

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, thirds))
    torch.set_num_threads(1)
    assert before == [2, 2, 2] and after == [1, 1, 1] and load.cache_info().misses == 1


@pytest.mark.parametrize(("frames", "fps"), [(90, 30.0), (1, 30.0), (91, 29.97), (250, 25.0), (24, 8.0), (13, 24.0)])
def test_the_index_says_how_many_frames_a_clip_is_sampled_to(frames, fps):
    times, kept = np.arange(frames) / fps, 0
    for rate in (2.4, 8.0, 30.0):
        while kept / rate <= times[-1]:
            kept += 1
        assert stretches.sampled({"frames": frames, "fps": fps}, rate) == kept
        kept = 0
