"""Regexes in module lists match as with `re`, and in bounded time even if `re` would not end."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.quantisation import module_regex
from perfmodel.quantisation.module_names import MAX_PATTERNS, glob_matcher, layer_names, regex_matcher, transformers_matcher
from perfmodel.quantisation.module_regex import MAX_CHARS, ModuleRegexes, UnreadablePattern

PATTERNS = (
    *(
        "lm_head",
        ".*lm_head",
        r"model\.layers\.(0|1|31)\..*",
        r"^(?!.*self_attn).*$",
        "mlp.gate$",
        r".*(q|k|v)_proj",
        "visual.*",
    ),
    *(r"model\.layers\.([0-9]|1[0-5])\.mlp\.down_proj", "[", "a{2,3}b", r"(?i)MODEL.*", r"(\w+\.)+up_proj"),
)
NAMES = st.sampled_from(
    layer_names(0, "q_proj") + layer_names(31, "down_proj") + layer_names(12, "up_proj") + ("lm_head", "aab")
)


@given(st.sampled_from(PATTERNS), NAMES | st.text(alphabet="ab.1", max_size=6))
def test_matches_are_those_of_re_and_an_invalid_regex_is_literal(pattern: str, name: str) -> None:
    try:
        expected = re.match(pattern, name) is not None
    except re.error:
        expected = name.startswith(pattern)
    assert ModuleRegexes([pattern]).match(name) == expected


UNBOUNDED = (
    r"(\w+\.?)+!",
    r"((a|aa|[a-z_]+)+\.?)+!",
    r"(.*)*(.*)*x!",
    r"((\w(\w(\w(\w+)+)+)+)+)+!",
    r"\w?" * 40 + "!",
    r"(a|\w|\w\w|[a-z._]){1,1000}!",
)


def test_every_pattern_ends_in_bounded_time() -> None:
    names = [name for layer in range(4) for module in ("q_proj", "down_proj") for name in layer_names(layer, module)]
    slow = []
    for pattern in UNBOUNDED:
        start_s = time.perf_counter()
        for matches in (transformers_matcher([pattern]), regex_matcher([f"re:{pattern}"])):
            assert not matches(names)
        slow += [pattern] if time.perf_counter() - start_s > 5 else []
    assert not slow


def test_a_list_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_regex, "BUDGET_S", 0.0)
    with pytest.raises(UnreadablePattern, match="patterns that take more than 0 s to match"):
        ModuleRegexes(["a.*b"]).match("model.layers.0")


@pytest.mark.parametrize("pattern", ["a" * (MAX_CHARS + 1), "a{1000000000}", "((a{100}){100}){100}", "a{,1000000}"])
def test_a_pattern_that_needs_too_much_memory_is_refused(pattern: str) -> None:
    with pytest.raises(UnreadablePattern, match="too long, too nested, or repeats too often"):
        ModuleRegexes([pattern])


def test_a_list_with_too_many_distinct_patterns_is_refused() -> None:
    for rule, form in ((transformers_matcher, "a{}*"), (glob_matcher, "a{}*"), (regex_matcher, "re:a{}")):
        rule([form.format(1)] * (MAX_PATTERNS + 1))
        with pytest.raises(UnreadablePattern, match=f"{MAX_PATTERNS + 1} patterns, more than {MAX_PATTERNS}"):
            rule([form.format(number) for number in range(MAX_PATTERNS + 1)])
