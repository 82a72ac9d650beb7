"""A corpus of odd, broken and hostile video files, each made on the spot.

`CASES` has a row per case: its number, name, maker, and the verdicts that are right ("ok" or reasons).
"""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from tests.videos import (
    HDR10,
    RATE,
    H,
    W,
    apart,
    box,
    copies,
    cut,
    elsewhere,
    encrypted,
    find,
    flat,
    flipped,
    good,
    hole,
    jpegs,
    make,
    patch,
    picture,
    set_options,
    sound,
    still,
    streams,
    wide,
)

OK = "ok"
BROKEN = {"decode_error", "corrupt_frames", "truncated"}


@dataclass(frozen=True)
class Case:
    number: int
    name: str
    build: Callable[[Path], Any]  # gets the path to make
    verdicts: frozenset[str]
    file: str = "a.mp4"
    limits: dict[str, Any] = field(default_factory=dict)
    port: bool = False  # `build` also gets the port of a listener

    def __str__(self) -> str:
        return f"{self.number:03d} {self.name}"


CASES: list[Case] = []


def case(number: int, name: str, verdicts: str | set[str], build: Callable[..., Any], **more: Any) -> None:
    wanted = frozenset({verdicts} if isinstance(verdicts, str) else verdicts)

    def made(path: Path, *port: int) -> None:
        data = build(path, *port)
        if isinstance(data, bytes):
            path.write_bytes(data)

    CASES.append(Case(number, name, made, wanted, **more))


def video(number: int, name: str, verdicts: str | set[str] = OK, file: str = "a.mp4", limits: Any = None, **how: Any):
    case(number, name, verdicts, lambda p: make(p, **how) and None, file=file, limits=limits or {})


NO_B = set_options(bf=0)
FAST = {"movflags": "faststart"}

case(1, "zero bytes", "empty", lambda p: b"")
case(2, "one byte", "not_video", lambda p: b"\0")
case(3, "random bytes", "not_video", lambda p: np.random.default_rng(0).bytes(200_000))
case(4, "index at the end, cut in half", "truncated", lambda p: cut(good(), 0.5))
case(5, "index at the start, cut in half", "truncated", lambda p: cut(good(**FAST), 0.5))
case(6, "cut at nine tenths", "truncated", lambda p: cut(good(**FAST), 0.9))
case(7, "lacks its last byte", "truncated", lambda p: good(**FAST)[:-1])
case(
    8,
    "200 flipped bits of media",
    BROKEN,
    lambda p: flipped(good(), find(good(), b"mdat") + 8, find(good(), b"moov"), 200),
)
case(
    9,
    "20 flipped bits of index",
    BROKEN
    | {"no_video_stream", "unsupported_codec", "bad_timestamps", "no_frames", "forbidden_reference", "too_many_pixels"},
    lambda p: flipped(good(), find(good(), b"moov") + 8, len(good()), 20),
)
case(10, "a hole of zeros", "corrupt_frames", lambda p: hole(good()))
case(11, "file type alone", "truncated", lambda p: box(b"ftyp", b"isom\0\0\2\0isomiso2"))
case(12, "index of 4 GB, it says", {OK, "truncated"}, lambda p: patch(good(), b"moov", 0, b"\xff\xff\xff\xff"))
case(
    13,
    "20,000 nested boxes",
    {"truncated", "not_video", "no_video_stream"},
    lambda p: (
        box(b"ftyp", b"isom\0\0\2\0isomiso2")
        + b"".join(struct.pack(">I", 8 * (20_000 - n)) + b"moov" for n in range(20_000))
    ),
)
case(
    14,
    "2^28 sample sizes",
    BROKEN | {"no_frames", "oom", "no_video_stream"},
    lambda p: patch(good(), b"stsz", 16, struct.pack(">I", 1 << 28)),
)
case(15, "2^31 times", OK, lambda p: patch(good(), b"stts", 16, struct.pack(">I", (1 << 31) - 1)))
case(16, "no time between frames", "bad_timestamps", lambda p: patch(good(edit=NO_B), b"stts", 20, bytes(4)))
case(
    17,
    "time scale of zero",
    {"too_few_frames", "bad_timestamps", "truncated"},
    lambda p: patch(good(), b"mdhd", 20, bytes(4)),
)
case(18, "duration of 2^31 in the header", OK, lambda p: patch(good(), b"mvhd", 24, struct.pack(">I", (1 << 31) - 1)))
case(19, "65535 pixels wide, it says", OK, lambda p: patch(good(), b"avc1\0\0\0\0", 32, b"\xff\xff\xff\xff"))
case(20, "an unknown codec", "unsupported_codec", lambda p: patch(good(), b"avc1\0\0\0\0", 4, b"zzzz"))
case(21, "codec settings gone", BROKEN, lambda p: patch(good(), b"avcC", 4, b"free"))
case(22, "encrypted", "encrypted", lambda p: encrypted(good()))
video(23, "fragmented", frames=60, movflags="frag_keyframe+empty_moov")


def init_only(p):
    data = good(movflags="frag_keyframe+empty_moov")
    return data[: find(data, b"moof")]


case(24, "fragmented, without a fragment", "no_frames", init_only)
case(25, "within a fragment", "truncated", lambda p: cut(good(movflags="frag_keyframe+empty_moov"), 0.6))


@cache
def matroska(live: bool = False) -> bytes:
    with TemporaryDirectory() as folder:
        return make(Path(folder) / "a.mkv", frames=60, **({"live": "1"} if live else {})).read_bytes()


case(7, "Matroska that lacks its last bytes", "truncated", lambda p: matroska()[:-9], file="a.mkv")
case(7, "Matroska cut in its last tenth", "truncated", lambda p: cut(matroska(), 0.97), file="a.mkv")
case(25, "Matroska that was written live", OK, lambda p: matroska(live=True), file="a.mkv")
case(25, "Matroska that was written live, cut", OK, lambda p: cut(matroska(live=True), 0.97), file="a.mkv")
case(26, "junk behind it", OK, lambda p: good() + np.random.default_rng(1).bytes(5000))
case(27, "junk before it", "not_video", lambda p: b"junk" * 8 + good())
case(28, "text", "not_video", lambda p: b"This is not a video.\n" * 99)
case(29, "a page", "not_video", lambda p: b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>")
case(30, "a store's error", "not_video", lambda p: b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>')
case(
    31,
    "a git-lfs pointer",
    "not_video",
    lambda p: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
)
case(32, "gzip", "not_video", lambda p: b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + zlib.compress(good())[2:])
case(33, "zip", "not_video", lambda p: b"PK\x03\x04\x14\0\0\0\0\0" + bytes(20) + good())


case(34, "sound alone", "no_video_stream", sound)
case(35, "sound with cover art", "no_video_stream", lambda p: sound(p, cover=True))
case(36, "a PNG", "unsupported_container", lambda p: still("png"))
video(37, "a GIF", "unsupported_container", file="a.gif", codec="gif", pix="rgb8", frames=8)
case(38, "text of a terminal", "not_video", lambda p: b"\x1b[31mhello\x1b[0m\n" * 50, file="a.txt")
video(39, "bare H.264", "unsupported_container", file="a.h264", format="h264")
video(40, "one frame", "too_few_frames", frames=1)
video(41, "two frames", "too_few_frames", frames=2)
for number, angle in ((42, 90), (43, 180)):
    video(number, f"rotated by {angle}", edit=lambda s, _, angle=angle: s.set_display_rotation(angle))


video(44, "wide pixels", edit=wide)
STEPS = np.cumsum([0, *np.random.default_rng(0).uniform(0.01, 0.2, 39)]).round(3).tolist()
video(45, "a varying rate", times=STEPS)
video(46, "an hour's gap", "bad_timestamps", times=[t / RATE + 3600 * (t >= 20) for t in range(40)])
video(47, "starts at ten seconds", times=[10 + t / RATE for t in range(40)])


def trimmed(p):
    """An edit list that begins a second late."""
    data = good()
    start = find(data, b"elst")
    (shown, begin) = struct.unpack(">Ii", data[start + 16 : start + 24])
    (scale,) = struct.unpack(">I", data[find(data, b"mdhd") + 20 : find(data, b"mdhd") + 24])
    return patch(data, b"elst", 16, struct.pack(">Ii", shown - 1000, begin + scale))


case(48, "an edit list", OK, trimmed)
OPEN = {"bf": 3, "g": 25, "x264-params": "open-gop=1:scenecut=0"}
video(49, "open groups with B-frames", frames=60, edit=set_options(**OPEN))
video(50, "interlaced", edit=set_options(**{"x264-params": "tff=1"}))
video(51, "ten bits", pix="yuv420p10le")
video(52, "HDR10", pix="yuv420p10le", edit=set_options(**{"x264-params": HDR10}))
video(53, "4:4:4", pix="yuv444p")
video(54, "full range", pix="yuvj420p")
video(55, "BT.709", edit=set_options(**{"x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709"}))
video(56, "gray", pix="gray")
video(
    57,
    "VP9 with alpha",
    file="a.webm",
    codec="libvpx-vp9",
    pix="yuva420p",
    options={"cpu-used": "8", "deadline": "realtime"},
)
video(58, "odd sides", size=(321, 241), pix="yuv444p")
video(59, "four pixels", {"too_small", "not_video", "truncated"}, size=(2, 2), codec="mpeg4", file="a.avi")
video(60, "1000 frames a second", rate=1000, frames=60)
video(61, "a frame in ten seconds", rate=Fraction(1, 10), frames=12)


def lost_packets(p):
    data = make(p, frames=100, options={"g": "20"}).read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    return b"".join(packets[: len(packets) // 2] + packets[len(packets) // 2 + 40 :])


case(62, "40 lost packets", "missing_frames", lost_packets, file="a.ts")


def without_index(p):
    data = make(p, codec="mpeg4", options={"bf": "0"}).read_bytes()
    return data[: data.index(b"idx1")]


case(63, "AVI without an index", OK, without_index, file="a.avi")


def two_sizes(p):
    one, two = (make(p.with_name(f"{n}.ts"), size=size).read_bytes() for n, size in enumerate(((W, H), (H, W))))
    return one + two


case(64, "a size that changes", "size_change", two_sizes, file="a.ts")


case(65, "two streams", OK, lambda p: streams(p, [(48, 32), (W, H)]))
case(66, "60 streams", OK, lambda p: streams(p, [(32, 32)] * 59 + [(W, H)]))


def attachment(p):
    with av.open(str(p), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height = W, H
        out.add_attachment("a.bin", "application/octet-stream", bytes(50 << 20))
        for t in range(8):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t), "rgb24")))
        out.mux(stream.encode(None))


case(67, "an attachment of 50 MB", OK, attachment, file="a.mkv")


video(
    68,
    "8192 x 8192",
    "too_many_pixels",
    size=(8192, 8192),
    frames=1,
    codec="mjpeg",
    pix="yuvj420p",
    show=flat,
    file="a.avi",
)


def bomb(p):
    side = 8192
    rows = zlib.compress(bytes(side * (side + 1)), 9)
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (head, b"IDAT" + rows, b"IEND"):
        png += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    copies(p, "png", "gray", side, png, range(100))


case(69, "100 bombs of PNG", {"unsupported_codec", "too_many_pixels"}, bomb, file="a.mov")
case(
    70, "too many frames", "too_many_frames", lambda p: jpegs(p, range(3001)), limits={"max_frames": 3000}, file="a.mov"
)
case(71, "20 hours", "too_long", lambda p: jpegs(p, range(0, 72_000, 200), Fraction(1)), file="a.mov")
video(72, "black", show=flat)
video(73, "one picture only", show=lambda t, w, h: picture(0, w, h))


def titled(stream, out):
    out.metadata.update({"title": "<script>alert(1)</script>\x1b[31m", "comment": "x" * 100_000})


video(74, "an evil title", edit=titled)
video(75, "DivX", codec="msmpeg4", file="a.avi")
video(75, "WMV", codec="wmv2", file="a.wmv", format="asf")
video(75, "ProRes", codec="prores_ks", pix="yuv422p10le", file="a.mov")
video(75, "MPEG-2", codec="mpeg2video", file="a.mpg")
video(75, "MPEG-1", codec="mpeg1video", file="b.mpg", rate=25)
video(75, "MXF", "unsupported_container", codec="mpeg2video", file="a.mxf", rate=25)
video(75, "RealMedia", "unsupported_container", codec="rv20", file="a.rm", size=(64, 48), rate=25)
video(75, "H.263", codec="h263", file="a.3gp", size=(176, 144), rate=Fraction(30000, 1001))
case(76, "AV1", OK, lambda p: apart(p, codec="libsvtav1", frames=12, options={"preset": "12"}))
case(77, "the same under another name", OK, lambda p: good(), file="another.mp4")
case(78, "another under the same name", OK, lambda p: good(**FAST), file="good.mp4")

# Files and folders


def unix_socket(p):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(p))


def sparse(p):
    p.write_bytes(good())
    os.truncate(p, 1 << 40)


case(79, "a folder", "not_regular_file", lambda p: p.mkdir())
case(80, "a link to nothing", "not_found", lambda p: p.symlink_to("nowhere"))
case(81, "a link to itself", "not_regular_file", lambda p: p.symlink_to(p))
case(82, "a pipe", "not_regular_file", lambda p: os.mkfifo(p))
case(83, "a socket", "not_regular_file", unix_socket)
case(83, "a device", "not_regular_file", lambda p: p.symlink_to("/dev/zero"))
case(85, "a sparse terabyte", "file_too_large", sparse)
for name in ("a\nb.mp4", "a;$(touch x).mp4", "-i.mp4", "a" * 251 + ".mp4", "http:x.mp4", "concat:a|b.mp4"):
    case(86, f"named {name[:20]!r}", OK, lambda p: good(), file=name)
case(87, "named in emoji", OK, lambda p: good(), file="\U0001f3ac電影.mp4")
case(88, "named in NFC", OK, lambda p: good(), file="\u00e9.mp4")
case(88, "named in NFD", OK, lambda p: good(), file="e\u0301.mp4")
case(89, "named in no UTF-8", OK, lambda p: good(), file=os.fsdecode(b"a\xff\xfe.mp4"))
case(90, "named in capitals", OK, lambda p: good(), file="A.MP4")

# Files that name others. A sibling.ts lies beside each, and a listener has the port.

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{0}\n#EXT-X-ENDLIST\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 33\n"
DASH = '<?xml version="1.0"?><MPD><Period><AdaptationSet><BaseURL>sibling.ts</BaseURL></AdaptationSet>'
REFERENCES = [
    (91, "HLS over http", HLS.format("http://127.0.0.1:{port}/a.ts"), ("a.m3u8", "a.ts")),
    (92, "HLS of a sibling", HLS.format("sibling.ts"), ("a.m3u8", "a.ts")),
    (92, "HLS of a file URL", HLS.format("file://{folder}/sibling.ts"), ("a.m3u8",)),
    (93, "HLS that is named MP4", HLS.format("sibling.ts"), ("a.mp4",)),
    (94, "concat of a sibling", "ffconcat version 1.0\nfile sibling.ts\n", ("a.mp4", "a.ffconcat")),
    (95, "concat of a path", "ffconcat version 1.0\nfile {folder}/sibling.ts\n", ("a.mp4",)),
    (96, "concat over http", "ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.ts\n", ("a.mp4",)),
    (97, "SDP", SDP, ("a.sdp", "a.mp4")),
    (98, "DASH", DASH, ("a.mpd", "a.mp4")),
]  # fmt: skip
for number, name, text, places in REFERENCES:
    for place in places:

        def write(p, port, text=text):
            p.write_text(text.format(port=port, folder=p.parent))

        case(number, f"{name} in {place}", {"forbidden_reference", "not_video"}, write, file=place, port=True)


def alias(p):
    """A QuickTime alias to sibling.ts, as old Macs wrote them: record type 2 is the absolute path."""
    name = str(p.parent / "sibling.ts").encode()
    body = bytes(4) + struct.pack(">HH", 0, 2) + bytes(142)
    body += struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">hH", -1, 0)
    return elsewhere(good(), b"alis", body)


case(
    99,
    "media at a URL",
    "forbidden_reference",
    lambda p, port: elsewhere(good(), b"url ", f"http://127.0.0.1:{port}/a.ts\0".encode()),
    port=True,
)
case(
    99,
    "media in a sibling",
    "forbidden_reference",
    lambda p: elsewhere(good(), b"url ", b"file:sibling.ts\0"),
    file="a.mov",
)
case(100, "media behind an alias", "forbidden_reference", alias, file="a.mov")
case(
    101,
    "a name that is a pattern",
    {"not_video", "unsupported_container"},
    lambda p: still("png"),
    file="image%03d.png",
)
case(101, "a good one whose name is a pattern", OK, lambda p: good(), file="image%03d.mp4")
