"""Cutting a video into clips without decoding it: whole groups of packets, from key frame to key frame."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, cast

import av
from av.container import OutputContainer
from av.video.stream import VideoStream

from storage.media.cutting import Place, Plan, cut, record
from storage.media.encoder import ours
from storage.media.footage import Unsure
from storage.media.groups import UNORDERED, Group, Order, check, groups, reencode
from storage.media.limits import DEFAULT, Limits, Rejected
from storage.media.picture import angle, askew, interlaced, range_of, shown_size
from storage.media.video import Clock, Damage, decode, open_video, packets, video_stream

HELD_BACK = 1024  # packets in memory while a rest may still be too short for a clip
LOOK = 16  # frames whose order is looked at where their packets all come in order of time
LONGEST = 4  # spans without a key frame that are borne, or a minute if that is more


def cut_any(
    path: str, folder: str, *, mode: str = "exact", short_side: int = 256, **options: Any
) -> list[dict[str, Any]]:
    """`storage.media.cutting.cut`, or `copy` where ``mode`` is "copy".

    A source that cannot be copied is cut exactly, all its windows alike; the ``notes`` of its clips say so.
    """
    if mode not in ("exact", "copy"):
        raise ValueError(f"no such mode: {mode}")
    why = ""
    if mode == "copy":
        try:
            return copy(path, folder, **options)
        except Rejected as rejected:
            if rejected.reason != "needs_reencode":
                raise
            why = rejected.detail  # what was copied by now is overwritten: no place has more copies than cuts
    clips = cut(path, folder, short_side=short_side, **options)
    return [clip | {"notes": [*clip["notes"], f"not copied: {why}"] if why else clip["notes"]} for clip in clips]


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
    """Copies a video's packets as clips of MP4 in ``folder``; returns one `cutting.Clip` record a clip.

    Like `cutting.cut`, but a clip begins at the first key frame at or after each place where that one would
    begin; only key frames that nothing before them leans on count. Frames, rotation and shape of pixels are those of
    the source. Raises `Rejected`, with ``needs_reencode`` where copied packets would not show the source's frames.
    """
    longest = float(max(LONGEST * span, 60))
    options = {"span": span, "tail": tail, "bounds": bounds, "window": window}
    seek, size = window is not None and window[0] > 0, None
    while True:
        with open_video(path, limits) as container:
            clock = Clock(video_stream(container, limits), limits)
            ahead: list[av.Packet] = []
            if size is None:
                size = _opening(clock, limits, beat, ahead)
                if window is not None:
                    check(path, limits, longest, beat)
                if len(ahead) == HELD_BACK:
                    continue  # more may have gone by
            plan = Plan(clock.base, **options)  # type: ignore[arg-type]
            try:
                found = groups(clock, limits, longest, beat, plan if seek else None, ahead)
                return _Copier(plan, clock, Path(folder), size).run(found, whole=not seek)
            except Unsure:
                assert seek, "a read from the beginning is never unsure"
                seek = False


def _opening(clock: Clock, limits: Limits, beat: Callable[[], None], ahead: list[av.Packet]) -> tuple[int, int]:
    """The size that a video is shown at; refuses what most readers would show wrongly. Only a frame knows that.

    The packets that were read for it, up to `HELD_BACK`, are added to ``ahead``.
    """

    def kept() -> Iterator[av.Packet]:
        for packet in packets(clock.container, clock.stream):
            if len(ahead) < HELD_BACK:
                ahead.append(packet)
            yield packet

    frames = decode(kept(), clock.stream, limits, Damage(), beat)
    frame = next(frames, None)
    if frame is None:
        raise Rejected("decode_error", "no first frame")
    if interlaced(clock.stream, frame):
        raise reencode("interlaced")
    if range_of(frame):
        raise reencode(f"{range_of(frame)}, high dynamic range")
    if angle(frame)[1]:
        raise reencode("mirrored")
    if askew(frame):
        raise reencode(f"turned by {askew(frame)} degrees")
    # Where times are those of showing, packets of B-frames come in another order, and nothing more is decoded.
    if clock.depth and _rising(ahead) and not _rising([frame, *islice(frames, LOOK)]):
        raise reencode(UNORDERED)
    return shown_size(clock.stream, frame)


def _rising(some: Iterable[av.Packet | av.VideoFrame]) -> bool:
    """Whether packets or frames come in the order of their times."""
    known = [one.pts for one in some if one.pts is not None]
    return all(before < after for before, after in pairwise(known))


class _Copier:
    """Sorts packets into clips; packets that may be too short a rest for a clip of their own are held back."""

    def __init__(self, plan: Plan, clock: Clock, folder: Path, size: tuple[int, int]) -> None:
        self.plan, self.clock, self.folder = plan, clock, folder
        self.width, self.height = size
        self.clips: list[dict[str, Any]] = []
        self.writer: _Writer | None = None
        self.place: Place | None = None  # of the latest place of the plan that a clip began for
        self.held: Place | None = None
        self.rest: list[av.Packet] = []

    def run(self, found: Iterable[Group], whole: bool) -> list[dict[str, Any]]:
        """Takes the packets in order; ``whole`` says that they are all of the video's, from the first."""
        at_end, key = True, None
        for packet, when, opens in found:
            if opens:
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
            self.clock.check(whole=whole)
        return self.clips

    def _certain(self, now: int) -> bool:
        assert self.held
        opens = self.held[1] == 0 or (self.place is None and self.plan.start <= 0)
        full = now + self.clock.tick - self._time_of(self.rest[0]) >= self.plan.tail
        return opens or full or len(self.rest) >= HELD_BACK

    def _time_of(self, packet: av.Packet) -> int:
        return cast(int, packet.pts) - cast(int, self.clock.first)

    def _advance(self) -> bool:
        assert self.held
        self._finish(until=self._time_of(self.rest[0]))
        if self.plan.beyond(self.held):
            self.rest.clear()
            return True
        self.writer = _Writer(self.folder / f"{len(self.clips):06d}.mp4", self.clock, self._time_of(self.rest[0]))
        self.place = self.held
        self._write()
        return False

    def _write(self) -> None:
        assert self.writer
        self.writer.write(self.rest)
        self.rest.clear()

    def _finish(self, until: int | None = None) -> None:
        if self.writer is None:
            return
        writer, self.writer = self.writer, None
        writer.close()
        assert self.place
        numbers = (len(self.clips), self.place, (writer.begun, writer.last), writer.count)
        self.clips.append(record(self.clock, self.plan, *numbers, (self.width, self.height), until=until))


class _Writer:
    """One clip: packets in MP4, their decode times made anew."""

    def __init__(self, path: Path, clock: Clock, begun: int) -> None:
        self.clock, self.begun, self.last, self.count = clock, begun, begun, 0
        self.origin = cast(int, clock.first) + begun
        self.order = Order(clock)
        with ours():
            self.container = cast(OutputContainer, av.open(str(path), "w", format="mp4"))
            template = clock.stream
            self.stream: VideoStream = self.container.add_stream_from_template(template, opaque=True)
            self.stream.time_base = clock.base
            self.stream.codec_context.codec_tag = "hvc1" if template.codec_context.name == "hevc" else "\0\0\0\0"

    def write(self, some: list[av.Packet]) -> None:
        """Writes packets that were read and looked at before, so that what fails is the writing."""
        with ours():
            for packet in some:
                since = cast(int, packet.pts) - self.origin
                packet.duration = packet.duration or self.clock.tick
                if not packet.time_base:
                    packet.time_base = self.clock.base
                packet.stream, packet.pts, packet.dts = self.stream, since, self.order.time(since)
                self.container.mux_one(packet)
                self.last, self.count = max(self.last, self.begun + since), self.count + 1

    def close(self) -> None:
        with ours():
            self.container.close()
