"""Regexes of module lists, held against `re`, and against patterns that take `re` for ever."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.module_names import MAX_PATTERNS, by_glob, by_regex_or_name, by_transformers_rule, layer_names
from perfmodel.module_regex import MAX_CHARS, UnreadablePattern, compile_ends

ATOMS = (
    *("a", "b", ".", "[ab]", "[^a]", "[0-9]", r"\w", r"\W", r"\d", r"\D", r"\s", r"\.", "(?:a|b)", "(a|ab)", "(a*b?)", "(a|)"),
    *("(?=a)", "(?!b)", "(?<=a)", "(?<!b)", "^", "$", r"\b", r"\A", r"\Z", "(?:)"),
)
QUANTIFIERS = ("", "", "", "*", "+", "?", "*?", "{2}", "{1,3}", "{0,2}?", "{2,}")
PARTS = st.tuples(st.sampled_from(ATOMS), st.sampled_from(QUANTIFIERS)).map("".join)
FLAT = st.lists(PARTS, min_size=1, max_size=4).map("".join)
NESTED = FLAT | st.tuples(FLAT.map("(?:{})".format), st.sampled_from(QUANTIFIERS)).map("".join)


@given(NESTED, st.text(alphabet="ab.1 ", max_size=6))
def test_matches_are_those_of_re(pattern: str, text: str) -> None:
    try:
        reference = re.compile(pattern)
    except re.error:
        with pytest.raises(re.error):
            compile_ends(pattern)
        return
    ends = compile_ends(pattern)(text)
    assert bool(ends) == bool(reference.match(text))
    assert bool(ends >> len(text) & 1) == bool(reference.fullmatch(text))


FOR_EVER = (
    r"(\w+\.?)+!",
    r"((a|aa|[a-z_]+)+\.?)+!",
    r"(.*)*(.*)*x!",
    r"((\w(\w(\w(\w+)+)+)+)+)+!",
    r"\w?" * 40 + "!",
    r"(a|\w|\w\w|[a-z._]){1,1000}!",
)


def test_no_pattern_takes_for_ever() -> None:
    names = [name for layer in range(4) for module in ("q_proj", "down_proj") for name in layer_names(layer, module)]
    for pattern in FOR_EVER:
        start_s = time.perf_counter()
        for matches in (by_transformers_rule([pattern]), by_regex_or_name([f"re:{pattern}"])):
            assert not matches(names)
        assert time.perf_counter() - start_s < 5, pattern


@pytest.mark.parametrize(
    "pattern", ["a" * (MAX_CHARS + 1), "(" * 60 + "a" + ")" * 60, "(?i)a", r"(a)\1", "(?>a)", "(?=a)(?=a)(?=a)(?=a)(?=a)"]
)
def test_a_pattern_that_cannot_be_followed_is_refused(pattern: str) -> None:
    with pytest.raises(UnreadablePattern, match="too long or too nested, or has flags, references or possessive parts"):
        compile_ends(pattern)


def test_a_list_of_too_many_patterns_is_refused_and_repeated_ones_count_once() -> None:
    for rule, form in ((by_transformers_rule, "a{}*"), (by_glob, "a{}*"), (by_regex_or_name, "re:a{}")):
        rule([form.format(1)] * (MAX_PATTERNS + 1))
        with pytest.raises(UnreadablePattern, match=f"{MAX_PATTERNS + 1} patterns, more than {MAX_PATTERNS}"):
            rule([form.format(number) for number in range(MAX_PATTERNS + 1)])
