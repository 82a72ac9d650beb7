"""Clips of a source that follow each other, scored as the one video that they are: windows go over their borders.

The scores are those of one pass over the frames of all of them, while no more than a few clips are held. The last
windows of several sources share the model's batches.
Letters: B windows, L frames to a window, K classes. Frames are counted from the first one of a stretch.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
Scored = tuple[str, np.ndarray, np.ndarray]  # key, times [T] on the source clock, scores [T, K]


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

    def rest(self) -> list[int]:
        """Where the windows begin that are left, as no more frames come: the last one goes up to the end."""
        last = self.end - self.length
        if last < self.begin:  # fewer frames than a window has: the last one stays
            still = self._frames[-1:].expand(self.length - len(self._frames), -1, -1, -1)
            self._frames = torch.cat([self._frames, still])
            return [self.begin]
        return self._whole() + ([last] if last % self.step else [])

    def window(self, begin: int) -> Tensor:
        """The frames `[3, L, S, S]` of a window."""
        return self._frames[begin - self.begin : begin - self.begin + self.length].transpose(0, 1)

    def _score(self, begins: list[int]) -> None:
        for begin, logits in zip(begins, _asked(self.answer, list(map(self.window, begins)), begins), strict=True):
            self.take(begin, logits)

    @torch.inference_mode()
    def take(self, begin: int, logits: Tensor) -> None:
        """Adds the logits `[L, K]` of a window."""
        self._room(logits.shape[1])
        place = begin - self.begin
        self._total[place : place + self.length] += logits
        self._seen[place : place + self.length] += 1
        self.next = max(self.next, begin // self.step * self.step + self.step)

    def drop(self) -> None:
        """Lets go of the pixels of all frames, as no window needs them any more."""
        self._frames = self._frames.new_empty(len(self._frames), 0)

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


@torch.inference_mode()
def _asked(answer: Answer, windows: list[Tensor], begins: list[int]) -> Tensor:
    return answer(torch.stack(windows), begins)


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
        return self.clip[1]["key"], times, at_source_rate(logits, np.append(sampled, [self.following] * beyond), times)


class Ends:
    """What is left of stretches at their ends: windows too few for a batch, which those of other stretches fill up.

    Between two stretches less than a batch of windows is held, and no other frame. ``answer`` is that of all of them.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._windows: list[tuple[Pass, int, Tensor]] = []
        self._stretches: deque[tuple[Pass, list[_Waiting]]] = deque()

    def add(self, over: Pass, waiting: Iterable[_Waiting]) -> Iterator[Scored]:
        """Takes what is left of a stretch; yields the clips that wait for no window any more, of whichever stretch."""
        self._windows += [(over, begin, over.window(begin).clone()) for begin in over.rest()]
        over.drop()
        self._stretches.append((over, list(waiting)))
        return self._scored(BATCH)

    def flush(self) -> Iterator[Scored]:
        """Scores what is there, and yields all clips."""
        return self._scored(1)

    def _scored(self, least: int) -> Iterator[Scored]:
        while len(self._windows) >= least:
            batch, self._windows = self._windows[:BATCH], self._windows[BATCH:]
            begins = [begin for _, begin, _ in batch]
            for (over, begin, _), logits in zip(
                batch, _asked(self.answer, [window for *_, window in batch], begins), strict=True
            ):
                over.take(begin, logits)
        while self._stretches and not (self._windows and self._windows[0][0] is self._stretches[0][0]):
            over, waiting = self._stretches.popleft()
            yield from (one.scored(over) for one in waiting)


def scored(
    stretch: list[Clip], first: int, last: int, look: Look, ends: Ends, length: int, fps: float, at: int | None
) -> Iterator[Scored]:
    """Scores the clips from place ``first`` to ``last`` of a stretch, with the frames around them that windows need.

    ``at`` is the frame of the stretch that the first begins with; None: as the index says. A neighbour that cannot be
    had ends the stretch. The last clips come when the batch is full that their windows are in, or by ``ends.flush()``.
    """
    lead, whole = _before(stretch[:first], look, length)
    if not whole:
        known = sum(sampled(row, fps) for _, row in stretch[:first]) if at is None else at
        begin = max(known, len(lead))
    else:
        begin = len(lead)
    over = Pass(ends.answer, length, begin - min(len(lead), length))
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
    yield from ends.add(over, waiting)


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
