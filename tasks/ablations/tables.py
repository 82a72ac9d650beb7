"""The ablation tables of thesis 001 by their numbers."""

from storage.errors import InputError
from tasks.ablations import chapter_3, chapter_4
from tasks.ablations.rows import Table

TABLES = {table.id: table for table in (*chapter_3.TABLES, *chapter_4.TABLES)}


def tables_of(ids: list[str]) -> list[Table]:
    """The tables of some numbers, each once; raises `InputError`, which lists what there is, for others."""
    if not ids or (strangers := [one for one in ids if one not in TABLES]):
        raise InputError(f"--table {','.join(strangers if ids else [])}: there are {described()}")
    return [TABLES[one] for one in dict.fromkeys(ids)]


def described() -> str:
    """All tables with their titles, on one line."""
    return "; ".join(f"{table.id} {table.title}" for table in TABLES.values())
