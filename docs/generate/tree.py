"""The file tree of docs/architecture.md: every module with the first sentence of its docstring."""

import ast
import json
from pathlib import Path

from docs.generate.links import tracked_files
from docs.generate.marks import with_part

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("perfmodel", "calibrate", "s2d", "profiler", "examples", "notebooks", "benchmarks")
SUFFIXES = (".py", ".c", ".h", ".ipynb", ".sh")
WIDTH = 120
NAME_WIDTH = 28


def with_tree(page: str) -> str:
    """The page with its file tree drawn anew."""
    return with_part(page, "file-tree", f"```\n{tree_text(tracked_files(ROOT))}\n```")


def tree_text(names: set[str]) -> str:
    """Folders with what they hold, four spaces a level; no line is longer than `WIDTH`."""
    shown = sorted(name for name in names if name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and is_shown(name))
    lines: list[str] = []
    for top in FOLDERS:
        folders_seen: set[str] = set()
        for name in sorted((name for name in shown if name.startswith(f"{top}/")), key=folders_last):
            for folder in reversed(Path(name).parents[:-1]):
                if folder.as_posix() not in folders_seen:
                    folders_seen.add(folder.as_posix())
                    lines.append(line(f"{folder.name}/", len(folder.parts) - 1, folder_summary(folder.as_posix())))
            lines.append(line(Path(name).name, name.count("/"), summary(ROOT / name)))
    return "\n".join(lines)


def folders_last(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts the files of a folder before its subfolders."""
    *folders, file = name.split("/")
    return (*((1, folder) for folder in folders), (0, file))


def is_shown(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.endswith("__init__.py")


def line(name: str, depth: int, text: str) -> str:
    """One line of the tree; a text that does not fit is cut at a word."""
    start = f"{'    ' * depth}{name}".ljust(NAME_WIDTH) + " "
    room = WIDTH - len(start)
    if len(text) > room:
        text = text[: room - 1].rpartition(" ")[0].rstrip(",:;") + " …"
    return f"{start}{text}".rstrip()


def folder_summary(folder: str) -> str:
    init = ROOT / folder / "__init__.py"
    readme = {"examples": "runnable examples of the public API", "notebooks": "notebooks, stored with outputs"}
    readme |= {"benchmarks": "one question a script; results/ holds the last full run"}
    return summary(init) if init.exists() else readme.get(folder, "")


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, a C file's first comment, or a notebook's title."""
    text = path.read_text(encoding="utf-8")
    match path.suffix:
        case ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        case ".ipynb":
            text = "".join(json.loads(text)["cells"][0]["source"]).lstrip("# ")
        case ".c" | ".h":
            text = text.removeprefix("/*").partition("*/")[0]
        case _:
            text = next((row for row in text.splitlines()[1:] if row.startswith("#")), "").lstrip("# ")
    first = " ".join(text.strip().split("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".")
