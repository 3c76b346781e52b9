"""vLLM's Python API, in this process. On a CPU or the GPUs it sees.

`decode_s` runs from the first token, which the prompt's pass emits, to the last, by the time stamps of the request's metrics.
Rounds, drafted and accepted tokens are differences of its counters `vllm:spec_decode_*`. Drafted and accepted include tokens
beyond the requested number.
"""

import os
import time
from typing import Any

_DTYPES = {"f32": "float32", "fp32": "float32", "bf16": "bfloat16", "f16": "float16", "fp16": "float16"}
_COUNTERS = {"num_rounds": "num_drafts", "num_drafted": "num_draft_tokens", "num_accepted": "num_accepted_tokens"}


class Engine:
    """A target, a draft and one draft length: the engine takes the length when it starts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        os.environ |= _environment(settings["num_threads"], settings.get("cache_gib", 1))
        import vllm
        from vllm.platforms import current_platform

        if current_platform.is_cpu() and settings["num_threads"] is None:
            raise RuntimeError("this build of vLLM runs on a CPU, and a GPU was requested")
        self._vllm = vllm
        self.version = vllm.__version__
        self.options = {"max_num_seqs": 1, "enable_prefix_caching": False}
        draft: dict[str, Any] = {}
        if settings["draft"] is not None:
            draft["speculative_config"] = {
                "method": "draft_model",
                "model": settings["draft"],
                "num_speculative_tokens": settings["draft_tokens"],
            }
        self._engine = vllm.LLM(
            settings["target"],
            dtype=_DTYPES.get(settings["weights"], "auto"),
            max_model_len=settings["context_tokens"],
            max_num_batched_tokens=max(settings["context_tokens"], 512),
            disable_log_stats=False,
            seed=0,
            **self.options,
            **draft,
        )
        self._has_draft = settings["draft"] is not None

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode one prompt greedily, to exactly the requested number of tokens."""
        count = request["max_new_tokens"]
        sampling = self._vllm.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
        before = self._counters()
        start_s = time.perf_counter()
        [found] = self._engine.generate([{"prompt_token_ids": request["prompt"]}], sampling, use_tqdm=False)
        call_s = time.perf_counter() - start_s
        metrics = found.metrics
        answer = {
            "tokens": list(found.outputs[0].token_ids),
            "call_s": call_s,
            "decode_s": metrics.last_token_ts - metrics.first_token_ts,
            "untimed_tokens": 1,
            "raw": {"first_token_latency_s": metrics.first_token_latency},
        }
        if self._has_draft:
            after = self._counters()
            answer |= {name: round(after[key] - before.get(key, 0)) for name, key in _COUNTERS.items()}
            answer["raw"] |= {"counters_after": after}
        return answer

    def _counters(self) -> dict[str, Any]:
        """Values of the counters of speculation, by name."""
        metrics = (metric for metric in self._engine.get_metrics() if "spec_decode" in metric.name)
        return {
            metric.name.removeprefix("vllm:spec_decode_"): metric.value if hasattr(metric, "value") else list(metric.values)
            for metric in metrics
        }


def _environment(num_threads: int | None, cache_gib: int) -> dict[str, str]:
    """Variables that vLLM reads: one process, nothing downloaded or reported, and the threads of a CPU run."""
    common = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if num_threads is None:
        return common
    return common | {
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": str(num_threads),
    }
