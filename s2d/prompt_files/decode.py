"""Decode the bytes of a file: UTF-8, plain or packed by gzip. Other encodings are refused."""

from __future__ import annotations

import gzip
import io
import re
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.disk import PathLike, read_bytes
from perfmodel.core.errors import BadFile
from perfmodel.core.units import GB, Bytes, format_bytes
from s2d.prompt_files.problems import BadRecord

MAX_BYTES: Bytes = GB
"""The largest file that is read, after unpacking. ShareGPT, the largest public prompt file we know, has 0.7 GB. A larger
training text can be split into several files."""

_GZIP = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_OTHER_FILES = {
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"BZh91AY&SY": "compressed with bzip2",
    b"PAR1": "a Parquet file",
    b"%PDF-": "a PDF file",
    _GZIP: "compressed with gzip twice",
}
_LINE_END = re.compile(r"\r\n|\r|\n")
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_WINDOWS_BYTES = re.compile(rb"[\x80-\x9f]")
_GUESS_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileText:
    """The text of a file, and the positions of its characters."""

    path: PathLike
    text: str
    num_mark_bytes: Bytes
    """The length of a byte order mark before the text."""

    def bad_file(self, err: BadRecord) -> BadFile:
        """The error with the file's name, the line (from 1) and the byte offset (from 0)."""
        if err.start is None:
            return BadFile(self.path, err.problem, err.fix)
        before = self.text[: err.start]
        line = len(_LINE_END.findall(before)) + 1
        byte = self.num_mark_bytes + len(before.encode("utf-8"))
        return BadFile(self.path, f"line {line}, byte offset {byte}: {err.problem}", err.fix)


def read_text(path: PathLike) -> FileText:
    """The text of a UTF-8 file, with or without a byte order mark, packed by gzip or not.

    Raises:
        BadFile: the file is missing, empty, too large, damaged, packed in another way, or not UTF-8; states where and how to
            convert it.
    """
    data = read_bytes(path, max_bytes=MAX_BYTES)
    is_packed = data.startswith(_GZIP)
    if is_packed:
        data = _unpacked(path, data)
    _check_format(path, data, is_packed)
    num_mark_bytes = len(_UTF8_MARK) if data.startswith(_UTF8_MARK) else 0
    try:
        text = data[num_mark_bytes:].decode("utf-8")
    except UnicodeDecodeError as err:
        raise _not_utf8(path, data, err, num_mark_bytes, is_packed) from err
    if not text.strip():
        problem = "the file contains only white space" if text else "the file is empty"
        raise BadFile(path, f"{problem}, expected at least one text", "Give a file with texts in it")
    return FileText(path=path, text=text, num_mark_bytes=num_mark_bytes)


def _unpacked(path: PathLike, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as err:
        raise BadFile(path, f"a damaged gzip file ({err})", "Fetch or pack it again") from err
    if len(unpacked) > MAX_BYTES:
        problem = f"unpacks to more than {format_bytes(MAX_BYTES)}, the largest size that is read"
        raise BadFile(path, problem, "Give the part that is needed")
    return unpacked


def _check_format(path: PathLike, data: bytes, is_packed: bool) -> None:
    """Refuse files that are not text, and encodings other than UTF-8 with a byte order mark."""
    for start, name in _OTHER_FILES.items():
        if data.startswith(start):
            raise BadFile(path, f"this is {name}, expected a text file, plain or packed by gzip", "Unpack or export it first")
    for mark, encoding in _OTHER_MARKS.items():
        if data.startswith(mark):
            problem = f"the text is encoded in {encoding.upper()}, expected UTF-8"
            raise BadFile(path, problem, _convert(path, encoding, is_packed))
    byte = data.find(b"\0")
    if byte >= 0:
        problem = f"line {_line_at(data, byte)}, byte offset {byte}: a NUL byte, expected UTF-8 text without NUL bytes"
        fix = f"It may be UTF-16 without a byte order mark. {_convert(path, 'utf-16le', is_packed)}"
        raise BadFile(path, problem, fix)


def _not_utf8(path: PathLike, data: bytes, err: UnicodeDecodeError, num_mark_bytes: Bytes, is_packed: bool) -> BadFile:
    start = num_mark_bytes + err.start
    position = f"line {_line_at(data, start)}, byte offset {start}"
    is_utf8_before = not data[num_mark_bytes:start].isascii() or len(data) - start > 1
    if err.reason == "unexpected end of data" and is_utf8_before:
        return BadFile(path, f"{position}: the file ends inside a UTF-8 character: it was truncated", "Fetch it again")
    problem = f"{position}: byte 0x{data[start]:02x} is not UTF-8"
    encoding = _likely_encoding(data)
    if encoding is None:
        return BadFile(
            path, problem, _convert(path, "ENCODING", is_packed) + ", with the name of its encoding instead of ENCODING"
        )
    return BadFile(path, f"{problem}; the file is probably {encoding}", _convert(path, encoding, is_packed))


def _likely_encoding(data: bytes) -> str | None:
    """Latin-1 or its Windows variant if most non-ASCII bytes are isolated, as accented letters are; None otherwise."""
    runs = _HIGH_BYTES.findall(data[:_GUESS_BYTES]) or _HIGH_BYTES.findall(data)
    if 2 * sum(len(run) == 1 for run in runs) < len(runs):
        return None
    return "cp1252" if any(map(_WINDOWS_BYTES.search, runs)) else "latin1"


def _convert(path: PathLike, encoding: str, is_packed: bool) -> str:
    name = str(path)
    source, output = shlex.quote(name), shlex.quote(Path(name).name + ".utf8")
    if is_packed:
        command = f"gunzip -c {source} | iconv -f {encoding} -t utf-8 > {output}"
    else:
        command = f"iconv -f {encoding} -t utf-8 {source} > {output}"
    return f"Convert it ({command}) and give the new file"  # in parentheses: a full stop must not follow the file name


def _line_at(data: bytes, byte: int) -> int:
    """The line of a byte, from 1."""
    return len(data[:byte].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
