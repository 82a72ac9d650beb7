"""What several test files share: settings before anything is imported, one rendered archive, a listener, S3 servers."""

import os
import shutil
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from flows.__main__ import quiet

quiet()

import pytest  # noqa: E402

from storage import local  # noqa: E402
from tests import servers  # noqa: E402
from tests.browsing import browser, opened, screenshots  # noqa: E402, F401
from tests.servers import CREDENTIALS  # noqa: E402

LONG = (
    "served_runs",
    "flow_demo",
    "faults_silence",
    "serve",
    "tasks_train",
    "secrets",
    "kill_fuzz",
    "tasks_logged",
    "tasks_drill",
)
LONG += ("tasks_champions", "ablate", "tasks_systems", "tasks_prepare", "tasks_ensemble", "tasks_fine_column")
LONG += ("faults_cluster", "faults_full_disk", "storage_contract", "faults_clock", "tasks_listing", "architecture")


def pytest_collection_modifyitems(items):
    """Files that take long come first, so that no process ends with one of them while the other has nothing to do."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))
    for item in items:
        if item.get_closest_marker("seconds"):
            item.add_marker(pytest.mark.flaky(reruns=2))


def pytest_configure():
    """Where Prefect keeps what runs within this process tell it of, there are tables from the start."""
    servers.prefect_tables(Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser())


@pytest.fixture(scope="session", autouse=True)
def mlflow_tables(tmp_path_factory):
    """Every root has a database of MLflow's; its tables are made once, which takes seconds of CPU, and then copied."""
    from tasks import tracking

    kept = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    make = tracking._make_tables

    def copied(uri):
        place = Path(uri.removeprefix("sqlite:///"))
        if not place.exists():
            make(f"sqlite:///{kept}")
            with local.locked(str(place)):
                if not place.exists():
                    shutil.copy(kept, place)
        make(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "_make_tables", copied)
        yield


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of the test processes to ask for it fills, for all of them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder, made = folder / name, folder / f"{name}.made"
    with local.locked(str(folder)):
        if not made.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """A folder with `archive/` (16 weak, 6 dense, broken and real videos) and `labels.csv`; no test changes it."""
    from storage.media import synthetic
    from tasks import pool

    return made_once(
        tmp_path_factory, "rendered", lambda at: synthetic.render_archive(at, 0, 16, 6, run=pool.processes)
    )


@pytest.fixture(scope="session")
def traced(tmp_path_factory):
    """A folder with `archive/`, `labels.csv` and `root/`, see `tests.traced`; no test changes it."""
    from tests import traced as makes

    return made_once(tmp_path_factory, "traced", lambda at: makes.make(at, str(at / "root")))


@pytest.fixture(scope="module")
def listener():
    """A port of this machine and the connections that were made to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls = []

        def wait():
            try:
                while True:
                    calls.append(server.accept()[0].close())
            except OSError:
                pass

        threading.Thread(target=wait, daemon=True).start()
        yield server.getsockname()[1], calls
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def source(tmp_path):
    """Makes a local file of the given bytes."""

    def make(data):
        path = tmp_path / uuid.uuid4().hex
        path.write_bytes(data)
        return path

    return make


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """The endpoint of a SeaweedFS server."""
    with servers.seaweed(tmp_path_factory.mktemp("seaweed")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def rclone(tmp_path_factory):
    """The endpoint of a server that ignores conditions on a put."""
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as endpoint:
        yield endpoint


@pytest.fixture
def at(monkeypatch):
    """Sends plain ``s3://`` URLs to a server, in this test and in what it starts."""

    def lead(endpoint: str) -> str:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        return f"s3://reel/{uuid.uuid4().hex}"

    return lead


@pytest.fixture
def place(request, tmp_path, at):
    """Makes the URL of an empty place on a kind of store."""

    def make(kind):
        if kind == "local":
            return str(tmp_path / uuid.uuid4().hex)
        if kind == "memory":
            return f"memory://{uuid.uuid4().hex}"
        if kind == "moto":
            return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"
        return at(request.getfixturevalue(kind))

    return make


@pytest.fixture(scope="session")
def s3():
    """The URL of an empty bucket on a server of this process; plain ``s3://`` URLs lead there."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    # s3fs reads none of these itself: botocore does, when a client is made. FSSPEC_S3_* would have to be set before
    # fsspec is imported.
    os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    os.environ.pop("AWS_PROFILE", None)
    import logging

    from storage import files

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    files._system.cache_clear()
    files.locate("s3://reel")[0].mkdir("reel")
    yield "s3://reel"
    os.environ.clear()
    os.environ.update(before)
    files._system.cache_clear()
    server.stop()
