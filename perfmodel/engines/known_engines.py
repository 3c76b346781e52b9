"""The table of engines that plans are made for."""

from perfmodel.engines.engine import Engine, RoundShape

S2D = Engine(
    name="s2d",
    aliases=(),
    title="the bundled runtime",
    package="this project",
    versions="this one",
    checkpoint="huggingface",
    weights=("fp32", "bf16", "fp16"),
    devices=("cpu", "cuda"),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=None,
    floor=None,
    default_floor=None,
    has_tokens_by_batch=False,
    has_trees=False,
    max_batch=1,
    sampling_rule="ratio",
    mode="graph",
    round_shape=RoundShape(),
    run_here="this version, on a CPU",
)

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (S2D,)}
