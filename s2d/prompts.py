"""Prompts from a file, which of them are used, and how much a text repeats itself."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from perfmodel.disk import PathLike, read_whole
from perfmodel.errors import BadFile, UserInputError
from perfmodel.halves import Split, document_of, half_of
from s2d.config import FAMILY_FOLDER
from s2d.corpus import Prompt

FAMILY_PROMPTS: Path = FAMILY_FOLDER / "prompts.jsonl"
_KEYS = {"name", "category", "text"}
_FIX = 'Write one {"name": …, "category": …, "text": …} a line'


def read_prompts(path: PathLike) -> list[Prompt]:
    """Prompts from a JSONL file: an object with the texts name, category and text on every line.

    Questions of Spec-Bench and MT-Bench are read as they are: `question_id` names them, and of their `turns` the first is
    taken, since later ones wait for answers.

    Raises:
        BadFile: a line that is none, or a name that comes twice; says which.
    """
    lines = read_whole(path).decode("utf-8", errors="replace").splitlines()
    prompts = [_prompt(path, number, line) for number, line in enumerate(lines, start=1)]
    if not prompts:
        raise BadFile(path, "there is no prompt in it", _FIX)
    name, count = Counter(prompt.name for prompt in prompts).most_common(1)[0]
    if count > 1:
        raise BadFile(path, f"the name {name!r} comes {count} times", "Give every prompt its own name")
    return prompts


def chosen_prompts(prompts: Sequence[Prompt], split: Split, most: int) -> list[Prompt]:
    """Prompts of a half, so ordered that a few of them are a mixture too: of categories, then of documents.

    Each is of the category taken least before it, of those of the document taken least, of those the first in the file.

    Raises:
        UserInputError: no prompt is in that half.
    """
    left = [prompt for prompt in prompts if split in ("all", half_of(prompt.name))]
    if not left:
        raise UserInputError(f"none of the {len(prompts)} prompts is in the {split} half: give more prompts, or --split all")
    categories: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    chosen: list[Prompt] = []
    while left and len(chosen) < most:
        prompt = min(left, key=lambda one: (categories[one.category], documents[document_of(one.name)]))
        left.remove(prompt)
        chosen.append(prompt)
        categories[prompt.category] += 1
        documents[document_of(prompt.name)] += 1
    return chosen


def distinct_ngram_frac(tokens: Sequence[int], size: int = 6) -> float:
    """Distinct n-grams over all of them: 1 when nothing repeats, or when the text is shorter than one."""
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _prompt(path: PathLike, number: int, line: str) -> Prompt:
    try:
        found = json.loads(line)
    except ValueError as err:
        raise BadFile(path, f"line {number} is not JSON ({err})", _FIX) from err
    if isinstance(found, dict) and isinstance(found.get("turns"), list) and found["turns"]:
        named = {"name": str(found["question_id"])} if "question_id" in found else {}
        found = named | {"category": found.get("category"), "text": found["turns"][0]}
    if not isinstance(found, dict) or set(found) != _KEYS or not all(isinstance(text, str) for text in found.values()):
        raise BadFile(path, f"line {number}: expected an object with the texts {', '.join(sorted(_KEYS))}", _FIX)
    return Prompt(**found)
