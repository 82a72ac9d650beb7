"""Putting and getting objects on a real S3 server, through the commit protocol and through s3fs alone."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.figures import Figure, against
from tests import servers

SIZES = ((64 << 10, 40), (8 << 20, 8))  # bytes, objects a round


def run() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="reelmill-bench-") as name, servers.seaweed(Path(name)) as endpoint:
        os.environ.update(servers.CREDENTIALS, AWS_ENDPOINT_URL=endpoint)
        import s3fs

        from storage import files

        root = files.open_root("s3://reel/bench")
        alone = s3fs.S3FileSystem(endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True)
        for size, count in SIZES:
            source = Path(name) / str(size)
            source.write_bytes(np.random.default_rng(size).bytes(size))
            fresh = partial(_names, count)

            def ours(source: Path = source, fresh: partial = fresh) -> None:
                for key in fresh():
                    files.publish(source, f"{root}/{key}", same=False)

            def plain(source: Path = source, fresh: partial = fresh) -> None:
                for key in fresh():
                    alone.put_file(str(source), f"reel/bench/{key}")

            kind = f"{size >> 10} KiB"
            yield Figure(f"put of {kind} once / s3fs put", against(ours, plain)[0], note="SeaweedFS; conditional")
            keys = fresh()
            for key in keys:
                files.publish(source, f"{root}/{key}")
            get = partial(_get, files.read, [f"{root}/{key}" for key in keys])
            bare = partial(_get, alone.cat_file, [f"reel/bench/{key}" for key in keys])
            yield Figure(f"get of {kind} / s3fs cat", against(get, bare)[0], note="SeaweedFS")


def _names(count: int) -> list[str]:
    return [uuid.uuid4().hex for _ in range(count)]


def _get(read: object, names: list[str]) -> None:
    for name in names:
        read(name)  # type: ignore[operator]
