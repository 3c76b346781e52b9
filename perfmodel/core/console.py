"""What all commands share: errors to exit codes, common flags, plain tables, progress.

The only module that prints and the only one that configures logging. stdout is the result, stderr the talk.
Exit codes: 0 answered, 2 your input, 1 our fault, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from perfmodel.core.disk import NO_SPACE_ERRNOS, check_writable, find_os_error
from perfmodel.core.errors import Interrupted, MissingExtra, OutOfSpace, S2DError, UserInputError
from perfmodel.core.overwriting import check_outputs, output_file
from perfmodel.core.units import Seconds, format_duration, format_frac

if TYPE_CHECKING:
    from perfmodel.core.files import FileFormat
    from perfmodel.core.provenance import Provenance

T = TypeVar("T")

EXIT_ANSWERED = 0
EXIT_OUR_FAULT = 1
EXIT_INTERRUPTED = 130

_EXTRA_OF = {
    "torch": "run",
    "transformers": "run",
    "tokenizers": "run",
    "safetensors": "run",
    "rich": "run",
    "pynvml": "gpu",
    "matplotlib": "notebooks",
    "pandas": "notebooks",
}
"""Which of our extras brings an optional package, by the name it is imported under."""

_OUR_PACKAGES = ("perfmodel", "calibrate", "profiler", "s2d")
"""Their notes are shown without `-v`."""
_COLUMN_GAP = "  "
_LINE_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.1


def run_command(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, command: Callable[[argparse.Namespace], int]
) -> int:
    """Parse the command line, run the command, and turn whatever happens into one message and an exit code.

    Args:
        parser: with `add_common_flags` or `add_verbose_flag` applied.
        argv: the arguments without the program's name; those of the process when None.
        command: does the work and returns its exit code; not called when the file of `add_common_flags` cannot be written, or
            an output is an input.
    """
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_ANSWERED
    verbose = getattr(args, "verbose", False)
    _configure_logging(verbose)
    try:
        check_outputs(parser, args)
        if getattr(args, "writes_file", False) and args.output is not None:
            check_writable(args.output)
        code = command(args)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
        return EXIT_ANSWERED
    except (Exception, KeyboardInterrupt) as err:
        return _report(parser.prog, _ours(err), verbose=verbose)
    return code


def add_common_flags(parser: argparse.ArgumentParser, *, result: str) -> None:
    """Add `--explain`, `--json`, `-o/--output` and `-v`.

    Args:
        parser: the command's.
        result: what the command makes, for the help: `plan`, `report` …
    """
    parser.add_argument("--explain", action="store_true", help="print all details, not only the summary")
    parser.add_argument("--json", action="store_true", help=f"print the {result} file itself on stdout, and nothing else")
    parser.add_argument("-o", "--output", type=output_file, metavar="FILE", help=f"write the {result} to FILE")
    parser.set_defaults(writes_file=True)
    add_verbose_flag(parser)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """The form of a command's answer."""

    explain: bool
    """Print all details, not only the summary."""
    json: bool
    """Print the file instead of text."""
    output: Path | None
    """The file to write."""


def answer_options(args: argparse.Namespace) -> AnswerOptions:
    """The options that `add_common_flags` added, as parsed."""
    return AnswerOptions(explain=args.explain, json=args.json, output=args.output)


def add_verbose_flag(parser: argparse.ArgumentParser) -> None:
    """Add `-v`, which shows what is done and, after an error, where it happened."""
    parser.add_argument("-v", "--verbose", action="store_true", help="say more, and show the traceback of an error")


def make_parser(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser that shows one true example below its options and accepts no abbreviated options."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_subcommand(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str, example: str
) -> argparse.ArgumentParser:
    """Add a verb to a command; its parser is as `make_parser` makes them.

    Args:
        verbs: of the command.
        name: of the verb.
        purpose: a phrase without full stop, shown in the command's help and in the verb's.
        example: a true one.
    """
    return verbs.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def without_flag(command: Sequence[str], *names: str) -> list[str]:
    """A command without a flag and its value, in all forms: `-o a`, `-oa`, `--output a`, `--output=a`.

    Args:
        command: its words.
        names: all names of the flag.
    """
    kept: list[str] = []
    words = iter(command)
    for word in words:
        if word in names:
            next(words, None)
        elif not any(word.startswith(f"{name}=" if name.startswith("--") else name) for name in names):
            kept.append(word)
    return kept


def print_out(text: str = "", *, end: str = "\n") -> None:
    """Part of the result, shown at once: a pipe gets streamed text as it comes."""
    print(text, end=end, flush=True)


def print_answer(
    options: AnswerOptions,
    record: T,
    file_format: FileFormat[T],
    provenance: Callable[[], Provenance],
    *,
    text: Callable[[], str],
    done: str = "",
) -> None:
    """Print a result, as text or with `--json` as its file, and save it with `-o`.

    Printing and saving are independent: if one fails (for example a closed pipe), the other still happens.

    Args:
        options: how to print and where to save, as given on the command line.
        record: the result.
        file_format: its file.
        provenance: makes the provenance of the file; called only for `--json` and `-o`, because it runs git.
        text: makes the text of the result.
        done: added to the message about the saved file.
    """
    provenance = functools.cache(provenance)
    try:
        if options.json:
            print_out(file_format.text(record, provenance()), end="")
        else:
            print_out(text())
    finally:
        if options.output is not None:
            file_format.write(options.output, record, provenance())
            print_err(f"wrote {options.output}{done}")


def print_err(text: str = "") -> None:
    """Part of the talk; whatever of the result came before is shown first, where it can be shown."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard_stdout()
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]], *, headers: Sequence[str], align: str | None = None) -> str:
    """Rows as aligned plain text under their headers and a rule.

    Args:
        rows: cells already formatted.
        headers: one per column.
        align: `l` or `r` per column; the first left and the others right when None.
    """
    sides = align or "l" + "r" * (len(headers) - 1)
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    lines = [headers, ["-" * width for width in widths], *rows]
    return "\n".join(_aligned(line, widths, sides) for line in lines)


def _aligned(cells: Sequence[str], widths: Sequence[int], sides: str) -> str:
    padded = (
        cell.ljust(width) if side == "l" else cell.rjust(width) for cell, width, side in zip(cells, widths, sides, strict=True)
    )
    return _COLUMN_GAP.join(padded).rstrip()


@contextlib.contextmanager
def keep_progress(path: str | os.PathLike[str], *, holding: Sequence[str] = ()) -> Iterator[None]:
    """Long work whose results are saved to the path as they come: Ctrl-C, or a full disk, says that they are kept there.

    Args:
        path: a file, or a folder.
        holding: glob patterns of what can be gone on from; a folder without any of it keeps nothing.
    """
    try:
        yield
    except KeyboardInterrupt as err:
        raise Interrupted(path if _keeps(Path(path), holding) else None) from err
    except OutOfSpace as err:
        if _keeps(Path(path), holding):
            err.add_note(f"What was done so far is kept in {os.fspath(path)!r}: make room and repeat the command to go on.")
        raise


def _keeps(path: Path, holding: Sequence[str]) -> bool:
    return (path.is_file() and path.stat().st_size > 0) or any(any(path.glob(pattern)) for pattern in holding)


def save_or_warn(save: Callable[[], object]) -> None:
    """Save what there is so far; a disk that is full is no reason to end long work, whose next save may succeed."""
    try:
        save()
    except UserInputError as err:
        print_err(f"warning: {err} Going on meanwhile.")


class Progress:
    """One line on stderr about long work: how far, how long still.

    On a terminal the line is redrawn in place; elsewhere a new one is printed now and then.

    Args:
        label: what is being done.
        total: how many units there are to do.
        stream: where to write; stderr when None.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], Seconds] = time.perf_counter,
    ) -> None:
        self._label = label
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._in_place = self._stream.isatty()
        self._start_s = clock()
        self._shown_s = self._start_s
        self._shown_chars = 0
        self._done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_place and self._shown_chars:
            self._stream.write("\n")
            self._stream.flush()

    def step(self, note: str = "", *, units: int = 1) -> None:
        """Count finished units, and show it unless the last showing is too recent."""
        self._done += units
        now_s = self._clock()
        every_s = _REDRAW_EVERY_S if self._in_place else _LINE_EVERY_S
        if self._done < self._total and now_s - self._shown_s < every_s:
            return
        self._shown_s = now_s
        self._show(self._line(now_s, note))

    def _line(self, now_s: Seconds, note: str) -> str:
        spent_s = now_s - self._start_s
        left_s = spent_s / self._done * (self._total - self._done)
        ending = f"{format_duration(left_s)} left" if self._done < self._total else f"done in {format_duration(spent_s)}"
        parts = (self._label, f"{self._done}/{self._total}", format_frac(self._done / self._total), ending, note)
        return _COLUMN_GAP.join(part for part in parts if part)

    def _show(self, line: str) -> None:
        if self._in_place:
            self._stream.write("\r" + line.ljust(self._shown_chars))
            self._shown_chars = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _configure_logging(verbose: bool) -> None:
    """Print records as `note: …` or `warning: …`: those of other packages from warnings on, or all where `verbose` is set."""
    import logging

    class ForPeople(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"{'warning' if record.levelno >= logging.WARNING else 'note'}: {super().format(record)}"

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(ForPeople("%(message)s"))
    for package in _OUR_PACKAGES:
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


def _ours(err: BaseException) -> BaseException:
    """The error as one of our own, where another library's means the same."""
    if isinstance(err, ModuleNotFoundError) and (package := (err.name or "").partition(".")[0]) in _EXTRA_OF:
        return MissingExtra(package, _EXTRA_OF[package]).with_traceback(err.__traceback__)
    found = find_os_error(err)
    if found is not None and found.errno in NO_SPACE_ERRNOS:
        return OutOfSpace(found.filename or "the output").with_traceback(err.__traceback__)
    return err


def _report(prog: str, err: BaseException, *, verbose: bool) -> int:
    """Say on stderr what happened and give the exit code for it."""
    if verbose:
        import traceback

        traceback.print_exception(err)
    notes = getattr(err, "__notes__", [])
    if isinstance(err, S2DError):
        print_err("\n".join([f"{prog}: {err}", *notes]))
        return err.exit_code
    if isinstance(err, KeyboardInterrupt):
        print_err(f"{prog}: interrupted")
        return EXIT_INTERRUPTED
    fault = "This is a fault of s2d, not yours: run again with -v and report it."
    print_err("\n".join([f"{prog}: {type(err).__name__}: {err}", *notes, fault]))
    return EXIT_OUR_FAULT


def _discard_stdout() -> None:
    """Nobody can read our output, or no disk can hold it: let the interpreter's last flush go nowhere instead of failing."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
