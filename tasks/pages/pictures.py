"""Pictures inside a page: frames as JPEG and curves as SVG, without a file or an address of their own."""

import base64
import io
import re
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import image, rc_context
from matplotlib.figure import Figure

from storage import files
from storage.errors import StoreError
from storage.media import sandbox
from storage.media.limits import Rejected
from storage.parts import Part
from storage.stores import is_local

Clip = tuple[Part, dict[str, Any]]
UNREADABLE = (Rejected, StoreError, OSError, ValueError)  # a picture that cannot be made is left out, and said
HEIGHT = 120  # pixels of a frame on the page
POINTS = 160  # of a curve, at most
INK = {"#010101": "currentColor", "#010102": "var(--score)", "#010103": "var(--truth)", "#010104": "var(--before)"}
TEXT, SCORE, TRUTH, BEFORE = INK  # colours of the figure that the page's style decides on
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "reelmill", "font.size": 8, "axes.edgecolor": TEXT}


def small(frame: np.ndarray, height: int = HEIGHT) -> np.ndarray:
    """A frame `[H, W, 3]` uint8 of at most ``height`` rows, by the means of equal blocks of pixels."""
    step = max(1, round(frame.shape[0] / height))
    rows, columns = (side // step * step for side in frame.shape[:2])
    blocks = frame[:rows, :columns].reshape(rows // step, step, columns // step, step, 3)
    return blocks.mean((1, 3)).astype(np.uint8)


def jpeg(frame: np.ndarray) -> Markup:
    """A frame `[H, W, 3]` uint8 as the data URI of a JPEG."""
    out = io.BytesIO()
    image.imsave(out, small(frame), format="jpg", pil_kwargs={"quality": 72, "optimize": True})
    return Markup("data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode())


def frames(clips: list[Clip], count: int) -> list[tuple[float, Markup]]:
    """(second of the source, picture) of about ``count`` frames, spread evenly over the clips of a video."""
    chosen = (
        clips if len(clips) <= count else [clips[i] for i in np.linspace(0, len(clips) - 1, count).round().astype(int)]
    )
    seconds = sum(row["end"] - row["start"] for _, row in chosen)
    found: list[tuple[float, np.ndarray]] = []
    for part, row in chosen:
        ((_, data),) = part.clips([row])
        pictures, times, _ = sandbox.mine().sample(data, max(0.05, 1.2 * count / max(seconds, 1e-3)))
        wanted = max(1, round(count * (row["end"] - row["start"]) / max(seconds, 1e-3)))
        places = np.linspace(0, len(pictures) - 1, min(wanted, len(pictures))).round().astype(int)
        found += [(row["start"] + float(times[i] - times[0]), pictures[i]) for i in places]
    return [(second, jpeg(frame)) for second, frame in found]


def first_frame(url: str, most: int) -> Markup | None:
    """A picture from the beginning of a file, squeezed to 16:9; None where there is none.

    A file that is not on this disk is fetched if it has ``most`` bytes or fewer.
    """
    try:
        size = int(files.info(url)["size"])
        if not size or (size > most and not is_local(files.locate(url)[0])):
            return None
        with files.scratch() as folder:
            path = files.local_path(url, folder / "source", size)
            shown, _ = sandbox.mine().thumbnails(path, size=(90, 160), window=(0.0, 2.0), fps=1.0)
        return jpeg(shown[0])
    except (*UNREADABLE, IndexError, KeyError):
        return None


def svg(figure: Figure, stretch: bool = False) -> Markup:
    """A figure as SVG inside HTML, in the page's colours; stretched, it fills its box whatever its shape."""
    out = io.StringIO()
    with rc_context(SVG):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    fit = ' preserveAspectRatio="none"' if stretch else ""
    text = text.replace("<svg ", f'<svg aria-hidden="true" focusable="false"{fit} ', 1)
    for sign, colour in INK.items():
        text = text.replace(sign, colour)
    return Markup(re.sub(r"\n\s*", "\n", text))


def curve(now: tuple[np.ndarray, np.ndarray], before: tuple[np.ndarray, np.ndarray] | None) -> Markup:
    """Precision against recall, (recall, precision) each; the model before in a colour that stands back."""
    with rc_context(SVG):
        figure = Figure(figsize=(1.8, 1.45), layout="constrained")
        axes = figure.subplots()
        for points, colour, width in ((before, BEFORE, 1.2), (now, SCORE, 1.8)):
            if points is not None:
                axes.plot(*_thinned(points), color=colour, lw=width, solid_joinstyle="round")
        axes.set(xlim=(0, 1), ylim=(0, 1.03), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        axes.set_xlabel("recall", color=TEXT, labelpad=1)
        axes.set_ylabel("precision", color=TEXT, labelpad=1)
        axes.tick_params(colors=TEXT, length=2, width=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.15, color=TEXT, lw=0.5)
    return svg(figure)


def _thinned(points: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    x, y = points
    places = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
    return np.asarray(x)[places], np.asarray(y)[places]


def track(times: np.ndarray, scores: np.ndarray, spans: list[tuple[float, float]], duration: float) -> Markup:
    """Truth (bars) and the scores of one class `[T]` against time, to be stretched over a row of the page."""
    with rc_context(SVG):
        figure = Figure(figsize=(8, 0.5))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        for start, end in spans:
            axes.axvspan(start, end, color=TRUTH, alpha=0.22, lw=0)
            axes.plot([start, end], [1.07, 1.07], color=TRUTH, lw=4, solid_capstyle="butt")
        axes.fill_between(times, 0, scores, color=SCORE, alpha=0.14, lw=0)
        axes.plot(times, scores, color=SCORE, lw=1.4, solid_joinstyle="round")
        axes.set(xlim=(0, max(duration, 1e-3)), ylim=(-0.03, 1.12))
    return svg(figure, stretch=True)
