"""Reading video files: open them under guard, decode their frames in order, tell the time of each.

Every function here runs in whatever process calls it. Files from outside are only ever handed to them by
`storage.media.sandbox`, in a child process that can be killed; see docs/architecture.md, "Hostile files".
"""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from storage.media import sniff
from storage.media.encoder import FALLBACK_TIME_BASE
from storage.media.limits import DEFAULT, Limits, Rejected, check_size

# Everything a file may be, and the only protocol it may speak: playlists and concat scripts can name other files
# and hosts, and FFmpeg follows them unless both lists forbid it.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,wmv"
CODECS = (
    "h264,hevc,vp8,vp9,av1,libdav1d,mpeg4,mpeg2video,mpeg1video,mjpeg,prores,wmv1,wmv2,wmv3,"
    "msmpeg4,msmpeg4v3,msmpeg4v2,theora,flv,h263"
)
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}

SPARSE = Fraction(7, 10)  # seconds between times that MPEG program streams state, at most
NEAR = Fraction(1, 2000)  # seconds: a frame this little before a border is on it, for times that were rounded


def open_video(path: str, limits: Limits = DEFAULT) -> InputContainer:
    """Opens a video file and nothing else; raises `Rejected`."""
    sniff.check_file(path, limits)
    try:
        container = av.open(
            "file:" + os.path.abspath(path), options=OPTIONS, metadata_errors="ignore", timeout=(10, 10)
        )
    except MemoryError:
        raise
    except (av.error.InvalidDataError, av.error.FFmpegError, ValueError) as error:
        with open(path, "rb") as file:
            raise Rejected(sniff.verdict(file.read(1024)), str(error)) from error
    checks = {"mp4": sniff.check_boxes, "matroska": sniff.check_segment}
    if check := next((checks[kind] for kind in checks if kind in container.format.name), None):
        try:
            check(path)
        except Rejected:
            container.close()
            raise
    return container


def open_bytes(data: bytes, limits: Limits = DEFAULT) -> InputContainer:
    """Opens bytes as the one container that they claim to be: nothing is guessed, so nothing can be a playlist."""
    check_size(len(data), limits.max_bytes)
    head = bytes(data[:1024])
    kind = sniff.container(head)
    if not kind:
        mark = sniff.reference(head)
        raise Rejected("forbidden_reference" if mark else sniff.verdict(head), "a clip's bytes")
    if kind == "mp4":
        sniff.check_references(data)
    try:
        opened = av.open(io.BytesIO(data), format=kind, options=OPTIONS, metadata_errors="ignore")
    except MemoryError:
        raise
    except (av.error.FFmpegError, ValueError) as error:
        raise Rejected("truncated", str(error)) from error
    return cast(InputContainer, opened)


def video_stream(container: InputContainer, limits: Limits) -> VideoStream:
    """The largest real video stream (cover art does not count), set to decode on one thread under limits."""
    streams = [s for s in container.streams.video if not (s.disposition & av.stream.Disposition.attached_pic)]
    if not streams:
        raise Rejected("no_video_stream")
    known = [s for s in streams if s.codec_context is not None]
    if not known:
        raise Rejected("unsupported_codec", "no codec of that name")
    stream = max(known, key=lambda s: (s.width or 0) * (s.height or 0))
    context = stream.codec_context
    if context.name not in CODECS.split(","):
        raise Rejected("unsupported_codec", context.name)
    context.thread_count = 1
    context.options = {"max_pixels": str(limits.max_pixels)}
    width, height = context.width or 0, context.height or 0
    if width * height > limits.max_pixels:
        raise Rejected("too_many_pixels", f"{width}x{height}")
    if 0 < min(width, height) < limits.min_side:
        raise Rejected("too_small", f"{width}x{height}")
    for other in container.streams:  # sound and the like are not even read where the container lets them be skipped
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    return stream


def packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream; a container that breaks off in the middle ends like one that is cut there."""
    found = container.demux(stream)
    while True:
        try:
            yield next(found)
        except StopIteration:
            return
        except av.error.InvalidDataError as error:
            raise Rejected("truncated", str(error)) from error


@dataclass
class Damage:
    """Counts frames and damaged packets, and judges them."""

    seen: int = 0
    damaged: int = 0
    lost: int = 0  # packets that the container knows to be incomplete
    cut_short: bool = False  # the last packet that has bytes is damaged, and no other

    def forget(self) -> None:
        """What came before belongs to another window."""
        self.seen, self.damaged, self.lost, self.cut_short = 1, 0, 0, False

    def judge(self, limits: Limits, at_end: bool) -> None:
        if at_end and not self.seen:
            raise Rejected("decode_error", f"{self.damaged} packets failed")
        if at_end and self.cut_short:
            raise Rejected("truncated", f"the last packet is damaged; {self.seen} frames")
        if self.damaged > limits.corrupt_share * self.seen:
            raise Rejected("corrupt_frames", f"{self.damaged} of {self.seen}")
        if self.lost > 1 + limits.corrupt_share * self.seen:
            raise Rejected("missing_frames", f"{self.lost} packets of {self.seen} frames lost bytes on the way")


def decode(
    found: Iterable[av.Packet], stream: VideoStream, limits: Limits, damage: Damage, beat: Callable[[], None]
) -> Iterator[av.VideoFrame]:
    """Yields the frames of packets in order; damaged ones are passed over and counted. ``beat()`` comes with each."""
    total, shape, arrived = 0, None, False
    for packet in found:
        beat()
        arrived = arrived or packet.size > 0
        before = damage.damaged
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.error.FFmpegError as error:
            if packet.has_sidedata("encryption_info"):
                raise Rejected("encrypted", "its packets are encrypted") from error
            _room(stream)
            frames = []
            damage.damaged += 1
        damage.damaged += sum(bool(frame.is_corrupt) for frame in frames)
        damage.lost += bool(packet.is_corrupt)
        if packet.size or damage.damaged > before:
            damage.cut_short = before == 0 and (packet.is_corrupt or damage.damaged > before)
        for frame in frames:
            total += 1
            damage.seen += 1
            if total > limits.max_frames:
                raise Rejected("too_many_frames", f"more than {limits.max_frames}")
            if shape not in (None, (frame.width, frame.height)):
                raise Rejected("size_change", f"{shape} to {(frame.width, frame.height)}")
            shape = (frame.width, frame.height)
            if frame.width * frame.height > limits.max_pixels:
                raise Rejected("too_many_pixels", f"{frame.width}x{frame.height}")
            if min(shape) < limits.min_side:
                raise Rejected("too_small", f"{frame.width}x{frame.height}")
            yield frame
    if not arrived and not total:
        raise Rejected("no_frames")


def _room(stream: VideoStream) -> None:
    """MemoryError where two frames have no room: decoders call that damage, too."""
    np.empty(2 * 3 * (stream.codec_context.width or 0) * (stream.codec_context.height or 0) // 2, np.uint8)


@dataclass
class Clock:
    """Turns frame pts into increasing source times, repairing a few bad ones and refusing many."""

    stream: VideoStream
    limits: Limits
    first: int | None = None
    last: int = -1
    furthest: int = 0  # the latest time that a frame stated itself
    frames: int = 0
    repaired: int = 0
    steps: Counter[int] = field(default_factory=Counter)  # times between frames, of a transport stream

    def __post_init__(self) -> None:
        self.base = Fraction(self.stream.time_base or FALLBACK_TIME_BASE)
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = Fraction(rate) if rate and Fraction(1, 1000) <= rate <= 1000 else Fraction(25)
        self.tick = max(1, round(1 / (self.rate * self.base)))  # one frame, in pts
        self.longest_gap = round(self.limits.max_gap / self.base)
        self.longest = round(self.limits.max_seconds / self.base)
        self.container = cast(InputContainer, self.stream.container)
        context = self.stream.codec_context
        self.depth = max(int(context.has_b_frames), context.reorder_depth)  # frames that are decoded ahead of time
        self.lossy = self.container.format.name in ("mpegts", "mpeg")
        # AVI has times of decoding only; of MPEG-4 the right order is told from its packets.
        self.counted = self.container.format.name == "avi" and context.name in ("h264", "hevc") and self.depth > 0

    def read(self, pts: int | None) -> int:
        """The time of a frame in ticks of `base` since the first frame; strictly increasing."""
        if self.first is None:
            self.first = pts or 0
        if self.counted:
            pts = self.first + self.frames * self.tick
        since = None if pts is None else pts - self.first
        self.furthest = max(self.furthest, since or 0)
        if since is None or since <= self.last:
            # Packed B-frames and missing timestamps: the next regular moment stands in.
            self.repaired += self.frames > 0
            since = self.last + self.tick if self.frames else 0
        elif self.frames:
            self.bound(since)
            if self.lossy and len(self.steps) < 4096:
                self.steps[since - self.last] += 1
        self.last = since
        self.frames += 1
        return since

    def bound(self, since: int) -> None:
        """Refuses a time too far from the one before, or from the first."""
        if since - self.last > self.longest_gap:
            raise Rejected("bad_timestamps", f"a gap of {float((since - self.last) * self.base):.0f} s")
        if since > self.longest:
            raise Rejected("too_long", f"more than {self.limits.max_seconds:g} s")

    def check(self, whole: bool = True) -> None:
        """Judges the times at the end of the video; ``whole``: all its frames were seen, from the first."""
        if whole and self.frames < self.limits.min_frames:
            raise Rejected("too_few_frames", str(self.frames))
        self.check_times()
        header, shown = Fraction(self.stream.duration or 0), self.last + self.tick
        alone = not header and len(self.container.streams) == 1
        if alone:  # Matroska has this one alone
            header = (self.container.duration or 0) / (av.time_base * self.base)
        if alone or "mp4" in self.container.format.name and not self.stream.frames:  # no table: MP4 in fragments
            shown += max(0, self.first or 0)  # both count from zero, wherever the first frame is
        if header and shown < header * 0.95 and (header - shown) * self.base > 0.5:
            raise Rejected("truncated", f"{float(shown * self.base):.2f} s of {float(header * self.base):.2f} s")

    def check_times(self) -> None:
        """Refuses too many repaired times, and a transport stream that lost frames."""
        lost = self._missing()
        if lost > max(1, self.limits.missing_share * self.frames):
            raise Rejected("missing_frames", f"{lost} of {self.frames + lost}")
        # Packed B-frames (old AVIs) swap the times of every other frame. That is no harm where frames at the regular
        # rate fill the time that the header or the frames state: repaired, each is within a frame or two of its moment.
        # MPEG program streams need not state more than a time every 0.7 s, the last as long before the end.
        stated = (self.stream.duration or 0, self.furthest + self.tick if self.furthest else 0)
        slack = max(2 * self.tick, round(SPARSE / self.base) if self.container.format.name == "mpeg" else 0)
        regular = any(t and abs(self.frames * self.tick - t) <= max(slack, t // 20) for t in stated)
        if self.repaired > max(2, self.limits.repaired_share * self.frames) and not regular:
            raise Rejected("bad_timestamps", f"{self.repaired} of {self.frames} frames")

    def _missing(self) -> int:
        """How many more frames a transport stream of constant rate has room for; 0 where the rate varies."""
        if not self.steps:
            return 0
        usual = self.steps.most_common(1)[0][0]
        near = sum(n for step, n in self.steps.items() if abs(step - usual) <= max(1, usual // 20))
        steady = near >= 0.8 * self.steps.total()
        return round(self.furthest / usual) + 1 - self.frames if steady else 0
