"""Read a prompt file or training text, and summarise in one line what was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.disk import PathLike
from perfmodel.core.errors import BadFile
from s2d.prompt_files.contents import Chat, Content
from s2d.prompt_files.decode import read_text
from s2d.prompt_files.json_records import Record
from s2d.prompt_files.kinds import STRINGS, Kind, record_kind
from s2d.prompt_files.names import GivenName, given_name, record_category, unique_names
from s2d.prompt_files.problems import BadRecord, shown_keys
from s2d.prompt_files.read_as import Form, ReadAs
from s2d.prompt_files.records import Records, split_records
from s2d.prompts.conversation import Prompt

PROMPTS = ReadAs(use="prompt")
TEXTS = ReadAs(use="text")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """The prompts of a file."""

    prompts: tuple[Prompt, ...]
    source: str
    """Their number and file: `80 of questions.jsonl`."""
    label: str
    """Their kind: `MT-Bench questions`."""
    notes: tuple[str, ...]
    """The parts that were not read."""

    def summary(self, *, first_turns: bool) -> str:
        """A summary line: `prompts: 80 of questions.jsonl (MT-Bench questions, first turns; ignored: reference)`.

        Args:
            first_turns: whether only the first turns are used.
        """
        ending = ", first turns" if first_turns and any(prompt.later_turns for prompt in self.prompts) else ""
        return f"prompts: {self.source} ({'; '.join((self.label + ending, *self.notes))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """The training texts of a file."""

    texts: tuple[str, ...]
    summary: str
    """The summary line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A recognised record that is not empty."""

    start: int
    kind: Kind
    content: Content
    name: GivenName | None
    category: str
    ignored: frozenset[str]
    """Keys that are not read. A dot marks keys inside messages."""


def read_prompts(path: PathLike, options: ReadAs = PROMPTS) -> list[Prompt]:
    """The prompts of a file; see `read_prompt_file`."""
    return list(read_prompt_file(path, options).prompts)


def read_prompt_file(path: PathLike, options: ReadAs = PROMPTS) -> PromptFile:
    """The prompts of a file in any format of docs/prompt-files.md, recognised by its content.

    Raises:
        BadFile: the file is not UTF-8, of an unknown kind, of several kinds, damaged, or without a prompt. The error states the
            position and a correction.
    """
    file = read_text(path)
    try:
        records = split_records(file.text, options)
        entries = list(_entries(records, options))
        _check_kinds(entries)
        names = unique_names([entry.name for entry in entries], [entry.start for entry in entries])
        prompts = [_prompt(entry, name) for entry, name in zip(entries, names, strict=True)]
    except BadRecord as err:
        raise file.bad_file(err) from err
    _check_any(path, prompts)
    label = _label(records.plain, options, entries)
    if any(isinstance(entry.content, Chat) and entry.content.ends_in_answer for entry in entries):
        label += ", last answers dropped"
    return PromptFile(prompts=tuple(prompts), source=_source(path, entries), label=label, notes=_notes(records, entries))


def read_text_file(path: PathLike, options: ReadAs = TEXTS) -> TextFile:
    """The training texts of a file, with their answers. Plain text is one training text.

    Raises:
        BadFile: see `read_prompt_file`.
    """
    file = read_text(path)
    try:
        records = split_records(file.text, options)
        entries = list(_entries(records, options))
        _check_kinds(entries)
        texts = [_checked(entry.content.training_text, entry.start) for entry in entries]
    except BadRecord as err:
        raise file.bad_file(err) from err
    _check_any(path, texts)
    summary = "; ".join((_label(records.plain, options, entries), *_notes(records, entries)))
    return TextFile(texts=tuple(texts), summary=f"texts: {_source(path, entries)} ({summary})")


def _entries(records: Records, options: ReadAs) -> Iterator[_Entry]:
    for record in records.records:
        try:
            entry = _entry(record, options)
        except BadRecord as err:
            raise err.at(record.start) from err
        if entry is not None:
            yield entry


def _entry(record: Record, options: ReadAs) -> _Entry | None:
    """The entry of a record; None if the record is empty."""
    kind = record_kind(record.value, options)
    content = kind.read(record.value)
    if content is None:
        return None
    ignored = set() if kind is STRINGS else kind.ignored_keys(record.value, with_answers=options.use == "text")
    return _Entry(
        start=record.start,
        kind=kind,
        content=content,
        name=given_name(record.value, kind.name_keys),
        category=record_category(record.value),
        ignored=content.ignored | ignored,
    )


def _prompt(entry: _Entry, name: str) -> Prompt:
    try:
        prompt = entry.content.prompt(name, entry.category)
    except BadRecord as err:
        raise err.at(entry.start) from err
    messages = (message.content for message in prompt.earlier_messages or ())
    for text in (prompt.name, prompt.category, prompt.text, *messages, *prompt.later_turns):
        _checked(text, entry.start)
    return prompt


def _checked(text: str, start: int) -> str:
    """The text, if UTF-8 can encode it.

    Raises:
        BadRecord: the text has half of a surrogate pair, which JSON allows.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        problem = f"{text[err.start]!a} is half of a surrogate pair, expected whole characters"
        raise BadRecord(problem, "Write the character itself, or both halves", start=start) from err
    return text


def _check_kinds(entries: Sequence[_Entry]) -> None:
    """Refuse a mixture of kinds, which two joined files would have.

    Records with the keys `text`, `messages` and `turns` may be mixed.
    """
    for entry in entries:
        first = entries[0].kind
        if entry.kind.label != first.label and not (entry.kind.is_mixable and first.is_mixable):
            problem = f"{entry.kind.label} in a file of {first.label}, expected one kind per file"
            raise BadRecord(problem, "Put each kind into a separate file", start=entry.start)


def _check_any(path: PathLike, contents: Sequence[object]) -> None:
    if not contents:
        raise BadFile(path, "every conversation is empty, expected at least one with a user turn", "Give another file")


def _label(plain: Form | None, options: ReadAs, entries: Sequence[_Entry]) -> str:
    if plain is not None:
        return f"plain text, one {options.use} per line" if plain == "lines" else "plain text, the whole file"
    return " and ".join(dict.fromkeys(entry.kind.label for entry in entries))


def _notes(records: Records, entries: Sequence[_Entry]) -> tuple[str, ...]:
    """The parts that were not read."""
    notes = []
    if num_empty := len(records.records) - len(entries):
        notes.append(f"{num_empty} without a user turn left out")
    if ignored := sorted({*records.ignored, *(key for entry in entries for key in entry.ignored)}):
        notes.append(f"ignored: {shown_keys(ignored)}")
    return tuple(notes)


def _source(path: PathLike, entries: Sequence[_Entry]) -> str:
    name = Path(path).name
    return f"{len(entries)} of {name if name.isprintable() else repr(name)}"
