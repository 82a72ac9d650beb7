"""One picture as it is meant to be seen: upright, square pixels, one size, one meaning of colour."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from storage.media.tones import tone_map

BT709 = 1  # the number of its primaries
BT601 = 6  # the matrix of SMPTE 170M by its number in H.273, which swscale counts otherwise
INTERLACED = (2, 3, 4, 5)  # field orders, by FFmpeg's numbers
MATRIX = 36  # bytes: nine numbers
AS_STORED = (0, False)
HDR = {16: "pq", 18: "hlg"}  # transfer curves of high dynamic range, by their number in H.273


class Upright:
    """Makes frames upright: ``sar`` is the shape of a pixel, ``short_side`` the most that the short side may have.

    With ``size`` (height, width) frames are squeezed to that instead.
    """

    def __init__(
        self, sar: Fraction | None, short_side: int | None = None, size: tuple[int, int] | None = None
    ) -> None:
        self.sar = float(sar) if sar and 0.1 < sar < 10 else 1.0
        self.short_side, self.size = short_side, size
        # One for all frames: setting it up costs more than a small frame.
        self.scaler, self.last = VideoReformatter(), VideoReformatter()
        self.mirrored: bool | None = None  # unknown before the first frame

    def yuv(self, frame: av.VideoFrame) -> av.VideoFrame:
        """As yuv420p of even sides, always BT.601 and of limited range: what readers assume who look at no tags."""
        shape = self._shape(frame, 2)
        if range_of(frame):
            mapped = av.VideoFrame.from_ndarray(self._mapped(frame, shape), "rgb24")
            return _tagged(_limited(self.last, mapped))
        made = _limited(self.scaler, frame, **shape)
        if self._stance(frame) != AS_STORED:
            planes = made.to_ndarray()
            rows, width = made.height, made.width
            y, u, v = planes[:rows], planes[rows : rows * 5 // 4], planes[rows * 5 // 4 :]
            parts = [y, u.reshape(rows // 2, width // 2), v.reshape(rows // 2, width // 2)]
            turned = [self._stood(part, frame) for part in parts]
            height, wide = turned[0].shape
            stacked = np.concatenate([part.reshape(-1) for part in turned]).reshape(height * 3 // 2, wide)
            made = av.VideoFrame.from_ndarray(stacked, "yuv420p")
        return _tagged(made)

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """As `[H, W, 3]` uint8."""
        stance = self._stance(frame)
        if stance == AS_STORED and self.sar == 1.0 and self.size is None and self.short_side is None:
            shape: dict[str, Any] = {}
        elif self.size is not None:
            height, width = self.size if stance[0] % 2 == 0 else self.size[::-1]
            shape = {"width": width, "height": height, "interpolation": Interpolation.AREA}
        else:
            shape = self._shape(frame, 1)
        if range_of(frame):
            return self._mapped(frame, shape)
        made = self.scaler.reformat(
            frame, format="rgb24", dst_color_range=ColorRange.JPEG, threads=1, **_source(frame), **shape
        )
        return self._stood(made.to_ndarray(), frame)

    def _mapped(self, frame: av.VideoFrame, shape: dict[str, Any]) -> np.ndarray:
        """A frame of high dynamic range, upright and in standard range, as `[H, W, 3]` uint8."""
        made = self.scaler.reformat(
            frame, format="rgb48le", dst_color_range=ColorRange.JPEG, threads=1, **_source(frame), **shape
        )
        pixels = tone_map(made.to_ndarray(), range_of(frame), wide=int(frame.color_primaries) != BT709)
        return self._stood(pixels, frame)

    def _stance(self, frame: av.VideoFrame) -> tuple[int, bool]:
        """`angle` of a frame in the nearest quarter turns, 0 to 3; all frames are mirrored, or none is."""
        if self.mirrored is None:
            self.mirrored = angle(frame)[1]
        return round(_degrees(frame, self.mirrored) / 90) % 4, self.mirrored

    def _stood(self, pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
        """The pixels `[H, W, ...]` of a frame, upright."""
        quarter, mirrored = self._stance(frame)
        turned = np.rot90(pixels, quarter)
        return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)

    def _shape(self, frame: av.VideoFrame, step: int) -> dict[str, Any]:
        width = frame.width * self.sar
        scale = min(1.0, self.short_side / min(width, frame.height)) if self.short_side else 1.0
        sides = [max(step, round(side * scale / step) * step) for side in (width, frame.height)]
        return {"width": sides[0], "height": sides[1]}


def interlaced(stream: VideoStream, frame: av.VideoFrame) -> bool:
    """Whether a stream, or its first frame, is said to be interlaced."""
    return bool(frame.interlaced_frame) or stream.codec_context.field_order in INTERLACED


def range_of(frame: av.VideoFrame) -> str:
    """The transfer curve of a frame of high dynamic range, or nothing."""
    return HDR.get(int(frame.color_trc), "")


def _limited(scaler: VideoReformatter, frame: av.VideoFrame, **shape: Any) -> av.VideoFrame:
    return scaler.reformat(
        frame,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU601,
        dst_color_range=ColorRange.MPEG,
        threads=1,
        **_source(frame),
        **shape,
    )


def _tagged(frame: av.VideoFrame) -> av.VideoFrame:
    frame.colorspace, frame.color_range = BT601, ColorRange.MPEG
    return frame


def angle(frame: av.VideoFrame) -> tuple[int, bool]:
    """What makes a stream's frames upright: degrees to turn them, counter-clockwise, and whether to mirror them left to
    right after that.

    A display matrix turns first and mirrors then, as `av_display_matrix_flip` does; where it mirrors, FFmpeg's reading
    of the angle is that of another picture. To be asked of one frame: a look at what lies beside it keeps it in memory.
    """
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if matrix is None or len(bytes(matrix)) != MATRIX:
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    mirrored = a * d < b * c
    return _degrees(frame, mirrored), mirrored


def _degrees(frame: av.VideoFrame, mirrored: bool) -> int:
    return 180 - (frame.rotation or 0) if mirrored else frame.rotation or 0


def askew(frame: av.VideoFrame) -> int:
    """The angle of a frame that is turned by no whole quarter, else 0; it is known to a degree."""
    degrees = frame.rotation or 0
    return degrees if 1 < degrees % 90 < 89 else 0


def _source(frame: av.VideoFrame) -> dict[str, Any]:
    """Full range, spelt out where the format alone says so (yuvj); everything else speaks for itself."""
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return {"src_color_range": ColorRange.JPEG} if full and not frame.format.is_rgb else {}


def shown_size(stream: VideoStream, frame: av.VideoFrame) -> tuple[int, int]:
    """The width and height at which a stream's frames are shown, before any scaling of ours."""
    width, height = round(frame.width * Upright(stream.sample_aspect_ratio).sar), frame.height
    return (height, width) if round(angle(frame)[0] / 90) % 2 else (width, height)
