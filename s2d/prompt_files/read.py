"""A prompt or text file to prompts or training texts, with one line that tells what was understood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.disk import PathLike
from perfmodel.core.errors import BadFile
from s2d.prompt_files.contents import Chat, Content
from s2d.prompt_files.decode import read_text
from s2d.prompt_files.json_records import Record
from s2d.prompt_files.kinds import STRINGS, Kind, kind_of
from s2d.prompt_files.names import GivenName, category_of, given_name, unique_names
from s2d.prompt_files.problems import BadRecord, shown_keys
from s2d.prompt_files.read_as import Form, ReadAs
from s2d.prompt_files.records import Records, records_of
from s2d.prompts.conversation import Prompt

PROMPTS = ReadAs(use="prompt")
TEXTS = ReadAs(use="text")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """The prompts of a file."""

    prompts: tuple[Prompt, ...]
    source: str
    """How many, and of which file: `80 of questions.jsonl`."""
    label: str
    """What they were read as: `MT-Bench questions`."""
    notes: tuple[str, ...]
    """What was not read."""

    def understood(self, *, first_turns: bool) -> str:
        """One line for people: `prompts: 80 of questions.jsonl (MT-Bench questions, first turns; ignored: reference)`.

        Args:
            first_turns: whether these alone are used.
        """
        ending = ", first turns" if first_turns and any(prompt.later for prompt in self.prompts) else ""
        return f"prompts: {self.source} ({'; '.join((self.label + ending, *self.notes))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """The training texts of a file."""

    texts: tuple[str, ...]
    understood: str
    """What they were read as, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A record that was recognised and holds something."""

    start: int
    kind: Kind
    content: Content
    name: GivenName | None
    category: str
    ignored: frozenset[str]
    """Its keys that are not read, those inside messages with a dot."""


def read_prompts(path: PathLike, how: ReadAs = PROMPTS) -> list[Prompt]:
    """The prompts of a file; see `read_prompt_file`."""
    return list(read_prompt_file(path, how).prompts)


def read_prompt_file(path: PathLike, how: ReadAs = PROMPTS) -> PromptFile:
    """The prompts of a file of any kind in docs/prompt-files.md, recognised by its content.

    Raises:
        BadFile: not UTF-8, of no known kind, of several, damaged, or without a prompt; says where and how to mend it.
    """
    file = read_text(path)
    try:
        found = records_of(file.text, how)
        entries = list(_entries(found, how))
        _check_kinds(entries)
        names = unique_names([entry.name for entry in entries], [entry.start for entry in entries])
        prompts = [_prompt(entry, name) for entry, name in zip(entries, names, strict=True)]
    except BadRecord as err:
        raise file.bad_file(err) from err
    _check_any(path, prompts)
    label = _label(found.plain, how, entries)
    if any(isinstance(entry.content, Chat) and entry.content.ends_in_answer for entry in entries):
        label += ", last answers dropped"
    return PromptFile(prompts=tuple(prompts), source=_source(path, entries), label=label, notes=_notes(found, entries))


def read_text_file(path: PathLike, how: ReadAs = TEXTS) -> TextFile:
    """The training texts of a file: answers belong to them, and plain text is one.

    Raises:
        BadFile: as `read_prompt_file`.
    """
    file = read_text(path)
    try:
        found = records_of(file.text, how)
        entries = list(_entries(found, how))
        _check_kinds(entries)
        texts = [_checked(entry.content.training_text, entry.start) for entry in entries]
    except BadRecord as err:
        raise file.bad_file(err) from err
    _check_any(path, texts)
    told = "; ".join((_label(found.plain, how, entries), *_notes(found, entries)))
    return TextFile(texts=tuple(texts), understood=f"texts: {_source(path, entries)} ({told})")


def _entries(found: Records, how: ReadAs) -> Iterator[_Entry]:
    for record in found.records:
        try:
            entry = _entry(record, how)
        except BadRecord as err:
            raise err.at(record.start) from err
        if entry is not None:
            yield entry


def _entry(record: Record, how: ReadAs) -> _Entry | None:
    """What a record holds; None where that is nothing."""
    kind = kind_of(record.value, how)
    content = kind.read(record.value)
    if content is None:
        return None
    ignored = set() if kind is STRINGS else kind.ignored_keys(record.value, with_answers=how.use == "text")
    return _Entry(
        start=record.start,
        kind=kind,
        content=content,
        name=given_name(record.value, kind.name_keys),
        category=category_of(record.value),
        ignored=content.ignored | ignored,
    )


def _prompt(entry: _Entry, name: str) -> Prompt:
    try:
        prompt = entry.content.prompt(name, entry.category)
    except BadRecord as err:
        raise err.at(entry.start) from err
    said = (message.content for message in prompt.before or ())
    for text in (prompt.name, prompt.category, prompt.text, *said, *prompt.later):
        _checked(text, entry.start)
    return prompt


def _checked(text: str, start: int) -> str:
    """The text, if it can be encoded; half of a surrogate pair, which JSON can hold, cannot.

    Raises:
        BadRecord: it cannot.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        problem = f"{text[err.start]!a} is half of a surrogate pair, expected whole characters"
        raise BadRecord(problem, "Write the character itself, or both halves", start=start) from err
    return text


def _check_kinds(entries: Sequence[_Entry]) -> None:
    """Refuse records of several kinds in a file, which two files put together would have.

    Those of our own keys (`text`, `messages`, `turns`) may stand together.
    """
    for entry in entries:
        first = entries[0].kind
        if entry.kind.label != first.label and not (entry.kind.is_mixable and first.is_mixable):
            problem = f"one of {entry.kind.label} in a file of {first.label}, expected one kind in a file"
            raise BadRecord(problem, "Put each kind into a file of its own", start=entry.start)


def _check_any(path: PathLike, found: Sequence[object]) -> None:
    if not found:
        raise BadFile(path, "every conversation in it is empty, expected at least one with a user's turn", "Give another file")


def _label(plain: Form | None, how: ReadAs, entries: Sequence[_Entry]) -> str:
    if plain is not None:
        return f"plain text, one {how.use} a line" if plain == "lines" else "plain text, the whole file"
    return " and ".join(dict.fromkeys(entry.kind.label for entry in entries))


def _notes(found: Records, entries: Sequence[_Entry]) -> tuple[str, ...]:
    """What was left out."""
    notes = []
    if num_empty := len(found.records) - len(entries):
        notes.append(f"{num_empty} without a user's turn left out")
    if ignored := sorted({*found.ignored, *(key for entry in entries for key in entry.ignored)}):
        notes.append(f"ignored: {shown_keys(ignored)}")
    return tuple(notes)


def _source(path: PathLike, entries: Sequence[_Entry]) -> str:
    name = Path(path).name
    return f"{len(entries)} of {name if name.isprintable() else repr(name)}"
