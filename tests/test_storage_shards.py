"""Tars of others: walked by their headers alone; what lenient readers pass over in silence is named."""

import gzip
import io
import tarfile
import time

import numpy as np
import pytest

from storage import files, shards
from storage.shards import BLOCK, FLAWS, REASONS, Member, Refused, group, walk

SIZES = (700, 30, 1024, 0, 5000, 512)
NAMES = ("a.mp4", "a.json", "sub/b.mp4", "sub/b.json", "c d.mp4", "c d.json")


def _bytes(number, size):
    return np.random.default_rng(number).bytes(size)


def packed(names=NAMES, sizes=SIZES, format=tarfile.PAX_FORMAT, **kinds):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for number, (name, size) in enumerate(zip(names, sizes, strict=False)):
            info = tarfile.TarInfo(name)
            info.type = kinds.get(f"m{number}", tarfile.REGTYPE)
            info.size = size if info.isreg() else 0
            if info.issym() or info.islnk():
                info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(_bytes(number, info.size)))
    return sink.getvalue()


def walked(data, **options):
    return list(walk(io.BytesIO(data), name="x.tar", **options))


def refused(data, **options):
    with pytest.raises(Refused, match="x.tar") as caught:
        walked(data, **options)
    assert caught.value.reason in REASONS | FLAWS
    return caught.value.reason


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_sound_tar_is_walked_as_tarfile_does(format, tmp_path):
    names = (*NAMES, "long/" * 25 + "k" * 60 + ".mp4") + (() if format == tarfile.USTAR_FORMAT else ("n" * 300 + ".é",))
    data = packed(names, (*SIZES, 77, 0), format)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        theirs = [(m.name, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.size) for m in walked(data)] == theirs
    for number, member in enumerate(walked(data)):
        assert data[member.offset : member.offset + member.size] == _bytes(number, member.size)
    (tmp_path / "x.tar").write_bytes(data)
    assert list(walk(str(tmp_path / "x.tar"))) == walked(data)


def test_members_are_skipped_not_read(s3, monkeypatch):
    data = packed(("a.mp4", "a.json", "b.mp4"), (3_000_000, 100, 3_000_000))
    files.replace(data, f"{s3}/skip.tar")
    fetched = []
    read = files.read
    monkeypatch.setattr(files, "read", lambda *a: fetched.append(read(*a)) or fetched[-1])
    assert [m.name for m in walk(f"{s3}/skip.tar")] == ["a.mp4", "a.json", "b.mp4"]
    assert sum(map(len, fetched)) < 5 * shards.CHUNK < len(data) / 10


def test_a_tar_of_gnu_tar_is_walked(tmp_path):
    import subprocess

    (tmp_path / "in" / "d").mkdir(parents=True)
    (tmp_path / "in" / "d" / "x.mp4").write_bytes(b"1" * 999)
    (tmp_path / "in" / "d" / ("y" * 150 + ".mp4")).write_bytes(b"2" * 1)
    subprocess.run(["tar", "cf", str(tmp_path / "x.tar"), "-C", str(tmp_path / "in"), "."], check=True)
    assert sorted((m.name, m.size) for m in walk(str(tmp_path / "x.tar"))) == [
        ("./d/x.mp4", 999),
        ("./d/" + "y" * 150 + ".mp4", 1),
    ]


def test_a_cut_at_any_place_is_refused():
    """At 0, 300 B, member edges, in headers, data, padding and end blocks."""
    data = packed()
    end = max(m.offset + -(-m.size // BLOCK) * BLOCK for m in walked(data))
    edges = {m.offset - BLOCK for m in walked(data)} | {end}
    assert len(data) > end + 2 * BLOCK
    for cut in sorted({*range(0, end + 2 * BLOCK, 97), *edges, *(e + 1 for e in edges), end + 1023}):
        reason = refused(data[:cut])
        assert reason in ("empty", "not_tar", "truncated", "no_end"), (cut, reason)
        assert (cut in edges and cut > 0) <= (reason == "no_end"), (cut, reason)
    assert walked(data[: end + 2 * BLOCK]) == walked(data)


def test_a_tar_without_end_blocks_is_read_only_when_allowed():
    data = packed()
    end = max(m.offset + -(-m.size // BLOCK) * BLOCK for m in walked(data))
    assert walked(data[:end], open_end=True) == walked(data)
    assert refused(data[: end - 1], open_end=True) == "truncated"


def test_every_flipped_bit_of_a_header_field_that_counts_is_seen():
    data = packed()
    header = walked(data)[2].offset - BLOCK
    for at in range(header, header + 345):
        broken = bytearray(data)
        broken[at] ^= 1
        assert refused(bytes(broken)) == "bad_header", at
    assert refused(data[:header] + b"\xff" * BLOCK + data[header + BLOCK :]) == "bad_header"


def test_a_zero_block_in_the_middle_and_a_second_tar_are_told_apart():
    data = packed()
    header = walked(data)[2].offset - BLOCK
    assert refused(data[:header] + bytes(BLOCK) + data[header + BLOCK :]) == "zero_block"
    assert refused(data + packed()) == "concatenated"


def test_what_is_no_tar_says_so():
    assert refused(gzip.compress(packed())) == "compressed"
    assert refused(b"<html><body>404 Not Found</body></html>" * 100) == "not_tar"
    assert refused(b"") == "empty" and refused(bytes(10240)) == "empty"
    with pytest.raises(Refused, match="compressed"):
        list(walk(io.BytesIO(packed()), name="y.tar.gz"))


@pytest.mark.parametrize(
    ("name", "flaw"),
    [
        ("../up.mp4", "unsafe_name"), ("/abs.mp4", "unsafe_name"), ("a/../../b.mp4", "unsafe_name"),
        ("..\\b.mp4", "unsafe_name"), ("C:\\b.mp4", "unsafe_name"), ("k\n.mp4", "bad_name"),
        ("\x1b[2J.mp4", "bad_name"), ("\x9b2J.mp4", "bad_name"), ("a\u2028.mp4", "bad_name"),
        ("a\u202egpj.mp4", "bad_name"), ("a\u2066.mp4", "bad_name"),
        ("x" * 1500 + ".mp4", "bad_name"), ("noext", "no_key"), (".hidden.mp4", "no_key"), ("__m__/k.mp4", "no_key"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_used_is_a_flaw(name, flaw):
    data = packed(("a.mp4", name, "z.mp4"), (10, 20, 30))
    assert refused(data) == flaw
    assert [m.flaw for m in walked(data, strict=False)] == ["", flaw, ""]


@pytest.mark.parametrize(
    "name", ["動画\u30001.mp4", "می\u200cخواهم.mp4", "nb\u00a0sp.mp4", "👩\u200d👩\u200d👧.mp4", "soft\u00adhy.mp4"]
)
def test_a_name_of_any_script_is_good(name):
    assert [(m.name, m.flaw) for m in walked(packed((name,), (10,)))] == [(name, "")]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6"])
def test_links_devices_and_pipes_are_flaws(kind):
    data = packed(m1=kind)
    assert refused(data) == ("link" if kind in b"12" else "special")
    assert [bool(m.flaw) for m in walked(data, strict=False)] == [False, True, False, False, False, False]


def test_a_name_that_is_not_utf8_is_a_flaw():
    data = bytearray(packed(("abcd.mp4",), (1,), tarfile.USTAR_FORMAT))
    data[0] = 0xFF
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    assert refused(bytes(data)) == "bad_name"


def _header(name, kind, size):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("kind", "payload", "reason"),
    [
        (b"x", b"9" * (1 << 20), "long_header"),
        (b"L", b"n" * (1 << 20), "long_header"),
        (b"x", b"22 GNU.sparse.major=1\n", "sparse"),
        (b"x", b"30 nonsense\n", "bad_header"),
        (b"x", b"11 size=-1\n", "bad_header"),
        (b"x", b"19 size=1000000000\n", "truncated"),
        (b"g", b"11 path=zz\n", "bad_header"),
    ],
)
def test_bombs_in_extended_headers_are_refused(kind, payload, reason):
    padded = payload + bytes(-len(payload) % BLOCK)
    data = _header("p", kind, len(payload)) + padded + packed()
    assert refused(data) == reason


def test_a_sparse_member_and_an_unknown_kind_are_refused():
    assert refused(_header("s.mp4", b"S", 0) + packed()) == "sparse"
    assert refused(_header("s.mp4", b"Z", 0) + packed()) == "unknown_member"
    twice = _header("p", b"L", 5) + b"n.mp4".ljust(BLOCK, b"\0")
    assert refused(twice + twice + packed()) == "long_header"


def flaws(*names):
    return [(s.key, s.flaw) for s in group(walked(packed(names, [1] * len(names)), strict=False))]


def test_samples_are_webdatasets():
    from webdataset.tariterators import group_by_keys, tar_file_expander

    data = packed()
    theirs = list(group_by_keys(tar_file_expander([{"url": "x.tar", "stream": io.BytesIO(data)}])))
    ours = group(walked(data))
    assert [s.key for s in ours] == [s["__key__"] for s in theirs] == ["a", "sub/b", "c d"]
    assert [sorted(s.members) for s in ours] == [sorted(k for k in s if k[0] != "_") for s in theirs]


def test_keys_that_come_twice_have_a_flaw():
    assert flaws("a.mp4", "a.mp4", "b.mp4") == [("a", "duplicate"), ("b", "")]
    assert flaws("a.mp4", "a.MP4") == [("a", "duplicate")]
    assert flaws("a.mp4", "b.mp4", "a.mp4") == [("a", "duplicate"), ("b", ""), ("a", "duplicate")]
    assert flaws("a.mp4", "b.mp4", "a.json", "b.json") == [(k, "interleaved") for k in "abab"]
    assert flaws("v.v1.mp4", "v.v2.mp4") == [("v", "")]
    assert flaws("a.mp4", "noext", "a.json") == [("a", ""), ("noext", "no_key")]


def test_a_key_of_very_many_members_has_a_flaw_and_costs_no_more_than_they_are():
    def members(count):
        return [Member(name, 0, 0) for name in ["a.mp4", *(f"k.e{i}" for i in range(count)), "z.mp4"]]

    assert [(s.key, s.flaw) for s in group(members(1000))] == [("a", ""), ("k", ""), ("z", "")]
    began = time.process_time()
    assert [(s.key, s.flaw) for s in group(members(16_000))] == [("a", ""), ("k", "many_members"), ("z", "")]
    assert time.process_time() - began < 3
