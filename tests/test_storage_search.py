"""The search by digests finds what is there, wherever it lies and however it is packed, and nothing else."""

import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import files, search
from storage.search import Search, as_plain, of_plain, pattern, windows


def noise(seed, size):
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("length", [4, 7, 8, 15, 16, 33, 64])
def test_a_pattern_is_found_at_every_place(length):
    wanted = noise(length, length)
    looked = Search([pattern("bytes", wanted)])
    for place in range(40):
        data = noise(1, place) + wanted + noise(2, 11)
        assert looked.found(data) == looked.patterns, place
        assert not looked.found(data.replace(wanted, wanted[:-1] + bytes([wanted[-1] ^ 1]))), place


def test_the_ends_of_pieces_hide_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "PIECE", 300)
    monkeypatch.setattr(search, "BLOCK", 128)
    wanted = [noise(n, 64) for n in range(3)] + [b"weak/00.mp4"]
    looked = Search([*(pattern("bytes", one) for one in wanted[:3]), pattern("name", wanted[3])])
    for place in range(0, 700, 13):
        data = bytearray(b" " * 1000)
        for number, one in enumerate(wanted):
            at = (place + 200 * number) % (1000 - len(one))
            data[at : at + len(one)] = one
        (tmp_path / "object").write_bytes(data)
        hits = looked.in_object(str(tmp_path / "object"), len(data))
        assert hits == {
            one for one in looked.patterns if any(search._check(w) == one.check and w in data for w in wanted)
        }
        assert len(hits) >= 3


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("weak/00.mp4", True), ('{"path": "weak/00.mp4"}', True), ("weak/00.mp4#t=0,5", True),
        ("see weak/00.mp4.", True),
        ("weak/00.mp4, weak/01.mp4", True), ("other/weak/00.mp4", False), ("weak/00.mp4.bak", False),
        ("weak/00.mp40", False), ("tweak/00.mp4", False), ("weak/00.mp", False), ("weak/00.mp4/x", False),
    ],
)  # fmt: skip
def test_a_name_counts_where_no_longer_name_goes_on(text, there):
    assert bool(Search([pattern("name", b"weak/00.mp4")]).found(text.encode())) is there


def test_compressed_tables_are_searched_by_their_values(tmp_path):
    rows = [{"a": f"dir/{n:04d}.mp4", "b": [{"c": f"name{n}"}], "m": [("k", noise(n, 32))]} for n in range(500)]
    kinds = pa.schema([("a", pa.string()), ("b", pa.list_(pa.struct([("c", pa.string())]))),
                       ("m", pa.map_(pa.string(), pa.binary(32)))])  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=kinds), sink, compression="zstd")
    url = str(tmp_path / "t.parquet")
    files.replace(sink.getvalue(), url)
    wanted = [pattern("name", b"dir/0250.mp4"), pattern("name", b"name251"), pattern("digest", noise(252, 32))]
    strange = [pattern("name", b"ir/0250.mp4"), pattern("name", b"ame251"), pattern("digest", noise(500, 32))]
    assert Search([*wanted, *strange]).in_object(url, len(sink.getvalue())) == set(wanted)


def test_patterns_tell_nothing_and_come_back_from_json():
    name = b"holidays/anna.mp4"
    plain = as_plain([pattern("name", name)])
    assert of_plain(plain) == [pattern("name", name)] and "anna" not in str(plain)


def test_windows_are_spread_and_say_something():
    data = b"\0" * 5000 + noise(1, 5000)
    cut = windows(data, 20)
    assert 8 <= len(cut) <= 11 and all(window in data[4900:] for window in cut)
    assert windows(noise(2, 64), 5) == [noise(2, 64)] and windows(b"short", 5) == []
