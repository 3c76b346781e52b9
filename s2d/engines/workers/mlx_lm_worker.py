"""MLX-LM's `stream_generate`, with a draft model.

`decode_s` runs from the first token to the last. It reports which tokens came from the draft, which shows the rounds. With a
draft, the tokens of the first round come together and are not timed: that round follows the prompt's pass without a pause.
"""

import time
from typing import Any, ClassVar


class Engine:
    """A model and its draft; the draft length can change from call to call."""

    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, settings: dict[str, Any]) -> None:
        import mlx.core
        import mlx_lm

        if settings["num_threads"] is not None:
            mlx.core.set_default_device(mlx.core.cpu)
        elif mlx.core.default_device() == mlx.core.cpu:
            raise RuntimeError("this build of MLX runs on a CPU, and a GPU was requested")
        self.version = mlx_lm.__version__
        self._target, self._tokenizer = mlx_lm.load(settings["target"])
        self._draft = None if settings["draft"] is None else mlx_lm.load(settings["draft"])[0]
        self._tokenizer.eos_token_ids = set()

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode one prompt greedily, to exactly the requested number of tokens."""
        from mlx_lm import stream_generate

        options: dict[str, Any] = {"max_tokens": request["max_new_tokens"]}
        if self._draft is not None:
            options |= {"draft_model": self._draft, "num_draft_tokens": request["draft_tokens"]}
        tokens: list[int] = []
        is_drafted: list[bool] = []
        start_s = first_s = time.perf_counter()
        for response in stream_generate(self._target, self._tokenizer, request["prompt"], **options):
            if not tokens:
                first_s = time.perf_counter()
            tokens.append(int(response.token))
            is_drafted.append(bool(response.from_draft))
        end_s = time.perf_counter()
        answer = {"tokens": tokens, "call_s": end_s - start_s, "decode_s": end_s - first_s, "untimed_tokens": 1, "raw": {}}
        return answer if self._draft is None else answer | _speculation(is_drafted)


def _speculation(is_drafted: list[bool]) -> dict[str, Any]:
    """Counts of the rounds after the first, whose tokens come together. The target's token or the limit ends a round."""
    ends = [index for index, drafted in enumerate(is_drafted) if not drafted or index == len(is_drafted) - 1]
    num_first = ends[0] + 1
    return {
        "untimed_tokens": num_first,
        "num_rounds": len(ends) - 1,
        "num_accepted": sum(is_drafted[num_first:]),
        "raw": {"from_draft": [int(drafted) for drafted in is_drafted]},
    }
