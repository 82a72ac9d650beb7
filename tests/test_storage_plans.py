"""Plans: every unit in one part, parts as large as asked, and one change touches one part."""

import numpy as np
import pytest

from storage import plans
from storage.labels import Labels
from storage.plans import Limits, Member, part_id, pieces
from storage.sources import Source


def _places(seed, count=600):
    return np.sort(np.random.default_rng(seed).integers(0, 1 << 63, count, dtype=np.uint64) * np.uint64(2))


def _runs(places, units=24, loads=None, limits=None):
    loads = np.ones((len(places), 3)) if loads is None else loads
    return [tuple(places[a:b].tolist()) for a, b in pieces(places, loads, limits or Limits(units=units))]


@pytest.mark.parametrize("units", [1, 6, 24, 96, 10_000])
def test_runs_partition_the_units_and_are_within_the_limit(units):
    places = _places(0)
    runs = _runs(places, units)
    assert [place for run in runs for place in run] == places.tolist()
    assert max(map(len, runs)) <= units and len(runs) <= 1 + 4 * 600 / units


def test_units_of_one_place_are_never_divided():
    assert _runs(np.zeros(50, np.uint64), 4) == [tuple([0] * 50)]


@pytest.mark.parametrize("column, name", [(1, "bytes"), (2, "seconds")])
def test_bytes_and_seconds_bound_a_run_too(column, name):
    places, loads = _places(1), np.ones((600, 3))
    loads[:, column] = np.random.default_rng(2).uniform(1, 100, 600)
    limits = Limits(**{"units": 600, "bytes": 10**9, "seconds": 1e9} | {name: 300})
    begun = 0
    for run in _runs(places, loads=loads, limits=limits):
        assert len(run) == 1 or loads[begun : begun + len(run), column].sum() <= 300
        begun += len(run)


@pytest.mark.parametrize("seed", range(40))
def test_one_unit_more_or_less_changes_its_run_alone(seed):
    places = _places(seed, 200)
    extra = np.sort(np.append(places, _places(1000 + seed, 1)))
    without, with_ = set(_runs(places, 24)), set(_runs(extra, 24))
    # A run grows, or splits; the other way round, it shrinks, or joins its other half.
    assert len(without - with_) <= 1 and 1 <= len(with_ - without) <= 3


def _member(path="a.mp4", labels=None, split="train", place="/archive", metadata="{}", **more):
    source = Source(path, f"{place}/{path}", 1, "1", metadata=metadata)
    return Member(source, "i" * 32, split, labels, **more)


def test_a_parts_id_follows_from_its_members_and_the_recipe_and_not_from_place_or_order():
    recipe, plain = {"span": 10.0}, _member()
    one = part_id(recipe, [plain.facts(), _member(start=600.0).facts()])
    assert one == part_id(recipe, [_member(start=600.0).facts(), _member("b.mp4", place="s3://b").facts()])
    for other in (
        _member(labels=Labels(((None, None, "x"),))),
        _member(split="heldout"),
        _member(metadata='{"city": "x"}'),
        _member(end=600.0),
    ):
        assert part_id(recipe, [other.facts()]) != part_id(recipe, [plain.facts()])
    assert part_id({"span": 5.0}, [plain.facts()]) != part_id(recipe, [plain.facts()])


def test_windows_of_one_source_lie_together_and_are_named():
    assert _member().name == "a.mp4" and _member(start=600.0, end=1200.0).name == "a.mp4#t=600,1200"
    assert _member(start=1200.0).name == "a.mp4#t=1200," and not _member(start=1200.0).whole
    assert plans.place("a.mp4") < 1 << 40
