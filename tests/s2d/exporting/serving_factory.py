"""A serving by hand, as `export` makes it from a plan."""

from dataclasses import replace

from perfmodel.engines.known_engines import ENGINES
from s2d.exporting.served_policy import BatchRange, ServedPolicy
from s2d.exporting.serving import Serving

HOSTILE = 'it\'s $(touch hacked) `touch hacked` "here"; & *'
"""A name that a careless script would run."""


def serving(engine: str, weights: str = "bf16", **changes: object) -> Serving:
    policy = ServedPolicy(exit_layer=4, draft_tokens=3, floor=None, by_batch=(), acceptance_rates=(0.75, 0.5, 0.3333333))
    suffix = ".gguf" if engine == "llama.cpp" else ""
    made = Serving(
        engine=ENGINES[engine],
        weights=weights,
        policy=policy,
        target="/models/target",
        is_target_inside=False,
        draft=f"draft{suffix}",
        num_devices=2,
        draft_num_devices=1,
        context_tokens=8192,
        text_tokens=640,
        max_batch=8,
        num_threads=None,
        kv_cache_gib=5,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def by_batch(made: Serving) -> Serving:
    ranges = (BatchRange(first=1, last=7, draft_tokens=3), BatchRange(first=8, last=64, draft_tokens=1))
    return replace(made, policy=replace(made.policy, by_batch=ranges))


def floored(made: Serving, floor: float) -> Serving:
    return replace(made, policy=replace(made.policy, floor=floor))
