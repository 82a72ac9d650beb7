"""Reading video files: probe, cut into clips, sample frames.

Every function here runs in whatever process calls it. Files from outside are only ever handed to them by
`storage.sandbox`, in a child process that can be killed; see docs/architecture.md, "Hostile files".
"""

import io
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from storage.encoder import FALLBACK_TIME_BASE, Encoder

# Everything a file may be, and the only protocol it may speak: playlists and concat scripts can name other files
# and hosts, and FFmpeg follows them unless both lists forbid it.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,wmv"
CODECS = "h264,hevc,vp8,vp9,av1,libdav1d,mpeg4,mpeg2video,mpeg1video,mjpeg,prores,wmv1,wmv2,wmv3,msmpeg4v3,theora,flv"
HELD_BACK = 256  # frames in memory while a rest may still be too short for a clip

REASONS = {
    "empty": "the file has no bytes",
    "not_regular_file": "a folder, device, pipe or dangling link",
    "not_found": "gone between listing and reading",
    "permission": "may not be read",
    "source_changed": "other bytes than when it was listed",
    "not_video": "no known video container",
    "no_video_stream": "a container without a video stream",
    "unsupported_codec": "a codec that is not on the list",
    "truncated": "the file ends before its header says it should",
    "decode_error": "no frame could be decoded",
    "corrupt_frames": "too many damaged frames",
    "bad_timestamps": "frames without usable, increasing times",
    "too_few_frames": "fewer frames than a clip needs",
    "too_small": "frames smaller than the limit",
    "too_many_pixels": "frames larger than the limit",
    "too_many_frames": "more frames than the limit",
    "size_change": "the frame size changes within the stream",
    "timeout": "made no progress within the time limit",
    "oom": "needed more memory than the limit",
    "decoder_crash": "the decoder process died",
}


class Rejected(Exception):
    """A file that cannot be used; ``reason`` is a key of `REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Limits:
    """What one file may ask for."""

    max_pixels: int = 4096 * 2304
    max_frames: int = 1_000_000
    min_side: int = 16
    min_frames: int = 4
    corrupt_share: float = 0.005
    repaired_share: float = 0.1


@dataclass(frozen=True)
class Clip:
    """One cut clip. Times are seconds since the first frame of the source; pts are in its own time base."""

    file: str
    start: float
    end: float
    start_pts: int
    end_pts: int
    time_base: str
    frames: int
    fps: float
    width: int
    height: int


def _sniff(path: str) -> None:
    """Refuses what is not a readable, regular, non-empty file before FFmpeg sees it."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise Rejected("not_regular_file")
        if found.st_size == 0:
            raise Rejected("empty")
        with open(path, "rb") as file:
            file.read(1)
    except PermissionError as error:
        raise Rejected("permission", str(error)) from error
    except FileNotFoundError as error:
        raise Rejected("not_found", str(error)) from error


def _open(path: str) -> InputContainer:
    _sniff(path)
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(
            "file:" + os.path.abspath(path), options=options, metadata_errors="ignore", timeout=(10, 10)
        )
    except MemoryError:
        raise
    except (av.error.InvalidDataError, av.error.FFmpegError, ValueError) as error:
        with open(path, "rb") as file:
            head = file.read(16)
        known = head[4:8] == b"ftyp" or head[:4] in (b"RIFF", b"\x1aE\xdf\xa3", b"OggS", b"FLV\x01")
        raise Rejected("truncated" if known else "not_video", str(error)) from error
    if "mp4" in container.format.name and (box := _open_ended(path)):
        container.close()
        raise Rejected("truncated", f"the file ends within its {box} box")
    return container


def _open_ended(path: str) -> str:
    """The name of an MP4's box of media or of its index that reaches beyond the end of the file, or nothing."""
    with open(path, "rb") as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at + 8 <= end:
            file.seek(at)
            head = file.read(16)
            size, name = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:  # the size follows in 64 bits
                size = int.from_bytes(head[8:], "big")
            if size < 8:  # 0: up to the end; anything else is no box
                return ""
            at += size
            if at > end and name in (b"mdat", b"moov", b"moof"):
                return name.decode()
    return ""


def _video_stream(container: InputContainer, limits: Limits) -> VideoStream:
    """The largest real video stream (cover art does not count), set to decode on one thread under limits."""
    streams = [s for s in container.streams.video if not (s.disposition & av.stream.Disposition.attached_pic)]
    if not streams:
        raise Rejected("no_video_stream")
    stream = max(streams, key=lambda s: (s.width or 0) * (s.height or 0))
    context = stream.codec_context
    if context is None:
        raise Rejected("unsupported_codec")
    if context.name not in CODECS.split(","):
        raise Rejected("unsupported_codec", context.name)
    context.thread_count = 1
    context.options = {"max_pixels": str(limits.max_pixels)}
    width, height = context.width or 0, context.height or 0
    if width * height > limits.max_pixels:
        raise Rejected("too_many_pixels", f"{width}x{height}")
    if 0 < min(width, height) < limits.min_side:
        raise Rejected("too_small", f"{width}x{height}")
    return stream


def _decode(container: InputContainer, stream: VideoStream, limits: Limits) -> Iterator[av.VideoFrame]:
    """Yields the frames in order; damaged packets are passed over, counted, and judged at the end."""
    seen = damaged = 0
    cut_short = False  # the last packet that has bytes is damaged, and no other
    shape = None
    for packet in _packets(container, stream):
        before = damaged
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            frames = []
            damaged += 1
        damaged += sum(bool(frame.is_corrupt) for frame in frames)
        if packet.size or damaged > before:
            cut_short = before == 0 and (packet.is_corrupt or damaged > before)
        for frame in frames:
            seen += 1
            if seen > limits.max_frames:
                raise Rejected("too_many_frames", f"more than {limits.max_frames}")
            if shape not in (None, (frame.width, frame.height)):
                raise Rejected("size_change", f"{shape} to {(frame.width, frame.height)}")
            shape = (frame.width, frame.height)
            if frame.width * frame.height > limits.max_pixels:
                raise Rejected("too_many_pixels", f"{frame.width}x{frame.height}")
            if min(shape) < limits.min_side:
                raise Rejected("too_small", f"{frame.width}x{frame.height}")
            yield frame
    if not seen:
        raise Rejected("decode_error", f"{damaged} packets failed")
    if cut_short:
        raise Rejected("truncated", f"the last packet is damaged; {seen} frames")
    if damaged > limits.corrupt_share * seen:
        raise Rejected("corrupt_frames", f"{damaged} of {seen}")


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream; a container that breaks off in the middle ends like one that is cut there."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except av.error.InvalidDataError as error:
            raise Rejected("truncated", str(error)) from error


@dataclass
class Clock:
    """Turns frame pts into increasing source times, repairing a few bad ones and refusing many."""

    stream: VideoStream
    limits: Limits
    first: int | None = None
    last: int = -1
    frames: int = 0
    repaired: int = 0

    def __post_init__(self) -> None:
        self.base = Fraction(self.stream.time_base or FALLBACK_TIME_BASE)
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = Fraction(rate) if rate and 0.1 <= rate <= 1000 else Fraction(25)
        self.tick = max(1, round(1 / (self.rate * self.base)))  # one frame, in pts

    def read(self, frame: av.VideoFrame) -> int:
        """The frame's time in ticks of `base` since the first frame; strictly increasing."""
        pts = frame.pts
        if self.first is None:
            self.first = pts or 0
        since = None if pts is None else pts - self.first
        if since is None or since <= self.last:
            # Packed B-frames and missing timestamps: the next regular moment stands in.
            self.repaired += self.frames > 0
            since = self.last + self.tick if self.frames else 0
        self.last = since
        self.frames += 1
        return since

    def check(self) -> None:
        if self.frames < self.limits.min_frames:
            raise Rejected("too_few_frames", str(self.frames))
        # Packed B-frames (old AVIs) swap the times of every other frame. That is no harm where frames at the regular
        # rate fill the time that the header states: repaired, each is then within a frame or two of its moment.
        stated = self.stream.duration or 0
        regular = stated and abs(self.frames * self.tick - stated) <= max(2 * self.tick, stated // 20)
        if self.repaired > max(2, self.limits.repaired_share * self.frames) and not regular:
            raise Rejected("bad_timestamps", f"{self.repaired} of {self.frames} frames")
        header, shown = Fraction(self.stream.duration or 0), self.last + self.tick
        container = cast(InputContainer, self.stream.container)
        if not header and len(container.streams) == 1:
            # Matroska has this one alone, and counts it from zero.
            header, shown = (container.duration or 0) / (av.time_base * self.base), shown + max(0, self.first or 0)
        if header and shown < header * 0.95 and (header - shown) * self.base > 0.5:
            raise Rejected("truncated", f"{float(shown * self.base):.2f} s of {float(header * self.base):.2f} s")


def probe(path: str, limits: Limits = Limits()) -> dict[str, Any]:
    """Reads the header only: codec, size, frame rate and duration in seconds, as the file states them."""
    with _open(path) as container:
        stream = _video_stream(container, limits)
        duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        return {
            "codec": stream.codec_context.name,
            "width": stream.codec_context.width,
            "height": stream.codec_context.height,
            "fps": float(stream.average_rate or 0),
            "duration": float(duration) if duration else float(container.duration or 0) / av.time_base,
        }


def _upright(frame: av.VideoFrame, sar: Fraction | None, short_side: int) -> av.VideoFrame:
    """The frame as it is meant to be seen: rotated, square pixels, the short side at most ``short_side``, even."""
    width = frame.width * float(sar) if sar and 0.1 < sar < 10 else float(frame.width)
    scale = min(1.0, short_side / min(width, frame.height))
    even = [max(2, round(side * scale / 2) * 2) for side in (width, frame.height)]
    turns = round((frame.rotation or 0) / 90) % 4
    shape: dict[str, Any] = {"width": even[0], "height": even[1]}
    if frame.color_range == ColorRange.JPEG:  # our clips are all of limited range
        shape |= {"src_color_range": ColorRange.JPEG, "dst_color_range": ColorRange.MPEG}
    if not turns:
        return frame.reformat(format="yuv420p", **shape)
    pixels = frame.reformat(format="yuv420p", **shape).to_ndarray(format="rgb24")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(pixels, turns), np.uint8), "rgb24")


def cut(
    path: str,
    folder: str,
    *,
    span: float = 10.0,
    short_side: int = 256,
    tail: float = 1.0,
    limits: Limits = Limits(),
    beat: Any = lambda: None,
) -> list[dict[str, Any]]:
    """Decodes a video once and re-encodes it as clips of ``span`` seconds in ``folder``.

    A rest shorter than ``tail`` seconds joins the clip before it: what follows a full clip is held back until it is
    that long, since not every header says where the video ends. ``beat()`` is called once a frame, so that a watcher
    can tell slow from stuck. Returns one `Clip` record a clip; raises `Rejected`.
    """
    clips: list[dict[str, Any]] = []
    with _open(path) as container:
        stream = _video_stream(container, limits)
        clock = Clock(stream, limits)
        sar = stream.sample_aspect_ratio
        writer: Encoder | None = None
        begun = count = since = 0
        rest: list[tuple[int, av.VideoFrame]] = []

        def finish() -> None:
            if writer is not None:
                writer.close()
                clips.append(_record(clips, writer, clock, begun, since, count))

        def write_rest() -> None:
            nonlocal since, count
            assert writer is not None
            for when, frame in rest:
                writer.write(frame, (when - begun) * clock.base)
            since, count = rest[-1][0], count + len(rest)
            rest.clear()

        for frame in _decode(container, stream, limits):
            beat()
            now = clock.read(frame)
            rest.append((now, _upright(frame, sar, short_side)))
            full = writer is not None and rest[0][0] - begun >= span / clock.base
            if full and len(rest) < HELD_BACK and (now + clock.tick - rest[0][0]) * clock.base < tail:
                continue
            if writer is None or full:
                finish()
                upright = rest[0][1]
                file = Path(folder) / f"{len(clips):06d}.mp4"
                writer = Encoder(file, upright.width, upright.height, clock.rate, clock.base)
                begun, count = rest[0][0], 0
            write_rest()
        if rest:
            write_rest()
        finish()
        clock.check()
    return clips


def _record(done: list, writer: Encoder, clock: Clock, begun: int, last: int, count: int) -> dict[str, Any]:
    first = clock.first or 0
    end = last + clock.tick
    seconds = float((end - begun) * clock.base)
    clip = Clip(
        file=f"{len(done):06d}.mp4",
        start=float(begun * clock.base),
        end=float(end * clock.base),
        start_pts=first + begun,
        end_pts=first + end,
        time_base=str(clock.base),
        frames=count,
        fps=count / seconds if seconds else 0.0,
        width=writer.stream.width,
        height=writer.stream.height,
    )
    return asdict(clip)


def sample(data: bytes, fps: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes a clip of ours and keeps the frames nearest to a regular grid of ``fps`` (None: every frame).

    Returns the kept frames `[T, H, W, 3]` uint8, their times `[T]` and the times of all frames `[N]`, in seconds
    since the clip's start. Raises `Rejected` when the bytes are damaged.
    """
    limits = Limits(min_frames=1)
    options = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2", "protocol_whitelist": "file"}
    kept: list[np.ndarray] = []
    kept_times: list[float] = []
    times: list[float] = []
    held: tuple[float, av.VideoFrame] | None = None
    opened = av.open(io.BytesIO(data), format="mp4", options=options, metadata_errors="ignore")
    with cast(InputContainer, opened) as container:
        stream = _video_stream(container, limits)
        base = stream.time_base or FALLBACK_TIME_BASE
        for frame in _decode(container, stream, limits):
            time = float((frame.pts or 0) * base)
            times.append(time)
            if fps is None:
                kept.append(frame.to_ndarray(format="rgb24"))
                kept_times.append(time)
                continue
            # A grid time lies between the held frame and this one: the nearer of the two is its frame.
            while held is not None and len(kept) / fps <= time:
                wanted = len(kept) / fps
                near = held if wanted - held[0] <= time - wanted else (time, frame)
                kept.append(near[1].to_ndarray(format="rgb24"))
                kept_times.append(wanted)
            held = (time, frame)
    if fps is not None and held is not None and not kept:
        kept, kept_times = [held[1].to_ndarray(format="rgb24")], [0.0]
    return np.stack(kept), np.asarray(kept_times), np.asarray(times)
