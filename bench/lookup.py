"""Finding and reading a thousand random clips among a hundred thousand."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.figures import Figure, against, seconds
from storage import catalogue, datasets, files, parts

CLIPS, PER_PART, SIZE = 100_000, 1000, 2000


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as name:
        root = files.open_root(name)
        rng = np.random.default_rng(0)
        row = {
            "source": "s", "path": "p", "start": 0.0, "end": 1.0, "start_pts": 0, "end_pts": 1, "time_base": "1/1",
            "duration": 1.0, "frames": 1, "fps": 1.0, "width": 2, "height": 2, "split": "train", "labelled": "none",
            "labels": [],
        }  # fmt: skip
        found = []
        for number in range(CLIPS // PER_PART):
            with files.scratch() as folder:
                media, rows = [], []
                for _ in range(PER_PART):
                    data = rng.bytes(SIZE)
                    content = files.digest(data)
                    media.append(folder / f"{content[:20]}.mp4")
                    media[-1].write_bytes(data)
                    rows.append(row | {"key": f"{content[:20]}-000000000", "content_id": content})
                found.append(parts.commit(root, f"{number:016x}", rows, media, folder))
        dataset = datasets.freeze(root, "a", found, {})
        keys = [row["key"] for part in found for row in part.table(["key"]).to_pylist()]
        some = [keys[i] for i in rng.choice(len(keys), 1000, replace=False)]
        yield Figure(
            "catalogue of 100,000 clips", seconds(lambda: catalogue.build(root, dataset), 1), unit="s to build"
        )

        def look() -> None:
            book = catalogue.Catalogue(root, dataset)
            for key in some:
                book.find(key)

        yield Figure("look-up, opening included", 1000 / seconds(look), unit="clips/s", note="1,000 random of 100,000")
        book = catalogue.Catalogue(root, dataset)
        right = sum(files.digest(book.clip(key)).startswith(key[:20]) for key in some)
        yield Figure("clips found of 1,000 random", right, unit="", note="keys begin with the digest of the bytes")
        places = {row["key"]: (part.media, row["offset"], row["size"]) for part in found for row in part.rows()}

        def bare() -> None:
            for key in some:
                media, offset, size = places[key]
                with open(media, "rb") as file:
                    file.seek(offset)
                    file.read(size)

        ratio, took = against(lambda: [book.clip(key) for key in some], bare)
        yield Figure(
            "reading 1,000 verified clips / seek and read with offsets known", ratio, note=f"{1000 / took:,.0f} clips/s"
        )
        assert len(list(Path(root, "parts").iterdir())) == 2 * len(found)
