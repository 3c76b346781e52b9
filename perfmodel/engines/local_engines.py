"""Engines of a single machine with their own model files: llama.cpp, OpenVINO GenAI and ONNX Runtime GenAI."""

from perfmodel.engines.engine import (
    ConfidenceFloorSupport,
    Constraint,
    Engine,
    EngineMetric,
    EngineOption,
    KnownBad,
    RoundShape,
    Source,
)

_LLAMA_HELP = Source(document="llama-server --help", version="build 11434")
_LLAMA_SPEC = Source(document="ggml-org/llama.cpp: common/speculative.cpp", version="build 11434")
_LLAMA_SERVER = Source(document="ggml-org/llama.cpp: tools/server/server-context.cpp, server-schema.cpp", version="build 11434")
_LLAMA_METRICS = Source(document="ggml-org/llama.cpp: tools/server/server-task.cpp, server-common.cpp", version="build 11434")
_LLAMA_MEASURED = Source(document="our own measurement on a CPU", version="build 11434, 2026-11-30")
_LLAMA_CONTEXT = Source(document="ikawrakow/ik_llama.cpp#732 (also seen in ggml-org/llama.cpp)", version="2025")
_OV_DOC = Source(
    document="openvinotoolkit/openvino.genai: site/docs/…/speculative-decoding.mdx", version="2026-08, commit 02e83f7"
)
_OV_PACKAGE = Source(document="openvino_genai: GenerationConfig, SchedulerConfig, perf metrics", version="2026.4.1.0")
_OV_SAMPLER = Source(document="openvinotoolkit/openvino.genai: src/cpp/src/sampling/sampler.cpp", version="2026")
_OV_EXPORT = Source(document="optimum-cli export openvino --help", version="optimum-intel 2.2.0")
_OV_MEASURED = Source(document="our own measurement on a CPU", version="openvino-genai 2026.4.1.0, 2026-11-30")
_OV_THRESHOLD = Source(
    document="our own measurement: passes equal those of a reference for 5 thresholds; src/cpp/src/sampling/sampler.cpp",
    version="2026.4.1.0, 2026-12-01",
)
_ORT_DOC = Source(document="microsoft/onnxruntime-genai: docs/SpeculativeDecoding.md", version="2026, commit 0a38f78")
_ORT_BUILDER = Source(document="onnxruntime_genai/models/builder.py", version="0.18.0")
_ORT_PACKAGE = Source(document="onnxruntime_genai: messages of the compiled library", version="0.18.0")
_ORT_MEASURED = Source(document="our own measurement on a CPU", version="onnxruntime-genai 0.18.0, 2026-11-30")

LLAMA_CPP = Engine(
    name="llama.cpp",
    aliases=("llamacpp", "llama-cpp", "llama_cpp", "llama-server", "llama-cli", "xllamacpp", "ggml"),
    title="llama.cpp",
    package="PyPI: xllamacpp (prebuilt server), or a build of ggml-org/llama.cpp",
    versions="builds 11434 to 11549",
    checkpoint="gguf",
    weights=("f32", "bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"),
    devices=("cpu", "cuda", "metal"),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=3,
    floor=ConfidenceFloorSupport(measure="top10-prob", keeps_token=False, is_recommended=True),
    default_floor=None,
    has_tokens_by_batch=False,
    has_trees=False,
    max_batch=None,
    sampling_rule="target-sample-match",
    mode="graph",
    round_shape=RoundShape(rereads_block=True),
    options=(
        EngineOption(
            role="method",
            name="--spec-type",
            default="none",
            note="`draft-simple` for an ordinary draft; without it --spec-draft-model loads a draft that is never used",
            source=_LLAMA_HELP,
        ),
        EngineOption(
            role="draft-model",
            name="--spec-draft-model",
            default=None,
            note="a GGUF file (also -md, --model-draft); options here are those of llama-server, llama-cli and the examples",
            source=_LLAMA_HELP,
        ),
        EngineOption(
            role="draft-tokens",
            name="--spec-draft-n-max",
            default="3",
            note="of the server's life: requests cannot change it",
            source=_LLAMA_HELP,
        ),
        EngineOption(
            role="draft-tokens",
            name="--spec-draft-n-min",
            default="0",
            note="shorter drafts are thrown away after they were computed: leave it at 0",
            source=_LLAMA_SPEC,
        ),
        EngineOption(
            role="confidence-floor",
            name="--spec-draft-p-min",
            default="0.00",
            note=(
                "largest probability of a softmax over the ten most probable tokens, so never below 0.1; the token below it "
                "is dropped, and its pass is paid for"
            ),
            source=_LLAMA_SPEC,
        ),
        EngineOption(
            role="acceptance-rule",
            name="--spec-draft-sampling",
            default="greedy",
            note="above temperature 0: `greedy` accepts what equals the target's sample, `probabilistic` by the ratio test",
            source=_LLAMA_HELP,
        ),
        EngineOption(
            role="dtype",
            name="--cache-type-k",
            default="f16",
            note="KV cache, with --cache-type-v; weights are as in the GGUF file",
            source=_LLAMA_HELP,
        ),
        EngineOption(
            role="dtype",
            name="--spec-draft-type-k",
            default="f16",
            note="KV cache of the draft, with --spec-draft-type-v",
            source=_LLAMA_HELP,
        ),
        EngineOption(
            role="context", name="--ctx-size", default="the model's", note="of all slots together", source=_LLAMA_HELP
        ),
        EngineOption(
            role="batch",
            name="--parallel",
            default="auto",
            note="slots of llama-server; 1 for a plan of one sequence",
            source=_LLAMA_HELP,
        ),
        EngineOption(role="threads", name="--threads", default="all cores", note="of the target", source=_LLAMA_HELP),
        EngineOption(
            role="threads", name="--spec-draft-threads", default="the target's", note="of the draft", source=_LLAMA_HELP
        ),
        EngineOption(
            role="parallelism",
            name="--spec-draft-device",
            default="the target's",
            note="the draft may run on another device, with --spec-draft-ngl layers of it",
            source=_LLAMA_HELP,
        ),
        EngineOption(
            role="synthetic-acceptance",
            name="--spec-synth-rates",
            default=None,
            note="unconditional rates by position, for load tests; or --spec-synth-len, a mean length",
            source=_LLAMA_HELP,
        ),
        EngineOption(role="metrics", name="--metrics", default="off", note="Prometheus text at /metrics", source=_LLAMA_HELP),
    ),
    metrics=(
        EngineMetric(
            role="rounds",
            name="llamacpp:spec_decode_num_drafts_total",
            where="Prometheus",
            note="verifications; the answer's timings do not have them",
            source=_LLAMA_METRICS,
        ),
        EngineMetric(
            role="drafted",
            name="timings.draft_n",
            where="the answer's timings",
            note="absent if nothing was drafted; also llamacpp:spec_decode_num_draft_tokens_total",
            source=_LLAMA_METRICS,
        ),
        EngineMetric(
            role="accepted",
            name="timings.draft_n_accepted",
            where="the answer's timings",
            note="without the bonus token; also llamacpp:spec_decode_num_accepted_tokens_total",
            source=_LLAMA_METRICS,
        ),
        EngineMetric(
            role="accepted-by-position",
            name="llamacpp:spec_decode_num_accepted_tokens_per_pos_total",
            where="Prometheus",
            note="label `position` from 0",
            source=_LLAMA_METRICS,
        ),
        EngineMetric(
            role="seconds",
            name="timings.predicted_ms",
            where="the answer's timings",
            note="decoding with drafting and sampling; the prompt is prompt_ms",
            source=_LLAMA_METRICS,
        ),
        EngineMetric(
            role="tokens",
            name="timings.predicted_n",
            where="the answer's timings",
            note="emitted tokens",
            source=_LLAMA_METRICS,
        ),
    ),
    constraints=(
        Constraint(
            check="same-vocabulary",
            text="vocabularies differ by at most 128 tokens, and from id 5 on equal ids are equal texts",
            source=_LLAMA_SPEC,
            max_difference=128,
        ),
        Constraint(
            check="same-tokenizer",
            text="one vocabulary type and the same begin and end tokens; else the server ends",
            source=_LLAMA_SPEC,
        ),
        Constraint(
            check="context",
            text="the draft's context covers prompt and new tokens, or decoding slows down",
            source=_LLAMA_CONTEXT,
        ),
        Constraint(check="dtype", text="a type of GGUF", source=_LLAMA_HELP),
    ),
    known_bad=(
        KnownBad(
            when="q8_0 weights on a CPU with a draft",
            effect="no kernel for few rows: verifying 4 rows costs 4.2 single rows, speculation runs at 0.33 to 0.45 of plain",
            instead="use bf16 or q4_0 weights, or no draft",
            source=_LLAMA_MEASURED,
            weights=("q8_0",),
        ),
        KnownBad(
            when="--draft-max, --draft-min, --draft or --draft-n",
            effect="removed: the program ends with an error",
            instead="--spec-draft-n-max and --spec-draft-n-min",
            source=_LLAMA_HELP,
        ),
        KnownBad(
            when="--model-draft without --spec-type",
            effect="loads the draft and never drafts (--spec-type is `none`)",
            instead="add --spec-type draft-simple",
            source=_LLAMA_HELP,
        ),
        KnownBad(
            when="the draft's KV cache in q4_0",
            effect="acceptance is nearly halved; q8_0 keeps it",
            instead="leave --spec-draft-type-k and -v at f16, or q8_0",
            source=Source(document="ggml-org/llama.cpp#15039", version="2025"),
        ),
        KnownBad(
            when="speculative.n_max in a request",
            effect="ignored: the field is compiled out",
            instead="start one server for each draft length",
            source=_LLAMA_SERVER,
        ),
        KnownBad(
            when="a confidence floor of our own plan as --spec-draft-p-min",
            effect="another measure: 0.107 drafted exactly as many tokens as no floor",
            instead="plan with a trace that holds top-ten probabilities, or without a floor",
            source=_LLAMA_MEASURED,
        ),
        KnownBad(
            when="as many threads as cores beside any other program",
            effect="threads spin at barriers, and the speed falls to a tenth",
            instead="leave a core free",
            source=_LLAMA_MEASURED,
        ),
        KnownBad(
            when="predicting a plan from llama-bench",
            effect="passes timed alone: errors of 10 to 18 %, and for bf16 the wrong sign",
            instead="s2d-profile engine",
            source=_LLAMA_MEASURED,
        ),
    ),
    run_here="builds 11434 and 11549 (xllamacpp), on a CPU",
)

OPENVINO = Engine(
    name="openvino",
    aliases=("openvino-genai", "openvino_genai", "ov", "ovgenai"),
    title="OpenVINO GenAI",
    package="PyPI: openvino-genai",
    versions="2026.4",
    checkpoint="openvino",
    weights=("f32", "bf16", "f16", "int8", "int4"),
    devices=("cpu",),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=5,
    floor=ConfidenceFloorSupport(measure="max-prob", keeps_token=True, is_recommended=False),
    default_floor=None,
    has_tokens_by_batch=False,
    has_trees=False,
    max_batch=None,
    sampling_rule="unsound",
    mode="graph",
    options=(
        EngineOption(
            role="draft-model",
            name="LLMPipeline(draft_model=openvino_genai.draft_model(folder, device))",
            default=None,
            note="PagedAttention backend only",
            source=_OV_DOC,
        ),
        EngineOption(
            role="draft-tokens",
            name="GenerationConfig.num_assistant_tokens",
            default="5",
            note="per request; excludes assistant_confidence_threshold",
            source=_OV_DOC,
        ),
        EngineOption(
            role="confidence-floor",
            name="GenerationConfig.assistant_confidence_threshold",
            default="0",
            note="works with logprobs=1 only, and then without any limit of the draft length (known bad)",
            source=_OV_DOC,
        ),
        EngineOption(
            role="dtype",
            name="optimum-cli export openvino --weight-format",
            default="fp32 below 1e9 weights, int8 above",
            note="fp32, fp16, int8 or int4, written into the files; both models alike. bf16 is arithmetic on fp16 files",
            source=_OV_EXPORT,
        ),
        EngineOption(
            role="dtype",
            name="INFERENCE_PRECISION_HINT",
            default="bf16 on CPUs that have it",
            note="`f32` computes in fp32: needed for text equal to fp32 plain decoding; KV_CACHE_PRECISION is u8 by default",
            source=_OV_MEASURED,
        ),
        EngineOption(
            role="context",
            name="SchedulerConfig.cache_size",
            default=None,
            note="GB of KV cache, shared by target and draft",
            source=_OV_PACKAGE,
        ),
        EngineOption(role="batch", name="SchedulerConfig.max_num_seqs", default="256", note="", source=_OV_PACKAGE),
        EngineOption(
            role="threads",
            name="INFERENCE_NUM_THREADS",
            default="all cores",
            note="property of each model; the draft takes its own",
            source=_OV_MEASURED,
        ),
    ),
    metrics=(
        EngineMetric(
            role="accepted",
            name="extended_perf_metrics.get_num_accepted_tokens()",
            where="the result",
            note="without the last round",
            source=_OV_MEASURED,
        ),
        EngineMetric(
            role="rounds",
            name="extended_perf_metrics.main_model_metrics.raw_metrics.m_durations",
            where="the result",
            note="its length: passes of the target",
            source=_OV_PACKAGE,
        ),
        EngineMetric(
            role="verify-seconds",
            name="extended_perf_metrics.main_model_metrics.raw_metrics.m_durations",
            where="the result",
            note="microseconds of every pass of the target",
            source=_OV_PACKAGE,
        ),
        EngineMetric(
            role="draft-seconds",
            name="extended_perf_metrics.draft_model_metrics.raw_metrics.m_durations",
            where="the result",
            note="microseconds of every pass of the draft",
            source=_OV_PACKAGE,
        ),
        EngineMetric(
            role="seconds",
            name="perf_metrics.get_tpot()",
            where="the result",
            note="milliseconds a token after the first, as mean and deviation",
            source=_OV_PACKAGE,
        ),
    ),
    constraints=(
        Constraint(check="same-vocabulary", text="the draft has the target's token ids", source=_OV_DOC),
        Constraint(check="same-tokenizer", text="the draft uses the target's tokenizer", source=_OV_DOC),
        Constraint(
            check="greedy-only",
            text="above temperature 0 the acceptance rule does not keep the target's distribution",
            source=_OV_SAMPLER,
        ),
        Constraint(check="context", text="cache_size holds the KV of both models over prompt and new tokens", source=_OV_DOC),
        Constraint(check="dtype", text="a weight format of the converter", source=_OV_EXPORT),
    ),
    known_bad=(
        KnownBad(
            when="assistant_confidence_threshold without logprobs=1",
            effect="one token a round whatever its value: log-probabilities are not computed, and a 0 ends the draft",
            instead="num_assistant_tokens; with logprobs=1 the threshold works, but the draft length has no limit",
            source=_OV_THRESHOLD,
        ),
        KnownBad(
            when="ATTENTION_BACKEND=SDPA with a draft",
            effect="refused: requires the PagedAttention backend",
            instead="leave the backend at PA",
            source=_OV_MEASURED,
        ),
        KnownBad(
            when="temperature above 0 with a draft",
            effect="the output does not have the target's distribution",
            instead="decode greedily, or without a draft",
            source=_OV_SAMPLER,
        ),
        KnownBad(
            when="branching_factor and tree_depth with an ordinary draft",
            effect="trees are for EAGLE-3 drafts",
            instead="num_assistant_tokens",
            source=_OV_DOC,
        ),
        KnownBad(
            when="optimum-intel installed with its dependencies",
            effect="torchvision pulls a torch with CUDA, 4.9 GB",
            instead="s2d-engines install openvino, or --no-deps",
            source=_OV_MEASURED,
        ),
    ),
    run_here="2026.4.1.0, on a CPU",
)

ONNXRUNTIME = Engine(
    name="onnxruntime",
    aliases=("ort", "onnxruntime-genai", "onnxruntime_genai", "ort-genai", "onnx", "oga"),
    title="ONNX Runtime GenAI",
    package="PyPI: onnxruntime-genai",
    versions="0.18",
    checkpoint="onnx",
    weights=("f32", "f16", "bf16", "int8", "int4"),
    devices=("cpu", "cuda"),
    min_draft_tokens=1,
    max_draft_tokens=16,
    default_draft_tokens=4,
    floor=None,
    default_floor=None,
    has_tokens_by_batch=False,
    has_trees=False,
    max_batch=1,
    sampling_rule="ratio",
    mode="eager",
    round_shape=RoundShape(catches_up_apart=True),
    options=(
        EngineOption(
            role="draft-model",
            name="genai_config.json: model.draft",
            default=None,
            note="the decoder block of the draft's genai_config.json; its filename relative to this one's folder",
            source=_ORT_DOC,
        ),
        EngineOption(
            role="draft-tokens",
            name="genai_config.json: speculative.max_draft_tokens",
            default="4",
            note="1 to 16; also GeneratorParams.set_speculative_options(max_draft_tokens=)",
            source=_ORT_DOC,
        ),
        EngineOption(
            role="draft-tokens",
            name="genai_config.json: speculative.min_adaptive_k",
            default="0",
            note="above 0: adaptive length, which starts at this value and grows to 16; max_draft_tokens is then ignored",
            source=_ORT_DOC,
        ),
        EngineOption(
            role="dtype",
            name="python -m onnxruntime_genai.models.builder -p",
            default=None,
            note="fp32, fp16, bf16, int8 or int4, written into the files; files in bf16 do not load on a CPU",
            source=_ORT_BUILDER,
        ),
        EngineOption(
            role="context",
            name="search.max_length",
            default="the model's",
            note="prompt and output of a generator",
            source=_ORT_DOC,
        ),
        EngineOption(
            role="threads",
            name="genai_config.json: session_options.intra_op_num_threads",
            default="all cores",
            note="of each decoder block; the sessions of target and draft have a pool each",
            source=_ORT_MEASURED,
        ),
    ),
    metrics=(
        EngineMetric(
            role="rounds", name="rounds", where="get_speculative_stats()", note="started rounds of a generator", source=_ORT_DOC
        ),
        EngineMetric(
            role="drafted",
            name="draft_tokens_proposed",
            where="get_speculative_stats()",
            note="tokens beyond the limit are counted",
            source=_ORT_DOC,
        ),
        EngineMetric(
            role="accepted",
            name="draft_tokens_accepted",
            where="get_speculative_stats()",
            note="acceptance_rate divides it by draft_tokens_evaluated, not by proposed tokens",
            source=_ORT_DOC,
        ),
        EngineMetric(
            role="draft-seconds",
            name="total_draft_ms",
            where="get_speculative_stats()",
            note="milliseconds, with the pass after a fully accepted block",
            source=_ORT_DOC,
        ),
        EngineMetric(
            role="verify-seconds",
            name="total_target_ms",
            where="get_speculative_stats()",
            note="milliseconds of verification and re-anchoring",
            source=_ORT_DOC,
        ),
        EngineMetric(
            role="estimate",
            name="estimated_speedup",
            where="get_speculative_stats()",
            note="a formula with one acceptance rate; observed_speedup is the same formula with emitted tokens",
            source=_ORT_DOC,
        ),
    ),
    constraints=(
        Constraint(check="same-vocabulary", text="equal static vocabulary of the logits", source=_ORT_DOC),
        Constraint(check="same-tokenizer", text="the same tokenizer files and special tokens", source=_ORT_DOC),
        Constraint(
            check="draft-parallelism",
            text="identical execution providers and devices: a draft on another device is refused",
            source=_ORT_DOC,
        ),
        Constraint(check="single-sequence", text="batch 1, no beams", source=_ORT_DOC),
        Constraint(check="context", text="prompt and new tokens fit the positions of both models", source=_ORT_PACKAGE),
        Constraint(check="dtype", text="a precision of the builder", source=_ORT_BUILDER),
        Constraint(
            check="architecture",
            text="a plain text decoder that the builder knows",
            source=_ORT_BUILDER,
            allowed=(
                "LlamaForCausalLM",
                "MistralForCausalLM",
                "Qwen2ForCausalLM",
                "Qwen3ForCausalLM",
                "PhiForCausalLM",
                "Phi3ForCausalLM",
                "GemmaForCausalLM",
                "GraniteForCausalLM",
                "NemotronForCausalLM",
                "OlmoForCausalLM",
                "SmolLM3ForCausalLM",
                "InternLM2ForCausalLM",
                "Ernie4_5ForCausalLM",
            ),
        ),
    ),
    known_bad=(
        KnownBad(
            when="an absolute path in genai_config.json",
            effect="refused",
            instead="paths relative to the folder of genai_config.json",
            source=_ORT_MEASURED,
        ),
        KnownBad(
            when="as many threads as cores for both models",
            effect="two pools of threads spin: at two threads speculation fell from 1,917 to 1,115 tokens/s",
            instead="fewer threads, or session.intra_op.allow_spinning = 0",
            source=_ORT_MEASURED,
        ),
        KnownBad(
            when="min_adaptive_k on short outputs",
            effect="starts at its lower limit and learns slowly: 1,476 tokens/s where a fixed 8 gave 1,917 (96 tokens)",
            instead="a fixed max_draft_tokens from the plan",
            source=_ORT_MEASURED,
        ),
        KnownBad(
            when="a model built with logits of the last token only",
            effect="verified token by token, without an error and without any gain",
            instead="build both models with full logits (the builder's default)",
            source=_ORT_DOC,
        ),
        KnownBad(
            when="no_repeat_ngram_size with a draft",
            effect="refused",
            instead="leave it at 0",
            source=_ORT_DOC,
        ),
        KnownBad(
            when="`observed_speedup` is taken for a measurement",
            effect="it is the formula of estimated_speedup with emitted tokens",
            instead="time a run with the target alone",
            source=_ORT_DOC,
        ),
    ),
    run_here="0.18.0 with ONNX Runtime 1.32.0, on a CPU",
)
