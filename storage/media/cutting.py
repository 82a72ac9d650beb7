"""Cutting a video into clips, by decoding and encoding its frames."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from storage.media.encoder import Encoder
from storage.media.footage import Footage, Unsure
from storage.media.interlace import progressive
from storage.media.limits import DEFAULT, Limits
from storage.media.picture import Upright, askew, range_of
from storage.media.video import NEAR, Clock

METHOD = 4  # goes up when the same source and options give other clips; part of what identifies a part
HELD_BACK = 256  # frames in memory while a rest may still be too short for a clip
Place = tuple[int, int]  # (shot, piece of the shot)


@dataclass(frozen=True)
class Clip:
    """One cut clip. Times are seconds since the first frame of the source; pts are in its own time base.

    ``notes`` say what was done to its frames beyond scaling, e.g. that they were deinterlaced.
    """

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
    notes: list[str]


class Plan:
    """Where clips begin, in ticks of ``base``: at every bound, and every ``span`` seconds after one.

    Without bounds the whole video is one shot. A last piece of a shot shorter than ``tail`` joins the one before.
    """

    def __init__(
        self,
        base: Fraction,
        span: float,
        tail: float,
        bounds: Sequence[float] | None = None,
        window: tuple[float, float | None] | None = None,
    ) -> None:
        if span < 0.1:
            raise ValueError(f"span is {span:g} s, at least 0.1 is needed")
        self.base, self.shots = base, bounds is not None
        self.span = _exact(span) / base
        self.tail = min(_exact(max(tail, 0.0)), _exact(span)) / base
        self.near = NEAR / base
        borders = {_exact(bound) / base for bound in bounds or () if bound > NEAR}
        self.borders = [Fraction(0), *sorted(borders)]
        start, end = window or (0.0, None)
        self.start = _exact(start) / base
        self.end = None if end is None else _exact(end) / base

    def place(self, when: int) -> Place:
        """The shot and the piece of it that a frame of that time belongs to."""
        moment = when + self.near
        shot = bisect_right(self.borders, moment) - 1
        piece = math.floor((moment - self.borders[shot]) / self.span)
        if piece and shot + 1 < len(self.borders):
            rest = self.borders[shot + 1] - self.begin((shot, piece))
            piece -= rest < self.tail
        return shot, piece

    def begin(self, place: Place) -> Fraction:
        return self.borders[place[0]] + place[1] * self.span

    def before(self, place: Place) -> bool:
        return self.begin(place) + self.near < self.start

    def beyond(self, place: Place) -> bool:
        return self.end is not None and self.begin(place) + self.near >= self.end


def _exact(seconds: float) -> Fraction:
    return Fraction(str(seconds))


def record(
    clock: Clock,
    plan: Plan,
    number: int,
    place: Place,
    span: tuple[int, int],
    frames: int,
    size: tuple[int, int],
    notes: Iterable[str] = (),
    until: int | None = None,
) -> Any:
    """The `Clip` record of the frames from ``span[0]`` to ``span[1]``; ``until`` is when the clip after it begins.

    With bounds it also has its ``shot`` and whether that is ``short`` of a tail.
    """
    first, begun, end = clock.first or 0, span[0], span[1] + clock.tick
    if until is not None:  # where the rate varies, the next frame may come sooner than frames do on average
        end = min(end, until)
    seconds = float((end - begun) * clock.base)
    clip = Clip(
        file=f"{number:06d}.mp4",
        start=float(begun * clock.base),
        end=float(end * clock.base),
        start_pts=first + begun,
        end_pts=first + end,
        time_base=str(clock.base),
        frames=frames,
        fps=frames / seconds if seconds else 0.0,
        width=size[0],
        height=size[1],
        notes=sorted(notes),
    )
    marks = {"shot": place[0], "short": bool(end - begun < plan.tail)} if plan.shots else {}
    return asdict(clip) | marks


def cut(
    path: str,
    folder: str,
    *,
    span: float = 10.0,
    short_side: int = 256,
    tail: float = 1.0,
    window: tuple[float, float | None] | None = None,
    bounds: Sequence[float] | None = None,
    limits: Limits = DEFAULT,
    beat: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Decodes a video once and re-encodes it as clips in ``folder``; returns one `Clip` record a clip.

    Clips begin at multiples of ``span`` seconds since the first frame, and with ``bounds`` (seconds, between shots)
    at every bound and every ``span`` after it. What is left of a video or shot and shorter than ``tail`` joins the
    clip before it; a whole shot that short is a clip of its own, marked ``short``. ``window`` (start, end or None)
    makes only the clips that begin within it, with the very bytes of a cut in one go; windows that meet cover all.
    ``beat()`` is called once a packet, so that a watcher can tell slow from stuck. Raises `Rejected`.
    """
    options = {"span": span, "tail": tail, "bounds": bounds, "window": window}
    start = window[0] if window else 0.0
    for seek in (True, False):
        try:
            with Footage(path, limits, start=start, seek=seek, beat=beat) as footage:
                plan = Plan(footage.clock.base, **options)  # type: ignore[arg-type]
                return _Cutter(footage, plan, Path(folder), short_side).run()
        except Unsure:
            continue
    raise AssertionError("a decode from the beginning is never unsure")


class _Cutter:
    """Sorts frames into clips; frames that may be too short a rest for a clip of their own are held back."""

    def __init__(self, footage: Footage, plan: Plan, folder: Path, short_side: int) -> None:
        self.footage, self.plan, self.folder, self.clock = footage, plan, folder, footage.clock
        self.upright = Upright(footage.stream.sample_aspect_ratio, short_side)
        self.clips: list[dict[str, Any]] = []
        self.writer: Encoder | None = None
        self.place: Place | None = None  # of the clip that is being written
        self.held: Place | None = None
        self.rest: list[tuple[int, av.VideoFrame, str]] = []  # time, upright, what was done to it
        self.notes: set[str] = set()
        self.begun = self.last = self.count = 0

    def run(self) -> list[dict[str, Any]]:
        plan, at_end = self.plan, True
        for now, frame, changed in progressive(self.footage):
            place = plan.place(now)
            if plan.before(place):
                continue
            if self.rest and place != self.held and self._advance():
                at_end = False
                break
            if place != self.place:
                self.held = place
            self.rest.append((now, self.upright.yuv(frame), _note(frame, changed)))
            if place == self.place:
                self._write()
            elif self._certain(now) and self._advance():
                at_end = False
                break
        if at_end and self.rest and self.writer:
            self._write()  # too short for a clip of its own
        self._finish()
        if self.footage.begun:
            self.footage.damage.judge(self.footage.limits, at_end)
        if at_end:
            self.clock.check(whole=not self.footage.sought)
        else:
            self.clock.check_times()
        return self.clips

    def _certain(self, now: int) -> bool:
        """Whether what is held is a clip of its own, whatever follows."""
        assert self.held
        opens = self.held[1] == 0 or (self.place is None and self.plan.start <= 0)
        full = (now + self.clock.tick - self.rest[0][0]) >= self.plan.tail
        return opens or full or len(self.rest) >= HELD_BACK

    def _advance(self) -> bool:
        """Begins the clip that is held; True where it is beyond the window instead."""
        assert self.held
        self._finish(until=self.rest[0][0])
        if self.plan.beyond(self.held):
            self.rest.clear()
            return True
        upright = self.rest[0][1]
        file = self.folder / f"{len(self.clips):06d}.mp4"
        self.writer = Encoder(file, upright.width, upright.height, self.clock.rate, self.clock.base)
        self.place, self.begun, self.count = self.held, self.rest[0][0], 0
        self._write()
        return False

    def _write(self) -> None:
        assert self.writer
        for when, frame, note in self.rest:
            self.writer.write(frame, (when - self.begun) * self.clock.base)
            self.notes |= {note} - {""}
        self.last, self.count = self.rest[-1][0], self.count + len(self.rest)
        self.rest.clear()

    def _finish(self, until: int | None = None) -> None:
        if self.writer is None:
            return
        self.writer.close()
        assert self.place
        size = (self.writer.stream.width, self.writer.stream.height)
        numbers = (len(self.clips), self.place, (self.begun, self.last), self.count)
        self.clips.append(record(self.clock, self.plan, *numbers, size, self.notes, until))
        self.writer, self.notes = None, set()


def _note(frame: av.VideoFrame, deinterlaced: bool) -> str:
    """What is done to a frame beyond scaling and turning it."""
    mapped = [f"{range_of(frame)} mapped to standard range"] if range_of(frame) else []
    turned = [f"turned by {askew(frame)} degrees to the nearest quarter"] if askew(frame) else []
    return ", ".join(["deinterlaced"] * deinterlaced + mapped + turned)
