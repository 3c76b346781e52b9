"""transformers' `generate`, with an assistant as the draft.

`decode_s` runs from the first emission to the last, as a streamer sees them. The first emission is the first token without a
draft (`untimed_tokens` 1), and all tokens of the first round with one: that round reads the prompt. It is not in `num_rounds`.
transformers reports no acceptance: a round accepts what it emits, less one.
"""

import time
from typing import Any, ClassVar

_DTYPES = {"f32": "float32", "fp32": "float32", "bf16": "bfloat16", "f16": "float16", "fp16": "float16"}


class Engine:
    """A model and its assistant; the draft length can change from call to call."""

    options: ClassVar[dict[str, Any]] = {"num_assistant_tokens_schedule": "constant"}

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        import transformers

        self._torch, self._transformers = torch, transformers
        self.version = transformers.__version__
        self._device = "cuda" if settings["num_threads"] is None else "cpu"
        if settings["num_threads"] is not None:
            torch.set_num_threads(settings["num_threads"])
        self._target = self._load(settings["target"], settings["weights"])
        self._draft = None if settings["draft"] is None else self._load(settings["draft"], settings["weights"])

    def _load(self, folder: str, weights: str) -> Any:
        dtype = getattr(self._torch, _DTYPES[weights])
        model = self._transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
        return model.eval().to(self._device)

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode one prompt greedily, to exactly the requested number of tokens."""
        count = request["max_new_tokens"]
        streamer = _Emissions()
        options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count, "eos_token_id": None}
        options |= {"pad_token_id": 0, "streamer": streamer}
        if self._draft is not None:
            self._draft.generation_config = self._transformers.GenerationConfig(
                eos_token_id=None,
                pad_token_id=0,
                num_assistant_tokens=request["draft_tokens"],
                assistant_confidence_threshold=request["floor"] or 0.0,
                **self.options,
            )
            options["assistant_model"] = self._draft
        ids = self._torch.tensor([request["prompt"]], device=self._device)
        start_s = time.perf_counter()
        with self._torch.inference_mode():
            written = self._target.generate(ids, attention_mask=self._torch.ones_like(ids), **options)
        call_s = time.perf_counter() - start_s
        counts, times_s = streamer.counts[1:], streamer.times_s[1:]  # the prompt comes first
        answer = {
            "tokens": written[0, ids.shape[1] :].tolist(),
            "call_s": call_s,
            "decode_s": times_s[-1] - times_s[0],
            "untimed_tokens": counts[0],
            "raw": {"emissions": counts},
        }
        if self._draft is not None:
            answer |= {"num_rounds": len(counts) - 1, "num_accepted": sum(counts[1:]) - (len(counts) - 1)}
        return answer


class _Emissions:
    """A streamer that counts tokens and the time at which they came."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.times_s: list[float] = []

    def put(self, value: Any) -> None:
        self.times_s.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None:
        """Nothing to do at the end."""
