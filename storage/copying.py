"""Cutting a video into clips without decoding it: whole groups of packets, from key frame to key frame."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import av
from av.container import OutputContainer
from av.video.stream import VideoStream

from storage.cutting import Place, Plan, record
from storage.encoder import ours
from storage.footage import Footage
from storage.limits import DEFAULT, Limits, Rejected
from storage.picture import shown_size
from storage.video import Clock, open_video, packets, video_stream

CODECS = ("h264", "hevc", "av1", "libdav1d", "mpeg4", "vp9", "mpeg2video")  # that MP4 holds and its readers know
HELD_BACK = 1024  # packets in memory while a rest may still be too short for a clip
LONGEST = 4  # spans that a clip may last for want of a key frame, or a minute if that is more
IDR = 5  # the type of an H.264 unit that nothing before it is needed for
LOOK = 4  # packets after a key frame that are asked whether they come before it in time


def copy(
    path: str,
    folder: str,
    *,
    span: float = 10.0,
    tail: float = 1.0,
    window: tuple[float, float | None] | None = None,
    bounds: Sequence[float] | None = None,
    limits: Limits = DEFAULT,
    beat: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Copies a video's packets as clips of MP4 in ``folder``; returns one `storage.cutting.Clip` record a clip.

    Like `storage.cutting.cut`, but a clip begins at the first key frame at or after each place where that one would
    begin; only key frames that nothing before them leans on count. Frames, rotation and shape of pixels are those of
    the source. Raises `Rejected`, with ``needs_reencode`` where copied packets would not show the source's frames.
    """
    with open_video(path, limits) as container:
        stream = video_stream(container, limits)
        if stream.codec_context.name not in CODECS:
            raise Rejected("needs_reencode", f"{stream.codec_context.name} in MP4")
        clock = Clock(stream, limits)
        with Footage(path, limits, beat=beat) as footage:  # the first frame alone knows the rotation
            opening = next((frame for _, frame in footage), None)
        if opening is None:
            raise Rejected("decode_error", "no first frame")
        size = shown_size(stream, opening)
        options = {"span": span, "tail": tail, "bounds": bounds, "window": window}
        copier = _Copier(Plan(clock.base, **options), clock, Path(folder), size)  # type: ignore[arg-type]
        return copier.run(_groups(packets(container, stream), limits, beat))


def _groups(found: Iterator[av.Packet], limits: Limits, beat: Callable[[], None]) -> Iterator[tuple[av.Packet, bool]]:
    """Yields the packets from the first key frame on, each with whether a clip may begin there."""
    queue: list[av.Packet] = []
    ended = begun = False
    seen = 0
    while True:
        while not ended and len(queue) <= LOOK:
            packet = next(found, None)
            if packet is None:
                ended = True
                break
            beat()
            if not packet.size:
                continue
            seen += 1
            if seen > limits.max_frames:
                raise Rejected("too_many_frames", f"more than {limits.max_frames}")
            _check(packet)
            if begun or packet.is_keyframe:  # what comes before the first key frame cannot be decoded
                begun = True
                queue.append(packet)
        if not queue:
            if not seen:
                raise Rejected("no_frames")
            return
        packet = queue.pop(0)
        closed = _clean(packet) and all(cast(int, p.pts) > cast(int, packet.pts) for p in queue)
        yield packet, closed


def _clean(packet: av.Packet) -> bool:
    """Whether a decoder may begin here. H.264 calls more a key frame than what lets go of all that was before."""
    context = cast(VideoStream, packet.stream).codec_context
    if not packet.is_keyframe or context.name != "h264":
        return bool(packet.is_keyframe)
    data, extra = memoryview(packet), context.extradata or b""  # type: ignore[arg-type]
    if extra[:1] != b"\1":  # start codes
        found, at = bytes(data), -1
        while (at := found.find(b"\0\0\1", at + 1)) >= 0:
            if at + 3 < len(found) and found[at + 3] & 31 == IDR:
                return True
        return False
    width, at = (extra[4] & 3) + 1, 0
    while at + width < len(data):
        if data[at + width] & 31 == IDR:
            return True
        at += width + int.from_bytes(data[at : at + width], "big")
    return False


def _check(packet: av.Packet) -> None:
    if packet.has_sidedata("encryption_info"):
        raise Rejected("encrypted", "its packets are encrypted")
    if packet.pts is None:
        raise Rejected("needs_reencode", "packets without a time")
    if packet.is_discard:
        raise Rejected("needs_reencode", "an edit list that hides frames")
    if packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change"):
        raise Rejected("needs_reencode", "its parameters change within the stream")
    if packet.is_corrupt:
        raise Rejected("needs_reencode", "packets that lost bytes on the way")


class _Copier:
    """Sorts packets into clips; packets that may be too short a rest for a clip of their own are held back."""

    def __init__(self, plan: Plan, clock: Clock, folder: Path, size: tuple[int, int]) -> None:
        self.plan, self.clock, self.folder = plan, clock, folder
        self.width, self.height = size
        self.clips: list[dict[str, Any]] = []
        self.writer: _Writer | None = None
        self.place: Place | None = None  # of the latest place of the plan that a clip began for
        self.held: Place | None = None
        self.longest = round(max(LONGEST * plan.span, 60 / clock.base))
        self.rest: list[av.Packet] = []

    def run(self, found: Iterator[tuple[av.Packet, bool]]) -> list[dict[str, Any]]:
        at_end, key = True, None
        for packet, closed in found:
            when = self._time(packet)
            if closed:
                place = self.plan.place(when)
                if place != key:  # the first key frame at or after a place
                    key = place
                    if self.rest and self._advance():
                        at_end = False
                        break
                    if not self.plan.before(place):
                        self.held = place
            if self.held is None:
                continue
            self.rest.append(packet)
            if self.held == self.place:
                self._write()
            elif self._certain(when) and self._advance():
                at_end = False
                break
        if at_end and self.rest and self.writer:
            self._write()
        self._finish()
        if at_end:
            self.clock.check()
        return self.clips

    def _time(self, packet: av.Packet) -> int:
        """Ticks since the first frame; the clock is only told of times, not asked to mend them."""
        clock, pts = self.clock, cast(int, packet.pts)
        if clock.first is None:
            clock.first = pts
        since = pts - clock.first
        if since < 0:
            raise Rejected("needs_reencode", "frames before the first key frame in time")
        if clock.frames:
            clock.bound(since)
        clock.last = max(clock.last, since)
        clock.frames += 1
        return since

    def _certain(self, now: int) -> bool:
        assert self.held
        opens = self.held[1] == 0 or (self.place is None and self.plan.start <= 0)
        full = now + self.clock.tick - self._time_of(self.rest[0]) >= self.plan.tail
        return opens or full or len(self.rest) >= HELD_BACK

    def _time_of(self, packet: av.Packet) -> int:
        return cast(int, packet.pts) - cast(int, self.clock.first)

    def _advance(self) -> bool:
        assert self.held
        if self.plan.beyond(self.held):
            self.rest.clear()
            return True
        self._finish()
        self.writer = _Writer(self.folder / f"{len(self.clips):06d}.mp4", self.clock, self._time_of(self.rest[0]))
        self.place = self.held
        self._write()
        return False

    def _write(self) -> None:
        assert self.writer
        for packet in self.rest:
            self.writer.write(packet)
            if self.writer.last - self.writer.begun > self.longest:
                raise Rejected("needs_reencode", "key frames that are too far apart")
        self.rest.clear()

    def _finish(self) -> None:
        if self.writer is None:
            return
        writer, self.writer = self.writer, None
        writer.close()
        assert self.place
        numbers = (len(self.clips), self.place, (writer.begun, writer.last), writer.count)
        self.clips.append(record(self.clock, self.plan, *numbers, (self.width, self.height)))


class _Writer:
    """One clip: packets in MP4, their decode times made anew so that every container gives the same bytes."""

    def __init__(self, path: Path, clock: Clock, begun: int) -> None:
        self.clock, self.begun, self.last, self.count = clock, begun, begun, 0
        self.origin = cast(int, clock.first) + begun
        self.depth = max(int(clock.stream.codec_context.has_b_frames), clock.stream.codec_context.reorder_depth)
        self.early: list[int] = []  # times that no packet has as its decode time yet
        self.decode_time = -self.depth * clock.tick - 1
        with ours():
            self.container = cast(OutputContainer, av.open(str(path), "w", format="mp4"))
            template = clock.stream
            self.stream: VideoStream = self.container.add_stream_from_template(template, opaque=True)
            self.stream.time_base = clock.base
            self.stream.codec_context.codec_tag = "hvc1" if template.codec_context.name == "hevc" else "\0\0\0\0"

    def write(self, packet: av.Packet) -> None:
        since = cast(int, packet.pts) - self.origin
        if since < 0:
            raise Rejected("needs_reencode", "frames that lean on the clip before")
        heapq.heappush(self.early, since)
        time = heapq.heappop(self.early) if self.count >= self.depth else (self.count - self.depth) * self.clock.tick
        if not self.decode_time < time <= since:
            raise Rejected("needs_reencode", "packets in no order that MP4 can hold")
        self.decode_time = time
        packet.duration = packet.duration or self.clock.tick
        packet.stream, packet.time_base, packet.pts, packet.dts = self.stream, self.clock.base, since, time
        with ours():
            self.container.mux(packet)
        self.last, self.count = max(self.last, self.begun + since), self.count + 1

    def close(self) -> None:
        with ours():
            self.container.close()
