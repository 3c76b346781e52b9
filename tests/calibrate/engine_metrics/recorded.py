"""The recorded metrics: one run in four engines, and the replay of the same prompts."""

from pathlib import Path

from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import replay_prompts
from perfmodel.replay.round_stats import RoundStats

DATA = Path(__file__).parents[2] / "data" / "engine_metrics"
POLICY = Policy(exits=(4,), tokens=5)
NUM_REQUESTS, NUM_TOKENS = 6, 64
PAIRS: dict[str, tuple[list[Path], list[Path]]] = {
    "vllm-bench": ([DATA / "vllm-draft-bench.json"], [DATA / "vllm-plain-bench.json"]),
    "vllm-answers": ([DATA / "vllm-draft-answers.jsonl"], [DATA / "vllm-plain-answers.jsonl"]),
    "llama.cpp-answers": ([DATA / "llama.cpp-draft-answers.jsonl"], [DATA / "llama.cpp-plain-answers.jsonl"]),
    "openvino": ([DATA / "openvino-draft.jsonl"], [DATA / "openvino-plain.jsonl"]),
    "onnxruntime": ([DATA / "onnxruntime-draft.jsonl"], [DATA / "onnxruntime-plain.jsonl"]),
    **{
        f"{engine}-prometheus": (
            [DATA / f"{engine}-draft-{when}.prom" for when in ("before", "after")],
            [DATA / f"{engine}-plain-{when}.prom" for when in ("before", "after")],
        )
        for engine in ("vllm", "llama.cpp")
    },
}
"""Files with the draft and files of plain decoding, by the name of their format."""


def trace() -> Trace:
    return TRACE_FILE.read(DATA / "trace.npz").record


def replayed() -> list[RoundStats]:
    """Rounds of each prompt under the policy that the engines ran."""
    return replay_prompts(trace(), POLICY)
