"""Every cost that the thesis prints, to its digits, and the counting itself against sums done by hand."""

import csv

import pytest
import torch
from second_x3d import one_thread  # noqa: F401
from torch import nn

from models import cost, published
from models.published import Row, counted
from storage.errors import InputError
from tasks.cost import cost as command

FIGURES = {  # GMACs, and parameters where the thesis prints them
    "X3D-M, 128 frames": ("37.95825", 3296415),
    "X3D-L, 128 frames": ("147.03904", 5655525),
    "Coarse only, striding": ("15.41627", None),
    "Coarse only, Grid Pool": ("16.52930", None),
    "Coarse only, T = 128, alpha = 1/8": ("12.33320", None),
    "Coarse only, T = 128, alpha = 1/16": ("10.43023", None),
    "Coarse only, T = 256, alpha = 1/4": ("32.82363", None),
    "Fine-Fine, late": ("77.15486", None),
    "Fine-Fine, one_to_one": ("81.79714", None),
    "Fine-Fine, late, no mask": ("75.98164", None),
    "Fine-Fine, multi_stage, no mask": ("92.68664", None),
    "Fine-Fine": ("94.80276", 7797277),
    "SlowFast_det": ("54.31565", 7300184),
    "Coarse-Fine, as built": ("60.92723", 7828742),
    "Coarse-Fine, as the thesis adds it up": ("73.37381", None),
    "X3D-M, 16 frames": ("4.74492", None),
    "Pretraining, 300,000 iterations of 64 clips": ("91.10248", None),
    "Pretraining, 100,000 iterations of 64 clips": ("30.36749", None),
}
DIFFER = {
    "X3D-L, 128 frames",
    "Coarse only, T = 128, alpha = 1/8",
    "Coarse only, T = 256, alpha = 1/8",
    "SlowFast_det",
    "SlowFast_det with Grid Pool",
    "SlowFast_det with fusion",
    "Coarse-Fine, as built",
    "Coarse-Fine, as built, 1024 frames",
}


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.what: row for row in published.published()}


def test_every_figure_to_its_digits(rows: dict[str, Row]) -> None:
    for what, (macs, params) in FIGURES.items():
        assert f"{rows[what].ours:.5f}" == macs, what
        assert params is None or round(rows[what].our_params * 1e6) == params, what
    assert {row.what for row in rows.values() if not row.agrees()} == DIFFER
    assert all(row.why for row in rows.values() if not row.agrees())
    built = counted("coarse_fine").parts  # the figure is the sum of what ran, the Fine stream's own head included
    head = 24 * 24 * 27 * (64 * 28**2 + 32 * 14**2) + 24 * 9 * 32 * 7**2
    assert built["fine"] == counted("x3d").conv_macs and built["grid"] == head


def test_the_fusion_by_hand() -> None:
    shapes = {24: 56**2, 48: 28**2, 96: 14**2, 192: 7**2}
    masks = sum((c * c + c) * cells for c, cells in (shapes | {432: 49}).items())
    pairs = sum(4 * c * c * cells for c, cells in shapes.items()) + 2 * (432 * 432 + 432 * 157)
    mixes = sum(2 * 360 * c * cells for c, cells in shapes.items())
    assert counted("coarse_fine").parts["fusion"] == 128 * masks + 33 * (pairs + mixes)
    assert counted("fine_fine", fusion="multi_stage").parts["fusion"] == 128 * (masks + pairs + mixes)
    assert counted("slowfast_det").parts["fusion"] == 32 * pairs


@pytest.mark.parametrize(
    "value, text, agrees",
    [
        (7.8287, "7.82", True),
        (7.8287, "7.83", True),
        (7.8287, "7.84", False),
        (30.3675, "30.36", True),
        (1.0, "", True),
    ],
)
def test_printed_is_cut_or_rounded(value: float, text: str, agrees: bool) -> None:
    assert published.printed(value, text) is agrees


def test_the_tables_hold_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Row("3.2", "A, with a comma", "1.00", 1.5, "2.00", 2.0, "because"),
        Row("4.4d", "B", "3.1", 3.14159, unit="P"),
    ]
    monkeypatch.setattr(published, "published", lambda: iter(made))
    table = command(thesis=True).splitlines()
    assert table[2] == "| 3.2 | A, with a comma | 1.00 | 1.50000 | G | 2.00 | 2.000000 | no | because |"
    assert table[3] == "| 4.4d | B | 3.1 | 3.14159 | P |  |  | yes |  |"
    read = list(csv.reader(command(thesis=True, form="csv").splitlines()))
    assert [f"| {' | '.join(line)} |" for line in read] == [table[0], *table[2:]]


def test_the_command_counts_a_system() -> None:
    said = command("coarse_fine", "TINY", frames=16, pixels=24, classes=8)
    assert "coarse_fine TINY, 16 frames of 24x24, 8 classes" in said
    assert [line.split()[1] for line in said.splitlines()[-4:]] == ["coarse", "grid", "fine", "fusion"]
    with pytest.raises(InputError, match="1/4 does not divide 18 frames"):
        command("coarse_fine", "TINY", frames=18, pixels=24)
    as_csv = list(csv.reader(command("coarse_fine", "TINY", frames=16, pixels=24, classes=8, form="csv").splitlines()))
    lines = [f"| {' | '.join(filter(None, line))} |" for line in as_csv]
    assert lines == [line for line in said.splitlines() if line and "---" not in line and "| part |" not in line]


@pytest.mark.parametrize("system", ["super_events", "tgm", "pdan"])
def test_the_command_counts_what_takes_features(system: str) -> None:
    said = command(system, frames=10)
    assert f"| {system} PAPER, 10 frames of 1024 features, 157 classes |" in said
    once, twice = (
        sum(float(line.split("|")[2]) for line in command(system, "TINY", frames=n, classes=9000).splitlines()[6:])
        for n in (100, 200)
    )
    assert twice == pytest.approx(2 * once, rel=0.02) and once > 0
    with pytest.raises(InputError, match="sizes PAPER, TINY, not 'M'"):
        command(system, "M")


def test_counting_passes_norms_by_and_nothing_else() -> None:
    net = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 5, 2, bias=False))
    got = cost.count(net, (1, 3, 8, 8, 8))
    assert got.conv_macs == 4 * 6**3 * 81 + 5 * 5**3 * 32 and got.params == 4 * 81 + 4 + 8 + 5 * 32
    assert net[1].running_mean.eq(0).all() and torch.overrides._get_current_function_mode() is None
