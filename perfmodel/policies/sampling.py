"""Sampling settings: how the target chooses tokens, and when it accepts a drafted token."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from perfmodel.core.errors import BadValue

AcceptanceRule = Literal["greedy", "ratio", "shared-noise"]
"""`greedy`: accept a token that equals the target's argmax. `ratio`: accept with probability min(1, p/q), else draw from
max(p - q, 0) (Leviathan et al. 2023, Alg. 1). `shared-noise`: target and draft both take the argmax of logits plus the same
Gumbel noise of the position, and equal tokens are accepted. The output then depends on the seed and the target only."""

MAX_PENALTY = 2.0
"""Largest absolute value of the presence and frequency penalties, as in OpenAI's API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The settings of one decoding run; None turns a setting off. Greedy decoding has temperature 0 and at most penalties.

    Penalties change the raw logits of every position, at the exits too, according to the tokens before it, drafted tokens
    included. Temperature, top-k, top-p and min-p follow, in transformers' order.

    Example:
        >>> s2d.Sampling(rule="shared-noise", temperature=0.8, top_p=0.95, seed=0).label
        'shared-noise T=0.8 top-p 0.95'
    """

    rule: AcceptanceRule
    temperature: float
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    min_p: float | None = None
    """Drop tokens whose probability is below this share of the largest one."""
    repetition_penalty: float | None = None
    """Divides positive logits and multiplies negative logits of tokens in the prompt or output (transformers)."""
    presence_penalty: float | None = None
    """Subtracted once from the logits of tokens in the output; the prompt does not count (OpenAI, vLLM)."""
    frequency_penalty: float | None = None
    """Subtracted once for each time a token is in the output (OpenAI, vLLM)."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(AcceptanceRule):
            raise BadValue(f"rule {self.rule!r}: expected {', '.join(map(repr, get_args(AcceptanceRule)))}")
        if not 0 <= self.temperature < math.inf:
            raise BadValue(f"temperature {self.temperature!r}: expected a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise BadValue(f"top_k {self.top_k!r}: expected at least 1 token")
        if (self.rule == "greedy") != (self.temperature == 0):
            raise BadValue(f"rule {self.rule!r} with temperature {self.temperature!r}: greedy and temperature 0 go together")
        if self.rule == "greedy" and (self.top_k, self.top_p, self.min_p, self.seed) != (None, None, None, None):
            raise BadValue("greedy decoding takes no top_k, top_p, min_p or seed: expected a temperature above 0 with them")
        if self.rule != "greedy" and self.seed is None:
            raise BadValue(f"rule {self.rule!r} needs a seed, which makes the run repeatable")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise BadValue(f"top_p {self.top_p!r}: expected above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise BadValue(f"min_p {self.min_p!r}: expected from 0 to 1")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < math.inf:
            raise BadValue(f"repetition_penalty {self.repetition_penalty!r}: expected a number above 0, where 1 is none")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if value is not None and not -MAX_PENALTY <= value <= MAX_PENALTY:
                raise BadValue(f"{name} {value!r}: expected from {-MAX_PENALTY:g} to {MAX_PENALTY:g}, where 0 is none")

    @property
    def has_penalties(self) -> bool:
        """Whether logits depend on earlier tokens in another way than through the model."""
        return self.repetition_penalty not in (None, 1) or bool(self.presence_penalty) or bool(self.frequency_penalty)

    @property
    def label(self) -> str:
        """`greedy`, or `shared-noise T=0.8 top-p 0.95`."""
        rule = self.rule if self.rule == "greedy" else f"{self.rule} T={self.temperature:g}"
        return " ".join([rule, *(f"{name} {value:g}" for name, value in self._applied.items())])

    @property
    def processing(self) -> tuple[str, ...]:
        """Names of the steps that process logits, in order."""
        return tuple(self._applied)

    @property
    def _applied(self) -> dict[str, float]:
        """The active settings that change logits, by name."""
        settings = {
            "repetition": None if self.repetition_penalty == 1 else self.repetition_penalty,
            "frequency": self.frequency_penalty,
            "presence": self.presence_penalty,
            "top-k": self.top_k,
            "top-p": None if self.top_p == 1 else self.top_p,
            "min-p": self.min_p,
        }
        return {name: value for name, value in settings.items() if value}


GREEDY = Sampling(rule="greedy", temperature=0.0, top_k=None, top_p=None, seed=None)
