"""Small videos that are rendered on the spot, and what is done to their bytes: nothing binary is kept."""

import struct
import tempfile
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np

W, H, RATE = 96, 72, 20
RED = (250, 20, 20)
HDR10 = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"


def picture(t, width=W, height=H):
    """Moving noise with a red block in the upper left quarter, so that up and left can be told."""
    noise = np.random.default_rng(0).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    frame = np.roll(noise.repeat(8, 0).repeat(8, 1)[:height, :width], 3 * t, 1)
    frame[: height // 2, : width // 2] = RED
    return frame


def flat(t, width, height):
    return np.zeros((height, width, 3), np.uint8)


def fields(t, width, height):
    """A white bar that crosses the picture; the lower half picture is half a frame later than the upper."""
    frame = np.full((height, width, 3), 60, np.uint8)
    for parity in (0, 1):
        x = 6 * t + 3 * parity
        frame[parity::2, np.arange(x, x + 20) % width] = 220
    return frame


INTERLACED = {"show": fields, "options": {"crf": "12", "g": "25", "x264-params": "interlaced=1:tff=1"}}


def make(
    path,
    frames=40,
    size=(W, H),
    codec="libx264",
    pix="yuv420p",
    times=None,
    edit=None,
    format=None,
    rate=RATE,
    show=picture,
    options=None,
    **container,
):
    """Writes a video of `frames` pictures, at `times` seconds where given."""
    with av.open(str(path), "w", format=format, options=container) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 1000) if times else 1 / Fraction(rate)
        if edit:
            edit(stream, out)
        for t in range(frames):
            frame = av.VideoFrame.from_ndarray(show(t, *size), "rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(times[t] * 1000) if times else t
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def apart(path: Path, **how: Any) -> None:
    """Makes a video in a process of its own: SVT-AV1, run as root, takes real-time priority for all of its process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(make, path, **how).result()


@cache
def good(**options: Any) -> bytes:
    """The bytes of a plain video of 60 frames."""
    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder) / "good.mp4", frames=60, **dict(options)).read_bytes()


def set_options(**options):
    return lambda stream, _: setattr(stream, "options", {k: str(v) for k, v in options.items()})


def wide(stream, _):
    stream.codec_context.sample_aspect_ratio = Fraction(2)


def hum(stream, out, seconds):
    """Sound that nobody hears."""
    for start in range(0, 16_000 * seconds, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 16_000, start
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def sound(p, cover=False):
    with av.open(str(p), "w") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        if cover:
            art = out.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = W, H, "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
            out.mux(art.encode(av.VideoFrame.from_ndarray(picture(0), "rgb24").reformat(format="yuvj420p")))
            out.mux(art.encode(None))
        hum(stream, out, 1)


def streams(p, sizes, codec="mpeg4", frames=8):
    """A stream of each size."""
    with av.open(str(p), "w") as out:
        made = []
        for size in sizes:
            made.append(out.add_stream(codec, rate=RATE))
            made[-1].width, made[-1].height = size
        for t in range(frames):
            for stream in made:
                frame = av.VideoFrame.from_ndarray(picture(t, stream.width, stream.height), "rgb24")
                out.mux(stream.encode(frame))
        for stream in made:
            out.mux(stream.encode(None))


def still(codec, pix="rgb24", size=(W, H)):
    """One encoded picture, without a container."""
    coder = av.CodecContext.create(codec, "w")
    coder.width, coder.height, coder.pix_fmt, coder.time_base = *size, pix, Fraction(1, RATE)
    frame = av.VideoFrame.from_ndarray(picture(0, *size), "rgb24").reformat(format=pix)
    return b"".join(bytes(p) for p in [*coder.encode(frame), *coder.encode(None)])


def copies(p, codec, pix, side, data, times, unit=Fraction(1, RATE)):
    """The same packet many times."""
    with av.open(str(p), "w") as out:
        stream = out.add_mux_stream(codec, rate=RATE, width=side, height=side, pix_fmt=pix)
        stream.time_base = unit
        for t in times:
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.is_keyframe = stream, unit, t, t, True
            out.mux(packet)


def jpegs(p, times, unit=Fraction(1, RATE)):
    copies(p, "mjpeg", "yuvj420p", 16, still("mjpeg", "yuvj420p", (16, 16)), times, unit)


# MP4 by its boxes


def box(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + name + body


def find(data: bytes, name: bytes) -> int:
    """Where a box begins."""
    return data.index(name) - 4


def patch(data: bytes, name: bytes, at: int, new: bytes) -> bytes:
    """Overwrites bytes, counted from where a box begins."""
    start = find(data, name) + at
    return data[:start] + new + data[start + len(new) :]


def grow(data: bytes, path: tuple[bytes, ...], at: int, new: bytes) -> bytes:
    """Inserts bytes at an offset and makes every box on the way to it as much larger."""
    for name in path:
        start = find(data, name)
        size = struct.unpack(">I", data[start : start + 4])[0] + len(new)
        data = data[:start] + struct.pack(">I", size) + data[start + 4 :]
    return data[:at] + new + data[at:]


STSD = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")


def encrypted(data: bytes) -> bytes:
    """Common encryption as players see it: an "encv" entry that says what it was, and media that are noise."""
    entry = find(data, b"avc1")
    frma = box(b"frma", b"avc1")
    schm = box(b"schm", bytes(4) + b"cenc" + struct.pack(">I", 0x10000))
    tenc = box(b"tenc", bytes(4) + bytes([0, 0, 1, 8]) + bytes(range(16)))
    sinf = box(b"sinf", frma + schm + box(b"schi", tenc))
    end = entry + struct.unpack(">I", data[entry : entry + 4])[0]
    data = grow(data, (*STSD, b"avc1"), end, sinf)
    return data.replace(b"avc1", b"encv", 2).replace(b"frmaencv", b"frmaavc1").replace(b"iso2encv", b"iso2avc1")


def elsewhere(data: bytes, kind: bytes, body: bytes) -> bytes:
    """Media that are said to be in another file."""
    start = find(data, b"dref")
    entry = start + 16
    assert data[entry + 4 : entry + 8] == b"url " and data[entry + 11] == 1
    data = data[:entry] + struct.pack(">I", 12 + len(body)) + kind + bytes(4) + data[entry + 12 :]
    return grow(data, (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"), entry + 12, body)


# Damage


def flipped(data: bytes, start: int, end: int, count: int) -> bytes:
    changed = bytearray(data)
    for at in np.random.default_rng(0).integers(start, end, count):
        changed[at] ^= 1 << int(at % 8)
    return bytes(changed)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


def hole(data: bytes) -> bytes:
    start, end = find(data, b"mdat"), find(data, b"moov")
    a, b = start + (end - start) // 3, start + (end - start) // 2
    return data[:a] + bytes(b - a) + data[b:]
