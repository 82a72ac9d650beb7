"""What `python -m bench` makes of its figures."""

import importlib
import sys

import pytest

from bench import __main__ as bench
from bench.figures import Expected, Figure, expected


@pytest.mark.parametrize(
    ("rule", "value", "shown", "broken"),
    [
        ({"goal": 0.9, "floor": 0.5}, 0.95, "| yes |", False),
        ({"goal": 0.9, "floor": 0.5}, 0.7, "| **no** |", False),
        ({"goal": 0.9, "floor": 0.5}, 0.4, "| **broken** |", True),
        ({"ceiling": 2}, 2.5, "| **broken** |", True),
        ({"exact": 12}, 12, "| 12 | exactly 12 |", False),
        ({"exact": 12}, 13, "| **broken** |", True),
        ({}, 3.0, "|  |  |", False),
    ],
)
def test_a_figure_is_held_against_what_is_expected(rule, value, shown, broken):
    found = Expected(**rule)
    assert shown in found.row(Figure("x", value)) and found.broken(value) is broken


def test_every_expectation_is_of_a_benchmark_that_there_is():
    assert set(expected()) <= {*bench.NAMES, *bench.LONG}
    for name in (*bench.NAMES, *bench.LONG):
        importlib.import_module(f"bench.{name}")


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ([Figure("a", 0.6), Figure("b", 3, unit="")], None),
        ([Figure("a", 0.4), Figure("b", 3, unit="")], "lookup: a"),
        ([Figure("a", 0.6), Figure("b", 4, unit="")], "lookup: b"),
        ([Figure("a", 0.6)], "lookup: b was not measured"),
    ],
)
def test_a_broken_figure_ends_the_bench_with_its_name(monkeypatch, capsys, figures, said):
    rules = {"lookup": {"a": Expected(goal=0.9, floor=0.5), "b": Expected(exact=3)}}
    monkeypatch.setattr(bench, "expected", lambda: rules)
    monkeypatch.setattr("bench.lookup.run", lambda: iter(figures))
    monkeypatch.setattr(sys, "argv", ["bench", "lookup"])
    if said is None:
        bench.main()
        assert "| a | 0.60 × | goal ≥ 0.9, floor 0.5 | **no** |" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit, match=said):
            bench.main()
