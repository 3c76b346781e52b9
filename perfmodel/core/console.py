"""Parts shared by all commands: errors to exit codes, common flags, tables, progress.

This is the only module that prints and that configures logging. The result goes to stdout, everything else to stderr.
Exit codes: 0 answered, 2 wrong input, 1 a fault of this project, 130 interrupted.
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
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from perfmodel.core.disk import NO_SPACE_ERRNOS, check_writable, find_os_error
from perfmodel.core.errors import Interrupted, MissingExtra, OutOfSpace, S2DError, UserInputError, names_hint, quoted
from perfmodel.core.near_names import near_keys, near_words
from perfmodel.core.overwriting import check_outputs, output_file
from perfmodel.core.units import Seconds, format_duration, format_frac

if TYPE_CHECKING:
    from perfmodel.core.files import FileFormat
    from perfmodel.core.provenance import Provenance

T = TypeVar("T")

EXIT_ANSWERED = 0
EXIT_OUR_FAULT = 1
EXIT_INTERRUPTED = 130

_EXTRA_BY_PACKAGE = {
    "torch": "run",
    "transformers": "run",
    "tokenizers": "run",
    "safetensors": "run",
    "rich": "run",
    "gguf": "engines",
    "pynvml": "gpu",
    "matplotlib": "notebooks",
    "pandas": "notebooks",
}
"""The extra that installs an optional package, by the package's import name."""

_OUR_PACKAGES = ("perfmodel", "calibrate", "profiler", "s2d")
"""Packages whose notes are printed without `-v`."""
_COLUMN_GAP = "  "
_PRINT_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.1


def run_command(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, command: Callable[[argparse.Namespace], int]
) -> int:
    """Parse the command line and run the command. An error becomes one message and an exit code.

    Args:
        parser: the command's, after `add_common_flags` or `add_verbose_flag`.
        argv: the arguments without the program's name; None takes those of the process.
        command: does the work and returns the exit code. It is not called if the output file cannot be written, or if an
            output is also an input.
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
        return _print_error(parser.prog, _as_s2d_error(err), verbose=verbose)
    return code


def add_common_flags(parser: argparse.ArgumentParser, *, result: str) -> None:
    """Add `--explain`, `--json`, `-o/--output` and `-v`.

    Args:
        parser: the command's.
        result: the name of the command's result, for the help: `plan`, `report` …
    """
    parser.add_argument("--explain", action="store_true", help="print all details, not only the summary")
    parser.add_argument("--json", action="store_true", help=f"print the {result} file on stdout instead of text")
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
    """Add `-v`, which prints debug messages and the traceback of an error."""
    parser.add_argument("-v", "--verbose", action="store_true", help="print debug messages and the traceback of an error")


class _Parser(argparse.ArgumentParser):
    """A parser with short error messages: one line, and never a long list of choices."""

    def error(self, message: str) -> NoReturn:
        help_command = f"{self.prog} --help"
        hint = "" if help_command in message else f" See {help_command}."
        stop = "" if message.endswith((".", "?")) else "."
        self.exit(UserInputError.exit_code, f"{self.prog}: {message}{stop}{hint}\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, after refusing unknown options: argparse would take the value of such an option for a verb."""
        words = sys.argv[1:] if args is None else list(args)
        self._check_options(words)
        return super().parse_known_args(words, namespace)

    def _check_options(self, words: Sequence[str]) -> None:
        """Refuse an unknown option up to the verb, whose parser checks the rest."""
        verbs = self._verbs()
        for word in words:
            if word == "--" or word in verbs:
                return
            option = word.partition("=")[0]
            if not option.startswith("--") or " " in option or option in self._option_string_actions:
                continue
            owner = next((verb for verb, parser in verbs.items() if option in parser._option_string_actions), None)
            if owner is not None:
                self.error(f"{option} is an option of the verb {owner!r}: expected it after the verb")
            near = [f"did you mean {near!r}?" for near in near_keys(option, self._option_string_actions)[:1]]
            self.error(": ".join([f"unknown option {quoted(option)}", *near]))

    def _verbs(self) -> dict[str, argparse.ArgumentParser]:
        actions = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return next((action.choices for action in actions), {})

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        hint = names_hint(names, near_words(str(value), names), f"{self.prog} --help")
        if not isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(action, f"unknown value {quoted(value)}: {hint}")
        target = f" A target is given as --target {value}." if "--target" in self._option_string_actions else ""
        self.error(f"unknown verb {quoted(value)}: {hint}{target}")


def make_parser(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser whose help ends with an example, and which accepts no abbreviated options."""
    return _Parser(prog=prog, description=description, **_help_style(example))


def add_subcommand(
    subcommands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str, example: str
) -> argparse.ArgumentParser:
    """Add a subcommand with a parser like those of `make_parser`.

    Args:
        subcommands: of the command, as `add_subparsers` returns them.
        name: of the subcommand.
        purpose: a phrase without full stop, for the help of the command and of the subcommand.
        example: a command line that works.
    """
    description = f"{purpose[0].upper()}{purpose[1:]}."
    return subcommands.add_parser(name, help=purpose, description=description, **_help_style(example))


def _help_style(example: str) -> dict[str, Any]:
    epilog = f"example:\n  {example}"
    return {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


def without_flag(command: Sequence[str], *names: str) -> list[str]:
    """A command without a flag and its value, in every form: `-o a`, `-oa`, `--output a`, `--output=a`.

    Args:
        command: the words of the command line.
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
    """Print a part of the result and flush it: a pipe receives streamed text at once."""
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
    """Print to stderr, after flushing the result printed so far."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard_stdout()
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]], *, headers: Sequence[str], align: str | None = None) -> str:
    """A plain-text table: aligned columns, headers and a rule.

    Args:
        rows: formatted cells.
        headers: one per column.
        align: `l` or `r` per column; None aligns the first column left and the others right.
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
def keep_progress(path: str | os.PathLike[str], *, patterns: Sequence[str] = ()) -> Iterator[None]:
    """Run long work that saves partial results at the path: after Ctrl-C or on a full disk, the error names them.

    Args:
        path: a file or a folder.
        patterns: glob patterns of the partial results in a folder. A folder without any of them holds no partial result.
    """
    try:
        yield
    except KeyboardInterrupt as err:
        raise Interrupted(path if _has_progress(Path(path), patterns) else None) from err
    except OutOfSpace as err:
        if _has_progress(Path(path), patterns):
            err.add_note(f"The partial result is in {os.fspath(path)!r}. Free some space and repeat the command to continue.")
        raise


def _has_progress(path: Path, patterns: Sequence[str]) -> bool:
    return (path.is_file() and path.stat().st_size > 0) or any(any(path.glob(pattern)) for pattern in patterns)


def save_or_warn(save: Callable[[], object]) -> None:
    """Save a partial result; a failure is only a warning, because the next save of the long work may succeed."""
    try:
        save()
    except UserInputError as err:
        print_err(f"warning: {err} The work continues.")


class Progress:
    """One line on stderr about the progress of long work, with the time left.

    A terminal shows one line that is redrawn in place. Other streams get a new line every 10 s.

    Args:
        label: name of the work.
        total: number of units of work.
        stream: where to print; None is stderr.
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
        self._printed_s = self._start_s
        self._printed_chars = 0
        self._done = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_place and self._printed_chars:
            self._stream.write("\n")
            self._stream.flush()

    def restart(self) -> None:
        """Count time from now, if no unit of work is finished: preparation is no measure of the work."""
        if not self._done:
            self._start_s = self._printed_s = self._clock()

    def step(self, note: str = "", *, units: int = 1) -> None:
        """Count finished units, and print the progress unless it was printed a moment ago."""
        self._done += units
        now_s = self._clock()
        every_s = _REDRAW_EVERY_S if self._in_place else _PRINT_EVERY_S
        if self._done < self._total and now_s - self._printed_s < every_s:
            return
        self._printed_s = now_s
        self._print(self._line(now_s, note))

    def _line(self, now_s: Seconds, note: str) -> str:
        spent_s = now_s - self._start_s
        left_s = spent_s / self._done * (self._total - self._done)
        ending = f"{format_duration(left_s)} left" if self._done < self._total else f"done in {format_duration(spent_s)}"
        parts = (self._label, f"{self._done}/{self._total}", format_frac(self._done / self._total), ending, note)
        return _COLUMN_GAP.join(part for part in parts if part)

    def _print(self, line: str) -> None:
        if self._in_place:
            self._stream.write("\r" + line.ljust(self._printed_chars))
            self._printed_chars = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _configure_logging(verbose: bool) -> None:
    """Print log records as `note: …` or `warning: …`. Without `verbose`, other packages print warnings only."""
    import logging

    class NoteFormatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"{'warning' if record.levelno >= logging.WARNING else 'note'}: {super().format(record)}"

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(NoteFormatter("%(message)s"))
    for package in _OUR_PACKAGES:
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


def _as_s2d_error(err: BaseException) -> BaseException:
    """Our own error for a missing optional package or a full disk; every other error unchanged."""
    if isinstance(err, ModuleNotFoundError) and (package := (err.name or "").partition(".")[0]) in _EXTRA_BY_PACKAGE:
        return MissingExtra(package, _EXTRA_BY_PACKAGE[package]).with_traceback(err.__traceback__)
    os_error = find_os_error(err)
    if os_error is not None and os_error.errno in NO_SPACE_ERRNOS:
        return OutOfSpace(os_error.filename or "the output").with_traceback(err.__traceback__)
    return err


def _print_error(prog: str, err: BaseException, *, verbose: bool) -> int:
    """Print an error on stderr and return its exit code."""
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
    request = "This is a fault of s2d: please run the command again with -v and report the output."
    print_err("\n".join([f"{prog}: {type(err).__name__}: {err}", *notes, request]))
    return EXIT_OUR_FAULT


def _discard_stdout() -> None:
    """Send stdout to the null device, because it cannot be written: else the interpreter's last flush would fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
