"""From a URL to a file system, with the settings and time limits that Reelmill wants of each.

No request can hang: a store that says nothing is given up after ``CONNECT`` or ``SILENCE`` seconds and asked again by
botocore's own retries; one that trickles is given up after ``PATIENCE`` seconds and a second for every ``PACE`` bytes.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage.errors import Damaged, RootError, StoreError
from storage.timing import during

LOCALHOST = "file://localhost/"  # before a percent-encoded path, for names that are not text
CONNECT = 10  # seconds for a connection
SILENCE = 30  # seconds without a byte
ATTEMPTS = 5  # of one request, by botocore, which waits longer and longer between them
AGAIN = 2  # times that s3fs asks once more after all that; a body that broke off is among its cases
PATIENCE = 300.0  # seconds for any request that moves no bytes to speak of
PACE = 50_000  # bytes a second, below which a transfer is given up
UNKNOWN = 1 << 30  # bytes to reckon with where a size is not known
KINDS = dict.fromkeys(("info", "ls", "find", "glob", "exists", "isfile", "isdir", "modified"), "list")
KINDS |= {"cat_file": "read", "get_file": "read", "call_s3": "list"}  # all else writes
SKEW = 900  # seconds between two clocks, beyond which S3 refuses a request
CONFLICTS = 8  # times that a request which met another one at the store is sent again

Result = TypeVar("Result")


def join(url: str, *parts: str) -> str:
    """Appends path parts to a URL."""
    return "/".join([url.rstrip("/"), *parts])


def absolute(url: str) -> str:
    """A URL as it is, a bare local path made absolute."""
    return url if "://" in url else os.path.abspath(url)


def _system(protocol: str, ranges: bool = False, given: tuple[tuple[str, Any], ...] = ()) -> fsspec.AbstractFileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _system_of(protocol, os.getpid(), endpoint, ranges, given)


def for_ranges(fs: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
    """The file system to read a range with: some servers send the checksum of the whole object along with a range."""
    return _system("s3", ranges=True) if is_s3(fs) else fs


@lru_cache(maxsize=64)
def _system_of(
    protocol: str, process: int, endpoint: str | None, ranges: bool, given: tuple[tuple[str, Any], ...]
) -> fsspec.AbstractFileSystem:
    """One per process, as connections do not survive a fork, and per server: ``given`` is what a URL says of it."""
    # Another writer's object must be seen at once, so no listing is ever cached.
    options: dict[str, Any] = {"use_listings_cache": False, **dict(given)}
    if protocol in ("s3", "s3a"):
        options["config_kwargs"], options["event_hooks"] = _s3_settings(), _s3_events()
        if ranges:
            options["config_kwargs"] |= {"response_checksum_validation": "when_required"}
        if endpoint and "endpoint_url" not in fsspec.config.conf.get("s3", {}):
            options["endpoint_url"] = endpoint
    fs = fsspec.filesystem(protocol, **options)
    if is_s3(fs):
        fs.retries = AGAIN
    return fs


_system.cache_clear = _system_of.cache_clear  # type: ignore[attr-defined]


def _s3_settings() -> dict[str, Any]:
    """What botocore's client is told; whatever the caller has configured stays."""
    given: dict[str, Any] = fsspec.config.conf.get("s3", {})
    ours: dict[str, Any] = {"connect_timeout": CONNECT, "read_timeout": SILENCE}
    if not {"AWS_RETRY_MODE", "AWS_MAX_ATTEMPTS"} & os.environ.keys():
        ours["retries"] = {"mode": "standard", "max_attempts": ATTEMPTS}
    return {**ours, **given.get("config_kwargs", {})}


def _s3_events() -> Any:
    """The events of botocore's client, with ours before its own."""
    from aiobotocore.hooks import AioHierarchicalEmitter

    events = AioHierarchicalEmitter()
    events.register_first("needs-retry.s3", _slow_down)
    return events


def _slow_down(response: Any = None, **_: Any) -> None:
    """Has an answer 429 count as a 503 SlowDown, which botocore and s3fs know to wait for."""
    if response is not None and response[0].status_code == 429:
        response[1]["Error"] = {**response[1].get("Error", {}), "Code": "SlowDown"}


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path on it. Chained URLs (``a::b``) are refused."""
    if url.startswith(LOCALHOST):
        return _system("file"), os.fsdecode(unquote_to_bytes(url[len(LOCALHOST) - 1 :]))
    if url.startswith("/"):  # whatever a local name may hold, it is no URL
        return _system("file"), url.rstrip("/") or "/"
    protocol = fsspec.utils.get_protocol(url)
    try:
        if url.startswith(f"{protocol}::"):
            raise ValueError("chained URLs are not supported")
        fs = _system(protocol, given=_host(protocol, url))
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise RootError(
            f"{url}: unknown kind of URL ({error}); give a plain path, file://, s3:// or memory:// URL"
        ) from error
    return fs, fs._strip_protocol(url)


def _host(protocol: str, url: str) -> tuple[tuple[str, Any], ...]:
    """What a URL says of its server, as FTP, SFTP and others need it; S3 and this machine need nothing."""
    if protocol in ("file", "local", "memory", "s3", "s3a"):
        return ()
    found = fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(url)
    return tuple(sorted((name, value) for name, value in found.items() if value is not None))


def percent(path: str) -> str:
    """A local path that need not be text, percent-encoded; `LOCALHOST` and this make a URL."""
    return quote(os.fsencode(path), safe="/")


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


def is_memory(fs: fsspec.AbstractFileSystem) -> bool:
    return isinstance(fs, MemoryFileSystem)


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    return hasattr(fs, "s3_additional_kwargs")


def bucket_and_key(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    """The ``Bucket`` and ``Key`` of a path on S3, as requests name them."""
    bucket, key, _ = fs.split_path(path)
    return {"Bucket": bucket, "Key": key}


def pages(fs: fsspec.AbstractFileSystem, path: str, size: int = 1000) -> Iterator[dict[str, Any]]:
    """What S3 lists below a path, an entry at a time, a page of ``size`` in memory."""
    target = bucket_and_key(fs, path)
    prefix = target["Key"].rstrip("/") + "/" if target["Key"] else ""
    more: dict[str, Any] = {}
    while True:
        page = ask(fs, "call_s3", "list_objects_v2", Bucket=target["Bucket"], Prefix=prefix, MaxKeys=size, **more)
        yield from (entry for entry in page.get("Contents", []) if entry["Key"] != prefix)
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def ask(fs: fsspec.AbstractFileSystem, method: str, *args: Any, size: int = 0, **kwargs: Any) -> Any:
    """Calls a method of a file system, on a remote one with a limit in time that follows from ``size`` bytes.

    Raises OSError of the store's own kind, or `StoreError` where it did not answer.
    """
    with during(KINDS.get(method, "write")), answered(f"{method} {args[0] if args else kwargs.get('Key', '')}"):
        if not isinstance(fs, AsyncFileSystem) or not hasattr(fs, f"_{method}"):
            return getattr(fs, method)(*args, **kwargs)
        return within(fs, lambda: getattr(fs, f"_{method}")(*args, **kwargs), size)


def within(fs: AsyncFileSystem, start: Callable[[], Any], size: int = 0) -> Any:
    """Runs a coroutine of a file system, for no longer than ``size`` bytes may take."""
    limit = PATIENCE + size / PACE

    async def limited() -> Any:
        try:
            async with asyncio.timeout(limit):  # `wait_for` would make a task of its own for each request
                return await start()
        except TimeoutError as error:
            raise StoreError(f"the store did not finish within {limit:.0f} s") from error

    return sync(fs.loop, limited)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Names what was asked for where a store did not answer, whatever its client library raises then."""
    try:
        yield
    except StoreError as error:
        raise type(error)(f"{what}: {error}") from error
    except Exception as error:
        if type(error).__name__ == "FlexibleChecksumError":
            raise Damaged(f"{what}: other bytes arrive than were stored ({error}); restore it from a copy") from error
        library = type(error).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp")
        if library or isinstance(error, TimeoutError | ConnectionError):
            raise StoreError(f"{what}: the store did not answer ({type(error).__name__}: {error})") from error
        if isinstance(error, PermissionError) and _skewed(error):
            raise RootError(
                f"{what}: refused, as this machine's clock differs from the store's by more than "
                f"{SKEW // 60} minutes; set this machine's clock"
            ) from error
        if isinstance(error, FileNotFoundError) and _silent(error.__cause__):
            raise StoreError(f"{what}: the store did not answer ({error.__cause__!r})") from error
        raise


def _silent(cause: BaseException | None) -> bool:
    """Whether fsspec's HTTP said "not found" where no server did: it says so of whatever went wrong."""
    if type(cause).__module__.split(".")[0] != "aiohttp":
        return isinstance(cause, TimeoutError | ConnectionError)
    return getattr(cause, "status", 0) not in (404, 410) and not isinstance(cause, ValueError)  # that: no URL at all


def _answer_of(error: BaseException) -> dict[str, Any]:
    """What an S3 server answered, as botocore has it; empty where no answer is behind an error."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return response
        cause = cause.__cause__
    return {}


def code_of(error: BaseException) -> str:
    """The error code that an S3 server gave, or nothing."""
    answer = _answer_of(error)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    named = str(answer.get("Error", {}).get("Code", ""))
    return {409: "ConditionalRequestConflict", 412: "PreconditionFailed"}.get(status, named)


def _skewed(error: BaseException) -> bool:
    """Whether an S3 server refused the time of a request; the answer to a HEAD has no code, but the server's time."""
    code = code_of(error)
    date = _answer_of(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if code != "403" or not date:
        return code == "RequestTimeTooSkewed"
    return abs(parsedate_to_datetime(date).timestamp() - time.time()) > SKEW


def unless_refused(call: Callable[[], Result]) -> tuple[bool, Result | None]:
    """Runs a conditional request: (True, its answer), or (False, None) where the condition did not hold.

    A store may say that it met another request on the same name (409); that is neither, and asked again.
    """
    for attempt in range(CONFLICTS):
        try:
            return True, call()
        except FileExistsError:
            return False, None
        except OSError as error:
            code = code_of(error)
            if code == "PreconditionFailed":
                return False, None
            if code != "ConditionalRequestConflict" or attempt == CONFLICTS - 1:
                raise
        time.sleep(random.uniform(0.02, 0.1) * 2**attempt)
    raise AssertionError("unreachable")
