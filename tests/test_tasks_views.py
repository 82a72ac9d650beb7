"""Videos that lie in several parts: each is opened once a process; and features go over to new parts."""

from dataclasses import replace

import numpy as np
import pytest

from storage import carry, checkpoints, columns, datasets, files, parts
from tasks import backbone, pool, predict, shard, train_rank
from tasks.train_rank import Spec
from tasks.training import loader, videos, views
from tasks.training.loader import decode
from tests import lamps
from tests.preparing import prepare

SPEC = Spec(root="", parts=[], classes=["red"], objective="dense", options={"size": "TINY"}, size=16, whole=48)


def untrained(root, system, **more):
    spec = replace(SPEC, root=root, system=system, **more)
    weights, about = train_rank.build(spec).state_dict(), train_rank._about(spec)
    return checkpoints.save(root, f"untrained-{system}", 1, weights, {}, about, True)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A root and three parts, of which each has a clip of either of two videos."""
    folder = tmp_path_factory.mktemp("split")
    lamps.render(folder, train=0, held_out=2, weak=0)
    root = str(folder / "root")
    dataset, _ = prepare(root, str(folder / "archive"), recipe=shard.recipe(2.0, 64, "span", "exact"))
    clips = [clip for part in dataset.parts for clip in part.clips()]
    assert len(clips) == 6 and len({row["path"] for row, _ in clips}) == 2
    return root, [_part(root, f"third{i}", clips[i::3], folder) for i in range(3)]


def _part(root, name, clips, folder):
    media = [folder / f"{name}-{i}.mp4" for i in range(len(clips))]
    for path, (_, data) in zip(media, clips, strict=True):
        path.write_bytes(data)
    return parts.commit(root, name, [row for row, _ in clips], media, folder)


@pytest.fixture
def decodes(monkeypatch):
    """The clips that are decoded, by key."""
    seen: list[str] = []
    decode = loader.decode

    def counted(part, row, *given):
        seen.append(row["key"])
        return decode(part, row, *given)

    monkeypatch.setattr(loader, "decode", counted)
    return seen


def test_a_source_in_three_parts_is_decoded_once_by_any_number_of_threads(split, decodes, monkeypatch):
    root, thirds = split
    checkpoint = untrained(root, "coarse_fine")
    for workers in (1, 3):
        monkeypatch.setattr(pool, "workers", lambda count=workers: count)
        monkeypatch.setattr(predict, "version", lambda _, count=workers: f"by-{count}")
        views._shared.cache_clear()
        decodes.clear()
        predict.predict_parts(root, thirds, checkpoint)
        assert len(decodes) == 6 == len(set(decodes))
    for part in thirds:
        one, other = (columns.read(root, predict.COLUMN, name, part) for name in ("by-1", "by-3"))
        assert one.equals(other)


def test_features_of_a_video_in_three_parts_are_scored_once(split, monkeypatch):
    root, thirds = split
    name = "made"
    for part in thirds:
        made = backbone.commit(root, name, part, None, lambda rows: _any(rows), {})
        assert made.decoded == part.samples
    checkpoint = untrained(root, "tgm", options={"size": "TINY", "width": 4}, features=name)
    scored, sequence = [], views.sequence_logits
    views._shared.cache_clear()
    monkeypatch.setattr(views, "sequence_logits", lambda *given: scored.append(1) or sequence(*given))
    _, done = predict.predict_parts(root, thirds, checkpoint)
    assert len(scored) == 2 and done.decoded == 0 and done.items == 6


def test_a_clip_that_has_a_new_neighbour_is_predicted_again_and_other_sources_are_not(split, tmp_path):
    root, thirds = split
    clips = sorted((clip for part in thirds for clip in part.clips()), key=lambda c: (c[0]["path"], c[0]["start"]))
    few, all_ = (_part(root, name, some, tmp_path) for name, some in (("few", clips[1:]), ("all", clips)))
    before = datasets.freeze(root, "grown", [few], {})
    now = datasets.freeze(root, "grown", [all_], {"before": before.version})
    checkpoint = untrained(root, "x3d", whole=0)
    predict.predict_parts(root, [few], checkpoint)
    name, done = predict.predict_parts(root, [all_], checkpoint, before=carry.replaced(root, now))
    assert done.items == 3  # of the source that has one more
    found = columns.read(root, predict.COLUMN, name, all_)
    files.remove(columns.url(root, predict.COLUMN, name, all_.id))
    assert predict.predict_parts(root, [all_], checkpoint)[1].items == 6
    assert columns.read(root, predict.COLUMN, name, all_).equals(found)


def _any(rows):
    times = [np.arange(4) / 2 for _ in rows]
    return times, [np.random.default_rng(len(rows)).normal(size=(4, 4)) for _ in rows]


def test_parts_of_one_video_follow_each_other(split):
    _, (a, b, c) = split
    d, e = replace(a, id="d"), replace(a, id="e")
    others = {"third0": [c], "third2": [a, b], "third1": [c]}
    assert [part.id for part in videos.in_turn([a, d, b, e, c], others)] == ["third0", "third2", "third1", "d", "e"]
    assert videos.in_turn([a, d], others) == [  # a part that is done is not done again
        videos.Neighbours(a, (c,)),
        videos.Neighbours(d),
    ]


def test_a_backbones_features_go_with_their_clips_into_new_parts(tmp_path, monkeypatch):
    lamps.render(tmp_path, train=3, held_out=0, weak=0)
    archive, root, other = (str(tmp_path / name) for name in ("archive", "root", "other"))
    late = tmp_path / "archive" / "dense" / "02.mp4"
    late.rename(tmp_path / "late.mp4")
    before, _ = prepare(root, archive)
    checkpoint = untrained(root, "x3d", whole=0)
    name = backbone.extract_dataset(root, before, checkpoint)
    (tmp_path / "late.mp4").rename(late)
    found, _ = prepare(root, archive)
    data = datasets.freeze(root, "a", found.parts, {"before": before.version}, move=False)
    assert not {part.id for part in data.parts} & {part.id for part in before.parts}
    decoded: list[str] = []
    monkeypatch.setattr(
        backbone, "decode", lambda part, row, *how: decoded.append(row["path"]) or decode(part, row, *how)
    )
    backbone.extract_dataset(root, data, checkpoint)
    assert set(decoded) == {"dense/02.mp4"} and len(decoded) == 2
    for part in data.parts:
        anew = backbone.extract_part(part, root=other, checkpoint=checkpoint.url)
        assert anew.decoded == part.samples
        assert columns.read(root, "features", name, part).equals(columns.read(other, "features", name, part))
