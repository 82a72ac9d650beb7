"""Sharding by stream copy, and writing parts, against `cp` and `tar` of the same bytes."""

import io
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from fractions import Fraction
from pathlib import Path

import numpy as np

from bench.figures import ROUNDS, Figure, against, cpu, seconds
from storage import datasets, files, parts, plans
from storage.media.encoder import Encoder
from storage.media.sandbox import Sandbox
from tasks import listing, shard
from tests import servers

VIDEOS, FEW, SECONDS, RATE = 12, 3, 40, 25


def _render(folder: Path) -> int:
    """High-rate H.264 with a key frame every second, about 10 MB a file; returns the bytes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (8, 360, 640, 3), dtype=np.uint8)
    first = folder / "00.mp4"
    with Encoder(first, 640, 360, Fraction(RATE), Fraction(1, RATE), crf=24) as encoder:
        for t in range(RATE * SECONDS):
            frame = np.roll(noise[t // 40 % 8], (t * 3, t * 5), (0, 1))
            encoder.write(frame // 2 + 64, Fraction(t, RATE))
    data = first.read_bytes()
    for number in range(1, VIDEOS):  # a free box makes each file another one
        mark = number.to_bytes(4, "big")
        (folder / f"{number:02d}.mp4").write_bytes(data + (12).to_bytes(4, "big") + b"free" + mark)
    return sum(path.stat().st_size for path in folder.iterdir())


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as name:
        home = Path(name)
        (home / "archive").mkdir()
        (home / "few").mkdir()
        size = _render(home / "archive") / 1e6
        for path in sorted((home / "archive").iterdir())[:FEW]:
            os.link(path, home / "few" / path.name)
        count = iter(range(10**6))

        def ours(archive: str = "archive", videos: int = VIDEOS) -> None:
            root = str(home / f"root{next(count)}")
            _shard(root, str(home / archive), videos)
            shutil.rmtree(root)

        def cp(archive: str = "archive") -> None:
            subprocess.run(["cp", "-r", str(home / archive), str(home / "copy")], check=True)
            subprocess.run(["sync", "-f", str(home / "copy")], check=True)
            shutil.rmtree(home / "copy")

        def tar() -> None:
            subprocess.run(["tar", "cf", str(home / "a.tar"), "-C", str(home), "archive"], check=True)
            subprocess.run(["sync", "-f", str(home / "a.tar")], check=True)
            (home / "a.tar").unlink()

        note = f"{size:.0f} MB in {VIDEOS} files, list to frozen dataset, every byte hashed and synced"
        yield Figure("sharding by stream copy / `cp -r` and sync", against(ours, cp)[0], note=note)
        yield Figure("sharding by stream copy / `tar cf` and sync", against(ours, tar)[0], note="the same bytes")
        ours(), ours("few", FEW)
        rounds = [
            (seconds(ours, 1), seconds(lambda: ours("few", FEW), 1), seconds(cp, 1), seconds(lambda: cp("few"), 1))
            for _ in range(ROUNDS)
        ]
        further = statistics.median((c - few_c) / max(1e-3, o - few_o) for o, few_o, c, few_c in rounds)
        yield Figure(f"each video after the first {FEW} / the same with `cp -r`", further, note="without fixed costs")
        spent = cpu()
        ours()
        yield Figure("CPU of sharding it, decoders included", cpu() - spent, unit="s", note=f"{size:.0f} MB")
        yield from _remote(home, f"{size:.0f} MB in {VIDEOS} files, SeaweedFS")
        yield from _writing(home)
        box, path = Sandbox(), str(home / "archive" / "00.mp4")
        box.probe(path)
        yield Figure(
            "probe, whole packet table", 1 / seconds(lambda: box.probe(path)), unit="files/s", note="1,000 frames each"
        )
        box.close()


def _shard(root: str, archive: str, videos: int) -> None:
    """All of sharding by stream copy: list, plan, cut, commit, freeze."""
    recipe = shard.recipe(10.0, 4096, "span", "copy")
    with redirect_stdout(io.StringIO()):
        root = files.open_root(root)
        options = {"classes": [], "held_out": 0.3, "recipe": recipe, "limits": plans.Limits(units=4)}
        plan, listed = listing.plan_archive(root, "a", archive, None, **options)
        found, report = shard.shard_archive(root, "a", plan, recipe=recipe, failure_budget=0.0, listed=listed)
        assert report.kept == videos and sum(p.samples for p in found) == videos * SECONDS // 10
        datasets.freeze(root, "a", found, {})


def _remote(home: Path, note: str) -> Iterator[Figure]:
    """Archive and root on one S3 server, which has the same cores."""
    import s3fs

    (home / "server").mkdir()
    with servers.seaweed(home / "server") as endpoint:
        os.environ.update(servers.CREDENTIALS, AWS_ENDPOINT_URL=endpoint)
        alone = s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True)
        alone.put(str(home / "archive"), "reel/archive", recursive=True)
        count = iter(range(10**6))

        def ours() -> None:
            _shard(f"s3://reel/root{next(count)}", "s3://reel/archive", VIDEOS)

        def plain() -> None:
            alone.get("reel/archive", str(home / "down"), recursive=True)
            alone.put(str(home / "down"), f"reel/copy{next(count)}", recursive=True)
            shutil.rmtree(home / "down")

        yield Figure("sharding by stream copy on S3 / s3fs get and put", against(ours, plain, 3)[0], note=note)


def _writing(home: Path) -> Iterator[Figure]:
    """Clips of 207 kB as one part: tar, digests, index, commit."""
    rng = np.random.default_rng(1)
    media = []
    (home / "clips").mkdir()
    for number in range(500):
        media.append(home / "clips" / f"{number:06d}.mp4")
        media[-1].write_bytes(rng.bytes(207_000))
    row = {
        "source": "", "path": "", "content_id": "", "start": 0.0, "end": 1.0, "start_pts": 0, "end_pts": 1,
        "time_base": "1/1", "duration": 1.0, "frames": 1, "fps": 1.0, "width": 2, "height": 2, "split": "train",
        "labelled": "none", "labels": [],
    }  # fmt: skip
    rows = [row | {"key": f"{number:09d}"} for number in range(500)]

    def ours() -> None:
        with files.scratch() as folder:
            parts.commit(str(home / "parts"), "p", rows, media, folder)
        shutil.rmtree(home / "parts")

    def cp() -> None:
        subprocess.run(["cp", "-r", str(home / "clips"), str(home / "copied")], check=True)
        subprocess.run(["sync", "-f", str(home / "copied")], check=True)
        shutil.rmtree(home / "copied")

    yield Figure(
        "committing a part / `cp -r` and sync", against(ours, cp)[0], note="500 clips of 207 kB, digests included"
    )
