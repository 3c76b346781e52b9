"""The API reference, as HTML from docstrings: `python -W error -m docs.generate.api FOLDER`.

pdoc sees what a module holds, and `s2d` holds its public names once they have been used.
"""

import sys
from pathlib import Path

import pdoc

import s2d


def main(folder: Path) -> None:
    """Write the reference into a folder; every warning of pdoc is an error under `-W error`."""
    for name in s2d.__all__:
        getattr(s2d, name)
    pdoc.render.configure(docformat="google", footer_text=f"s2d {s2d.__version__}")
    pdoc.pdoc("s2d", output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
