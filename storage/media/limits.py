"""What a file may ask for, and the fixed list of reasons for which one is refused."""

from dataclasses import dataclass

LONGEST_KIND = 80  # characters of the name of an exception's class
LIMIT_BYTES = 256 << 30  # a file larger than this is not even hashed

REASONS = {
    "empty": "the file has no bytes",
    "not_regular_file": "a folder, device, pipe or link that leads nowhere",
    "not_found": "gone between listing and reading",
    "permission": "may not be read",
    "bad_shard": "a tar that is cut short, damaged or compressed",
    "bad_member": "a link, an unsafe or doubled name in a tar, or unreadable labels beside it",
    "file_too_large": "more bytes than the limit",
    "source_changed": "other bytes than when it was listed",
    "not_video": "no known video container",
    "unsupported_container": "a picture, a bare stream, a sound file, or a container that is not on the list",
    "forbidden_reference": "names other files or hosts, which are never followed",
    "encrypted": "protected by a key that we do not have",
    "no_video_stream": "a container without a video stream",
    "unsupported_codec": "a codec that is not on the list",
    "no_frames": "a video stream without a single frame",
    "truncated": "the file ends before its header says it should",
    "decode_error": "no frame could be decoded",
    "corrupt_frames": "too many damaged frames",
    "missing_frames": "too many frames were lost on the way",
    "bad_timestamps": "frames without usable, increasing times",
    "too_few_frames": "fewer frames than a clip needs",
    "too_small": "frames smaller than the limit",
    "too_many_pixels": "frames larger than the limit",
    "too_many_frames": "more frames than the limit",
    "too_long": "more seconds than the limit",
    "size_change": "the frame size changes within the stream",
    "needs_reencode": "its packets cannot be copied; `--cutting copy` now cuts such a source exactly",
    "timeout": "made no progress within the time limit",
    "oom": "needed more memory than the limit",
    "decoder_crash": "the decoder process died",
    "worker_killed": "took down the process that worked on it",
}

PASSING = ("not_found", "permission", "source_changed")  # of where a file lay, not of what is in it


class Rejected(Exception):
    """A file that cannot be used; ``reason`` is a key of `REASONS`.

    ``kind`` is the class of the exception behind it, where that was raised in another process.
    """

    def __init__(self, reason: str, detail: str = "", kind: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
        self._kind = kind if kind.isidentifier() and len(kind) <= LONGEST_KIND else ""

    @property
    def kind(self) -> str:
        """The class of the exception that led to this one; "Rejected" where it was found without any."""
        return self._kind or type(self.__cause__ or self).__name__


@dataclass(frozen=True)
class Limits:
    """What one file may ask for. Shares are of its frames, sides in pixels, ``max_gap`` in seconds between frames."""

    max_bytes: int = LIMIT_BYTES
    max_pixels: int = 4096 * 2304
    max_frames: int = 1_000_000
    max_seconds: float = 12 * 3600.0
    max_gap: float = 300.0
    min_side: int = 16
    min_frames: int = 4
    corrupt_share: float = 0.005
    missing_share: float = 0.01
    repaired_share: float = 0.1


DEFAULT = Limits()


def check_size(size: int, limit: int = LIMIT_BYTES) -> None:
    """Refuses a file of more than ``limit`` bytes; to be asked before its bytes are read or hashed."""
    if size > limit:
        raise Rejected("file_too_large", f"{size} bytes, at most {limit}")
