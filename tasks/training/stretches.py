"""Clips of a source that follow each other, scored as the one video that they are: windows go over their borders.

The scores are those of one pass over the frames of all of them, while no more than a few clips are held.
Letters: B windows, L frames to a window, K classes. Frames are counted from the first one of a stretch.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.calibration import runs
from tasks.scorer import BATCH, at_source_rate
from tasks.training.loader import Decoded
from tasks.training.videos import Clip

Answer = Callable[[Tensor, list[int]], Tensor]  # windows [B, 3, L, S, S] that begin at these frames to logits [B, L, K]
Look = Callable[[Clip], Decoded | None]  # a clip's frames; None where it cannot be had
Scored = tuple[Clip, np.ndarray, np.ndarray]  # times [T] on the source clock, scores [T, K]


def stretches(clips: list[Clip]) -> list[list[Clip]]:
    """The clips of a source, in the order of its clock, parted where one does not begin when the one before ends."""
    found: list[list[Clip]] = []
    for clip in clips:
        if found and _meet(found[-1][-1][1], clip[1]):
            found[-1].append(clip)
        else:
            found.append([clip])
    return found


def _meet(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return abs(other["start"] - one["end"]) <= 0.5 / min(one["fps"], other["fps"])


def sampled(row: dict[str, Any], fps: float) -> int:
    """How many frames a clip has at a rate, by its index row: those of a grid up to its last frame."""
    last = (row["frames"] - 1) / row["fps"]
    count = int(last * fps) + 2
    while count > 1 and (count - 1) / fps > last:
        count -= 1
    return count


def ranges(stretch: list[Clip], wanted: set[str]) -> list[tuple[int, int]]:
    """The first and last places of clips that are wanted, by key, one after the other."""
    asked = np.array([row["key"] in wanted for _, row in stretch], bool)
    return [(int(first), int(after) - 1) for first, after in runs(asked)]


class Pass:
    """One pass of windows that overlap by half over frames that come bit by bit."""

    def __init__(self, answer: Answer, length: int, begin: int) -> None:
        """The frames that come first are those from ``begin`` on."""
        self.answer, self.length, self.step = answer, length, max(1, length // 2)
        self.begin = self.end = begin
        self.next = -(-begin // self.step) * self.step  # the first window that is not scored yet
        self._frames = self._total = self._seen = torch.empty(0)

    def add(self, frames: Tensor) -> None:
        """Takes the next frames `[T, 3, S, S]` and scores the windows that are whole, some at a time."""
        self._frames = torch.cat([self._frames, frames]) if len(self._frames) else frames
        self.end += len(frames)
        while len(begins := self._whole()) >= BATCH:
            self._score(begins[:BATCH])

    def flush(self) -> None:
        """Scores all windows that are whole."""
        while begins := self._whole():
            self._score(begins[:BATCH])

    def _whole(self) -> list[int]:
        return list(range(self.next, self.end - self.length + 1, self.step))

    def finish(self) -> None:
        """Scores what is left, as no more frames come: a last window up to the end."""
        last = self.end - self.length
        begins = self._whole() + ([last] if last >= self.begin and last % self.step else [])
        for first in range(0, len(begins), BATCH):
            self._score(begins[first : first + BATCH])
        if last < self.begin:  # fewer frames than a window has: the last one stays
            still = self._frames[-1:].expand(self.length - len(self._frames), -1, -1, -1)
            self._frames = torch.cat([self._frames, still])
            self._score([self.begin])

    @torch.inference_mode()
    def _score(self, begins: list[int]) -> None:
        places = [b - self.begin for b in begins]
        found = self.answer(torch.stack([self._frames[p : p + self.length].transpose(0, 1) for p in places]), begins)
        self._room(found.shape[2])
        for place, logits in zip(places, found, strict=True):
            self._total[place : place + self.length] += logits
            self._seen[place : place + self.length] += 1
        self.next = max(self.next, begins[-1] // self.step * self.step + self.step)

    def _room(self, K: int) -> None:
        more = len(self._frames) - len(self._total)
        if more:
            total = self._total if len(self._total) else torch.empty(0, K)
            seen = self._seen if len(self._seen) else torch.empty(0, 1)
            self._total = torch.cat([total, torch.zeros(more, K)])
            self._seen = torch.cat([seen, torch.zeros(more, 1)])

    @property
    def settled(self) -> int:
        """The first frame that a window to come may still see, the last one included, wherever the frames end."""
        return min(self.next, self.end - self.length)

    def logits(self, first: int, last: int) -> np.ndarray:
        """The logits `[last - first, K]` of frames whose windows are all scored."""
        here = slice(first - self.begin, last - self.begin)
        return (self._total[here] / self._seen[here]).numpy()

    def forget(self, before: int) -> None:
        """Lets go of frames that nobody asks for any more, as far as no window needs them."""
        gone = min(before, self.next - self.length) - self.begin
        if gone > 0 and gone <= len(self._total):
            self._frames, self._total, self._seen = self._frames[gone:], self._total[gone:], self._seen[gone:]
            self.begin += gone


@dataclass
class _Waiting:
    """A clip whose frames have gone in, and whose windows are not all scored."""

    clip: Clip
    first: int
    after: int  # the first frame that is not its own
    sampled: np.ndarray
    times: np.ndarray
    following: float | None = None  # when the clip after it begins

    def scored(self, over: Pass) -> Scored:
        start, beyond = self.clip[1]["start"], self.following is not None
        sampled, times = self.sampled + start, self.times + start
        logits = over.logits(self.first, self.after + beyond)
        return self.clip, times, at_source_rate(logits, np.append(sampled, [self.following] * beyond), times)


def scored(
    stretch: list[Clip], first: int, last: int, look: Look, answer: Answer, length: int, fps: float, at: int | None
) -> Iterator[Scored]:
    """Scores the clips from place ``first`` to ``last`` of a stretch, with the frames around them that windows need.

    ``at`` is the frame of the stretch that the first begins with; None: as the index says. A neighbour that cannot be
    had ends the stretch.
    """
    lead, whole = _before(stretch[:first], look, length)
    if not whole:
        known = sum(sampled(row, fps) for _, row in stretch[:first]) if at is None else at
        begin = max(known, len(lead))
    else:
        begin = len(lead)
    over = Pass(answer, length, begin - min(len(lead), length))
    if len(lead):
        over.add(lead[-length:])
    waiting: deque[_Waiting] = deque()
    for place, clip in enumerate(stretch[first:], first):
        found = look(clip)
        if found is None:
            break
        if waiting and waiting[-1].after == over.end:
            waiting[-1].following = clip[1]["start"]
        if place <= last:
            waiting.append(_Waiting(clip, over.end, over.end + len(found.frames), found.sampled, found.times))
        over.add(found.frames)
        if last <= place < len(stretch) - 1:
            over.flush()
        while waiting and over.settled > waiting[0].after:
            yield waiting.popleft().scored(over)
        if place >= last and not waiting:
            return
        over.forget(waiting[0].first if waiting else over.end)
    over.finish()
    yield from (one.scored(over) for one in waiting)


def _before(clips: list[Clip], look: Look, length: int) -> tuple[Tensor, bool]:
    """As many frames of the clips before as a window has, if there are as many, and whether there are no others."""
    lead: list[Tensor] = []
    for clip in reversed(clips):
        if sum(map(len, lead)) >= length:
            return torch.cat(lead[::-1]), False
        found = look(clip)
        if found is None:
            break
        lead.append(found.frames)
    return torch.cat(lead[::-1]) if lead else torch.empty(0), True
