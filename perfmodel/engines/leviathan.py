"""Leviathan's formula: the speedup if every drafted token is accepted with the same probability."""

from perfmodel.core.units import Frac, Tokens


def leviathan_speedup(acceptance_rate: Frac, draft_tokens: Tokens, cost_ratio: float) -> float:
    """Expected speedup of a round of K draft passes and one verification that costs as much as a step of plain decoding.

    (1 - α^(K + 1)) / ((1 - α) (K c + 1)). Leviathan et al. 2023, Theorem 3.8.

    Args:
        acceptance_rate: α, the mean share of drafted tokens that are accepted where the ones before them were.
        draft_tokens: K.
        cost_ratio: c, seconds of a draft pass over seconds of a step of plain decoding.

    Raises:
        ValueError: a rate outside 0 to 1, a negative length, or a negative cost.
    """
    if not 0 <= acceptance_rate <= 1 or draft_tokens < 0 or cost_ratio < 0:
        raise ValueError(f"expected a rate from 0 to 1, and no negative length or cost, got {acceptance_rate!r}")
    tokens_per_round = sum(acceptance_rate**position for position in range(draft_tokens + 1))
    return tokens_per_round / (draft_tokens * cost_ratio + 1)


def acceptance_rate(tokens_per_round: float, draft_tokens: Tokens) -> Frac:
    """The rate α at which independent acceptance of K drafted tokens emits this many tokens a round, the bonus included.

    The inverse of 1 + α + … + α^K, by bisection: the mean acceptance that Leviathan's formula needs.

    Args:
        tokens_per_round: from 1 to K + 1; other values give 0 or 1.
        draft_tokens: K.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**position for position in range(draft_tokens + 1)) < tokens_per_round:
            low = middle
        else:
            high = middle
    return (low + high) / 2
