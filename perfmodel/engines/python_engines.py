"""Engines written in Python: the bundled runtime, transformers and MLX-LM."""

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

_S2D_CLI = Source(document="docs/reference/cli.md of this project", version="this version")
_S2D_DECODER = Source(document="s2d/loading/read_config.py of this project", version="this version")
_HF_CONFIG = Source(document="transformers: generation/configuration_utils.py", version="5.23.0")
_HF_CANDIDATES = Source(document="transformers: generation/candidate_generator.py", version="5.23.0")
_HF_UTILS = Source(document="transformers: generation/utils.py", version="5.23.0")
_HF_MEASURED = Source(document="our own measurement on a CPU", version="transformers 5.23.0, 2026-11-30")
_MLX_GENERATE = Source(document="ml-explore/mlx-lm: mlx_lm/generate.py", version="0.32.2")
_MLX_SERVER = Source(document="ml-explore/mlx-lm: mlx_lm/server.py", version="0.32.2")
_MLX_CONVERT = Source(document="ml-explore/mlx-lm: mlx_lm/convert.py", version="0.32.2")
_MLX_CACHE = Source(document="ml-explore/mlx-lm#1423, #1914", version="2026")
_MLX_ACTIVE = Source(document="ml-explore/mlx-lm#1132", version="2026")

S2D = Engine(
    name="s2d",
    aliases=("own", "bundled"),
    title="the bundled runtime",
    package="this project",
    versions="this version",
    checkpoint="huggingface",
    weights=("fp32", "bf16", "fp16"),
    devices=("cpu", "cuda"),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=None,
    floor=None,
    default_floor=None,
    has_tokens_by_batch=False,
    has_trees=False,
    max_batch=1,
    sampling_rule="ratio",
    mode="graph",
    runs_exits=True,
    round_shape=RoundShape(),
    options=(
        EngineOption(
            role="draft-model",
            name="s2d-run --draft",
            default=None,
            note="folder of a nested or ordinary draft; a plan names it",
            source=_S2D_CLI,
        ),
        EngineOption(
            role="draft-tokens",
            name="s2d-run --plan",
            default=None,
            note="the whole policy stands in the plan: exits, thresholds, length and stop rule",
            source=_S2D_CLI,
        ),
        EngineOption(
            role="dtype",
            name="s2d-profile --dtype",
            default="the checkpoint's",
            note="of both models; a plan runs in the type that was measured",
            source=_S2D_CLI,
        ),
        EngineOption(
            role="acceptance-rule",
            name="s2d-profile --rule",
            default="greedy",
            note="above temperature 0: ratio or shared-noise; a plan runs with the rule that was measured",
            source=_S2D_CLI,
        ),
        EngineOption(role="threads", name="s2d-profile --threads", default="torch's", note="of a CPU run", source=_S2D_CLI),
    ),
    metrics=(
        EngineMetric(
            role="rounds",
            name="rounds",
            where="the report of s2d-run --check",
            note="every round of every prompt, with its passes and seconds",
            source=_S2D_CLI,
        ),
    ),
    constraints=(
        Constraint(
            check="same-tokenizer",
            text="draft and target have the same tokenizer",
            source=_S2D_CLI,
        ),
        Constraint(
            check="architecture",
            text="a Llama, Mistral, Qwen2 or Qwen3 decoder",
            source=_S2D_DECODER,
            allowed=("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
        ),
        Constraint(
            check="dtype",
            text="fp32, bf16 or fp16 weights",
            source=_S2D_DECODER,
        ),
        Constraint(check="single-sequence", text="one sequence at a time", source=_S2D_CLI),
    ),
    run_here="this version, on a CPU",
)

TRANSFORMERS = Engine(
    name="transformers",
    aliases=("hf", "huggingface", "hf-transformers"),
    title="transformers",
    package="PyPI: transformers",
    versions="5.5 to 5.23",
    checkpoint="huggingface",
    weights=("f32", "bf16", "f16"),
    devices=("cpu", "cuda", "metal"),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=20,
    floor=ConfidenceFloorSupport(measure="max-prob", keeps_token=True, is_recommended=True),
    default_floor=0.4,
    has_tokens_by_batch=False,
    has_trees=False,
    max_batch=1,
    sampling_rule="ratio",
    mode="eager",
    options=(
        EngineOption(
            role="draft-model",
            name="generate(assistant_model=)",
            default=None,
            note="a loaded model; its own generation_config holds the options below",
            source=_HF_UTILS,
        ),
        EngineOption(
            role="draft-tokens",
            name="generation_config.num_assistant_tokens",
            default="20",
            note="read from the draft's generation_config alone; the value given to target.generate() has no effect",
            source=_HF_CANDIDATES,
        ),
        EngineOption(
            role="draft-tokens",
            name="generation_config.num_assistant_tokens_schedule",
            default="constant",
            note="`heuristic` adds 2 after a fully accepted block and subtracts 1 otherwise, without an upper limit",
            source=_HF_CONFIG,
        ),
        EngineOption(
            role="confidence-floor",
            name="generation_config.assistant_confidence_threshold",
            default="0.4",
            note="of the draft; 0 turns it off. The token below it is kept. Greedy drafts: its probability is the largest one",
            source=_HF_CONFIG,
        ),
        EngineOption(
            role="dtype", name="from_pretrained(dtype=)", default="the checkpoint's", note="per model", source=_HF_UTILS
        ),
        EngineOption(
            role="threads", name="torch.set_num_threads", default="all cores", note="of the process", source=_HF_UTILS
        ),
    ),
    constraints=(
        Constraint(
            check="same-vocabulary",
            text="equal vocab_size; with another tokenizer, `generate` takes both tokenizers and re-encodes every block",
            source=_HF_UTILS,
        ),
        Constraint(check="single-sequence", text="assisted decoding refuses batches above 1", source=_HF_UTILS),
        Constraint(check="context", text="prompt and new tokens fit the positions of both models", source=_HF_UTILS),
        Constraint(check="dtype", text="a floating-point type of torch", source=_HF_UTILS),
    ),
    known_bad=(
        KnownBad(
            when="num_assistant_tokens or assistant_confidence_threshold is given to target.generate()",
            effect="no effect: 20 tokens at threshold 0.4 are drafted, often one or two",
            instead="write them into the draft's generation_config.json",
            source=_HF_MEASURED,
        ),
        KnownBad(
            when="scikit-learn can be imported and a confidence threshold is set",
            effect="the threshold changes during a run, fitted to a ROC curve of the last rounds, and stays changed",
            instead="set the threshold to 0, or run in an environment without scikit-learn",
            source=_HF_CANDIDATES,
        ),
        KnownBad(
            when="a static cache (cache_implementation='static') with a draft",
            effect="refused",
            instead="leave the cache at its default",
            source=Source(document="huggingface/transformers#32946, #45745", version="5.23"),
        ),
        KnownBad(
            when="assistant_early_exit=N instead of a draft model",
            effect="shares weights only: the exit keeps its own cache and every token is computed twice",
            instead="export the exit as a checkpoint and give it as assistant_model",
            source=_HF_MEASURED,
        ),
    ),
    run_here="5.23.0, on a CPU",
)

MLX_LM = Engine(
    name="mlx-lm",
    aliases=("mlx", "mlx_lm", "mlxlm"),
    title="MLX-LM",
    package="PyPI: mlx-lm (Apple), with mlx-cpu (Linux)",
    versions="0.32",
    checkpoint="mlx",
    weights=("f32", "bf16", "f16", "int8", "int4"),
    devices=("metal", "cpu", "cuda"),
    min_draft_tokens=1,
    max_draft_tokens=None,
    default_draft_tokens=3,
    floor=None,
    default_floor=None,
    has_tokens_by_batch=False,
    has_trees=False,
    max_batch=1,
    sampling_rule="target-sample-match",
    mode="eager",
    options=(
        EngineOption(
            role="draft-model",
            name="--draft-model",
            default=None,
            note="of mlx_lm.generate and mlx_lm.server; the server takes `draft_model` with a request too",
            source=_MLX_GENERATE,
        ),
        EngineOption(
            role="draft-tokens",
            name="--num-draft-tokens",
            default="3",
            note="2 is the default of the Python function; the server takes `num_draft_tokens` with a request",
            source=_MLX_GENERATE,
        ),
        EngineOption(
            role="dtype",
            name="mlx_lm.convert -q --q-bits",
            default="the checkpoint's",
            note="4 or 8 bits, written into a new folder; unquantised Hugging Face folders load as they are",
            source=_MLX_CONVERT,
        ),
    ),
    metrics=(
        EngineMetric(
            role="accepted",
            name="from_draft",
            where="every GenerationResponse of stream_generate()",
            note="true for a drafted token; rounds are the tokens for which it is false",
            source=_MLX_GENERATE,
        ),
        EngineMetric(
            role="tokens",
            name="generation_tps",
            where="GenerationResponse",
            note="tokens per second after the first token",
            source=_MLX_GENERATE,
        ),
    ),
    constraints=(
        Constraint(check="same-tokenizer", text="the draft must use the tokenizer of the target", source=_MLX_GENERATE),
        Constraint(check="single-sequence", text="a draft turns batching off in the server", source=_MLX_SERVER),
    ),
    known_bad=(
        KnownBad(
            when="a target with sliding-window or recurrent layers, whose cache cannot be trimmed",
            effect="refused (`requires a trimmable prompt cache`), or text of rejected tokens stays in the cache",
            instead="use a target with full attention in every layer",
            source=_MLX_CACHE,
        ),
        KnownBad(
            when="a draft as large as the active weights of a mixture-of-experts target",
            effect="35 % slower than plain decoding, without a warning",
            instead="compare the draft with the active weights, not with all weights",
            source=_MLX_ACTIVE,
        ),
    ),
    run_here="0.32.2 with mlx-cpu 0.32.4, on a CPU",
)
