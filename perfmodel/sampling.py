"""How the target picks tokens, and when a drafted token counts as the target's own."""

import math
from dataclasses import dataclass
from typing import Literal

AcceptanceRule = Literal["greedy", "ratio", "shared-noise"]
"""`greedy`: equal argmax. `ratio`: accept with probability min(1, p/q), else draw from max(p - q, 0) (Leviathan et al.
2023, Alg. 1). `shared-noise`: target and draft take the argmax of logits plus the same Gumbel noise for that position;
equal tokens are accepted, so that the output depends on the seed and the target alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The settings of one decoding run. Greedy decoding has temperature 0 and no other setting."""

    rule: AcceptanceRule
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int | None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature!r}: expected a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k!r}: expected at least 1 token")
        if (self.rule == "greedy") != (self.temperature == 0):
            raise ValueError(f"rule {self.rule!r} with temperature {self.temperature!r}: greedy is temperature 0, and only it")
        if self.rule == "greedy" and (self.top_k, self.top_p, self.seed) != (None, None, None):
            raise ValueError("greedy decoding takes no top_k, top_p or seed")
        if self.rule != "greedy" and self.seed is None:
            raise ValueError(f"rule {self.rule!r} needs a seed, so that a run can be repeated")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p!r}: expected above 0 and at most 1")

    @property
    def label(self) -> str:
        """`greedy`, or `shared-noise T=0.8 top-p 0.95`."""
        if self.rule == "greedy":
            return "greedy"
        extras = (f" top-k {self.top_k}" if self.top_k else "") + (f" top-p {self.top_p:g}" if self.top_p else "")
        return f"{self.rule} T={self.temperature:g}{extras}"


GREEDY = Sampling(rule="greedy", temperature=0.0, top_k=None, top_p=None, seed=None)
