"""The frames of a clip that are wanted, without decoding what neither they nor anything they are made of needs."""

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import av

from storage.media.footage import Footage, Unsure
from storage.media.groups import groups
from storage.media.limits import Rejected
from storage.media.video import Clock, decode, packets

MOST = 1 << 16  # packets that are held: 40 minutes at 25 frames a second
Timed = Iterable[tuple[float, int]]  # seconds since the first, pts


def sparse(footage: Footage, choice: Callable[[Timed], Timed]) -> Iterator[tuple[int, av.VideoFrame | None]]:
    """Yields the time of every frame of a clip, in order, and the frame itself at least where it is of the ``choice``.

    The frames are those of a decode of all. Not decoded are those that H.264 marks as needed by no other, and what
    follows the last that is wanted before a key frame that lets go of all before it.
    Raises `Unsure` where that cannot be proven, or where damage comes to light, which a decode of all has to judge.
    """
    held = list(_held(footage))
    times = sorted(cast(int, packet.pts) for packet, _ in held)
    wanted = {pts for _, pts in choice((float((pts - times[0]) * footage.clock.base), pts) for pts in times)}
    coming = iter(times)
    for frame in decode(_needed(held, wanted), footage.stream, footage.limits, footage.damage, footage.beat):
        if frame.interlaced_frame:
            raise Unsure("a picture that its neighbours are needed for")
        for pts in coming:
            if pts == frame.pts:
                yield footage.clock.read(pts), frame
                break
            _not_needed(pts, wanted)
            yield footage.clock.read(pts), None
        else:
            raise Unsure("a frame out of order")
    for pts in coming:
        _not_needed(pts, wanted)
        yield footage.clock.read(pts), None
    if footage.damage.damaged:
        raise Unsure("damage")


def _held(footage: Footage) -> Iterator[tuple[av.Packet, bool]]:
    """All packets of a clip, each with whether nothing before it is needed from there on."""
    if footage.stream.codec_context.name != "h264":
        raise Unsure("another codec")
    limits = footage.limits
    try:
        first = next((packet for packet in packets(footage.container, footage.stream) if packet.size), None)
        if first is None or not first.is_keyframe:
            raise Unsure("no key frame at the beginning: what a decoder makes of the rest only it knows")
        found = groups(Clock(footage.stream, limits), limits, limits.max_seconds, footage.beat, ahead=[first])
        for count, (packet, _, opens) in enumerate(found):
            if count == MOST:
                raise Unsure("too long")
            yield packet, opens
    except Rejected as rejected:
        raise Unsure(rejected.detail) from rejected


def _needed(held: list[tuple[av.Packet, bool]], wanted: set[int]) -> Iterator[av.Packet]:
    """The packets that some wanted frame is made of, or may be; the decoder is told which of them are not shown."""
    end = av.Packet()
    end.stream = held[0][0].stream
    context = end.stream.codec_context
    group: list[av.Packet] = []
    for packet, opens in [*held, (end, True)]:
        if opens:
            while group and group[-1].pts not in wanted:
                group.pop()
            for one in group:
                context.skip_frame = "DEFAULT" if one.pts in wanted else "NONREF"
                yield one
            group.clear()
        group.append(packet)
    yield end


def _not_needed(pts: int, wanted: set[int]) -> None:
    if pts in wanted:
        raise Unsure("a frame that does not come")
