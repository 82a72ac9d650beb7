"""Coarse-Fine read a second time from thesis 001, section 3.2, in eval mode: NumPy and loops over frames and cells.

Everything that X3D does not have is here in float64, one number at a time where that is bearable. Parameters go by
the names of the state dict.
"""

from typing import Any

import numpy as np
import second_x3d as second
import torch
from numpy import ndarray
from torch import Tensor

LEVELS = ("res2", "res3", "res4", "res5", "conv5")


def sigmoid(x: ndarray) -> ndarray:
    return 1 / (1 + np.exp(-x))


def at(x: ndarray, place: float) -> ndarray:
    """x [T, ...] between its frames."""
    low = min(int(np.floor(place)), len(x) - 1)
    high = min(low + 1, len(x) - 1)
    return x[low] + (place - low) * (x[high] - x[low])


def grid_places(p: ndarray, frames: int) -> ndarray:
    """Eq. 3.2 with a first point at 0, from confidences [B, N]."""
    places = np.zeros((len(p), p.shape[1] + 1))
    for b, row in enumerate(p):
        for t in range(1, len(row) + 1):
            places[b, t] = (frames - 1) * sum(1 - row[:t]) / sum(1 - row)
    return places


def sample(x: ndarray, places: ndarray) -> ndarray:
    """x [B, C, T, h, w] at places [B, J]."""
    rows = [np.stack([at(video.swapaxes(0, 1), q) for q in row], 1) for video, row in zip(x, places, strict=True)]
    return np.stack(rows)


def stretch(x: ndarray, frames: int) -> ndarray:
    """x [J, K] to T rows, first on first and last on last."""
    return np.stack([at(x, t * (len(x) - 1) / (frames - 1)) for t in range(frames)])


def grid_unpool(logits: ndarray, places: ndarray, frames: int) -> ndarray:
    out = []
    for x, q in zip(logits, places, strict=True):
        last = len(q) - 1
        even = [np.interp(k * (frames - 1) / last, q, np.arange(last + 1)) for k in range(last + 1)]
        out.append(stretch(np.stack([at(x, place) for place in even]), frames))
    return np.stack(out)


def gaussians(centres: ndarray, frames: int, share: float, valid: ndarray) -> ndarray:
    """Normal densities [B, J, T] over the valid frames, each divided by its largest value."""
    out = np.zeros((*centres.shape, frames))
    for b, row in enumerate(centres):
        sigma = share * valid[b].sum()
        for j, mu in enumerate(row):
            for t in range(frames):
                if valid[b, t]:
                    out[b, j, t] = np.exp(-((t - mu) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi * sigma**2)
            out[b, j] /= out[b, j].max()
    return out


def aggregate(x: ndarray, mask: ndarray, weights: ndarray) -> ndarray:
    B, C, T, h, w = x.shape
    out = np.zeros((B, C, weights.shape[1], h, w))
    for b in range(B):
        for j in range(weights.shape[1]):
            above, below = np.zeros((C, h, w)), np.zeros((h, w))
            for t in range(T):
                above += x[b, :, t] * mask[b, 0, t] * weights[b, j, t]
                below += mask[b, 0, t] * weights[b, j, t]
            out[b, :, j] = above / below
    return out


def fit(x: ndarray, high: int, wide: int) -> ndarray:
    """Adaptive max pooling, cell by cell."""
    h, w = x.shape[3:]
    out = np.zeros((*x.shape[:3], high, wide))
    for i in range(high):
        for k in range(wide):
            rows = slice(i * h // high, -(-(i + 1) * h // high))
            columns = slice(k * w // wide, -(-(k + 1) * w // wide))
            out[..., i, k] = x[..., rows, columns].max((3, 4))
    return out


def point(p: dict[str, Tensor], name: str, x: ndarray) -> ndarray:
    weight = p[f"{name}.weight"].numpy()[:, :, 0, 0, 0]
    return np.einsum("oi,bithw->bothw", weight, x) + p[f"{name}.bias"].numpy()[:, None, None, None]


def pair(p: dict[str, Tensor], name: str, x: ndarray) -> ndarray:
    return point(p, f"{name}.outer", np.maximum(point(p, f"{name}.inner", x), 0))


def confidence(p: dict[str, Tensor], x: Tensor, strides: tuple[int, int], temperature: float) -> ndarray:
    """The head h of Eq. 3.1."""
    for i, stride in enumerate(strides, start=1):
        x = second.conv(p, f"grid.conv{i}", x, 2)[:, :, ::stride]
        x = torch.relu(second.norm(p, f"grid.norm{i}", x))
    return sigmoid(temperature * second.conv(p, "grid.conv3", x, 2).mean((1, 3, 4)).numpy())


def under(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in p.items() if name.startswith(prefix)}


def second_coarse_fine(
    p: dict[str, Tensor],
    config: Any,
    video: Tensor,
    whole: Tensor,
    start: ndarray,
    step: ndarray,
    valid: ndarray,
    strides: tuple[int, int] = (2, 2),
) -> dict[str, ndarray]:
    """The network with every fusion, attention and correspondence; pooling by grid, striding or none."""
    coarse, T = under(p, "coarse."), video.shape[2]
    res2 = second.stage(coarse, second.stem(coarse, video, config), 2, config)
    if config.pooling == "grid":
        places = grid_places(confidence(p, res2, strides, config.temperature), T)
    else:
        places = np.tile(np.arange(0.0, T, config.ratio), (len(video), 1))
    x = sample(res2.numpy(), places)
    fine = {name: m.numpy() for name, m in second.second_x3d(under(p, "fine."), whole, config).items()}
    shifts, scales = {}, {}
    centres = (places + start[:, None]) / step[:, None]
    for name in LEVELS:
        if f"fusion.levels.{name}.shift.inner.weight" not in p:
            continue
        level = f"fusion.levels.{name}"
        mask = sigmoid(pair(p, f"{level}.attention", fine[name])) if config.attention else np.ones_like(fine[name])
        if config.correspondence == "direct":
            seen = sample(fine[name], centres)
        else:
            weights = gaussians(centres, whole.shape[2], config.sigma, valid)
            seen = aggregate(fine[name], mask[:, :1], weights)
        if name == "conv5":
            seen = seen.mean((3, 4), keepdims=True)
        shifts[name], scales[name] = pair(p, f"{level}.shift", seen), pair(p, f"{level}.scale", seen)
    out = {"places": places}
    for s, name in enumerate(LEVELS[:-1], start=2):
        if s > 2:
            x = second.stage(coarse, torch.from_numpy(x), s, config).numpy()
        if config.fusion != "late":
            names = LEVELS[:-1] if config.fusion == "multi_stage" else [name]
            shift, scale = (np.concatenate([fit(d[n], *x.shape[3:]) for n in names], 1) for d in (shifts, scales))
            if config.fusion == "multi_stage":
                shift = point(p, f"fusion.mixes.{name}.shift", shift)
                scale = point(p, f"fusion.mixes.{name}.scale", scale)
            x = x * sigmoid(scale) + shift
        out[name] = x
    conv5, logits = second.head(coarse, torch.from_numpy(x))
    logits = logits.numpy() * sigmoid(scales["conv5"][..., 0, 0]).swapaxes(1, 2) + shifts["conv5"][..., 0, 0].swapaxes(
        1, 2
    )
    if config.pooling == "grid":
        logits = grid_unpool(logits, places, T)
    elif config.pooling != "none":
        logits = np.stack([stretch(row, T) for row in logits])
    return {"logits": logits, **out, "conv5": conv5.numpy()}
