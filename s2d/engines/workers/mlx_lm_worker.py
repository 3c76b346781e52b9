"""MLX-LM's `stream_generate`, with a draft model.

`decode_s` runs from the first token, which follows the prompt's pass, to the last. It reports which tokens came from the draft,
so that a round is counted at every token that did not.
"""

import time
from typing import Any


class Engine:
    """A model and its draft; the draft length can change from call to call."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import mlx_lm

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
        num_accepted = 0
        start_s = first_s = time.perf_counter()
        for response in stream_generate(self._target, self._tokenizer, request["prompt"], **options):
            if not tokens:
                first_s = time.perf_counter()
            tokens.append(int(response.token))
            num_accepted += bool(response.from_draft)
        end_s = time.perf_counter()
        answer = {"tokens": tokens, "call_s": end_s - start_s, "decode_s": end_s - first_s, "untimed_tokens": 1, "raw": {}}
        if self._draft is not None:
            answer |= {"num_rounds": len(tokens) - num_accepted, "num_accepted": num_accepted}
        return answer
