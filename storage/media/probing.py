"""What a video is, told from its packets: headers are kept beside that, since they are often wrong."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from storage.media.limits import DEFAULT, Limits, Rejected
from storage.media.picture import angle, interlaced, range_of, shown_size
from storage.media.video import FALLBACK_TIME_BASE, open_video, packets, video_stream

MAX_PACKETS = 200_000  # two hours; what is longer is told by its header, and says so
MAX_BYTES = 2 << 30


def probe(
    path: str,
    limits: Limits = DEFAULT,
    *,
    max_packets: int = MAX_PACKETS,
    max_bytes: int = MAX_BYTES,
    beat: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Reads the packet table and decodes one frame; raises `Rejected` for what cannot be a video.

    Times are in seconds, ``start`` is the first frame's own time, ``width`` and ``height`` are as stored,
    ``rotation`` is in degrees counter-clockwise; what is ``mirrored`` is so after that. Where the table is longer than
    ``max_packets`` or ``max_bytes``, ``complete`` is False, and frames, fps and duration are those of the header
    (frames 0 where it has none).
    """
    with open_video(path, limits) as container:
        stream = video_stream(container, limits)
        base = Fraction(stream.time_base or FALLBACK_TIME_BASE)
        frame: av.VideoFrame | None = None
        times: list[int] = []
        count = keys = size = 0
        complete = True
        for packet in packets(container, stream):
            beat()
            if frame is None:
                frame = _frame(packet)
            if not packet.size or packet.is_discard:
                continue
            if count >= max_packets or size >= max_bytes:
                complete = False
                break
            count += 1
            size += packet.size
            keys += packet.is_keyframe
            when = packet.pts
            if when is None:
                when = packet.dts
            if when is not None:
                times.append(when)
            if count > limits.max_frames:
                raise Rejected("too_many_frames", f"more than {limits.max_frames}")
        if not count:
            raise Rejected("no_frames")
        if frame is None:
            raise Rejected("decode_error", f"none of {count} packets gave a frame")
        header = float(stream.duration * base) if stream.duration else (container.duration or 0) / av.time_base
        told = _told(stream, base, np.sort(np.asarray(times, np.int64)), header, count, complete)
        if told["duration"] > limits.max_seconds:
            raise Rejected("too_long", f"{told['duration']:.0f} s, at most {limits.max_seconds:g}")
        width, height = shown_size(stream, frame)
        turned, mirrored = angle(frame)
        return {
            "codec": stream.codec_context.name,
            "container": container.format.name,
            "width": frame.width,
            "height": frame.height,
            "shown_width": width,
            "shown_height": height,
            "rotation": turned % 360,
            "mirrored": mirrored,
            "sample_aspect_ratio": float(stream.sample_aspect_ratio or 1),
            "pixel_format": frame.format.name,
            "bit_depth": max(part.bits for part in frame.format.components),
            "hdr": range_of(frame),
            "interlaced": interlaced(stream, frame),
            "audio": bool(container.streams.audio),
            "header_duration": header,
            "key_frames": keys,
            "bytes": size,
            "complete": complete,
            **told,
        }


def _frame(packet: av.Packet) -> av.VideoFrame | None:
    try:
        return next(iter(packet.decode()), None)  # type: ignore[arg-type]
    except av.error.FFmpegError as error:
        if packet.has_sidedata("encryption_info"):
            raise Rejected("encrypted", "its packets are encrypted") from error
        return None


def _told(
    stream: VideoStream,
    base: Fraction,
    times: np.ndarray,
    header: float,
    count: int,
    complete: bool,
) -> dict[str, Any]:
    """What the packets say of time; what they do not say comes from the header."""
    stated = float(stream.average_rate or stream.guessed_rate or 25)
    steps = np.diff(times)
    steps = steps[steps > 0]
    step = float(np.median(steps)) if len(steps) else 0.0
    slack = max(1.0, 0.0015 / float(base))  # times are often rounded to a millisecond
    steady = bool(len(steps)) and float((abs(steps - step) <= slack).mean()) >= 0.99
    frames, fps, duration = count, stated, header
    if complete and len(steps) > 0.8 * (count - 1):  # else too many share a time: the table says nothing
        duration = float((times.max() - times.min() + step) * base)
        fps = (len(steps) + 1) / duration
    elif complete and header:
        fps = count / header
    if not complete:
        frames = stream.frames if 0 < stream.frames <= max(1.0, 2 * header * stated) else 0
    return {
        "fps": fps,
        "constant_rate": steady,
        "frames": frames,
        "duration": duration,
        "start": float(times.min() * base) if len(times) else 0.0,
    }
