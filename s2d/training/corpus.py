"""Training and held-out text from the sources of the Python standard library."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from s2d.prompts.conversation import Prompt

# Test packages, bundled third-party code and generated tables do not resemble the prompts.
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "lib2to3", "encodings", "pydoc_data", "__pycache__"}
)
HELD_OUT_ONE_IN = 10
PROMPT_CHARS = 240
PROMPT_CATEGORIES = ("module", "class", "function", "docstring", "body")
_MAX_SWEEPS = 4
"""Sweeps over the files. Each takes at most one prompt of each category from a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file of the standard library: its path in the library and its text."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the file is excluded from training and used for prompts: a tenth of the files, by a hash of the path."""
        digest = hashlib.sha256(self.path.encode()).digest()
        return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def standard_library() -> list[SourceFile]:
    """The source files of the running Python's standard library without `EXCLUDED_FOLDERS`, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not EXCLUDED_FOLDERS.intersection(relative.parts):
            files.append(SourceFile(path=relative.as_posix(), text=path.read_text("utf-8", errors="replace")))
    return files


def training_texts() -> list[str]:
    """The texts of all training files."""
    return [file.text for file in standard_library() if not file.held_out]


def held_out_files() -> list[SourceFile]:
    """The files that no model is trained on. Prompts are cut from them."""
    return [file for file in standard_library() if file.held_out]


def corpus_sha256(texts: list[str]) -> str:
    """SHA-256 of a list of texts, to record what a model was trained on."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def held_out_prompts(num_per_category: int) -> list[Prompt]:
    """Prompts cut from held-out files. Every call gives the same prompts, and the categories alternate.

    A prompt consists of whole lines, about `PROMPT_CHARS` characters, and ends with the line that determines its category. A
    file provides a second prompt of a category only after every file has provided its first.

    Raises:
        ValueError: the files hold too few prompts of a category. A file has only one of category `module`.
    """
    files = [file for file in held_out_files() if len(file.text) > 4 * PROMPT_CHARS]
    files.sort(key=lambda file: hashlib.sha256(file.path.encode()).hexdigest())
    by_category: dict[str, list[Prompt]] = {category: [] for category in PROMPT_CATEGORIES}
    used: set[tuple[str, int]] = set()
    for sweep in range(_MAX_SWEEPS):
        for number, file in enumerate(files, start=sweep * len(files)):
            lines = file.text.splitlines(keepends=True)
            for category, prompts in by_category.items():
                end = _cut_line(lines, category, number)
                if end is not None and (file.path, end) not in used and len(prompts) < num_per_category:
                    used.add((file.path, end))
                    prompts.append(Prompt(name=f"{file.path}:{end + 1}", category=category, text=_lines_up_to(lines, end)))
    fewest, category = min((len(prompts), category) for category, prompts in by_category.items())
    if fewest < num_per_category:
        raise ValueError(f"{num_per_category} prompts of each category: the held-out files hold {fewest} of {category!r}.")
    return [prompt for group in zip(*by_category.values(), strict=True) for prompt in group]


def _cut_line(lines: list[str], category: str, number: int) -> int | None:
    """Zero-based last line of a prompt of a category; the number selects one of the candidates. None without candidates."""
    earliest = _earliest_end(lines)
    if category == "module":
        return earliest
    starts = {
        "class": ("class ",),
        "function": ("def ", "async def "),
        "docstring": ('"""',),
        "body": ("return ", "if ", "for "),
    }
    candidates = [i for i in range(earliest, len(lines)) if lines[i].lstrip().startswith(starts[category])]
    return candidates[number % len(candidates)] if candidates else None


def _earliest_end(lines: list[str]) -> int:
    """The line that completes the first `PROMPT_CHARS` characters of a file."""
    length = 0
    for index, line in enumerate(lines):
        length += len(line)
        if length >= PROMPT_CHARS:
            return index
    return len(lines) - 1


def _lines_up_to(lines: list[str], end: int) -> str:
    """Whole lines up to line `end`, as many as fit in `PROMPT_CHARS` characters, and at least that line."""
    start, length = end, len(lines[end])
    while start > 0 and length + len(lines[start - 1]) <= PROMPT_CHARS:
        start -= 1
        length += len(lines[start])
    return "".join(lines[start : end + 1])
