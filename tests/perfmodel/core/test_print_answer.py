"""Results are printed and saved independently, and a path that cannot be written is refused before the work."""

import argparse
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perfmodel.core.console import add_common_flags, answer_options, make_parser, print_answer, run_command, save_or_warn
from perfmodel.core.disk import check_writable, writable_folder, write_atomically
from perfmodel.core.errors import BadFile, OutOfSpace
from tests.perfmodel.core.file_samples import NOTE, NOTE_FILE, PROVENANCE

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""The environment of an ordinary shell, in which output is buffered."""

Fill = Callable[[], None]


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Fills the disk."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    return lambda: monkeypatch.setattr(os, "fsync", full)


def answer(*argv: str, work: Fill = lambda: None) -> int:
    """Run a command that works and then prints its result."""

    def command(args: argparse.Namespace) -> int:
        work()
        print_answer(answer_options(args), NOTE, NOTE_FILE, lambda: PROVENANCE, text=lambda: "a table", done="; next: s2d-run")
        return 0

    parser = make_parser("s2d-test", "Test.", "s2d-test --json")
    add_common_flags(parser, result="plan")
    return run_command(parser, argv, command)


def test_an_answer_is_printed_and_saved_with_the_next_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    assert answer("-o", str(path)) == 0
    assert capsys.readouterr() == ("a table\n", f"wrote {path}; next: s2d-run\n")
    assert path.read_text() == NOTE_FILE.text(NOTE, PROVENANCE)
    assert answer("--json", "-o", str(path)) == 0
    assert capsys.readouterr().out == NOTE_FILE.text(NOTE, PROVENANCE)


def test_a_disk_that_fills_during_the_work_does_not_affect_the_printed_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fill: Fill
) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    assert answer("-o", str(path), work=fill) == 2
    assert capsys.readouterr() == (
        "a table\n",
        f"s2d-test: no space left to write {str(path)!r}: nothing was written, and the old file is unchanged. "
        "Free some space, or give another path with -o.\n",
    )
    assert path.read_text() == "before"


def test_a_path_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fill: Fill
) -> None:
    (tmp_path / "file").write_text("")
    work_done: list[str] = []
    for name, problem in (
        ("no/a.json", "its folder does not exist"),
        (".", "this is a folder or a device"),
        ("file/a.json", "Not a directory"),
        ("x" * 300, "File name too long"),
    ):
        assert answer("-o", str(tmp_path / name), work=lambda: work_done.append("worked")) == 2
        assert problem in capsys.readouterr().err
    fill()
    assert answer("-o", str(tmp_path / "a.json"), work=lambda: work_done.append("worked")) == 2
    assert "no space left to write" in capsys.readouterr().err
    assert work_done == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_the_answer_is_saved_even_if_it_cannot_be_printed(tmp_path: Path) -> None:
    script = "import sys; from calibrate.commands.plan_cli import main_plan; sys.exit(main_plan(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "--target", "vicuna-7b", "-o", str(tmp_path / "plan.json")]
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=BUFFERED)
    assert run.stderr.startswith(f"wrote {tmp_path / 'plan.json'}\ns2d-plan: no space left to write")
    assert run.stderr.count("\n") == 2
    assert run.returncode == 2
    assert (tmp_path / "plan.json").exists()


def test_checking_a_path_leaves_an_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("before")
    check_writable(tmp_path / "a.json")
    check_writable(tmp_path / "b.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "before"


def test_a_folder_is_made_and_checked(tmp_path: Path, fill: Fill) -> None:
    for _ in range(2):
        with writable_folder(tmp_path / "a" / "b"):
            (tmp_path / "a" / "b" / "kept").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]  # and no file of the check
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BadFile, match=r"file': this is a file, expected a folder\. Give the name of a folder\."),
        writable_folder(tmp_path / "file"),
    ):
        pytest.fail("made")
    with pytest.raises(BadFile, match="Not a directory"), writable_folder(tmp_path / "file" / "a"):
        pytest.fail("made")
    fill()
    with pytest.raises(OutOfSpace) as caught, writable_folder(tmp_path / "a"):
        pytest.fail("made")
    assert f"no space left to write {str(tmp_path / 'a')!r}" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named_as_the_user_wrote_it(tmp_path: Path, monkeypatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(BadFile) as refused, writable_folder(tmp_path):
        pytest.fail("entered")
    assert str(refused.value) == f"{str(tmp_path)!r}: cannot be written: Read-only file system. Give another path."
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_that_stays_empty_is_removed_and_an_older_one_stays(tmp_path: Path) -> None:
    (tmp_path / "older").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "older", tmp_path / "older" / "c"):
        with pytest.raises(KeyboardInterrupt), writable_folder(path):
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["older"]


def test_a_failed_save_is_a_warning_and_the_work_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fill: Fill
) -> None:
    save_or_warn(lambda: write_atomically(tmp_path / "a", b"1"))
    fill()
    save_or_warn(lambda: write_atomically(tmp_path / "a", b"2"))
    assert capsys.readouterr().err.startswith(f"warning: no space left to write {str(tmp_path / 'a')!r}")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_streamed_text_reaches_a_pipe_at_once() -> None:
    script = "import sys; from perfmodel.core.console import print_out\nprint_out('piece', end='')\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=BUFFERED
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        reached = _read_within(process.stdout.fileno(), 20.0)
        process.stdin.close()
    assert reached == b"piece"


def _read_within(descriptor: int, seconds: float) -> bytes:
    """Bytes that arrive in time; none if the writer, which waits for us, sends nothing."""
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return os.read(descriptor, 100) if ready else b""
