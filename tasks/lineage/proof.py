"""Search every byte below a root for what was taken down, and say where it still is."""

from dataclasses import dataclass

from storage import files, inventory, tombstones
from storage.inventory import Item, in_units
from storage.lineage import committed_tars
from storage.search import Pattern, Search
from tasks.report import progress

OURS = (  # folders that Reelmill writes
    "ablation", "adopted", "archives", "catalogues", "checkpoints", "claims", "columns", "datasets", "figures",
    "inflight", "joining", "ledger", "logs", "mlflow", "near", "parts", "plans", "reports", "requeued", "retired",
    "retrained", "segments", "tables", "writers", "summary.json",
)  # fmt: skip
WORDS = {"name": "its name", "digest": "a digest of it", "bytes": "bytes of it"}


@dataclass
class Proof:
    """What was searched, and what was found: by object, in words."""

    objects: int = 0
    bytes: int = 0
    passed: int = 0  # tars that were not read, as an index vouches for them
    found: dict[str, str] | None = None

    def __str__(self) -> str:
        text = f"{self.objects:,} objects, {in_units(self.bytes)} read"
        return text + (f"; {self.passed:,} tars by their indexes" if self.passed else "")


def look(root: str, search: Search, media: bool) -> Proof:
    """Searches all objects below a root but the tombstones; without ``media`` no tar that an index vouches for."""
    items = [item for item in inventory.walk(root) if not item.name.startswith(f"{tombstones.FOLDER}/")]
    vouched = {} if media else committed_tars(root)
    proof = Proof(found={})
    assert proof.found is not None
    with progress("prove", len(items), "objects") as state:
        todo = [item for item in items if vouched.get(item.name) != item.size]
        proof.passed = len(items) - len(todo)
        state.advance(proof.passed)
        for item, hits in zip(todo, files.at_once(lambda item: _in(root, item, search), todo), strict=True):
            state.advance()
            if hits is None:
                continue
            proof.objects, proof.bytes = proof.objects + 1, proof.bytes + item.size
            if hits:
                proof.found[item.name] = " and ".join(WORDS[kind] for kind in sorted({hit.kind for hit in hits}))
    return proof


def _in(root: str, item: Item, search: Search) -> set[Pattern] | None:
    """What an object has; None where it is gone since it was listed."""
    try:
        return search.in_object(files.join(root, item.name), item.size)
    except FileNotFoundError:
        return None


def is_ours(name: str) -> bool:
    """Whether Reelmill writes objects of this name, so that it may take things out of them."""
    return name.partition("/")[0] in OURS or name.startswith(".") or name == files.MARKER
