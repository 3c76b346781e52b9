"""Generated parts of hand-written pages, each between two marks: `<!-- name -->` and `<!-- /name -->`."""

import re


def with_part(page: str, name: str, text: str) -> str:
    """The page with one generated part replaced.

    Raises:
        ValueError: the page does not have the two marks exactly once.
    """
    between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    if len(between.findall(page)) != 1:
        raise ValueError(f"expected <!-- {name} --> and <!-- /{name} --> once, each on a line of its own")
    return between.sub(lambda _: f"\n{text.strip()}\n\n", page)
