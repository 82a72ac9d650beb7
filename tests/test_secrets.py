"""Planted credentials are nowhere in what is printed, stored or sent, and the search would find them."""

import contextlib
import json
import logging
import os
import random
import re
import sqlite3
import string
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from flows.__main__ import main
from storage.errors import InputError
from storage.secrets import HIDDEN, named, redact, redact_error, refuse_credentials
from tasks import redaction, report, tracking
from tests.forked import Forks, forks
from tests.servers import free_ports, prefect_server

SECRET = "canary+Alpha/Bravo'01"
KEY = "AKIACANARYCANARY0001"
SIGNATURE = "canarysignature0123456789abcdef0123456789abcdef"
IN_A_NAME = "AKIAFILENAMECANARY01"
PLANTED = (SECRET, KEY, SIGNATURE, IN_A_NAME, quote(SECRET, safe=""), json.dumps(SECRET)[1:-1])

INNOCENT = [
    "s3://bucket/a:b@c.mp4",
    "/data/user@host:22/x y.mp4",
    "file:///tmp/a%20b@c",
    "http://127.0.0.1:4200/runs?sort=name",
    "https://example.org/@someone/x",
    "s3://bucket/key?versionId=3HL4kqtJlcpXroDTDmJ",
    "parts/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0ab822cd15d6c15b0f00a08.tar",
    "sqlite:////srv/mlflow/mlflow.db",
    "12:30 me@example.org",
    "token 5 of 7; the password is needed",
    "--classes token,secret,signature",
    "  shard        3/4 parts · 1.0/s · ETA 0:03",
    "AKIA is how the id of a key begins",
]

CARRIERS = [  # how a secret stands in text: from servers' messages, tracebacks, configurations
    ("s3://{key}:{secret}@bucket/x", "plain"),
    ("https://user:{secret}@host/path", "host"),
    ("GET https://b.s3.amazonaws.com/k?X-Amz-Credential={hex}&X-Amz-Signature={hex}&partNumber=1", "hex"),
    ("https://host/x?part=1&token={hex}", "hex"),
    ("next=https%3A%2F%2Fuser%3A{hex}%40host%2Fx", "hex"),
    ("Authorization: AWS4-HMAC-SHA256 Credential={hex}, SignedHeaders=host, Signature={hex}", "hex"),
    ("{{'Authorization': 'Basic {hex}'}}", "hex"),
    ("Bearer {hex}", "hex"),
    ("aws_secret_access_key = {secret}", "plain"),
    ('{{"secretKey": "{secret}"}}', "plain"),
    ("S3FileSystem(key='x', secret='{secret}')", "plain"),
    ("<AWSAccessKeyId>{hex}</AWSAccessKeyId>", "hex"),
    ("the key {key} is not known", "key"),
]


def drawn(kind: str, rng: random.Random) -> str:
    if kind == "key":
        return rng.choice(("AKIA", "ASIA")) + "".join(rng.choices(string.ascii_uppercase + string.digits, k=16))
    if kind == "hex":
        return "".join(rng.choices("0123456789abcdef", k=40))
    signs = string.ascii_letters + string.digits + ("+:@-_!" if kind == "host" else "+/")
    return "".join(rng.choices(signs, k=30))


@pytest.mark.parametrize(("carrier", "kind"), CARRIERS)
def test_a_credential_is_known_by_its_form(carrier, kind):
    """Whatever the value, with text around it, and once more over what came out."""
    rng = random.Random(carrier)
    for _ in range(50):
        values = {"key": drawn("key", rng), "hex": drawn("hex", rng), "secret": drawn(kind, rng)}
        text = f"failed ({rng.choice(INNOCENT)}): {carrier.format(**values)} · {rng.choice(INNOCENT)}"
        shown = redact(text)
        assert not [value for name, value in values.items() if "{" + name + "}" in carrier and value in shown], shown
        assert HIDDEN in shown and redact(shown) == shown and shown.startswith("failed (")


def test_a_secret_is_known_by_its_value_however_it_is_written(monkeypatch):
    rng = random.Random(1)
    names = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FSSPEC_S3_SECRET", "MLFLOW_TRACKING_PASSWORD"]
    names += ["PREFECT_API_KEY", "FSSPEC_GCS_TOKEN", "MY_SECRET_THING", "PREFECT_SERVER_API_AUTH_STRING"]
    for name in names:
        for _ in range(20):
            value = "".join(rng.choices(string.printable.strip() + " ", k=rng.randint(6, 40))).strip().ljust(6, "x")
            monkeypatch.setenv(name, value)
            for spelling in (value, quote(value), quote(value, safe=""), json.dumps(value)[1:-1], repr(value)[1:-1]):
                assert value not in unquote(redact(f"before {spelling} after")), (name, value)
        monkeypatch.delenv(name)


def test_half_of_an_authentication_string_is_hidden_too(monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:" + SECRET)
    assert SECRET not in redact(f"wrong password {SECRET}")


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_stays(text, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reel")  # a short id is a word
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/data/user@host:22")  # where one is, not what it is
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "signature")
    assert redact(text) == text
    assert redact(f"{text} {SECRET} {text}") == f"{text} {HIDDEN} {text}"


def test_paths_and_digests_stay_whatever_they_are():
    rng = random.Random(2)
    for _ in range(300):
        words = ["".join(rng.choices(string.ascii_letters + string.digits + "-_.:@+=% ", k=9)) for _ in range(4)]
        path = "/" + "/".join(words)
        if not re.search("secret|token|passw|key", path, re.I):
            assert redact(path) == path
        assert redact(f"{rng.getrandbits(256):064x}") != HIDDEN


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET.replace('/', '')}@bucket/archive",
        "https://someone:opensesame@host/archive",
        f"https://host/archive?X-Amz-Signature={SIGNATURE}",
    ],
)
def test_a_url_with_credentials_is_refused_in_one_line_without_them(url, tmp_path):
    """It would be a parameter of the run, which Prefect stores as it is."""
    for option in ("--root", "--archive", "--labels"):
        given = {"--root": str(tmp_path / "r"), "--archive": str(tmp_path), "--labels": str(tmp_path), option: url}
        done = CliRunner().invoke(main, ["prepare", *(word for pair in given.items() for word in pair)])
        assert done.exit_code == 2 and done.output.count("\n") == 1, done.output
        assert option in done.output and "AWS_SECRET_ACCESS_KEY" in done.output
        for secret in (KEY, SECRET.replace("/", ""), "opensesame", SIGNATURE):
            assert secret not in done.output
    assert not (tmp_path / "r").exists()


def test_urls_without_credentials_are_not_refused(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for url in (*INNOCENT[:6], "relative/path", "memory://x"):
        refuse_credentials(url)
    with pytest.raises(InputError, match="AWS_SECRET_ACCESS_KEY") as refused:
        refuse_credentials(f"/data/{SECRET}/x")
    assert SECRET not in str(refused.value)


def test_log_records_and_their_tracebacks_are_redacted(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    redaction.install()
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(handler.format(record))  # type: ignore[method-assign]
    logger = logging.getLogger("prefect.flow_runs.canary")
    logger.addHandler(handler)
    try:
        logger.error("first %s %d", SECRET, 7)
        try:
            raise OSError(5, f"no answer for {KEY}", f"s3://b/{SECRET}")
        except OSError:
            logger.exception("second")
    finally:
        logger.removeHandler(handler)
    assert seen[0] == f"first {HIDDEN} 7" and "Traceback" in seen[1] and len(seen) == 2
    assert not any(secret in line for line in seen for secret in PLANTED)


def test_an_exception_is_redacted_with_its_causes_and_keeps_its_type(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    try:
        try:
            raise PermissionError(13, f"denied {KEY}", f"s3://b/{SECRET}")
        except PermissionError as cause:
            raise ValueError(["x", {"why": SECRET}]) from cause
    except ValueError as error:
        redact_error(error)
        assert str(error) == f"['x', {{'why': '{HIDDEN}'}}]"
        assert isinstance(error.__cause__, PermissionError) and error.__cause__.errno == 13
        assert str(error.__cause__) == f"[Errno 13] denied {HIDDEN}: 's3://b/{HIDDEN}'"


def test_mlflow_and_artifacts_get_none(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sent: list[str] = []
    monkeypatch.setattr(report, "in_run", lambda: True)
    for name in ("create_markdown_artifact", "create_table_artifact"):
        monkeypatch.setattr(report, name, lambda *given, **words: sent.append(f"{given}{words}"))
    report.say(f"reading with {SECRET}")
    report.table("t", [{"item": f"{KEY}.mp4", SECRET: 1}], f"of {SECRET}")
    report.markdown("m", f"# {SECRET}", f"{KEY}")
    run = tracking.start(str(tmp_path), f"run {KEY}", {"url": f"s3://{KEY}:x@b", "far": "x" * 490 + SECRET}, {"t": KEY})
    tracking.tag(str(tmp_path), run, {"why": SECRET})
    tracking.log_metrics(str(tmp_path), run, {"loss": 1.0})
    tracking.end(str(tmp_path), run)
    assert len(sent) == 2 and tracking.export(str(tmp_path), run)["tags"]["why"] == HIDDEN
    text = "".join(sent) + capsys.readouterr().out + "".join(dict.fromkeys(everything(tmp_path).values()))
    assert "loss" in text and not [secret for secret in (SECRET, KEY, SECRET[:9]) if secret in text]


class Forbidding(BaseHTTPRequestHandler):
    """An S3 server that lists two videos, gives one, and refuses the other with a message full of secrets."""

    videos: dict[str, bytes] = {}

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        key = unquote(path).removeprefix("/reel").lstrip("/")
        if not key:
            rows = "".join(
                f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"{len(data)}"</ETag><Size>{len(data)}</Size></Contents>'
                for name, data in self.videos.items()
                if name.startswith(unquote(query).partition("prefix=")[2].partition("&")[0])
            )
            return self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>")
        if key in self.videos and "refused" not in key:
            return self.answer(200, self.videos[key])
        if key in self.videos and self.command == "HEAD":
            return self.answer(200, self.videos[key])
        if key in self.videos:
            said = f"{KEY} with {SECRET} at https://reel/x?X-Amz-Signature={SIGNATURE}".replace("&", "&amp;")
            return self.answer(400, f"<Error><Code>InvalidRequest</Code><Message>{said}</Message></Error>")
        return self.answer(404, "<Error><Code>NoSuchKey</Code><Message>no</Message></Error>")

    do_HEAD = do_GET

    def answer(self, code: int, body: str | bytes) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(data)}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def video(path: Path) -> bytes:
    """A second of H.264 whose title is a secret."""
    with av.open(str(path), "w") as box:
        box.metadata["title"] = SECRET
        stream = box.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            frame = np.full((48, 64, 3), 10 * number, np.uint8)
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        box.mux(stream.encode(None))
    assert SECRET.encode() in path.read_bytes()
    return path.read_bytes()


@pytest.fixture(scope="module")
def refusing_store(tmp_path_factory):
    data = video(tmp_path_factory.mktemp("titled") / "v.mp4")
    Forbidding.videos = {f"archive/good/{IN_A_NAME}.mp4": data, "archive/refused/a.mp4": data + b"\0"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forbidding)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def everything(folder: Path) -> dict[str, str]:
    """The text of every file below a folder: tables as their rows, all else as its bytes."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        table = path.suffix == ".parquet"
        text = repr(pq.read_table(path).to_pylist()) if table else path.read_bytes().decode("utf-8", "replace")
        found[str(path.relative_to(folder))] = text
    return found


RUN = """
import os, sys
os.dup2(os.open(sys.argv.pop(), os.O_WRONLY | os.O_CREAT), 2)
from tasks import stage
stage.WAVES = 1  # the store refuses, however often it is asked
{before}
from flows.__main__ import main
main()
"""
UNREDACTED = """
import storage.secrets as s
known = {s.redact: lambda text: text, s.redact_error: lambda error: None}
for module in list(sys.modules.values()):
    for name in ("redact", "redact_error"):
        if vars(module).get(name) in known:
            setattr(module, name, known[vars(module)[name]])
"""


@pytest.fixture(scope="module")
def runs(refusing_store, tmp_path_factory):
    """Forks of a process that has secrets all around it, and the folder of what they write and of Prefect's server."""
    folder, port = tmp_path_factory.mktemp("canary"), free_ports(1)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PREFECT_", "MLFLOW_"))}
    env |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    env |= {"AWS_ENDPOINT_URL": refusing_store, "AWS_MAX_ATTEMPTS": "1", "PREFECT_HOME": str(folder / "prefect")}
    env |= {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG", "PREFECT_LOGGING_LEVEL": "DEBUG"}
    (folder / "prefect").mkdir()
    server = prefect_server(port, folder / "prefect", env)
    env |= {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    imports = "import flows.prepare, tasks.checks, tasks.silence, prefect.flow_engine, prefect.task_engine"
    with forks(imports, env) as made:
        yield made, folder
    server.kill()
    server.wait()


def prepared(runs: tuple[Forks, Path], name: str, before: str = "") -> dict[str, str]:
    """Runs `reelmill prepare` with a root of this name; all that was printed or written so far, by place."""
    made, folder = runs
    words = ["prepare", "--root", str(folder / name), "--archive", "s3://reel/archive", "--name", "canary"]
    run = made.run(*words, str(folder / "stderr"), program=RUN.format(before=before))
    said = run.communicate()
    assert run.returncode != 0, said
    states, logs = in_prefect(folder, 1 + (before != ""))
    return everything(folder) | {"stdout": said, "states": "\0".join(states), "logs": "\0".join(logs)}


def in_prefect(folder: Path, runs: int) -> tuple[list[str], list[str]]:
    """What Prefect's database holds of the states of runs, and of their logs; its server may still be writing."""
    until = time.monotonic() + 300
    while True:
        with contextlib.closing(sqlite3.connect(folder / "prefect" / "prefect.db")) as base:
            flows = [row[0] for row in base.execute("SELECT message FROM flow_run_state WHERE message IS NOT NULL")]
            tasks = [row[0] for row in base.execute("SELECT message FROM task_run_state WHERE message IS NOT NULL")]
            logs = [row[0] for row in base.execute("SELECT message FROM log")]
        ended = [text for text in flows if "encountered an exception" in text]
        if (len(ended) >= runs and any("Traceback" in text for text in logs)) or time.monotonic() > until:
            return flows + tasks, logs
        time.sleep(0.5)


def leaks(found: dict[str, str], planted: tuple[str, ...] = PLANTED) -> set[tuple[str, str]]:
    return {(place, secret) for place, text in found.items() for secret in planted if secret in text}


def test_planted_secrets_are_nowhere(runs):
    """In the environment, in a server's message, in a title and in a file's name."""
    found = prepared(runs, "root")
    said = found["stderr"].splitlines()
    assert any(line.startswith("reelmill: failed:") and HIDDEN in line for line in said), said[-5:]
    states, logs = found["states"].split("\0"), found["logs"].split("\0")
    assert any("cannot be read" in text and HIDDEN in text for text in states), states
    assert any("Traceback" in text and HIDDEN in text for text in logs)
    # A file's own name is what the archive shows; plan and ledger have to name it.
    named_files = {(p, s) for p, s in leaks(found) if s == IN_A_NAME and p.startswith("root/")}
    assert leaks(found) - named_files == set()


def test_the_search_would_find_them(runs):
    """The control: the same run with nothing redacted prints and stores what the one before it must not."""
    found = leaks(prepared(runs, "control", UNREDACTED))
    for secret in (KEY, SECRET, SIGNATURE):
        assert {place for place, planted in found if planted == secret} >= {"stderr", "states", "logs"}, found
    assert any(place.startswith("prefect/prefect.db") for place, _ in found)


def test_every_secret_of_an_environment_is_named():
    found = named({"AWS_SECRET_ACCESS_KEY": "abcdefgh", "HOME": "/root", "A_TOKEN": "short", "X_PASSWORD": "longer"})
    assert found == {"abcdefgh": "AWS_SECRET_ACCESS_KEY", "longer": "X_PASSWORD"}


def test_the_ledger_holds_no_secret(tmp_path, monkeypatch):
    from storage import ledger
    from storage.ledger import Entry

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIcanary")
    entries = [Entry("a.mp4", "quarantined", "permission", "403 for wJalrXUtnFEMIcanary", host="h")]
    ledger.write(str(tmp_path), "shard", "p", entries)
    (found,) = ledger.read(str(tmp_path), "shard", "p")
    assert "canary" not in found.detail and found.detail.startswith("403 for ")
    assert "canary" not in ledger.batch([{"item": "a", "detail": entries[0].detail}]).to_pylist()[0]["detail"]
