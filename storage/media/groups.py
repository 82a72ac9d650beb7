"""The packets of a stream in groups that begin at key frames, checked for what a copy would show wrongly."""

import heapq
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from typing import cast

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from storage.media.cutting import Plan
from storage.media.footage import BACK, SEEKABLE, Unsure
from storage.media.limits import Limits, Rejected
from storage.media.video import NEAR, Clock, open_video, packets, video_stream

CODECS = ("h264", "hevc", "av1", "libdav1d", "mpeg4", "vp9", "mpeg2video")  # that MP4 holds and its readers know
IDR = 5  # the type of an H.264 unit that nothing before it is needed for
UNORDERED = "times in decode order"
LOOK = 4  # packets after a key frame that are asked whether they come before it in time
Beat = Callable[[], None]
Group = tuple[av.Packet, int, bool]  # packet, ticks since the first frame, whether a clip may begin there

_known: dict[tuple[object, ...], str] = {}  # why a file that was checked cannot be copied, or nothing


def reencode(why: str) -> Rejected:
    """The refusal of what copied packets would show wrongly."""
    return Rejected("needs_reencode", why)


def groups(
    clock: Clock,
    limits: Limits,
    longest: float,
    beat: Beat,
    window: Plan | None = None,
    ahead: Sequence[av.Packet] = (),
) -> Iterator[Group]:
    """Yields the packets from the first key frame on; raises `Rejected`, with ``needs_reencode`` for what to encode.

    A clip may begin at a key frame that nothing before is needed for, with all packets before it earlier in time and
    all after it later; such places may be at most ``longest`` seconds apart. For a ``window`` the packets begin at a
    place shortly before it, found by the container's index; `Unsure` where there is none that can be proven.
    ``ahead`` are the packets that were read from the container by now.
    """
    if clock.stream.codec_context.name not in CODECS:
        raise reencode(f"{clock.stream.codec_context.name} in MP4")
    if clock.counted:
        raise reencode(UNORDERED)
    key = furthest = -1
    most = math.floor(Fraction(longest) / clock.base)
    found = _looking(clock.stream, limits, beat, ahead)
    for packet, opens in _sought(clock, limits, beat, window, found) if window else found:
        pts = cast(int, packet.pts)
        clock.first = pts if clock.first is None else clock.first
        since = pts - clock.first
        if key < 0 and not opens:
            raise reencode("a first key frame that leans on others")
        if opens and since <= furthest:
            raise reencode("a key frame that is shown before frames that precede it")
        key = since if opens else key
        if since < key:
            raise reencode("frames that lean on the group before")
        if since - key > most:
            raise reencode("key frames that are too far apart")
        if clock.frames:
            clock.bound(since)
        furthest = clock.last = max(clock.last, since)
        clock.frames += 1
        yield packet, since, opens


def check(path: str, limits: Limits, longest: float, beat: Beat) -> None:
    """Raises `Rejected` unless every packet of a file can be copied; to be asked before one window of it is copied.

    Were each window to decide for itself, one that is copied and one that is encoded would share or lose the frames
    between a border and the next key frame. The answer is kept for the windows that follow.
    """
    found = os.stat(path)
    name = (path, found.st_ino, found.st_size, found.st_mtime_ns, limits, longest)
    if name not in _known:
        if len(_known) > 64:
            _known.clear()
        _known[name] = _checked(path, limits, longest, beat)
    if _known[name]:
        raise reencode(_known[name])


def _checked(path: str, limits: Limits, longest: float, beat: Beat) -> str:
    with open_video(path, limits) as container:
        clock = Clock(video_stream(container, limits), limits)
        try:
            begun, order = 0, Order(clock)
            for _, since, opens in groups(clock, limits, longest, beat):
                if opens:
                    begun, order = since, Order(clock)
                order.time(since - begun)
        except Rejected as rejected:
            if rejected.reason != "needs_reencode":
                raise
            return rejected.detail
    return ""


class Order:
    """Decode times for the packets of a clip, made from their times alone so that every container gives the same."""

    def __init__(self, clock: Clock) -> None:
        self.depth = clock.depth
        self.tick, self.count, self.last = clock.tick, 0, -self.depth * clock.tick - 1
        self.early: list[int] = []  # times that no packet has as its decode time yet

    def time(self, since: int) -> int:
        """The decode time of the next packet, which is shown ``since`` ticks after the clip's start."""
        heapq.heappush(self.early, since)
        time = heapq.heappop(self.early) if self.count >= self.depth else (self.count - self.depth) * self.tick
        if not self.last < time <= since:
            raise reencode("packets in no order that MP4 can hold")
        self.last, self.count = time, self.count + 1
        return time


def _sought(
    clock: Clock, limits: Limits, beat: Beat, plan: Plan, found: Iterator[tuple[av.Packet, bool]]
) -> Iterator[tuple[av.Packet, bool]]:
    """The packets from a place before a window on, given those from the first on; see `groups`."""
    container, stream = clock.container, clock.stream
    opening = next(found, None)
    if opening is None or not any(name in container.format.name for name in SEEKABLE):
        raise Unsure("no index")
    first = clock.first = cast(int, opening[0].pts)
    for back in BACK:
        container.seek(max(first, first + math.floor(plan.start - (back + NEAR) / clock.base)), stream=stream)
        found = _looking(stream, limits, beat)
        for packet, opens in found:
            since = cast(int, packet.pts) - first
            if since >= 0 and not plan.before(plan.place(since)):
                break  # landed late
            if opens and since >= 0:
                yield packet, opens
                yield from found
                return
    raise Unsure("no key frame before the window")


def _looking(
    stream: VideoStream, limits: Limits, beat: Beat, ahead: Sequence[av.Packet] = ()
) -> Iterator[tuple[av.Packet, bool]]:
    """Yields the packets from the first key frame on, each with whether a decoder may begin there."""
    queue: deque[av.Packet] = deque()
    prefix = _prefix(stream)
    found = chain(ahead, packets(cast(InputContainer, stream.container), stream))
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
            _copyable(packet, prefix)
            if begun or packet.is_keyframe:  # what comes before the first key frame cannot be decoded
                begun = True
                queue.append(packet)
        if not queue:
            if not seen:
                raise Rejected("no_frames")
            return
        packet = queue.popleft()
        opens = packet.is_keyframe and _clean(packet)
        yield packet, opens and all(cast(int, p.pts) > cast(int, packet.pts) for p in queue)


def _clean(packet: av.Packet) -> bool:
    """Whether a decoder may begin at a key frame: H.264 calls more than those so that let go of all before."""
    context = cast(VideoStream, packet.stream).codec_context
    if context.name != "h264":
        return True
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


def _prefix(stream: VideoStream) -> int:
    """How many bytes before each unit of a packet say how long it is; 0 where none do."""
    extra = stream.codec_context.extradata or b""
    at = {"h264": 4, "hevc": 21}.get(stream.codec_context.name, len(extra))
    return (extra[at] & 3) + 1 if extra[:1] == b"\1" and at < len(extra) else 0


def _filled(packet: av.Packet, prefix: int) -> bool:
    """Whether units fill a packet to its last byte: what a hole of zeros or a lost block leaves does not."""
    data, at = memoryview(packet), 0  # type: ignore[arg-type]
    while at + prefix < len(data):
        size = int.from_bytes(data[at : at + prefix], "big")
        if not size:
            return False
        at += prefix + size
    return at == len(data)


def _copyable(packet: av.Packet, prefix: int) -> None:
    beside = {found.data_type for found in packet.iter_sidedata()}  # asking for a kind by name searches all names
    if "encryption_info" in beside:
        raise Rejected("encrypted", "its packets are encrypted")
    if packet.pts is None:
        raise reencode("packets without a time")
    if packet.is_discard:
        raise reencode("an edit list that hides frames")
    if not beside.isdisjoint(("new_extradata", "param_change")):
        raise reencode("its parameters change within the stream")
    if packet.is_corrupt or prefix and not _filled(packet, prefix):
        raise reencode("packets that lost bytes on the way")
