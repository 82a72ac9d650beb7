"""What to do about what is damaged: which objects go so that they are made again, or why none may go."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from storage import adoption, columns, datasets, files, parts, plans, sources, tables
from storage.errors import Damaged
from storage.media.limits import Rejected
from storage.parts import Part
from storage.plans import Member
from storage.soundness import BROKEN, Finding

SCORES, VOLUMES, PREDICTIONS = "scores", "volume_labels", "predictions"
PREPARE, INFER = "`reelmill prepare` of dataset {} makes it again", "`reelmill infer` makes it again"
AGAIN = "the next `reelmill prepare` makes it again"
MADE = {  # columns that a run computes again, by what their versions begin with, and which run does; the first counts
    ("features", "x3d-"): "`reelmill features` makes it again, while its model is the champion",
    ("pseudo_labels", "proposals-"): "`reelmill label` with the same options makes it again",
    **{(column, ""): AGAIN for column in ("scores", "features", "pseudo_labels", "selection")},
    ("fine", ""): "the next `reelmill retrain --fine-features` makes it again, where it needs it",
    (VOLUMES, ""): "`reelmill prepare --materialise` makes it again",
    (PREDICTIONS, ""): INFER,
}


@dataclass(frozen=True)
class Remedy:
    """What is done about a finding: objects that go or are written, and who does the rest; or why nothing may be."""

    finding: Finding
    said: str
    remove: tuple[str, ...] = ()
    write: dict[str, bytes] = field(default_factory=dict, hash=False)
    possible: bool = True


@dataclass
class Remedies:
    """Works out remedies for what was found under a root; nothing is changed."""

    root: str
    champion: str = ""  # URL of the checkpoint that the champion is

    unread: list[str] = field(default_factory=list)  # lists that are damaged themselves

    def __post_init__(self) -> None:
        self.plans: dict[str, list[plans.Draft]] = {}  # the parts of the newest plan of every dataset
        self.listed: dict[str, tuple[str, Part]] = {}  # those of all dataset versions, with the name of a dataset
        self.sources: dict[str, list[str]] = {}  # by part, see `lost`
        for name in files.names(files.join(self.root, "plans")):
            try:
                if plan := plans.latest(self.root, name):
                    self.plans[name] = plans.drafts(self.root, name, plan)
            except (*BROKEN, FileNotFoundError):
                self.unread.append(f"the plan of {name}")
        for name in datasets.names(self.root):
            for file in files.names(files.join(self.root, "datasets", name), ".json"):
                try:
                    data = datasets.load(self.root, name, file.removesuffix(".json"))
                    self.listed |= {part.id: (name, part) for part in data.parts}
                except BROKEN:
                    self.unread.append(f"dataset {name} {file.removesuffix('.json')}")

    @cached_property
    def tars(self) -> list[str]:
        return files.names(files.join(self.root, "parts"), ".tar")

    @cached_property
    def volumes(self) -> dict[str, list[str]]:
        """The columns that say how parts of volumes were made, by part."""
        found: dict[str, list[str]] = {}
        for version in columns.versions(self.root, VOLUMES):
            for name in files.names(files.join(self.root, "columns", VOLUMES, version), ".parquet"):
                part = name.removesuffix(".parquet")
                found.setdefault(part, []).append(columns.url(self.root, VOLUMES, version, part))
        return found

    def of(self, finding: Finding) -> Remedy:
        """What to do about a finding."""
        return RULES[finding.kind](self, finding)

    def lost(self, draft: plans.Draft) -> list[str]:
        """The members of a part whose sources are not there any more as they were planned; looked at once."""
        if draft.id not in self.sources:
            self.sources[draft.id] = [member.name for member in plans.members(draft) if not _there(member)]
        return self.sources[draft.id]

    def again(self, finding: Finding, part: str, *gone: str) -> Remedy:
        """The remedy by which a part is made again, once these objects are gone; what makes it must still be there."""
        if part in self.volumes:
            return Remedy(finding, MADE[VOLUMES, ""], (*gone, *self.volumes[part]))
        for name, drafts in self.plans.items():
            for draft in drafts:
                if draft.id == part:
                    if lost := self.lost(draft):
                        return _no(
                            finding, f"{len(lost)} of its sources are gone or changed ({', '.join(lost[:3])}); put "
                            "them back, or restore it from a copy"
                        )  # fmt: skip
                    return Remedy(finding, PREPARE.format(name), gone)
        if self.unread:
            return _no(finding, f"{self.unread[0]}, which may name its part, is damaged; mend that and repair again")
        if part not in self.listed:
            return Remedy(finding, "no plan and no dataset names its part", gone)
        name, known = self.listed[part]
        if "/" in known.media.removeprefix(files.join(self.root, "parts", "")):
            return Remedy(finding, f"`reelmill adopt` of the shards of dataset {name} makes it again", gone)
        return _no(finding, f"only older versions of dataset {name} list its part; restore it from a copy, or let the "
                   "versions go with `reelmill gc --keep-versions`")  # fmt: skip


def _no(finding: Finding, said: str) -> Remedy:
    return Remedy(finding, said, possible=False)


def _there(member: Member) -> bool:
    """Whether the source of a part's member is still what it was when it was planned."""
    try:
        return sources.fingerprint(member.source) == member.identity[:32]
    except Rejected:
        return False


def _stem(finding: Finding) -> str:
    return finding.url.rpartition("/")[2].rpartition(".")[0]


def _part(known: Remedies, finding: Finding) -> Remedy:
    _, index = parts.part_urls(known.root, finding.part)
    if not finding.url.startswith(files.join(known.root, "parts", "")):
        return _no(finding, finding.remedy)  # somebody else's tar
    tars = [files.join(known.root, "parts", name) for name in known.tars if name.startswith(finding.part)]
    return known.again(finding, finding.part, index, *tars)


def _ledger(known: Remedies, finding: Finding) -> Remedy:
    step, stem = finding.url.split("/")[-2], _stem(finding)
    if step in ("shard", "volumes"):  # written only where the part is committed anew; its tar may stay
        found = known.again(finding, stem, parts.part_urls(known.root, stem)[1], finding.url)
        if found.possible or stem not in known.listed or finding.gone:
            return found
        return Remedy(finding, "nobody reads the account of a part of an older version", (finding.url,))
    if step == "select":
        part, _, version = stem.partition("-")
        column = columns.url(known.root, datasets.SELECTION, version, part)
        return Remedy(finding, "`reelmill prepare` or `reelmill select` makes it again", (column, finding.url))
    if step == "score":
        made = [columns.url(known.root, SCORES, version, stem) for version in columns.versions(known.root, SCORES)]
        return Remedy(finding, "`reelmill prepare` makes it again", (*made, finding.url))
    if step == "list":
        return Remedy(finding, PREPARE.format(stem), (finding.url,))
    if step == "adopt":
        facts = adoption.examined_url(known.root, stem)
        return Remedy(finding, "`reelmill adopt` of its shard makes it again", (facts, finding.url))
    return _no(finding, "nothing makes it again; restore it from a copy")


def _column(known: Remedies, finding: Finding) -> Remedy:
    column, version = finding.url.split("/")[-3:-1]
    said = next((said for (name, first), said in MADE.items() if name == column and version.startswith(first)), None)
    if said is None or _given(known.root, column, version):
        return _no(finding, "it came from a table; drop the version and give `reelmill column-add` the table again")
    return Remedy(finding, said, (finding.url,))


def _given(root: str, column: str, version: str) -> bool:
    """Whether a version was made from somebody's table, as those of its objects say that can be read."""
    for name in files.names(files.join(root, "columns", column, version), ".parquet"):
        try:
            return set(tables.about(files.join(root, "columns", column, version, name))) == {"file", "digest"}
        except (Damaged, FileNotFoundError):
            continue
    return True  # nothing says that it was not


def _checkpoint(known: Remedies, finding: Finding) -> Remedy:
    folder = finding.url.rpartition("/")[0]
    if folder.split("/")[-2:] == known.champion.rstrip("/").split("/")[-2:]:  # whatever name the root goes by
        return _no(finding, "it is the champion's; restore it from a copy, or train and promote another")
    found = tuple(files.join(folder, name) for name in reversed(sorted(files.names(folder))))
    manifest = files.join(folder, "manifest.json")
    order = (manifest, *(url for url in found if url != manifest))
    return Remedy(finding, "the next training goes on from the step before", order)


def _dataset(known: Remedies, finding: Finding) -> Remedy:
    name = finding.url.split("/")[-2]
    if finding.part and not finding.gone:
        return _no(finding, f"the next `reelmill prepare` of dataset {name} lists the part as it is now")
    if finding.part:
        return known.again(finding, finding.part)
    try:
        latest = datasets.latest(known.root, name)
    except (Damaged, KeyError, TypeError):
        latest = _stem(finding)  # the pointer is damaged itself, so any version may be the one
    made = PREPARE.format(name) if name in known.plans else "`reelmill adopt` of its shards makes it again"
    if finding.url.endswith("/latest.json"):
        return Remedy(finding, made, (finding.url,))
    if latest == _stem(finding):
        return Remedy(finding, made, (finding.url,))
    return _no(finding, "nothing makes an older version again; restore it from a copy, or remove it by hand")


def _plan(known: Remedies, finding: Finding) -> Remedy:
    folder, _, file = finding.url.rpartition("/")
    pointer = files.join(folder, "latest.json")
    name = folder.rpartition("/")[2]
    newest = file == "latest.json" or name not in known.plans
    return Remedy(
        finding, PREPARE.format(name), tuple(dict.fromkeys((pointer, finding.url) if newest else (finding.url,)))
    )


def _requeued(known: Remedies, finding: Finding) -> Remedy:
    """What was asked for before the newest plan is in it."""
    name = _stem(finding)
    if name not in known.plans:
        return _no(finding, "restore it from a copy, or remove it and ask again with `reelmill requeue`")
    members = plans.members_of(known.root, name, plans.latest(known.root, name))
    attempts = {member.identity: member.attempt for some in members.values() for member in some if member.attempt}
    said = "written again as the newest plan has it; what was asked for since then has to be asked again"
    return Remedy(finding, said, write={finding.url: plans.asked(attempts)})


def _derived(said: str) -> Callable[[Remedies, Finding], Remedy]:
    return lambda known, finding: Remedy(finding, said, (finding.url,))


RULES: dict[str, Callable[[Remedies, Finding], Remedy]] = {
    "marker": lambda known, finding: _no(finding, finding.remedy),
    "parts": _part,
    "ledger": _ledger,
    "columns": _column,
    "segments": _derived(INFER),
    "checkpoints": _checkpoint,
    "datasets": _dataset,
    "plans": _plan,
    "requeued": _requeued,
    "forgotten": lambda known, finding: _no(finding, finding.remedy),
    "catalogues": _derived("it is made again when it is asked for"),
    "adopted": _derived("`reelmill adopt` of its shard makes it again"),
    "near": _derived("`reelmill prepare` makes that of the newest dataset again"),
}
