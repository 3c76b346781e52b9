"""A fake runtime with known costs: rounds of a fixed shape per policy, and seconds from a formula."""

from collections.abc import Sequence

from perfmodel.passes.passes import PassSample, PassSamples
from perfmodel.policies.policy import Policy

SEGMENT_S, EXIT_S, VERIFY_S, VERIFY_ROW_S, ROUND_S = 1e-3, 0.2e-3, 8e-3, 0.1e-3, 0.05e-3


class FakeRuntime:
    """Accepts all tokens. The first active exit keeps them, so later segments run only with `deepens_every`."""

    def __init__(self, *, deepens_every: int | None = None) -> None:
        self.calls: list[tuple[Policy | None, tuple[int, ...], int]] = []
        self.deepens_every = deepens_every
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def decode(self, policy: Policy | None, prompt_ids: Sequence[int], new_tokens: int) -> PassSamples:
        self.calls.append((policy, tuple(prompt_ids), new_tokens))
        passes = [PassSample("target_prefill", 0, len(prompt_ids) - 1, 0, 1, 5e-3)]
        emitted = 0
        while emitted < new_tokens:
            cap = min(policy.tokens, new_tokens - emitted - 1) if policy else 0
            passes += self._round(cap, len(prompt_ids) + emitted)
            emitted += cap + 1
        self.now_s += sum(sample.seconds for sample in passes)
        return PassSamples.from_passes(passes)

    def _round(self, cap: int, known: int) -> list[PassSample]:
        passes: list[PassSample] = []
        for number in range(cap):
            passes.append(PassSample("segment", 0, 1, known + number, number + 1, SEGMENT_S))
            passes.append(PassSample("exit", 0, 1, 0, number + 1, EXIT_S))
        if cap and self.deepens_every and len(self.calls) % self.deepens_every == 0:
            passes.append(PassSample("segment", 1, cap, known, 1, SEGMENT_S))
            passes.append(PassSample("exit", 1, 1, 0, cap + 1, EXIT_S))
        passes.append(PassSample("verify", 0, cap + 1, known, 1, VERIFY_S + VERIFY_ROW_S * cap))
        return [*passes, PassSample("round", 0, cap, 0, 1, ROUND_S)]
