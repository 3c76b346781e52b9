"""The text every machine has: the Python standard library's own sources, cut into training and held-out files."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from s2d.prompts.conversation import Prompt

# Test packages, bundled third-party code and generated tables teach a model nothing that a prompt would ask of it.
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "lib2to3", "encodings", "pydoc_data", "__pycache__"}
)
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One standard-library file: its path inside the library and its text."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether prompts come from this file, and training never does. A tenth of the files, by a hash of the path."""
        digest = hashlib.sha256(self.path.encode()).digest()
        return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def standard_library() -> list[SourceFile]:
    """Every kept source file of the running Python's standard library, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not EXCLUDED_FOLDERS.intersection(relative.parts):
            files.append(SourceFile(path=relative.as_posix(), text=path.read_text("utf-8", errors="replace")))
    return files


def training_texts() -> list[str]:
    """The texts a model may learn from."""
    return [file.text for file in standard_library() if not file.held_out]


def held_out_files() -> list[SourceFile]:
    """The files no model was trained on, from which prompts are cut."""
    return [file for file in standard_library() if file.held_out]


def corpus_sha256(texts: list[str]) -> str:
    """One hash for a list of texts, so that a recipe can say what it was trained on."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


PROMPT_CHARS = 240
_MAX_TURNS = 4
"""How often a file is asked for another prompt of each category."""
PROMPT_CATEGORIES = ("module", "class", "function", "docstring", "body")


def held_out_prompts(num_per_category: int) -> list[Prompt]:
    """Prompts cut from held-out files, the same ones on every call, their categories taking turns.

    A prompt is whole lines, about `PROMPT_CHARS` characters, up to and including the line that gives it its category. Every
    file gives one of each category at most before any gives a second.

    Raises:
        ValueError: the files do not hold so many; each begins once, so that of `module` there are as many as files.
    """
    files = [file for file in held_out_files() if len(file.text) > 4 * PROMPT_CHARS]
    files.sort(key=lambda file: hashlib.sha256(file.path.encode()).hexdigest())
    by_category: dict[str, list[Prompt]] = {category: [] for category in PROMPT_CATEGORIES}
    used: set[tuple[str, int]] = set()
    for turn in range(_MAX_TURNS):
        for number, file in enumerate(files, start=turn * len(files)):
            lines = file.text.splitlines(keepends=True)
            for category, prompts in by_category.items():
                end = _cut_line(lines, category, number)
                if end is not None and (file.path, end) not in used and len(prompts) < num_per_category:
                    used.add((file.path, end))
                    prompts.append(Prompt(name=f"{file.path}:{end + 1}", category=category, text=_lines_up_to(lines, end)))
    fewest, category = min((len(prompts), category) for category, prompts in by_category.items())
    if fewest < num_per_category:
        raise ValueError(f"{num_per_category} prompts of each category: the held-out files hold {fewest} of {category!r}.")
    return [prompt for turn in zip(*by_category.values(), strict=True) for prompt in turn]


def _cut_line(lines: list[str], category: str, number: int) -> int | None:
    """Zero-based line at which a prompt of a category ends; a different one of the candidates for each file number."""
    earliest = _first_lines(lines)
    if category == "module":
        return earliest
    starts = {
        "class": ("class ",),
        "function": ("def ", "async def "),
        "docstring": ('"""',),
        "body": ("return ", "if ", "for "),
    }
    found = [i for i in range(earliest, len(lines)) if lines[i].lstrip().startswith(starts[category])]
    return found[number % len(found)] if found else None


def _first_lines(lines: list[str]) -> int:
    """The line at which the first `PROMPT_CHARS` characters of a file end."""
    length = 0
    for index, line in enumerate(lines):
        length += len(line)
        if length >= PROMPT_CHARS:
            return index
    return len(lines) - 1


def _lines_up_to(lines: list[str], end: int) -> str:
    """Whole lines ending at `end`, as many as fit in `PROMPT_CHARS` characters, at least that one."""
    start, length = end, len(lines[end])
    while start > 0 and length + len(lines[start - 1]) <= PROMPT_CHARS:
        start -= 1
        length += len(lines[start])
    return "".join(lines[start : end + 1])
