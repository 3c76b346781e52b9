"""Links between the pages of the repository: every target exists."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def broken_links(root: Path) -> list[str]:
    """Links of all pages to files or headings that do not exist."""
    return [
        f"{page}: {target} does not exist"
        for page in tracked_pages(root)
        for target in missing_targets(root / page, FENCED.sub("", (root / page).read_text(encoding="utf-8")))
    ]


def missing_targets(page: Path, text: str) -> Iterator[str]:
    for name, anchor in LINK.findall(text):
        target = (page.parent / name) if name else page
        if not target.exists():
            yield name
        elif anchor and target.suffix == ".md" and anchor[1:] not in anchors(target.read_text(encoding="utf-8")):
            yield f"{name}{anchor}"


def anchors(text: str) -> set[str]:
    """The names that headings of a page are linked by."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(text)}


def tracked_pages(root: Path) -> list[str]:
    """Markdown files that git knows or would add."""
    return sorted(name for name in tracked_files(root) if name.endswith(".md"))


def tracked_files(root: Path) -> set[str]:
    """Files that git knows or would add; a file that was deleted but not committed is left out."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return {name for name in names if name and (root / name).exists()}
