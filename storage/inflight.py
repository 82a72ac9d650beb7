"""The journal of items in flight: which source a worker had in hand when it died.

``inflight/{part}.json`` names the item of the attempt that is at work, and the suspects before it. An item that is
found there by the next attempt may have taken its worker down: it is cut in a process of its own, and only a death of
that process quarantines it. Being there when a worker was killed is no proof.
"""

from storage import files


def _url(root: str, part: str) -> str:
    return files.join(root, "inflight", f"{part}.json")


def suspects(root: str, part: str) -> set[str]:
    """The items that earlier attempts at this part did not come back from."""
    try:
        found = files.read_json(_url(root, part))
    except FileNotFoundError:
        return set()
    return {*found["suspects"], found["item"]} - {""}


def begin(root: str, part: str, item: str, before: set[str]) -> None:
    """Says that an item is taken up."""
    files.replace_json({"item": item, "suspects": sorted(before)}, _url(root, part))


def leave(root: str, part: str, before: set[str]) -> None:
    """Says that the attempt failed and its worker lives: what it had in hand is no suspect for that."""
    begin(root, part, "", before) if before else end(root, part)


def end(root: str, part: str) -> None:
    """Says that the part is committed."""
    files.remove(_url(root, part))


def sweep(root: str, committed: list[str]) -> None:
    """Removes what workers left that were killed between the commit and `end`."""
    done = set(committed)
    for name in files.names(files.join(root, "inflight"), ".json"):
        if name.removesuffix(".json") in done:
            files.remove(files.join(root, "inflight", name))
