"""The command line as a person meets it: help, speed of help, and errors in one line with exit code 2."""

import contextlib
import errno
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flows.__main__ import COMMANDS, EXIT_FAILED, EXIT_INPUT, WORDS, _said, main
from storage.secrets import ACTED_ON
from tasks.telling import say

ROOT = Path(__file__).parent.parent


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def refused(*arguments: str) -> str:
    result = run(*arguments)
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == EXIT_INPUT, (result.exit_code, result.output, result.exception)
    assert len(lines) == 1 and lines[0].startswith("reelmill: "), result.stderr
    return lines[0]


def test_help_loads_nothing_heavy():
    heavy = {"torch", "prefect", "mlflow", "numpy", "pyarrow"}
    code = "import sys; from flows.__main__ import main; main(['--help'], standalone_mode=False);"
    code += f"assert not {heavy!r} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_help_takes_about_as_long_as_python():
    def fastest(command: list[str]) -> float:
        times = []
        for _ in range(5):
            began = time.monotonic()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            times.append(time.monotonic() - began)
        return min(times)

    bare = fastest([sys.executable, "-c", "import click"])
    assert fastest([sys.executable, "-m", "flows", "--help"]) < 3 * bare + 0.2


def lines_of(text: str) -> list[tuple[str, list[str]]]:
    """The command lines in a text of markdown, as (command, words), without ellipses and brackets."""
    found = re.findall(r"\breelmill ([a-z-]+)((?:\\\\\n|[^`|\n])*)", text.replace("\\\n", " "))
    return [(name, re.sub(r"[…\[\]]", " ", words).split()) for name, words in found if name in COMMANDS]


def test_what_the_readme_types_is_understood():
    given = lines_of((ROOT / "README.md").read_text())
    assert len(given) > 30
    for name, words in given:
        command = main.get_command(click.Context(main), name)
        if isinstance(command, click.Group):  # the flow comes next
            command, words = command.commands[words[0]], words[1:]
        options = {word: one for one in command.params for word in (*one.opts, *one.secondary_opts)}
        waits = False
        for word in words:
            if word.startswith("--"):
                assert word in options, (name, word)
                waits = not options[word].is_flag
            else:
                assert waits or name in WORDS, f"{name} takes no word {word!r}"
                waits = False


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_every_option(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    options = [line for line in result.output.splitlines() if line.strip().startswith("--")]
    assert options and "TEXT\n" not in result.output.replace("\n\n", "\n")


def test_unknown_command_and_option():
    assert run("prepair").exit_code == 2
    assert run("prepare", "--rot", "x").exit_code == 2


def test_missing_archive(tmp_path):
    assert "no such archive" in refused("prepare", "--root", str(tmp_path / "r"), "--archive", str(tmp_path / "none"))
    assert not (tmp_path / "r").exists()


def test_empty_archive(tmp_path):
    (tmp_path / "a").mkdir()
    assert "is empty" in refused("prepare", "--root", str(tmp_path / "r"), "--archive", str(tmp_path / "a"))
    assert not (tmp_path / "r").exists()


def test_archive_without_videos(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "none with the name of a video" in refused(
        "prepare", "--root", str(tmp_path / "r"), "--archive", str(tmp_path)
    )


def prepare_with(tmp_path: Path, rows: str, *more: str) -> str:
    archive = tmp_path / "a"
    archive.mkdir()
    (archive / "clip.mp4").write_bytes(b"x")
    (tmp_path / "labels.csv").write_text(rows)
    options = ["--root", str(tmp_path / "r"), "--archive", str(archive), "--labels", str(tmp_path / "labels.csv")]
    line = refused("prepare", *options, *more)
    assert not (tmp_path / "r").exists()
    return line


def test_labels_of_unknown_files(tmp_path):
    line = prepare_with(tmp_path, "path,label\nclip.mp4,run\nother.mp4,run\n")
    assert "labels.csv names 1 files that are not in the archive (other.mp4)" in line


def test_labels_of_unknown_classes(tmp_path):
    line = prepare_with(tmp_path, "path,label\nclip.mp4,jump\n", "--classes", "run,walk")
    assert "classes that --classes does not list: jump" in line


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("path,label\n", "no rows"),
        ("file,label\nclip.mp4,run\n", "no column path"),
        ("path,start,end,label\nclip.mp4,3,1,run\n", "row 1: needs 0 <= start < end"),
        ("path,start,end,label\nclip.mp4,a,1,run\n", "must be seconds"),
        ("path,start,end,label\nclip.mp4,0,1,run\nclip.mp4,,,run\n", "with and without times"),
    ],
)
def test_bad_labels(tmp_path, rows, said):
    assert said in prepare_with(tmp_path, rows)


def test_missing_labels_file(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    options = ["--root", str(tmp_path / "r"), "--archive", str(tmp_path), "--labels", str(tmp_path / "no.csv")]
    assert "no such file" in refused("prepare", *options)


def test_root_in_the_way(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "clip.mp4").write_bytes(b"x")
    (tmp_path / "r").write_text("a file")
    assert "r: " in refused("prepare", "--root", str(tmp_path / "r"), "--archive", str(tmp_path / "a"))


def test_root_of_another_version(tmp_path):
    (tmp_path / "reelmill.json").write_text(json.dumps({"schema": 99}))
    for command in ("retrain", "infer", "audit"):
        assert "schema 99" in refused(command, "--root", str(tmp_path))


def test_commands_on_a_root_that_is_none(tmp_path):
    for command in ("retrain", "infer", "audit"):
        assert "run `reelmill prepare" in refused(command, "--root", str(tmp_path / "none"))


def test_unknown_kind_of_url():
    assert "unknown kind of URL" in refused("audit", "--root", "nosuch://x")


def test_cost_prints_the_figures_of_the_thesis():
    result = run("cost", "--system", "x3d", "--size", "M", "--frames", "128")
    assert "37.95825" in result.output and "3.296415" in result.output


def test_cost_of_an_unknown_system():
    assert "x3d" in refused("cost", "--system", "resnet")


def test_what_has_to_be_above_zero_is_refused_by_its_name():
    result = run("retrain", "--root", "r", "--fps", "0")
    assert result.exit_code == 2 and "'--fps'" in result.stderr and "x>0" in result.stderr


def test_the_root_may_come_first_without_its_flag(tmp_path):
    assert "no Reelmill root here" in refused("verify", str(tmp_path / "none"))
    assert "no Reelmill root here" in refused("gc", str(tmp_path / "none"), "--grace-hours", "1")
    assert run("cost", "x3d").exit_code == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "part.tar"),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        RuntimeError("TransactionContext Error: Could not write file: No space left on device"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_a_full_disk_is_said_in_one_line_wherever_it_is_met(error, capsys):
    """In a library too; and what is our own mistake keeps its traceback."""
    assert _said(error) == EXIT_FAILED
    assert capsys.readouterr().err == f"reelmill: failed: {error}\n"
    assert _said(OSError(errno.EIO, "Input/output error")) == _said(RuntimeError("disk")) == 0


HOSTILE = "a\x1b]0;title\x07\x1b[31m\x9b\r\u202e\u2028.mp4"
TAMED = "a�]0;title��[31m����.mp4"


def test_names_do_not_reach_a_terminal_as_commands_to_it(tmp_path):
    """On a real one: elsewhere click takes colours out by itself."""
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / f"{HOSTILE}.tar").write_bytes(b"no tar")
    where, child = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "flows",
        "adopt",
        "--root",
        str(tmp_path / "r"),
        "--shards",
        str(tmp_path / "sets"),
    ]
    subprocess.run(command, stdin=child, stdout=child, stderr=child, timeout=120)
    os.close(child)
    out = b""
    with contextlib.suppress(OSError):  # Linux says so where nobody has the other end any more
        while some := os.read(where, 1 << 16):
            out += some
    os.close(where)
    text = out.decode().replace("\r\n", "\n")
    assert f"{TAMED}.tar" in text and not ACTED_ON.search(text.replace("\n", "")), text


def test_lines_of_our_own_stay_lines(capsys, monkeypatch):
    say(f"  first        {HOSTILE}\n  second       動画\u3000")
    assert capsys.readouterr().out == f"  first        {TAMED}\n  second       動画\u3000\n"
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER", "json")
    say(f"  first        {HOSTILE[:-5]}.mp4", item=HOSTILE)
    (line,) = capsys.readouterr().out.splitlines()
    assert not ACTED_ON.search(line) and json.loads(line)["item"] == HOSTILE


def test_an_audit_is_said_in_words():
    from tasks.audits.audit import said

    assert said({"train": {"spin": 3, "up": 2}, "heldout": {}}) == "train (spin 3, up 2), heldout (none)"
    assert said(0.07583446967451236) == "0.0758" and said({}) == "none" and said("v1") == "v1"
