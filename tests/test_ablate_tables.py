"""The ablation tables: the thesis's figures as printed, networks that can be built, and what is said of an order."""

import math

import numpy as np
import pytest
import torch

import models
from storage.errors import InputError
from storage.media import synthetic
from tasks.ablations.results import as_csv, command, markdown
from tasks.ablations.rows import MAP, PRETRAININGS, Claim, Network, Row, Table, above, coarse, fused
from tasks.ablations.runs import BUDGETS, budget_of, chosen_seeds, planned, recipe, trainings
from tasks.ablations.tables import TABLES, tables_of
from tasks.ablations.verdict import findings, gains, order

PRINTED = {  # thesis 001, row by row; of 4.4e cell by cell
    "3.3a": "21.84 22.50 22.65",
    "3.3c": "20.59 21.84 21.42 22.65",
    "3.3d": "11.88 18.12 15.56 18.16",
    "3.3e": "16.21 16.64 17.49 18.12",
    "3.3f": "20.61 20.82 22.79 23.24",
    "3.4": "18.12 15.28 15.89",
    "4.2a": "17.28 18.79 19.18 18.99 19.11 20.50",
    "4.2b": "17.49 18.60 18.13 18.85 17.28 18.99 20.31 21.22 23.29 22.83 23.57 24.29 24.61",
    "4.4a": "17.28 18.79 18.83",
    "4.4b": "17.28 18.86 19.18 19.24",
    "4.4c": "17.28 18.89 18.99",
    "4.4e": "8.63 18.72 17.34 16.18 -0.14 +1.85 +1.41 +1.49 +1.30 +2.06 +1.87 +1.94 +1.16 +1.86 +1.68 +1.85",
    "4.5a": "17.28 +0.85 +0.21 18.79 -0.27 -0.27 19.18 +0.12 -0.01 18.99 -0.14 -0.39",
    "4.5b": "22.80 +0.68 +0.49 22.84 +0.14 -0.01",
}
GFLOPS = {
    "3.3a": "77.15 81.80 94.80",
    "3.3c": "75.98 77.15 92.69 94.80",
    "3.3d": "10.43 16.53 20.63 32.82",
    "3.3e": "15.42 15.42 15.42 16.53",
    "3.3f": "54.31 55.42 72.16 73.37",
}


def test_every_table_is_there():
    assert set(TABLES) == set(PRINTED)


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_figures_are_those_of_the_thesis(table):
    assert " ".join(text for row in table.rows for text in row.thesis.values()) == PRINTED[table.id]
    assert " ".join(row.gflops for row in table.rows if row.gflops) == GFLOPS.get(table.id, "")


def test_relative_figures_are_made_absolute():
    assert TABLES["4.5a"].figure("Coarse (cls.)") == 18.13  # which Table 4.2b prints
    assert TABLES["4.5a"].figure("Slow (VC)") == TABLES["4.2b"].figure("Slow (VC)") == 18.60
    assert TABLES["4.4e"].figure("Volume Freeze", f"{MAP}_single") == 8.49


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_claim_is_one_of_the_thesis(table):
    names = {row.name for row in table.rows}
    assert table.base in names and len(names) == len(table.rows) and table.claims
    for claim in table.claims:
        assert {*claim.plus, *claim.minus} <= names and table.claimed(claim) > 0, claim
    assert len(set(table.claims)) == len(table.claims)


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_network_can_be_built_and_trained_on_its_clips(table):
    for training in planned(table):
        network, chosen = training.network, recipe(training.network, table.style, BUDGETS["default"], 0)
        assert network.pretraining in PRETRAININGS and (network.fine is None or network.fine in PRETRAININGS)
        with torch.device("meta"):
            built = models.build(network.system, size="TINY", num_classes=8, **network.options)
        assert chosen.frames % getattr(built.config, "ratio", 1) == 0
        assert network.auxiliary == "none" or built.config.pooling == "grid"


def test_each_style_has_its_steps_and_two_streams_theirs():
    size = BUDGETS["default"]
    made = {style: recipe(coarse(), style, size, 0) for style in ("dense", "sparse", "brief")}
    assert {style: one.finetune_steps for style, one in made.items()} == {"dense": 200, "sparse": 300, "brief": 900}
    assert made["sparse"].finetune_lr == made["brief"].finetune_lr == size.stream_lr != made["dense"].finetune_lr
    for style in made:
        assert recipe(fused("coarse_fine"), style, size, 0).finetune_steps == size.joint_steps


def test_a_network_of_two_streams_starts_from_two():
    network = fused("coarse_fine", "cutmix", "classification", sigma=1 / 32)
    pretrained = {"pretrain-cutmix", "pretrain-classification"}
    made = trainings(network)
    assert pretrained == {one.key for one in made if one.stage == "pretrain"}
    by_key = {one.key: one for one in made}
    streams = [by_key[key] for key in made[-1].after]
    assert [one.network.system for one in streams] == ["coarse_fine", "x3d"]
    assert [one.after for one in streams] == [("pretrain-cutmix",), ("pretrain-classification",)]
    alone = trainings(coarse(pretraining="cutmix"))[-1]
    assert streams[0] == alone  # the Coarse rows of other tables, whatever the fusion


def test_tables_share_their_trainings():
    keys = [{one.key for one in planned(TABLES[name])} for name in ("4.2a", "4.4a", "4.4c", "4.4e")]
    assert all(keys[0] & other for other in keys[1:]) and keys[3] < keys[0]
    assert len(planned(TABLES["4.2a"])) == 10  # five pretrainings and five fine-tunings; the ensemble has none


def test_streams_come_before_what_is_made_of_them():
    for table in TABLES.values():
        done = set()
        for one in planned(table):
            assert set(one.after) <= done, one
            done.add(one.key)


def test_few_task_runs():
    for table in TABLES.values():
        assert 3 * (1 + len(planned(table)) + len(table.rows)) < 200, table.id


def test_an_unknown_table_lists_what_there_is():
    with pytest.raises(InputError, match=r"--table 9\.9: there are .*4\.2a Volume augmentations"):
        tables_of(["4.2a", "9.9"])
    with pytest.raises(InputError, match="there are"):
        tables_of([])
    assert [table.id for table in tables_of(["3.3e", "4.2a", "3.3e"])] == ["3.3e", "4.2a"]


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_seeds_that_repeat_are_refused(seeds):
    with pytest.raises(InputError, match="--seeds"):
        chosen_seeds(seeds)


def _table(claims, **figures):
    rows = tuple(Row(name, (Network(),), {MAP: text}) for name, text in figures.items())
    return Table("0", "by hand", "dense", "a", rows, claims, "")


def _scores(**values):
    costs = {"gmacs": 1.0, "params_m": 2.0, "latency_ms": 3.0, "peak_memory_mb": 4.0}
    return {name: {seed: {MAP: v, **costs} for seed, v in enumerate(of_seed)} for name, of_seed in values.items()}


HAND = _table((*above("b", "a"), *above("c", "b")), a="10.00", b="11.50", c="12.00")
SCORES = _scores(a=[0.5, 0.6], b=[0.7, 0.5], c=[0.6, 0.4])


def test_differences_are_paired_by_seed():
    spread = gains(SCORES, "b", "a")
    assert spread.values == pytest.approx((20, -10)) and spread.mean == pytest.approx(5)
    assert spread.sd == pytest.approx(30 / math.sqrt(2))


def test_claims_by_hand():
    first, second = findings(HAND, SCORES)
    assert (first.thesis, first.agrees, first.holds) == (1.5, 1, True)
    assert (second.thesis, second.agrees, second.holds) == (0.5, 0, False)
    assert second.ours.mean == pytest.approx(-10)


def test_the_order_by_hand():
    # Means 55, 60, 50 against 1, 2, 3: one pair of three agrees. Seed 0: 50, 70, 60, two of three; seed 1: none.
    tau, by_seed = order(HAND, SCORES)
    assert tau == pytest.approx(-1 / 3) and by_seed == pytest.approx([1 / 3, -1])


def test_a_claim_about_gains_by_hand():
    claim = Claim(("b", "a"), ("a", "c"))  # b - a > c - a
    (found,) = findings(_table((claim,), a="10.00", b="11.50", c="11.00"), SCORES)
    assert found.thesis == 0.5 and found.ours.values == pytest.approx((10, 10))


def test_a_claim_about_kinds_takes_each_half_of_its_own():
    claim = Claim(("b", "a"), ("a", "b"), "one", "other")
    assert list(claim.terms()) == [(1, "b", "one"), (1, "a", "other"), (-1, "a", "one"), (-1, "b", "other")]


def test_the_table_says_it_all():
    text = markdown(HAND, SCORES, "reelmill ablate --table 0")
    assert "| b | 60.0 ± 14.1 | +5.0 ± 21.2 | 11.50 | +1.50 | 3 | 4 | 1 | 2 |" in text
    assert "| c > b | +0.50 | -10.0 ± 0.0 | 0 of 2 | no |" in text
    assert "holds on average over 2 seeds in 1 of 2 comparisons" in text and "-0.33 of the means" in text
    lines = as_csv(HAND, SCORES).splitlines()
    assert lines[1].startswith("0,a,every_frame_map,10.00,55.000,7.071,50.000,60.000")


def test_of_one_seed_there_is_no_deviation():
    assert "±" not in markdown(HAND, _scores(a=[0.1], b=[0.2], c=[0.3]), "")


def test_the_command_is_named():
    changed = budget_of("quick", weak=9, dense=None)
    assert command(HAND, changed, "quick", [3, 4]) == "reelmill ablate --table 0 --seeds 3,4 --budget quick --weak 9"
    assert command(HAND, BUDGETS["default"], "default", [0]) == "reelmill ablate --table 0 --seeds 0"


def test_in_a_sparse_video_little_happens_for_a_short_time():
    scenes = [synthetic.staged(script) for script in synthetic.scripts(0, 0, 0, sparse=20)]
    segments = [segment for scene in scenes for segment in scene.segments()]
    shares = [np.zeros(scene.frames, bool) for scene in scenes]
    for share, scene in zip(shares, scenes, strict=True):
        for segment in scene.segments():
            share[round(segment.start * scene.fps) : round(segment.end * scene.fps)] = True
    assert 0.2 < np.concatenate(shares).mean() < 0.5 and max(s.end - s.start for s in segments) < 1.5
    assert {script.split for script in synthetic.scripts(0, 0, 0, sparse=20)} == {"train", "heldout"}
