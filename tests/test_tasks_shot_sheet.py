"""Who splits an archive at its shots finds a picture of them beside the other figures."""

import numpy as np
import pytest
from matplotlib.image import imread

from tasks import figures, shard, shot_sheet
from tasks.shot_sheet import draw
from tests.films import moving, write
from tests.preparing import prepare
from tests.rendered_cuts import FPS, cuts

SPAN = 1.0


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A root of a film with five cuts and one without, prepared with ``--splitting content``, and the cuts' times."""
    folder = tmp_path_factory.mktemp("sheet")
    made = cuts(4501)
    frames, truth = made.done().repeat(2, 1).repeat(2, 2), made.truth  # x264 wants even sides
    write(list(frames), folder / "archive" / "cuts.mp4", fps=int(FPS))
    write(moving(4502, 20), folder / "archive" / "none.mp4")
    recipe = shard.recipe(SPAN, 64, "content", "exact")
    dataset, _ = prepare(str(folder / "root"), str(folder / "archive"), recipe=recipe)
    return str(folder / "root"), dataset, [begin / FPS for begin, _ in truth], frames


def test_the_sheet_shows_the_shots_of_the_source_with_most(cut, tmp_path, monkeypatch):
    _, dataset, truth, film_ = cut
    asked, real = [], figures.shots_sheet
    monkeypatch.setattr(figures, "shots_sheet", lambda *given: asked.append(given) or real(*given))
    assert draw(dataset, SPAN, tmp_path / "sheet.png") == "cuts.mp4"
    ((frames, times, bounds, _),) = asked
    assert bounds == pytest.approx(truth, abs=2 / FPS), "and not where a span ends in a shot"
    for picture, at in list(zip(frames, times - times[0], strict=True))[::5]:
        shown = np.asarray(film_[round(at * FPS)], float).mean((0, 1))
        assert picture.mean((0, 1)) == pytest.approx(shown, abs=12), at
    assert imread(tmp_path / "sheet.png").ndim == 3


def test_it_is_published_once_and_by_the_version_of_the_dataset(cut, monkeypatch, capsys):
    root, dataset, *_ = cut
    url = shot_sheet.shot_sheet.fn(root, dataset, SPAN)
    assert url.endswith(f"figures/a/shots-{dataset.version}.png") and "cuts.mp4" in capsys.readouterr().out
    monkeypatch.setattr(shot_sheet, "draw", None)
    assert shot_sheet.shot_sheet.fn(root, dataset, SPAN) == url


def test_a_clip_that_begins_where_a_span_ends_begins_no_shot():
    clips = [(None, {"start": start}) for start in (0.0, 2.0, 3.0, 5.0, 7.04)]
    assert shot_sheet._shots(clips, 2.0) == [3.0]
