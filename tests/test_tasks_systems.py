"""Every system from committed parts to a measured checkpoint: it learns, it resumes, it says what it lacks."""

import statistics
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import models
from models.ensemble import mean_logit
from storage import checkpoints, columns, files, parts
from storage.errors import InputError
from tasks import backbone, checks, ensemble, evaluate, footprint, label, predict, scorer, train_rank
from tasks.training import finetune, loader, pretrain, samples, two_stages, videos, views  # fmt: skip
from tasks.training.recipe import recipe
from tasks.training.train import run_name
from tests import lamps
from tests.preparing import prepare

CHEAP = {"pretrain_steps": 10, "whole": 48, "batch": 6, "pretrain_batch": 6, "pixels": 16}
STEPS = {"x3d": 20, "coarse_fine": 10, "fine_fine": 14, "slowfast_det": 12, "super_events": 80, "tgm": 80, "pdan": 80}


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    """A prepared root of coloured lamps, and the trainings so far by name: finished ones are found again."""
    folder = tmp_path_factory.mktemp("lamps")
    lamps.render(folder)
    root = str(folder / "root")
    dataset, _ = prepare(root, str(folder / "archive"), str(folder / "labels.csv"))
    label.label_dataset(root, dataset)
    torch.set_num_threads(1)  # more of them wait for each other on a busy machine
    return SimpleNamespace(root=root, dataset=dataset, losses={})


@pytest.fixture(autouse=True)
def here(lit, monkeypatch):
    """Trains in this process, and follows no run; returns the losses by the run's title, also of one found again."""
    losses: dict[str, list[float]] = {}
    train_step = train_rank.train_step
    monkeypatch.setattr(train_rank, "_say", lambda rank, report: None)

    def fit(spec, title):
        name = run_name(spec, title)
        losses[title] = lit.losses.setdefault(name, [])

        def step(*given):
            losses[title].append(train_step(*given))
            return losses[title][-1]

        monkeypatch.setattr(train_rank, "train_step", step)
        found = checkpoints.find(spec.root, name)
        if not (found and found.final):
            train_rank.run(spec, name)
        return checkpoints.find(spec.root, name)

    def tracked(root, spec, title, dataset, recipe, parent, **tags):
        return {"checkpoint": fit(spec, title), "run": "", "curve": [], "seconds": 0.0, "tags": tags}

    monkeypatch.setattr(pretrain, "tracked_fit", tracked)
    monkeypatch.setattr(finetune, "tracked_fit", tracked)
    monkeypatch.setattr(two_stages, "tracked_fit", tracked)
    return losses


def tuned(lit, system, **given):
    """The fine-tuned checkpoint of a system, pretrained where it can be."""
    chosen = recipe(system=system, finetune_steps=STEPS[system], **{**CHEAP, **given})
    first = None
    if chosen.inputs != "features":
        first = pretrain.pretrain.fn(lit.root, lit.dataset, "detection", chosen, "")
    return finetune.finetune.fn(lit.root, lit.dataset, first, "detection", chosen, "")["checkpoint"]


def untrained(lit, checkpoint):
    spec = replace(train_rank.Spec(**checkpoint.about["spec"]), start=None, starts={}, seed=7)
    weights = train_rank.build(spec).state_dict()
    return checkpoints.save(lit.root, f"untrained-{spec.system}", 1, weights, {}, train_rank._about(spec), True)


def held_out_map(lit, checkpoint):
    return evaluate.evaluate_checkpoint(lit.root, lit.dataset, checkpoint, "held out").metrics["every_frame_map"]


@pytest.fixture(scope="module")
def column(lit):
    """The features of the X3D that the first test trains."""
    return {}


def features_of(lit, column):
    if not column:
        column["version"] = backbone.extract_dataset(lit.root, lit.dataset, tuned(lit, "x3d"))
    return column["version"]


ALIKE = ("fine_fine", "slowfast_det")  # as coarse_fine, but for what is between the streams


@pytest.mark.parametrize("system", [pytest.param(s, marks=[pytest.mark.long] * (s in ALIKE)) for s in STEPS])
def test_a_system_learns(lit, here, column, system):
    more = {"features": features_of(lit, column)} if models.inputs(system) == "features" else {}
    checkpoint = tuned(lit, system, **more)
    losses = here["finetune-detection"]
    assert statistics.mean(losses[-3:]) < 0.75 * here.get("coarse-detection", losses)[0]
    assert held_out_map(lit, checkpoint) > held_out_map(lit, untrained(lit, checkpoint)) + 0.15


def test_a_two_stream_training_resumes_where_it_was(lit, monkeypatch):
    chosen = recipe(system="coarse_fine", finetune_steps=4, **CHEAP)
    spec = replace(finetune.spec_for(lit.root, lit.dataset, None, chosen), checkpoint_every=2)
    train_rank.run(spec, "whole")
    step = train_rank.train_step

    def dies(*given):
        if given[4] == 3:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(train_rank, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train_rank.run(spec, "broken")
    assert checkpoints.find(lit.root, "broken").step == 2
    monkeypatch.setattr(train_rank, "train_step", step)
    train_rank.run(spec, "broken")
    one, other = (checkpoints.load_weights(checkpoints.find(lit.root, name).url) for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_second_stage_starts_from_the_first(lit):
    chosen = recipe(system="coarse_fine", finetune_steps=1, **CHEAP)
    joint = finetune.spec_for(lit.root, lit.dataset, None, chosen)
    apart = two_stages.streams(joint, None)
    assert (apart["coarse"].whole, apart["fine"].system, apart["fine"].frames) == (0, "x3d", 16)
    made = {}
    for stream, spec in apart.items():
        weights = {name: torch.full_like(t, 2.0 + (stream == "fine")) for name, t in
                   train_rank.build(spec).state_dict().items()}  # fmt: skip
        made[stream] = checkpoints.save(lit.root, f"all-{stream}", 1, weights, {}, train_rank._about(spec), True)
    spec = two_stages.together(joint, made, chosen)
    weights = train_rank.build(spec).state_dict()
    for name, tensor in weights.items():
        known = {"coarse": 2.0, "grid": 2.0, "fine": 3.0}.get(name.split(".")[0])
        assert known is None or bool((tensor == known).all()), name
    groups = train_rank.optimiser(train_rank.build(spec), spec).param_groups
    assert [group["times"] for group in groups] == [1.0, 10.0]
    fusion = sum(p.numel() for n, p in train_rank.build(spec).named_parameters() if n.startswith("fusion."))
    assert sum(p.numel() for p in groups[1]["params"]) == fusion


def test_frames_that_pooling_does_not_divide_are_refused():
    with pytest.raises(InputError, match="--frames 18: coarse_fine keeps one of 4 frames"):
        recipe(system="coarse_fine", frames=18, **CHEAP)


def test_a_missing_feature_column_says_what_makes_it(lit):
    with pytest.raises(InputError, match="no features nope for all 2 parts.*make them with `reelmill features`"):
        checks.retrain(root=lit.root, dataset="a", pretraining=["none"], system="tgm", features="nope")
    (part, *_) = lit.dataset.parts
    with pytest.raises(InputError, match=r"has no features nope; make them with `reelmill features`"):
        videos.Features(lit.root, "nope").video([(part, part.rows()[0])])


def test_temporal_heads_touch_no_video(lit, column, monkeypatch):
    version = features_of(lit, column)
    monkeypatch.setattr(loader, "mine", lambda: pytest.fail("a video is decoded"))
    checkpoint = tuned(lit, "super_events", features=version)
    held = evaluate.held_out(lit.dataset)
    for part in held:
        files.remove(columns.url(lit.root, predict.COLUMN, predict.version(checkpoint), part.id))
    name, done = predict.predict_parts(lit.root, held, checkpoint)
    assert done.decoded == 0 and done.items == sum(part.samples for part in held)
    for part in held:
        for row, (_, times, scores) in zip(part.rows(), predict.read_predictions(lit.root, name, part), strict=True):
            assert len(times) == len(scores) == row["frames"] and times[0] == pytest.approx(row["start"])


@pytest.mark.parametrize("system", ["coarse_fine", "super_events"])
def test_a_video_that_lies_in_several_parts_is_seen_whole(lit, column, tmp_path, system):
    more = {"features": features_of(lit, column)} if system == "super_events" else {}
    checkpoint = tuned(lit, system, **more)
    (part, *_) = evaluate.held_out(lit.dataset)
    halves = []
    for number, wanted in enumerate((lambda i: i % 2 == 0, lambda i: i % 2)):
        clips = [pair for i, pair in enumerate(part.clips()) if wanted(i)]
        media = [tmp_path / f"{number}-{i}.mp4" for i in range(len(clips))]
        for path, (_, data) in zip(media, clips, strict=True):
            path.write_bytes(data)
        half = parts.commit(lit.root, f"half{number}", [row for row, _ in clips], media, tmp_path)
        if system == "super_events":
            table = columns.read(lit.root, "features", more["features"], part)
            chosen = [i for i in range(part.samples) if wanted(i)]
            columns.write(lit.root, "features", more["features"], half, table.take(chosen), {})
        halves.append(half)
    others = videos.beside(halves)
    assert {key: [p.id for p in found] for key, found in others.items()} == {"half0": ["half1"], "half1": ["half0"]}

    def scored(one, beside=()):
        return list(views.scored(lit.root, videos.Neighbours(one, tuple(beside)), one.rows(), checkpoint))

    together, alone = scored(part), scored(halves[0])
    apart = [row for half in halves for row in scored(half, others[half.id])]
    by_key = {key: scores for key, _, scores in apart}
    assert all(np.allclose(scores, by_key[key], atol=2e-3) for key, _, scores in together)
    assert any(not np.allclose(scores, by_key[key], atol=2e-3) for key, _, scores in alone)


def test_an_ensemble_is_a_checkpoint_like_any_other(lit):
    members = [tuned(lit, "x3d"), tuned(lit, "x3d", augmentation="mixup", seed=1)]
    joined = ensemble.join(lit.root, members)
    assert ensemble.join(lit.root, members).url == joined.url
    video = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8)
    each = torch.stack(
        [scorer.answer(scorer.load(m.url), video[None, :16].transpose(1, 2), [0], None) for m in members]
    )
    found = scorer.answer(scorer.load(joined.url), video[None, :16].transpose(1, 2), [0], None)
    assert torch.allclose(found.sigmoid(), each.sigmoid().mean(0), atol=1e-6)
    assert torch.allclose(found, mean_logit(each)) and not torch.equal(each[0], each[1])
    assert held_out_map(lit, joined) > 0.5
    scorer.load.cache_clear()  # a model that is loaded to be measured may be exported afterwards
    costs = [footprint.footprint(c) for c in (members[0], joined)]
    assert costs[1]["params_m"] == pytest.approx(2 * costs[0]["params_m"])
    assert costs[1]["gmacs"] == pytest.approx(2 * costs[0]["gmacs"])
    assert not any(weight.is_inference() for weight in scorer.load(joined.url).parameters())
    other = replace(members[0], about=members[0].about | {"classes": ["red"]}, digest="x")
    with pytest.raises(InputError, match="know other classes"):
        ensemble.join(lit.root, [members[0], other])


def test_a_whole_video_has_a_place_for_every_clip(lit):
    clips = next(iter(videos.videos(evaluate.held_out(lit.dataset)).values()))
    footage = loader.Footage(8.0, 16)
    frames = torch.cat([footage.clip(*clip).frames for clip in clips])
    full = videos.whole(clips, footage, 64)
    assert len(clips) > 1 and full.step == 1 and torch.equal(full.frames, frames)
    for most in (20, 7):
        some = videos.whole(clips, footage, most)
        assert len(some.frames) <= most and torch.equal(some.frames, frames[:: some.step])
        assert len(some.frames) * some.step >= len(frames)
        for part, row in clips:
            assert torch.equal(frames[some.begins[row["key"]]], footage.clip(part, row).frames[0])


def test_labels_lie_on_the_frames_of_the_source():
    sampled, times = np.arange(10) / 5, np.arange(60) / 30
    at, inside = samples.placed(sampled, times, 2, 4)
    assert inside[0] == pytest.approx(0.4) and inside[-1] == pytest.approx(1.0) and len(at) == 19
    assert np.allclose(at, np.linspace(0, 3, 19), atol=1e-5)
    assert len(samples.placed(sampled, times, 6, 4)[1]) == 60 - 36
