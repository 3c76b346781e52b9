"""How much a text repeats itself: small models loop when decoded greedily, and what loops is agreed on."""

from collections.abc import Sequence

from perfmodel.units import Frac


def distinct_ngram_frac(tokens: Sequence[int], size: int = 6) -> Frac:
    """Distinct n-grams over all of them: 1 when nothing repeats, or when the text is shorter than one."""
    grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
