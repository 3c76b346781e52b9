"""The bundled runtime, driven as the other engines are. It is the one worker that imports this project.

`decode_s` covers all rounds. The prompt's pass emits no token: the first round does (`untimed_tokens` 0). `draft_s` and
`verify_s` are sums of its laps; what is left of `decode_s` is host time between them.
"""

import time
from dataclasses import replace
from typing import Any

import torch

from perfmodel.core.provenance import TOOL_VERSION
from perfmodel.passes.passes import PASS_MODEL, PREFILL_KINDS
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Generation, Session, Settings
from s2d.loading.load_model import LoadedModel, load_model, with_target_vocab
from s2d.model.torch_device import use_device

_DTYPES = {"f32": "fp32", "f16": "fp16"}


class Engine:
    """A target and its draft, or a target alone; the draft length can change from call to call."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.version = TOOL_VERSION
        num_threads = settings["num_threads"]
        self._device = "cuda" if num_threads is None else "cpu"
        self.options = {"mode": "graph" if self._device == "cuda" else "eager"}
        use_device(self._device)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        target, draft = self._load(settings["target"], settings["weights"]), None
        if settings["draft"] is not None:
            draft = self._load(settings["draft"], settings["weights"])
            draft = with_target_vocab(replace(draft, exit_layers=(draft.geometry.num_layers,)), target.decoder.vocab_size)
        self._session = Session(target, draft, settings["context_tokens"])

    def _load(self, folder: str, weights: str) -> LoadedModel:
        dtype = _DTYPES.get(weights, weights)
        return load_model(folder, dtype, self._device, mode=self.options["mode"])  # type: ignore[arg-type]

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode one prompt greedily, to exactly the requested number of tokens."""
        draft = self._session.draft
        policy = Policy(exits=draft.exit_layers, tokens=request["draft_tokens"]) if draft else None
        settings = Settings(policy=policy, sampling=GREEDY, max_new_tokens=request["max_new_tokens"], eos_token_id=None)
        start_s = time.perf_counter()
        found = self._session.generate(request["prompt"], settings)
        call_s = time.perf_counter() - start_s
        answer = {"tokens": list(found.tokens), "call_s": call_s, "decode_s": found.decode_s, "untimed_tokens": 0, "raw": {}}
        return answer | _speculation(found) if draft else answer


def _speculation(found: Generation) -> dict[str, Any]:
    laps = [lap for lap in zip(found.samples.kind, found.samples.seconds, strict=True) if lap[0] not in PREFILL_KINDS]
    return {
        "num_rounds": found.rounds.num_rounds,
        "num_drafted": found.rounds.num_drafted,
        "num_accepted": round(found.rounds.num_accepted),  # a whole number unless it is expected under the ratio test
        "draft_s": sum(seconds for kind, seconds in laps if PASS_MODEL[kind] == "draft"),
        "verify_s": sum(seconds for kind, seconds in laps if kind == "verify"),
    }
