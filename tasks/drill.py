"""Kill and corrupt things in a scratch archive on a store of one's own, and show that nothing was lost.

The same archive is prepared twice under ``{root}/drill-…``: once in peace, and once by two writers that are killed at
random moments. Then bytes are flipped, cut and removed, to see that each is found and made again.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from storage import datasets, files, inventory, ledger, parts, plans, soundness
from storage.errors import Damaged, StoreError
from storage.ledger import VOLATILE, Report
from storage.media import synthetic
from storage.stores import is_local
from tasks import listing, pool, shard
from tasks.report import say
from tasks.verify import examine

NAME = "drill"
RECIPE = shard.recipe(2.0, 64, "span", "exact")
LIMITS = plans.Limits(units=6)
ATTEMPTS = 400  # starts of a writer, after which it is plain that no progress is made
WRITERS = 2
CHECKOUT = str(Path(__file__).resolve().parent.parent)


def prepare(root: str, archive: str, labels: str) -> Report:
    """What every writer of the drill does: plan, cut, commit, freeze."""
    root = files.open_root(root)
    options: dict[str, Any] = {"classes": [], "held_out": 0.3, "recipe": RECIPE, "limits": LIMITS}
    plan, listed = listing.plan_archive(root, NAME, archive, labels, **options)
    found, report = shard.shard_archive(root, NAME, plan, recipe=RECIPE, failure_budget=1.0, listed=listed)
    datasets.freeze(root, NAME, found, {"recipe": RECIPE})
    return report


def state(root: str) -> dict[str, Any]:
    """What a root has come to: the digest of every part, index and dataset, and the ledger but for times and hosts."""
    found: dict[str, Any] = {}
    for folder in ("parts", f"datasets/{NAME}"):
        for name in files.names(files.join(root, folder)):
            found[f"{folder}/{name}"] = files.digest(files.read(files.join(root, folder, name)))
    for name in files.names(files.join(root, "ledger", "shard"), ".parquet"):
        entries = ledger.read(root, "shard", name.removesuffix(".parquet"))
        steady = [{k: v for k, v in vars(entry).items() if k not in VOLATILE} for entry in entries]
        found[f"ledger/shard/{name}"] = files.digest_of(steady)
    return found


def committed(root: str) -> Iterator[parts.Part]:
    """Every part that a reader sees."""
    for name in files.names(files.join(root, "parts"), ".parquet"):
        part = parts.find(root, name.removesuffix(".parquet"))
        if part is not None:
            yield part


def kill_writers(
    root: str, archive: str, labels: str, kills: int, within: float, rng: random.Random
) -> tuple[int, int, list[str]]:
    """Runs two writers at once and kills one after the other, up to ``within`` seconds after it has begun.

    Returns the kills, the committed parts that were read back in between, and what was lost.
    """
    program = "import json, sys; from tasks import drill; print(flush=True); drill.prepare(*json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", program, json.dumps([root, archive, labels])]

    def start() -> subprocess.Popen:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=CHECKOUT, **pipes)  # type: ignore[no-any-return]

    done = looked = 0
    seen: set[str] = set()
    lost: list[str] = []
    writers = [start() for _ in range(WRITERS)]
    try:
        for _ in range(ATTEMPTS):
            number = rng.randrange(WRITERS)
            writer = writers[number]
            writer.stdout.readline()  # type: ignore[union-attr]  # it has begun
            time.sleep(rng.uniform(0.0, within))
            if writer.poll() is None:
                writer.kill()
                done += 1
            said = writer.communicate()[0].decode(errors="replace").strip()
            if writer.returncode > 0:
                raise StoreError(f"a writer failed: {said.splitlines()[-1] if said else 'no word'}")
            now = {part.id: part for part in committed(root)}
            lost += [f"part {gone} was committed and is gone" for gone in seen - now.keys()]
            for part in now.values():
                looked += 1
                try:
                    part.verify()
                except Damaged as error:
                    lost.append(str(error))
            seen |= now.keys()
            if done >= kills:
                break
            writers[number] = start()
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    return done, looked, lost


def corrupt(root: str, rng: random.Random) -> list[tuple[str, str]]:
    """Damages one object of each kind in a way of its own; returns (what was done, URL)."""
    found = sorted((part for part in committed(root) if part.samples), key=lambda part: part.id)
    one, two, three = rng.sample(found, 3)
    flipped = bytearray(files.read(one.media))
    flipped[rng.randrange(len(flipped) - 2048)] ^= 1 << rng.randrange(8)
    files.replace(bytes(flipped), one.media)
    whole = files.read(two.index)
    files.replace(whole[: rng.randrange(len(whole))], two.index)
    files.remove(three.media)
    book = ledger.url(root, "shard", one.id)
    data = bytearray(files.read(book))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    files.replace(bytes(data), book)
    return [("one bit of a tar flipped", one.media), ("an index cut short", two.index),
            ("a tar removed", three.media), ("one bit of a ledger flipped", book)]  # fmt: skip


def mend(root: str, findings: list[soundness.Finding]) -> None:
    """Does what the findings say: what is damaged goes, with the index that names it."""
    for finding in findings:
        part = finding.url.rsplit("/", 1)[-1].split(".")[0].split("-")[0]
        if finding.kind in ("parts", "ledger"):
            files.remove(files.join(root, "parts", f"{part}.parquet"))
            files.remove(files.join(root, "parts", f"{part}.tar"))
            files.remove(ledger.url(root, "shard", part))


def drill(
    root: Annotated[str, Field(description="Folder or URL on the store to try; a scratch folder is made below it.")],
    kills: Annotated[int, Field(description="How many times a writer is killed.", ge=1)] = 12,
    videos: Annotated[int, Field(description="Videos of the scratch archive.", ge=16)] = 24,
    seed: Annotated[int, Field(description="Seed of the archive, the moments and the damage.")] = 0,
    keep: Annotated[bool, Field(description="Leave the scratch folder there.")] = False,
) -> str:
    """Kill two writers at random moments on a scratch archive, damage what they made, and say what was lost.

    Nothing outside the scratch folder is touched. Exits with 1 where anything was lost.
    """
    rng = random.Random(seed)
    scratch = files.join(files.absolute(root), f"drill-{uuid.uuid4().hex[:8]}")
    lost: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="reelmill-drill-") as local:
            say(f"  render       {videos} videos and some broken files")
            synthetic.render_archive(Path(local), seed, videos, 4, run=pool.processes)
            archive, labels = f"{local}/archive", f"{local}/labels.csv"
            calm, rough = files.join(scratch, "calm"), files.join(scratch, "rough")
            began = time.monotonic()
            report = prepare(calm, archive, labels)
            within = time.monotonic() - began
            expected = state(calm)
            say(f"  in peace     {report.items} files: {report.kept} kept, {report.quarantined.total()} quarantined")
            done, looked, gone = kill_writers(rough, archive, labels, kills, within, rng)
            lost += gone
            prepare(rough, archive, labels)
            lost += _differences(expected, state(rough), "after the kills")
            say(f"  killed       {done} times; {looked} committed parts read back in between, {len(lost)} losses")
            hurt = corrupt(rough, rng)
            findings, _ = examine(rough, None, 1.0, 0)
            for what, url in hurt:
                seen = any(_names(finding, url) for finding in findings)
                say(f"  {'found' if seen else 'NOT FOUND':<12} {what}")
                lost += [] if seen else [f"{what}, and nothing noticed: {url}"]
            mend(rough, findings)
            prepare(rough, archive, labels)
            lost += _differences(expected, state(rough), "after mending")
            say(f"  made again   {len(expected)} objects compared, byte for byte")
    finally:
        if not keep:
            _clear(scratch)
    if lost:
        raise Damaged(f"{len(lost)} losses: {'; '.join(lost[:5])}" + (f"; kept at {scratch}" if keep else ""))
    return "nothing was lost"


def _names(finding: soundness.Finding, url: str) -> bool:
    stem = url.rsplit("/", 1)[-1].split(".")[0]
    return stem in finding.url or stem in finding.problem


def _differences(expected: dict[str, Any], found: dict[str, Any], when: str) -> list[str]:
    """What is not as it was in peace."""
    names = sorted(expected.keys() | found.keys())
    return [f"{name} differs {when}" for name in names if expected.get(name) != found.get(name)]


def _clear(scratch: str) -> None:
    """Removes everything below the scratch folder, and on a local disk the empty folders that are left."""
    for item in list(inventory.walk(scratch)):
        files.remove(files.join(scratch, item.name))
    fs, path = files.locate(scratch)
    if is_local(fs):
        shutil.rmtree(path, ignore_errors=True)
