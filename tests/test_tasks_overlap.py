"""Videos that are held out now and were trained on before: found by their content, whatever they are called."""

import pytest

from storage import tombstones
from tasks import overlap
from tests import lamps
from tests.preparing import prepare


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """Two versions of a dataset: in the second one a training video is held out, under another name."""
    folder = tmp_path_factory.mktemp("overlap")
    lamps.render(folder, train=3, held_out=2, weak=0)
    root, archive, labels = str(folder / "root"), folder / "archive", folder / "labels.csv"
    first, _ = prepare(root, str(archive), str(labels))
    (archive / "dense" / "01.mp4").rename(archive / "dense" / "07.mp4")
    rows = labels.read_text().splitlines(True)
    labels.write_text(
        "".join(r.replace("01.mp4", "07.mp4").replace("train", "heldout") if "01" in r else r for r in rows)
    )
    second, _ = prepare(root, str(archive), str(labels))
    return root, first, second


def test_a_video_that_changed_sides_is_known_to_who_was_trained_before(swapped):
    root, first, second = swapped
    assert overlap.trained_on(root, second, f"a@{first.version}") == ({"dense/07.mp4"}, "")
    assert overlap.trained_on(root, first, f"a@{second.version}") == (set(), "")


@pytest.mark.parametrize("version", ["", "same"])
def test_of_the_version_itself_nothing_is_read(swapped, version, monkeypatch):
    root, _, second = swapped
    monkeypatch.setattr(overlap, "held_out", lambda _: pytest.fail("read"))
    version = version and f"a@{second.version}"
    assert overlap.trained_on(root, second, version) == (set(), "")


def test_a_version_that_is_gone_is_said(swapped):
    root, _, second = swapped
    assert overlap.trained_on(root, second, "a@0123") == (set(), "the list of a@0123 is gone")


def test_of_a_version_that_a_take_down_has_removed_the_one_that_followed_is_read(swapped):
    root, first, second = swapped
    stone = tombstones.Tombstone(["1" * 48], [], "", "", "", versions={"a@0123": first.version})
    tombstones.write(root, stone)
    assert overlap.trained_on(root, second, "a@0123") == ({"dense/07.mp4"}, "")
    assert overlap.trained_on(root, first, "a@0123") == (set(), "")
