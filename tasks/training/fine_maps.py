"""What the Fine stream makes of whole videos, as a column: two streams are trained together on it without that stream.

A clip's rows depend on its whole video and on a Fine stream that is another one as soon as a training part is, so
nothing is carried over from the parts of a version before.
"""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from cachetools import LRUCache, cached

import models
from storage import checkpoints, columns, files
from storage.checkpoints import Checkpoint
from storage.datasets import Dataset
from storage.errors import Damaged
from storage.ledger import Report
from storage.parts import Part
from tasks.evaluate import held_out
from tasks.scorer import fine_maps, load
from tasks.stage import cover
from tasks.training.loader import Footage
from tasks.training.spec import Spec
from tasks.training.videos import (
    FINE,
    Clip,
    FinePiece,
    Neighbours,
    Pieces,
    beside,
    identity,
    in_turn,
    videos,
    whole,
)
from tasks.training.views import OPEN

MOST_CELLS = 7  # height and width: those of the last maps of 224 pixels


def cells_of(checkpoint: Checkpoint) -> int:
    """Height and width of a Fine stream's maps in the column: those of its largest, and `MOST_CELLS` at most."""
    about = checkpoint.about
    with torch.device("meta"):
        fine = models.build(about["system"], num_classes=1, **about["options"]).eval()
        maps = fine.features(torch.zeros(1, 3, 1, about["spec"]["size"], about["spec"]["size"]))  # type: ignore[operator]
    return min(MOST_CELLS, max(x.shape[-1] for x in maps.values()))


def version(checkpoint: Checkpoint, most: int, cells: int, others: dict[str, list[Part]]) -> str:
    """The version of the column: the weights, how a video is seen, and which parts share videos.

    So a video that lies in several parts has a new version wherever one of these is made anew.
    """
    shared = {part: sorted(other.id for other in found) for part, found in others.items()}
    spec = checkpoint.about["spec"]
    seen = {"fps": spec["fps"], "size": spec["size"], "whole": most, "cells": cells, "shared": shared}
    return f"x3d-{checkpoint.digest[:12]}-{files.digest_of(seen)[:8]}"


def on_column(root: str, dataset: Dataset, spec: Spec, fine: Checkpoint) -> Spec:
    """The spec of two streams' training with the Fine one read from a column, which is written where it is missing.

    It is written for the parts of the training and for those held out.
    """
    parts = [*(Part(**record) for record in spec.parts), *held_out(dataset)]
    others, cells = beside(parts), cells_of(fine)
    name = version(fine, spec.whole, cells, others)
    work = partial(extract_part, root=root, name=name, checkpoint=fine.url, most=spec.whole, cells=cells)
    cover("fine maps", in_turn(parts, others), work, lambda unit: columns.has(root, FINE, name, unit.id))
    return replace(spec, fine=name, options={**spec.options, "cells": cells})


def extract_part(unit: Neighbours, *, root: str, name: str, checkpoint: str, most: int, cells: int) -> Report:
    """Commits the column of one part: for every clip the maps of those frames of its whole video that lie in it."""
    found: Pieces = {}
    part = unit.part
    clips_of = videos([part, *unit.others])
    rows = part.rows()
    for path in dict.fromkeys(row["path"] for row in rows):
        found |= _pieces(clips_of[path], checkpoint, most, cells)
    about = {
        "checkpoint": checkpoint,
        "weights": checkpoints.describe(checkpoint).digest,
        "whole": most,
        "cells": cells,
    }
    columns.write(root, FINE, name, part, _as_table(part, [row["key"] for row in rows], found), about, rows)
    return Report(items=part.samples, kept=part.samples, decoded=part.samples)


@cached(LRUCache(OPEN), lambda clips, *how: (identity(clips), *how), condition=threading.Condition())
def _pieces(clips: list[Clip], checkpoint: str, most: int, cells: int) -> Pieces:
    """The maps of a video, by the keys of its clips; made once for the parts that these lie in."""
    spec = checkpoints.describe(checkpoint).about["spec"]
    video = whole(clips, Footage(spec["fps"], spec["size"]), most)
    maps, seen = fine_maps(video, load(checkpoint), cells).numpy(), identity(clips)
    begins = [video.begins[row["key"]] for _, row in clips]
    pieces = np.split(maps, [-(-begin // video.step) for begin in begins[1:]])
    return {
        row["key"]: FinePiece(seen, begin, video.step, piece)
        for (_, row), begin, piece in zip(clips, begins, pieces, strict=True)
    }


def _as_table(part: Part, keys: list[str], found: Pieces) -> pa.Table:
    """Of every clip the key, its video's identity, its place in that and the maps `[F, C * cells * cells]` float16."""
    pieces = [found[key] for key in keys]
    maps = np.concatenate([piece.maps for piece in pieces])  # of a clip shorter than a step there may be none
    flat = maps.reshape(len(maps), -1)
    if not np.isfinite(flat).all():
        raise Damaged(f"part {part.id}: the Fine stream's maps are not finite as float16; train it at a lower rate")
    offsets = np.concatenate([[0], np.cumsum([len(piece.maps) for piece in pieces])]).astype(np.int32)
    matrix = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1), pa.float16()), flat.shape[1])
    return pa.table(
        {
            "key": keys,
            "video": [piece.video for piece in pieces],
            "begin": pa.array([piece.begin for piece in pieces], pa.int32()),
            "step": pa.array([piece.step for piece in pieces], pa.int32()),
            "maps": pa.ListArray.from_arrays(pa.array(offsets), matrix),
        }
    )
