"""Servers on loopback that end with whoever started them: S3 of two kinds, Prefect, PostgreSQL, Dask."""

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from storage import local

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "reel", "AWS_SECRET_ACCESS_KEY": "reelsecret", "AWS_DEFAULT_REGION": "us-east-1"}


def end_with_us() -> None:
    """Makes a child end with this process, also when it is killed (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def free_ports(count: int, also: int = 0) -> int:
    """The first of ``count`` free ports in a row on loopback; those ``also`` higher are free as well."""
    for first in random.sample(range(20_000, 30_000, 10), 200):
        with ExitStack() as stack, suppress(OSError):
            for port in [first + n + step for n in range(count) for step in {0, also}]:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports")


@contextmanager
def serving(command: list[str], ready: str, log: Path) -> Iterator[None]:
    """A server that runs while the block does, once it answers at a URL."""
    with open(log, "wb") as out:
        tool = Path(sys.executable).parent / command[0]
        server = subprocess.Popen([tool, *command[1:]], stdout=out, stderr=out, preexec_fn=end_with_us)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(ready, timeout=2)
                break
            except urllib.error.HTTPError as error:
                if error.code < 500 and not ready.endswith("/status"):  # it asks for credentials
                    break
            except OSError:
                pass
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        yield
    finally:
        server.kill()
        server.wait()


def prefect_tables(home: Path) -> None:
    """Puts a database with Prefect's tables into a folder that has none: to make them takes ten seconds of CPU."""
    kept = Path(__file__).parent.parent / "var" / "tables" / f"prefect-{metadata.version('prefect')}.db"
    with local.locked(str(kept)):
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
                made, database = f"{folder}/made.db", f"sqlite+aiosqlite:///{folder}/prefect.db"
                env = {**os.environ, "PREFECT_HOME": folder, "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
                subprocess.run(command, env=env, check=True, capture_output=True)
                with closing(sqlite3.connect(f"{folder}/prefect.db")) as tables:
                    tables.execute("VACUUM INTO ?", [made])  # one file, whatever the journal still held
                os.replace(made, kept)
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "prefect.db").exists():
            shutil.copy(kept, home / "prefect.db")


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest that Debian's packages brought; None where there are none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """The URL, as Prefect takes it, of an empty database on a private cluster of PostgreSQL."""
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="reelmill-postgres-") as folder:
        if user:
            shutil.chown(folder, user)
        make = [programs / "initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(make, cwd=folder, user=user, check=True, capture_output=True)
        port = free_ports(1)
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
        run = [programs / "postgres", "-D", f"{folder}/data"]
        run += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with open(f"{folder}/log", "wb") as log:
            server = subprocess.Popen(run, cwd=folder, user=user, stdout=log, stderr=log, preexec_fn=end_with_us)
        try:
            ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            while subprocess.run(ready).returncode:
                assert server.poll() is None, Path(f"{folder}/log").read_text()
                time.sleep(0.1)
            yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()


def prefect_server(port: int, home: Path, env: Mapping[str, str] = os.environ) -> subprocess.Popen:
    """A Prefect server that answers, on SQLite where the environment names no database."""
    if "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in env:
        prefect_tables(home)
    env = {**env, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    # What `prefect server start` begins as a child, without the seconds that the command takes to find out.
    command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--timeout-keep-alive", "5"]
    with open(home / "server.log", "ab") as log:
        started = subprocess.Popen(command, env=env, stdout=log, stderr=log, preexec_fn=end_with_us)
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2)
            return started
        except OSError:
            assert started.poll() is None, (home / "server.log").read_text()
            time.sleep(0.25)
    raise AssertionError("the server did not start")


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """The endpoint of a SeaweedFS server with the empty bucket ``reel``."""
    keys = {"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    (folder / "s3.json").write_text(
        json.dumps({"identities": [{"name": "reel", "credentials": [keys], "actions": actions}]})
    )
    port = free_ports(5, also=10_000)
    roles = ("s3", "master", "volume", "filer", "admin")
    command = ["weed", "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{role}.port={port + n}" for n, role in enumerate(roles)] + [f"-s3.config={folder / 's3.json'}"]
    command += ["-admin.ui=false", "-webdav=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with serving([*command, "-s3.iam=false", "-bucket=reel"], f"http://127.0.0.1:{port}/status", folder / "log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """The endpoint of `rclone serve s3`, which takes conditions on a put and ignores them; its bucket is ``reel``."""
    (folder / "data" / "reel").mkdir(parents=True)
    port, keys = free_ports(1), f"{CREDENTIALS['AWS_ACCESS_KEY_ID']},{CREDENTIALS['AWS_SECRET_ACCESS_KEY']}"
    command = ["rclone", "serve", "s3", "--config", str(folder / "none"), "--auth-key", keys]
    command += ["--addr", f"127.0.0.1:{port}"]
    endpoint = f"http://127.0.0.1:{port}"
    with serving([*command, str(folder / "data")], endpoint, folder / "log"):
        yield endpoint


def until(what: str, found: Callable[[], Any], seconds: float = 240.0) -> Any:
    """What ``found`` returns as soon as it is truthy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds} s")


@contextmanager
def dask_worker(address: str, *more: str) -> Iterator[subprocess.Popen]:
    """A worker of one thread for a Dask scheduler."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options |= {"cwd": Path(__file__).parent.parent, "preexec_fn": end_with_us}
    worker = subprocess.Popen([*command, "--no-nanny", *more], **options)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


@contextmanager
def dask_cluster(count: int, *more: str) -> Iterator[tuple[str, subprocess.Popen, list[subprocess.Popen]]]:
    """The address of a Dask scheduler, its process, and those of workers of one thread each."""
    port = free_ports(1)
    address = f"tcp://127.0.0.1:{port}"
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options |= {"cwd": Path(__file__).parent.parent, "preexec_fn": end_with_us}
    where = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    scheduler = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *where], **options)
    try:
        with ExitStack() as stack:
            yield address, scheduler, [stack.enter_context(dask_worker(address, *more)) for _ in range(count)]
    finally:
        scheduler.kill()
        scheduler.wait()
