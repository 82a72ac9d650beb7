"""The decoder child: it may crash, hang, eat memory or lie, and only the file at hand is lost."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from storage.errors import StoreError
from storage.media import decoder, sampling
from storage.media import sandbox as sandbox_module
from storage.media.encoder import Encoder
from storage.media.sandbox import CHECKOUT, Sandbox, cut_alone, mine
from storage.media.video import Limits, Rejected
from tests.decoders import checkout, good


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return good(tmp_path_factory.mktemp("sandbox"))


@pytest.fixture
def box():
    """A sandbox."""
    box = Sandbox(stall=60.0)
    yield box
    box.close()


def _cut(box, path, folder):
    return box.cut(str(path), folder, span=1.0, short_side=32)


def _works(box, path, folder):
    assert [c["frames"] for c in _cut(box, path, folder)] == [20, 20]


def _pose_as(box, monkeypatch, code):
    """Makes the next children run `code` instead of the decoder, once they are told what to do."""
    start = subprocess.Popen

    def popen(command, **options):
        return start([sys.executable, "-c", code], **options)

    monkeypatch.setattr(sandbox_module.subprocess, "Popen", popen)


LISTEN = "import sys, os, time, signal; sys.stdin.buffer.read(12); "


def test_cut_and_sample(box, clip, tmp_path):
    first, second = _cut(box, clip, tmp_path)
    assert (first["end"], second["end"], first["width"], first["height"]) == (1.0, 2.0, 42, 32)
    frames, kept, times = box.sample((tmp_path / second["file"]).read_bytes(), 4.0)
    assert frames.shape == (4, 32, 42, 3) and kept.tolist() == [0, 0.25, 0.5, 0.75] and len(times) == 20


def test_a_refusal_comes_through_and_the_child_lives_on(box, clip, tmp_path):
    _works(box, clip, tmp_path)
    child = box.child.pid
    (tmp_path / "bad.mp4").write_bytes(b"")
    with pytest.raises(Rejected) as caught:
        _cut(box, tmp_path / "bad.mp4", tmp_path)
    assert caught.value.reason == "empty"
    _works(box, clip, tmp_path)
    assert box.child.pid == child


def test_a_refusal_names_the_class_of_the_exception_behind_it(box, clip, tmp_path):
    """The ledger keeps it; a child that lies may only give a word."""
    text = tmp_path / "text.mp4"
    text.write_bytes(b"not a video " * 99)
    for refused in (lambda: _cut(box, text, tmp_path), lambda: cut_alone(str(text), tmp_path, span=1.0, short_side=32)):
        with pytest.raises(Rejected) as caught:
            refused()
        assert (caught.value.reason, caught.value.kind) == ("not_video", "InvalidDataError")
    assert Rejected("too_small").kind == Rejected("too_small", "", "rm -rf /").kind == "Rejected"


def test_the_limits_hold_in_the_child(clip, tmp_path):
    box = Sandbox(limits=Limits(max_frames=10))
    with pytest.raises(Rejected, match="too_many_frames"):
        _cut(box, clip, tmp_path)
    box.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_is_named(box, clip, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        _pose_as(box, patch, LISTEN + f"os.kill(os.getpid(), {int(number)})")
        with pytest.raises(Rejected) as caught:
            _cut(box, clip, tmp_path)
    assert caught.value.reason == "decoder_crash" and str(-number) in caught.value.detail
    _works(box, clip, tmp_path)


def test_a_child_killed_between_calls_is_replaced(box, clip, tmp_path):
    _works(box, clip, tmp_path)
    os.kill(box.child.pid, signal.SIGKILL)
    _works(box, clip, tmp_path)


def test_a_crash_that_is_not_the_files_is_tried_once_more(box, clip, tmp_path, monkeypatch):
    start, commands = subprocess.Popen, []

    def popen(command, **options):
        commands.append(command)
        return start([sys.executable, "-c", LISTEN] if len(commands) == 1 else command, **options)

    monkeypatch.setattr(sandbox_module.subprocess, "Popen", popen)
    _works(box, clip, tmp_path)
    assert len(commands) == 2


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A video whose frames come in several parts, of which more than one is underway at any time."""
    path, rng = tmp_path_factory.mktemp("noise") / "a.mp4", np.random.default_rng(5)
    with Encoder(path, 640, 480, Fraction(20)) as encoder:
        for t in range(40):
            encoder.write(rng.integers(0, 255, (480, 640, 3), np.uint8), Fraction(t, 20))
    return path


CALLS = {
    "thumbnails": lambda box, path: box.thumbnails(str(path), size=(240, 320)),
    "sample": lambda box, path: box.sample(path.read_bytes()),
    "score": lambda box, path: [np.frombuffer(repr(box.score(path.read_bytes())).encode(), np.uint8)],
}


@pytest.mark.parametrize("call", CALLS)
def test_a_child_killed_in_the_middle_costs_nothing_and_one_killed_twice_the_file(box, noise, monkeypatch, call):
    """The killed one had handed over parts already, where there are any; none of them counts twice."""
    wanted, kills = CALLS[call](box, noise), [1]
    send, receive = Sandbox._send, Sandbox._receive

    def kill(box):
        if kills[0]:
            kills[0] -= 1
            os.kill(box.child.pid, signal.SIGKILL)

    def sent(self, message, blob):
        send(self, message, blob)
        if call == "score":
            kill(self)

    def received(self, room):
        answer, data = receive(self, room)
        if "part" in answer:
            kill(self)
        return answer, data

    monkeypatch.setattr(Sandbox, "_send", sent)
    monkeypatch.setattr(Sandbox, "_receive", received)
    for ours, whole in zip(CALLS[call](box, noise), wanted, strict=True):
        np.testing.assert_array_equal(ours, whole)
    assert kills == [0]
    kills[0] = 2
    with pytest.raises(Rejected) as caught:
        CALLS[call](box, noise)
    assert caught.value.reason == "decoder_crash" and "-9" in caught.value.detail and kills == [0]


@pytest.mark.seconds
def test_a_child_that_hangs_is_given_up(clip, tmp_path):
    box = Sandbox()
    _works(box, clip, tmp_path)
    box.stall, child = 0.5, box.child.pid
    os.kill(child, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(Rejected) as caught:
        _cut(box, clip, tmp_path)
    assert caught.value.reason == "timeout" and time.monotonic() - began < 3 and not os.path.exists(f"/proc/{child}")
    box.stall = 20.0
    _works(box, clip, tmp_path)
    box.close()


def test_a_child_that_takes_no_bytes_is_given_up(clip, tmp_path):
    box = Sandbox()
    _works(box, clip, tmp_path)
    box.stall = 0.5
    os.kill(box.child.pid, signal.SIGSTOP)
    with pytest.raises(Rejected, match="timeout"):
        box.sample(bytes(5_000_000))
    box.close()


@pytest.mark.parametrize("answer", [
    "sys.stdout.buffer.write(b'half')",  # and hangs in the middle of a message
    "sys.stdout.buffer.write(__import__('struct').pack('<IQ', 9, 0) + b'{')",
])  # fmt: skip
def test_a_child_that_hangs_in_an_answer_is_given_up(clip, tmp_path, monkeypatch, answer):
    box = Sandbox(stall=1.0)
    _pose_as(box, monkeypatch, LISTEN + answer + "; sys.stdout.flush(); time.sleep(60)")
    with pytest.raises(Rejected, match="timeout"):
        _cut(box, clip, tmp_path)
    box.close()


@pytest.mark.seconds
def test_a_slow_video_that_gets_on_is_not_given_up(clip, tmp_path, monkeypatch):
    beat = struct.pack("<IQ", 14, 0) + b'{"beat": true}'
    done = struct.pack("<IQ", 14, 0) + b'{"result": []}'
    box = Sandbox(stall=1.5)
    code = f"w = sys.stdout.buffer\nfor _ in range(4): w.write({beat}); w.flush(); time.sleep(0.6)\nw.write({done}); w.flush(); time.sleep(9)"  # noqa: E501
    _pose_as(box, monkeypatch, LISTEN + "\n" + code)
    assert _cut(box, clip, tmp_path) == []
    box.close()


@pytest.mark.seconds
@pytest.mark.parametrize("call", ["sample", "score"])
def test_only_silence_is_a_timeout(clip, tmp_path, monkeypatch, call):
    """Four seconds of honest decoding are borne with a patience of 2.5; a frame that takes four is not."""
    decode = "            frames = packet.decode()"
    slow = "            __import__('time').sleep(0.1)\n"
    box = Sandbox()
    for wait, bears in ((slow, True), (slow.replace("0.1", "4"), False)):
        folder = tmp_path / str(bears)
        checkout(folder, monkeypatch, "video.py", decode, wait + decode)
        box.close()
        box.stall = 30.0
        with pytest.raises(Rejected, match="not_video"):
            getattr(box, call)(b"text")  # the child is up, with all that it imports
        box.stall, began = 2.5, time.monotonic()
        if bears:
            found = getattr(box, call)(clip.read_bytes())
            assert (len(found[2]) if call == "sample" else found[0].frames) == 40
            assert time.monotonic() - began > 4
        else:
            with pytest.raises(Rejected, match="timeout"):
                getattr(box, call)(clip.read_bytes())
    box.close()


@pytest.mark.parametrize("call", ["sample", "score"])
def test_a_sandbox_reads_bytes_under_its_own_limits(clip, call):
    box = Sandbox(limits=Limits(max_frames=10))
    with pytest.raises(Rejected, match="too_many_frames"):
        getattr(box, call)(clip.read_bytes())
    box.close()


@pytest.mark.parametrize("text, blob", [
    (b"no json", 0), (b"[1, 2]", 0), (b"\xff\xfe", 0), (b"{}", 1 << 62), (b'{"reason": "rm -rf", "detail": 1}', 0),
])  # fmt: skip
def test_an_answer_that_is_none_is_a_crash(box, clip, tmp_path, monkeypatch, text, blob):
    data = struct.pack("<IQ", len(text), blob) + text
    _pose_as(box, monkeypatch, LISTEN + f"sys.stdout.buffer.write({data}); sys.stdout.flush(); time.sleep(9)")
    with pytest.raises(Rejected) as caught:
        _cut(box, clip, tmp_path)
    assert caught.value.reason == "decoder_crash"


def test_frames_of_many_parts_are_those_of_this_process(box, tmp_path):
    rng = np.random.default_rng(5)
    with Encoder(tmp_path / "a.mp4", 640, 480, Fraction(20)) as encoder:
        for t in range(30):
            encoder.write(rng.integers(0, 255, (480, 640, 3), np.uint8), Fraction(t, 20))
    data = (tmp_path / "a.mp4").read_bytes()
    for fps in (None, 7.0, 1.0):
        found, wanted = box.sample(data, fps), sampling.sample(data, fps)
        assert fps or found[0].nbytes > 3 * decoder.AHEAD
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    found[0][0] = 0  # an array of the caller's own


PART = b'{"part": [1, 2, 2, 3]}'
LAST = b'{"kept": [0.0], "times": [0.0]}'


@pytest.mark.parametrize("answers", [
    [(PART, 12), (b'{"part": [1, 2, 3, 3]}', 18), (LAST, 0)],  # of two sizes
    [(b'{"part": [1, 2, 2, 3]}', 11), (LAST, 0)],
    [(b'{"part": [-1, -2, 2, 3]}', 12), (LAST, 0)],
    [(b'{"part": [1.0, 2, 2, 3]}', 12), (LAST, 0)],
    [(b'{"part": 12}', 12), (LAST, 0)],
    [(PART, 12), (PART, 12), (LAST, 0)],  # more frames than times
    [(LAST, 0)],
])  # fmt: skip
def test_frames_that_are_none_are_a_crash(box, clip, monkeypatch, answers):
    code = "w = sys.stdout.buffer\n"
    for text, size in answers:
        head = struct.pack("<IQ", len(text), size) + text
        code += f"w.write({head} + bytes({min(size, 64)})); w.flush()\n"
    _pose_as(box, monkeypatch, LISTEN + "\n" + code + "time.sleep(9)")
    with pytest.raises(Rejected) as caught:
        box.sample(clip.read_bytes(), 4.0)
    assert caught.value.reason == "decoder_crash"


def test_frames_beyond_the_memory_are_refused(box, clip, tmp_path):
    box.close()
    box.memory = 640 << 20
    with Encoder(tmp_path / "a.mp4", 1280, 960, Fraction(20)) as encoder:
        for t in range(200):
            encoder.write(np.zeros((960, 1280, 3), np.uint8), Fraction(t, 20))
    with pytest.raises(Rejected, match="oom"):
        box.sample((tmp_path / "a.mp4").read_bytes())
    _works(box, clip, tmp_path)


def test_the_child_holds_no_clip_whole(box, clip, tmp_path):
    """184 MB of frames come out of a child that has room for 100 MB beyond what it is."""
    with Encoder(tmp_path / "a.mp4", 1280, 960, Fraction(20)) as encoder:
        for t in range(50):
            encoder.write(np.zeros((960, 1280, 3), np.uint8), Fraction(t, 20))
    _works(box, clip, tmp_path)
    box.memory = _space(box) + (100 << 20)
    box.close()
    assert len(box.sample((tmp_path / "a.mp4").read_bytes())[0]) == 50


def _space(box):
    """The address space of a sandbox's child, in bytes."""
    with open(f"/proc/{box.child.pid}/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_limited(clip, tmp_path):
    path = tmp_path / "large.mp4"
    with Encoder(path, 4096, 2304, Fraction(20)) as encoder:
        for t in range(4):
            encoder.write(np.zeros((2304, 4096, 3), np.uint8), Fraction(t, 20))
    box = Sandbox(memory=3 << 30)
    _works(box, clip, tmp_path)
    used = _space(box)
    box.close()
    box = Sandbox(memory=used + (24 << 20))
    with pytest.raises(Rejected) as caught:
        _cut(box, path, tmp_path)
    assert caught.value.reason == "oom", caught.value
    _works(box, clip, tmp_path)
    box.close()


def test_a_full_disk_is_not_the_videos_fault(box, clip, tmp_path):
    (tmp_path / "000000.mp4").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="(?i)space"):
        _cut(box, clip, tmp_path)
    (tmp_path / "000000.mp4").unlink()
    _works(box, clip, tmp_path)


def test_a_folder_that_is_gone_is_not_the_videos_fault(box, clip, tmp_path):
    with pytest.raises(StoreError):
        _cut(box, clip, tmp_path / "gone")


def test_no_secret_reaches_the_child(box, clip, tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_KEY"):
        monkeypatch.setenv(name, "canary-of-the-test")
    _works(box, clip, tmp_path)
    with open(f"/proc/{box.child.pid}/environ", "rb") as file:
        found = file.read()
    assert b"canary" not in found and b"AWS_" not in found and b"PYTHONPATH=" in found


def test_the_child_holds_no_files_of_its_parent(box, clip, tmp_path):
    with open(clip, "rb") as held:
        os.set_inheritable(held.fileno(), True)
        _works(box, clip, tmp_path)
        fds = os.listdir(f"/proc/{box.child.pid}/fd")
        assert str(clip) not in [os.readlink(f"/proc/{box.child.pid}/fd/{fd}") for fd in fds]


OWNER = """
import sys, time
from pathlib import Path
from storage.media.sandbox import Sandbox
box = Sandbox()
box.cut(sys.argv[1], Path(sys.argv[2]), span=1.0, short_side=32)
print(box.child.pid, flush=True)
time.sleep(60)
"""


def _gone(pid, within=60.0):
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("stopped", [False, True])
def test_the_child_dies_with_its_parent(clip, tmp_path, stopped):
    command = [sys.executable, "-c", OWNER, str(clip), str(tmp_path)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    child = int(owner.stdout.readline())
    if stopped:  # one that reads nothing, so that the end of its input is not what ends it
        os.kill(child, signal.SIGSTOP)
    owner.kill()
    owner.communicate()
    assert _gone(child)


def test_a_sandbox_is_the_threads_own_and_ends_with_it(clip, tmp_path):
    found = []

    def work():
        _works(mine(), clip, tmp_path)
        assert mine() is mine()
        found.append(mine().child.pid)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert _gone(found[0])


def test_closing_twice_is_fine(box, clip, tmp_path):
    _works(box, clip, tmp_path)
    child = box.child.pid
    box.close()
    box.close()
    assert not os.path.exists(f"/proc/{child}")


# Suspects


def test_a_mode_that_is_none_is_our_mistake(box, clip, tmp_path):
    with pytest.raises(ValueError, match="mode"):
        box.cut(str(clip), tmp_path, span=1.0, short_side=32, mode="fast")
