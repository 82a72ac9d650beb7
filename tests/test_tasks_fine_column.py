"""Two streams trained together on a column of the Fine stream's maps: it says what the video says, and is frozen."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flows.retrain import retrain
from storage import checkpoints, columns, parts
from storage.errors import Damaged, InputError
from tasks import columns as of_columns
from tasks import evaluate, scorer, train_rank, verify
from tasks.training import batches, fine_maps, finetune, loader, samples, two_stages, videos, views  # fmt: skip
from tasks.training.recipe import recipe
from tasks.training.train import run_name
from tests import lamps
from tests.preparing import prepare

# Maps of 32 pixels have 8 cells to 1, so 7 are others; of 48 frames every second one is seen.
CHEAP = {"finetune_steps": 2, "whole": 25, "batch": 4, "pixels": 32, "fine_features": True}


@pytest.fixture(scope="module")
def lit(tmp_path_factory):
    """A root of lamps, and what `finetune` returned of Coarse-Fine on a column, trained in this process."""
    folder = tmp_path_factory.mktemp("fine")
    lamps.render(folder, train=4, held_out=2, weak=1)
    root = str(folder / "root")
    dataset, _ = prepare(root, str(folder / "archive"), str(folder / "labels.csv"))
    torch.set_num_threads(1)  # more of them wait for each other on a busy machine
    stages = []

    def fit(root, spec, title, dataset, recipe, parent, **tags):
        stages.append((title, tags))
        name = run_name(spec, title)
        train_rank.run(spec, name)
        return {"checkpoint": checkpoints.find(root, name), "run": "", "curve": [], "seconds": 1.0}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_stages, "tracked_fit", fit)
        patch.setattr(train_rank, "_say", lambda rank, report: None)
        made = finetune.finetune.fn(root, dataset, None, "none", recipe(system="coarse_fine", **CHEAP), "")
    checkpoint = made["checkpoint"]
    spec = train_rank.Spec(**checkpoint.about["spec"])
    return SimpleNamespace(root=root, dataset=dataset, checkpoint=checkpoint, spec=spec, stages=stages, made=made)


def all_videos(lit):
    return list(videos.videos([p for p in lit.dataset.parts if p.labelled == "segments"]).values())


def seen(lit, clips):
    return videos.whole(clips, loader.Footage(lit.spec.fps, lit.spec.size), lit.spec.whole)


def halves(lit, folder):
    """The held-out part as two, each with a clip of either video."""
    (part,) = evaluate.held_out(lit.dataset)
    made = []
    for number in range(2):
        clips = list(part.clips())[number::2]
        media = [folder / f"{number}-{i}.mp4" for i in range(len(clips))]
        for path, (_, data) in zip(media, clips, strict=True):
            path.write_bytes(data)
        made.append(parts.commit(lit.root, f"fine{number}", [row for row, _ in clips], media, folder))
    return made


def test_the_column_is_what_the_network_extracts(lit):
    model, maps = scorer.load(lit.checkpoint.url), videos.FineMaps(lit.root, lit.spec.fine, 7)
    assert lit.spec.options["cells"] == model.config.cells == 7
    found = all_videos(lit)
    assert len(found) == 6 and all(len(clips) == 2 for clips in found)
    for clips in found:
        whole, column = seen(lit, clips), maps.video(clips)
        with torch.inference_mode():
            wanted = model.extract(scorer.pixels(whole.frames.transpose(0, 1)[None], model), 7)[0].transpose(0, 1)
        assert column.frames.shape == (24, 16 + 32 + 32 + 64 + 64, 7, 7) and torch.equal(column.frames, wanted.half())
        assert (column.step, column.begins) == (whole.step, whole.begins) and column.step == 2
        assert [len(maps._part(part)[row["key"]].maps) for part, row in clips] == [12, 12], "each with its own frames"
    for part in lit.dataset.parts:
        assert columns.has(lit.root, "fine", lit.spec.fine, part.id) == (part.labelled == "segments")
    assert len({float(maps.video(clips).frames.float().mean()) for clips in found}) == 6


def test_the_stages_follow_each_other_and_the_second_says_what_is_frozen(lit):
    assert [title for title, _ in lit.stages] == ["coarse-none", "fine-none", "finetune-none"]
    assert lit.stages[-1][1] == {"stage": "2", "fine_stream": f"frozen, its maps from column fine {lit.spec.fine}"}
    assert lit.made["seconds"] == 3.0
    first, last = checkpoints.load_weights(lit.spec.starts["fine"]), checkpoints.load_weights(lit.checkpoint.url)
    assert all(torch.equal(tensor, last[f"fine.{name}"]) for name, tensor in first.items())
    coarse = checkpoints.load_weights(lit.spec.starts["coarse"])
    assert not torch.equal(coarse["coarse.res2.0.residual.expand.weight"], last["coarse.res2.0.residual.expand.weight"])
    model = train_rank.build(lit.spec)
    trained = {id(p) for group in train_rank.optimiser(model, lit.spec).param_groups for p in group["params"]}
    known = {name: id(p) in trained for name, p in model.named_parameters()}
    assert all(is_trained != name.startswith("fine.") for name, is_trained in known.items()) and len(known) > 100


def drawn(spec):
    made = batches.Batches(samples.samples_of(spec), lambda step: batches.Shape(4, 16, 32, 4 * step), 0)
    (batch,) = made.from_step(0, 1)
    return batch


def test_a_step_on_the_column_is_one_on_the_video_with_the_stream_frozen(lit, monkeypatch):
    decoded, decode = [], loader.decode
    monkeypatch.setattr(loader, "decode", lambda part, row, *how: decoded.append(row["key"]) or decode(part, row, *how))
    column = drawn(lit.spec)
    assert len(decoded) == len(set(decoded)) <= 4  # the clips themselves
    video = drawn(replace(lit.spec, fine=None))
    assert column.inputs["fine"].shape == (4, 208, 24, 7, 7) and "whole" not in column.inputs
    for name in ("start", "step", "valid"):
        assert torch.equal(column.inputs[name], video.inputs[name])
    losses, weights = [], []
    for batch in (column, video):
        model = train_rank.build(lit.spec).train()
        model.fine.eval()
        optimizer = train_rank.optimiser(model, lit.spec)
        for step in range(2):
            losses.append(train_rank.train_step(model, optimizer, batch.seen, batch.labels, step, lit.spec, 0, batch))
        weights.append(model.state_dict())
    assert losses[:2] == pytest.approx(losses[2:], rel=2e-3) and losses[0] != pytest.approx(losses[1], rel=2e-3)
    before = train_rank.build(lit.spec).state_dict()
    assert all(torch.equal(weights[0][name], x) for name, x in before.items() if name.startswith("fine."))
    assert not torch.equal(weights[0]["fusion.mixes.res3.shift.weight"], before["fusion.mixes.res3.shift.weight"])


def test_maps_of_a_shorter_video_are_padded_and_not_seen():
    def sample(F, start):
        maps = torch.full((208, F, 7, 7), 2.0).half()
        seen = torch.zeros(3, 4, 32, 32, dtype=torch.uint8)
        return loader.Sample(seen, torch.zeros(4, 1), torch.arange(4.0), maps, start, 2)

    inputs = batches.collate([sample(6, 4), sample(3, 0)]).inputs
    assert inputs["valid"].tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert bool((inputs["fine"][0] == 2).all()) and not inputs["fine"][1, :, 3:].any()
    assert inputs["fine"].dtype == torch.float16 and inputs["start"].tolist() == [4, 0]
    assert batches.collate([sample(3, 4)]).inputs["valid"].tolist() == [[True] * 3 + [False]]  # a clip played again


def scores(lit, monkeypatch):
    """Scores of the held-out clips, and how often the Fine stream has run for them."""
    (part,) = evaluate.held_out(lit.dataset)
    ran, features = [], type(scorer.load(lit.checkpoint.url).fine).features
    monkeypatch.setattr(
        type(scorer.load(lit.checkpoint.url).fine), "features", lambda *given: ran.append(1) or features(*given)
    )
    unit = videos.Neighbours(part)
    found = {key: scores for key, _, scores in views.scored(lit.root, unit, part.rows(), lit.checkpoint)}
    monkeypatch.undo()
    return found, len(ran)


def test_scores_are_those_of_the_column_where_there_is_one_and_where_there_is_none(lit, monkeypatch):
    from_column, ran = scores(lit, monkeypatch)
    assert ran == 0 and len(from_column) == 4
    monkeypatch.setattr(views, "columned", lambda *_: videos.FineMaps(lit.root, "gone", 7))
    computed, ran = scores(lit, monkeypatch)
    assert ran == 2
    assert all(np.array_equal(from_column[key], computed[key]) for key in computed)
    about = lit.checkpoint.about | {"spec": lit.checkpoint.about["spec"] | {"fine": None}}
    model = scorer.load(lit.checkpoint.url)
    monkeypatch.setattr(model, "config", replace(model.config, cells=0))
    larger = {}
    for clips in videos.videos(evaluate.held_out(lit.dataset)).values():
        wanted, checkpoint = {row["key"] for _, row in clips}, replace(lit.checkpoint, about=about)
        larger |= {key: found for key, _, found in views._seen_in(lit.root, clips[0][0], checkpoint, clips, wanted)}
    gaps = [np.abs(larger[key] - computed[key]).max() for key in computed]
    assert 1e-5 < max(gaps) < 0.2, "maps of their own size are others"


def test_evaluation_and_its_export_know_the_cells(lit):
    found = evaluate.evaluate_checkpoint(lit.root, lit.dataset, lit.checkpoint, "held out")
    assert 0 <= found.metrics["every_frame_map"] <= 1 and found.metrics["gmacs"] > 0
    model, clip = scorer.load(lit.checkpoint.url), torch.randint(0, 256, (1, 3, 16, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        scored = scorer.Scorer(model)(clip)
        maps = model.extract(scorer.pixels(clip, model), 7)
        wanted = model(scorer.pixels(clip, model), fine=maps)["logits"].sigmoid()
        whole = model.fine.features(scorer.pixels(clip, model))
        context = scorer.Context(videos.Whole(clip[0].transpose(0, 1), 1, {})).inputs(model, [0], 16)["fine"]
    assert torch.allclose(scored, wanted, atol=1e-5)
    assert torch.equal(context, maps.half().float()) and whole["res2"].shape[3:] == (8, 8)


def test_few_pixels_have_few_cells_and_a_short_clip_may_have_no_map(lit):
    fine = checkpoints.describe(lit.spec.starts["fine"])
    few = replace(fine, about=fine.about | {"spec": fine.about["spec"] | {"size": 16}})
    assert (fine_maps.cells_of(fine), fine_maps.cells_of(few)) == (7, 4)
    (part,) = evaluate.held_out(lit.dataset)
    found = {key: videos.FinePiece("v", 0, 3, np.ones((F, 5, 2, 2), np.float16)) for key, F in (("a", 0), ("b", 3))}
    table = fine_maps._as_table(part, ["a", "b"], found)
    assert [len(row) for row in table["maps"].to_pylist()] == [0, 3]
    found["b"].maps[1, 0, 0, 0] = np.inf
    with pytest.raises(Damaged, match=f"part {part.id}: the Fine stream's maps are not finite as float16"):
        fine_maps._as_table(part, ["a", "b"], found)


def test_a_video_in_two_parts_is_seen_whole_and_once(lit, tmp_path, monkeypatch):
    pair = halves(lit, tmp_path)
    (part,) = evaluate.held_out(lit.dataset)
    others, fine = videos.beside(pair), checkpoints.describe(lit.spec.starts["fine"])
    name = fine_maps.version(fine, 25, 7, others)
    assert name != lit.spec.fine == fine_maps.version(fine, 25, 7, {})
    assert len({fine_maps.version(fine, *how, {}) for how in ((25, 7), (24, 7), (25, 6))}) == 3
    fine_maps._pieces.cache_clear()  # it may hold one of the videos since the column was made
    ran, made = [], fine_maps.fine_maps
    monkeypatch.setattr(fine_maps, "fine_maps", lambda *given: ran.append(1) or made(*given))
    for half in videos.in_turn(pair, others):
        fine_maps.extract_part(half, root=lit.root, name=name, checkpoint=fine.url, most=25, cells=7)
    assert len(ran) == 2
    together, apart = videos.FineMaps(lit.root, lit.spec.fine, 7), videos.FineMaps(lit.root, name, 7, most=1)
    wholes = videos.videos([part])
    for path, clips in videos.videos(pair).items():
        one, other = together.video(wholes[path]), apart.video(clips)
        assert torch.equal(one.frames, other.frames) and one.begins == other.begins
    assert len(apart._read) == 1, "no more than it may keep"
    (clips, _) = videos.videos(pair).values()
    with pytest.raises(InputError, match=rf"fine {name}: dense/\d+.mp4 had other clips; `reelmill retrain --fine"):
        apart.video(clips[:1])


def test_what_is_missing_is_named(lit, tmp_path):
    (part, *_) = lit.dataset.select(split="train", labelled="segments")
    with pytest.raises(InputError, match=f"part {part.id} has no fine maps nope; `reelmill retrain --fine-features`"):
        drawn(replace(lit.spec, fine="nope"))
    for system in ("x3d", "slowfast_det", "tgm"):
        with pytest.raises(InputError, match=f"--fine-features: {system} has no Fine stream.*coarse_fine, fine_fine"):
            retrain.fn(str(tmp_path), system=system, fine_features=True)


def test_the_column_is_one_like_any_other_and_stays_while_the_champion_takes_it(lit, monkeypatch):
    assert f"| fine | {lit.spec.fine} |" in of_columns.show(lit.root)
    assert verify.verify(lit.root).startswith("nothing is damaged")
    best = SimpleNamespace(checkpoint=lit.checkpoint.url, version="3")
    monkeypatch.setattr(of_columns, "champion", lambda *_: best)
    with pytest.raises(InputError, match="the champion, detector 3, takes it"):
        of_columns.drop(lit.root, "fine", lit.spec.fine)
    best.checkpoint = lit.spec.starts["fine"]
    assert "would remove column fine" in of_columns.drop(lit.root, "fine", lit.spec.fine)
