"""Objects on a local disk: whole or not at all, created once, swapped under a lock that ends with its holder."""

import errno
import fcntl
import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_folder(path: str) -> None:
    """Makes a new name in a folder survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Gives an error of the system that names no file, such as that of a full disk, the name of one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), path) from error


@contextmanager
def beside(source: str | Path | bytes, path: str) -> Iterator[str]:
    """A fully written, synced temporary copy of a file (or of bytes) in the folder of ``path``.

    It is locked while its writer lives, so that nobody takes it for the remains of a killed one.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")  # without the name, which may be as long as it can
    try:
        with (
            _named(path),
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as data,
            open(temporary, "xb") as out,
        ):
            fcntl.flock(out, fcntl.LOCK_EX)
            while block := data.read(1 << 22):
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
            yield temporary
        sync_folder(folder)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def hand_over(source: str | Path, path: str) -> bool:
    """Makes a file the object itself, where both are on one disk; FileExistsError where something is there."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    if os.stat(source).st_dev != os.stat(folder).st_dev:
        return False
    handle = os.open(source, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.link(source, path)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        return False
    finally:
        os.close(handle)
    sync_folder(folder)
    return True


def abandoned(path: str) -> bool:
    """Whether no living writer holds a temporary file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Holds a lock that all swaps in one folder share; it ends with the process, and leaves no file.

    A folder itself is locked. Where a network file system knows no locks on folders, a hidden file in it is.
    """
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            hidden = os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
            os.close(handle)
            handle = hidden
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
