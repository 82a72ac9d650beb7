"""What can be known to be wrong before anything starts: each raises `InputError`, one line that says what to do."""

import os
import re
from typing import Any

from storage import datasets, files
from storage.errors import InputError
from storage.labels import check_paths
from storage.lists import is_list
from storage.secrets import refuse_credentials
from storage.sources import is_video
from tasks.listing import between, labels_of, listing

LIKE_A_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?!//)")


def opened(root: str) -> str:
    """The root's absolute URL, marked as a root of this schema."""
    refuse_credentials(root, "--root")
    check_root(root)
    return files.open_root(root)


def check_root(root: str) -> None:
    """Refuses what is neither a path nor a URL: ``s3:/bucket`` would become a folder here."""
    if LIKE_A_URL.match(root):
        raise InputError(f"{root}: neither a path nor a URL; write ./{root} for a folder of that name, or s3://…")


def prepare(root: str, archive: str, labels: str | None, name: str, classes: list[str], **given: Any) -> None:
    """The archive exists and holds videos, labels fit it, the root can be written."""
    check_root(root)
    between(given.get("modified_from"), given.get("modified_to"))
    datasets.check_name(name)
    for option, url in (("--root", root), ("--archive", archive), ("--labels", labels)):
        refuse_credentials(url or "", option)
    named = set(labels_of(archive, labels, classes))
    if "://" in archive or is_list(archive):  # listed once, while planning, which looks at the paths too
        named = set()
    count, video = 0, False
    for source in listing(archive):
        count, video = count + 1, video or is_video(source)
        named.discard(source.path)
        if video and not named:
            break
    if not count:
        raise InputError(f"{archive}: the archive is empty; put videos there or give another --archive")
    if not video:
        raise InputError(f"{archive}: {count} files, none with the name of a video")
    check_paths(named, labels or archive)
    _writable(root)


def _writable(root: str) -> None:
    """Opens a root, and leaves nothing behind where it cannot be one."""
    files.open_root(root)


def _existing(root: str) -> str:
    refuse_credentials(root, "--root")
    return files.existing_root(root)


def retrain(root: str, dataset: str, pretraining: list[str], system: str = "x3d", **given: Any) -> None:
    """The dataset exists and has what each candidate needs, a feature column where the system takes one."""
    import models
    from tasks.evaluate import held_out
    from tasks.training.videos import version

    if not pretraining:
        raise InputError("--pretraining is empty; name at least one of none, classification, detection")
    data_root = _existing(root)
    data = datasets.load(data_root, dataset)
    if not data.select(split="train", labelled="segments"):
        raise InputError(
            f"dataset {dataset} has no training videos with segments, which fine-tuning needs; "
            "add label rows with path,start,end,label and prepare again"
        )
    held = held_out(data)
    if models.inputs(system) == "features":
        version(data_root, [*data.select(split="train", labelled="segments"), *held], given.get("features"))
        return
    if set(pretraining) != {"none"} and not data.select(split="train", labelled="video"):
        raise InputError(
            f"dataset {dataset} has no videos with a label for the whole video, which pretraining needs; "
            "add label rows with path,label, or run with --pretraining none"
        )


def ablate(root: str, table: list[str], seeds: list[int], **_: Any) -> None:
    """The tables are there, no seed repeats, and the root is a local folder that can be written."""
    from tasks.ablations.runs import chosen_seeds
    from tasks.ablations.tables import tables_of

    tables_of(table)
    chosen_seeds(seeds)
    _rendered_into(root)


def infer(root: str, dataset: str, model: str, splits: list[str], **_: Any) -> None:
    """The dataset exists, a champion too, and the splits are splits of the dataset."""
    from tasks import registry

    root = _existing(root)
    data = datasets.load(root, dataset)
    known = {part.split for part in data.parts}
    if strangers := sorted(set(splits) - known):
        raise InputError(f"dataset {dataset} has no split {', '.join(strangers)}; it has {', '.join(sorted(known))}")
    if registry.champion(root, model) is None:
        raise InputError(f"no model {model!r} has the alias champion; run `reelmill retrain --root {root}` first")


def audit(root: str, dataset: str, **_: Any) -> None:
    """The dataset exists."""
    datasets.load(_existing(root), dataset)


def demo(root: str, **_: Any) -> None:
    """The root is a local folder that can be written."""
    _rendered_into(root)


def _rendered_into(root: str) -> None:
    refuse_credentials(root, "--root")
    if "://" in root:
        raise InputError(f"{root}: what is rendered goes into a local folder; give --root a path")
    parent = os.path.abspath(root)
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.access(parent, os.W_OK):
        raise InputError(f"{root}: no permission to write in {parent}; choose another --root")
    _writable(root)
