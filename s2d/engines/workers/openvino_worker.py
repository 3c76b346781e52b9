"""OpenVINO GenAI's LLMPipeline on a CPU.

`decode_s` is its own generate duration less its own time to the first token, which the prompt's pass emits. `draft_s` and
`verify_s` are sums of its raw durations of both models, without the first of each, which is the prompt's.
"""

import time
from typing import Any

_PRECISION_HINTS = {"f32": "f32", "fp32": "f32", "bf16": "bf16"}
"""Arithmetic by storage of the weights; other storages leave it to the engine, as exported scripts do."""


class Engine:
    """A pipeline, with or without a draft; the draft length can change from call to call.

    A confidence threshold excludes a draft length in this engine: with a floor, nothing limits the length.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import openvino_genai

        self._genai = openvino_genai
        self.version = openvino_genai.__version__
        self._has_draft = settings["draft"] is not None
        self.options: dict[str, Any] = {"ENABLE_CPU_PINNING": False}
        if hint := _PRECISION_HINTS.get(settings["weights"]):
            self.options["INFERENCE_PRECISION_HINT"] = hint
            if hint == "f32":
                self.options["KV_CACHE_PRECISION"] = hint
        properties = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, **self.options}
        if settings["num_threads"] is not None:
            properties["INFERENCE_NUM_THREADS"] = settings["num_threads"]
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = settings.get("cache_gib", 1)
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = max(settings["context_tokens"], 256)
        more: dict[str, Any] = {"scheduler_config": scheduler}
        if self._has_draft:
            more["draft_model"] = openvino_genai.draft_model(settings["draft"], "CPU", **properties)
        self._pipeline = openvino_genai.LLMPipeline(settings["target"], "CPU", **properties, **more)

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode one prompt greedily, to exactly the requested number of tokens."""
        import numpy as np
        import openvino

        config = self._genai.GenerationConfig()
        config.max_new_tokens = request["max_new_tokens"]
        config.do_sample = False
        config.ignore_eos = True
        config.apply_chat_template = False
        if self._has_draft and request["floor"] is not None:
            config.assistant_confidence_threshold = request["floor"]
            config.logprobs = 1  # else every log-probability is 0, which ends each block at its first token
        elif self._has_draft:
            config.num_assistant_tokens = request["draft_tokens"]
        ids = np.array([request["prompt"]], np.int64)
        inputs = self._genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        start_s = time.perf_counter()
        found = self._pipeline.generate(inputs, config)
        call_s = time.perf_counter() - start_s
        metrics = found.perf_metrics
        decode_s = (metrics.get_generate_duration().mean - metrics.get_ttft().mean) / 1e3
        answer = {"tokens": list(found.tokens[0]), "call_s": call_s, "decode_s": decode_s, "untimed_tokens": 1, "raw": {}}
        extended = getattr(found, "extended_perf_metrics", None)
        return answer if extended is None or not self._has_draft else answer | _speculation(extended)


def _speculation(extended: Any) -> dict[str, Any]:
    raw: dict[str, list[int]] = {}
    for role in ("main", "draft"):
        metrics = getattr(extended, f"{role}_model_metrics").raw_metrics
        raw[f"{role}_us"] = [round(float(duration)) for duration in metrics.m_durations]
        raw[f"{role}_tokens"] = [int(count) for count in metrics.m_batch_sizes]
    return {
        "num_rounds": len(raw["main_us"]) - 1,
        "num_accepted": extended.get_num_accepted_tokens(),
        "draft_s": sum(raw["draft_us"][1:]) / 1e6,
        "verify_s": sum(raw["main_us"][1:]) / 1e6,
        "raw": raw,
    }
