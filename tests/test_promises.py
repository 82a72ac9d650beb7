"""docs/reliability.md names a test for each promise and each fault, and each of these tests is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    line
    for line in (ROOT / "docs" / "reliability.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| promise |", "| fault |"))
]


@cache
def names_of_tests() -> set[str]:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").glob("test_*.py")]
    return {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_a_row_names_tests_that_are_there(row):
    named = re.findall(r"`(test_\w+)`", row.rstrip("| ").rpartition("|")[2])
    assert named and set(named) <= names_of_tests()


def test_there_are_rows():
    assert len(ROWS) > 40 and "test_no_such_thing" not in names_of_tests()
