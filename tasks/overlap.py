"""Held-out videos that a model was trained on: in another version of the dataset they were in the training split."""

from storage import datasets, tombstones
from storage.datasets import Dataset
from storage.errors import InputError
from tasks.evaluate import held_out


def trained_on(root: str, dataset: Dataset, version: str) -> tuple[set[str], str]:
    """The held-out videos of a dataset of which the content is in the training split of ``version`` (``name@version``).

    The second value says what could not be looked at. In place of a version that a take-down has removed the one that
    followed is read: it lacks only what nobody measures on any more. Contents are compared, not pictures: pairs of
    near-duplicates (`tasks.evaluate.leaks`) are known within a version alone.
    """
    name, _, number = version.partition("@")
    number = tombstones.followers(tombstones.read(root)).get(version, number)
    if version == "" or (name, number) == (dataset.name, dataset.version):
        return set(), ""
    try:
        then = datasets.load(root, name, number)
    except InputError:
        return set(), f"the list of {version} is gone"
    now = {part.id for part in dataset.select(split="train")}  # which share no source with the held-out ones
    before = (part for part in then.select(split="train") if part.id not in now)
    contents = {content for part in before for content in part.table(["content_id"])["content_id"].to_pylist()}
    rows = (row for part in held_out(dataset) for row in part.table(["path", "content_id"]).to_pylist())
    return {row["path"] for row in rows if row["content_id"] in contents}, ""
