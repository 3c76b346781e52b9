"""Commands of llama.cpp and MLX-LM."""

from perfmodel.core.units import Tokens
from s2d.exporting.serving import (
    TARGET_VARIABLE,
    EngineFiles,
    Serving,
    TextFile,
    address_words,
    command_lines,
    plain_file,
    quote_words,
    rounded_rates,
    script,
    serving_file,
)

LLAMA_CPP_PORT, MLX_PORT = 8080, 8080
MIN_CONTEXT: Tokens = 4096
CONTEXT_FACTOR = 2
"""The context of llama.cpp covers this many of the plan's texts, because it takes memory for all of it when it starts."""


def llama_cpp_files(serving: Serving) -> EngineFiles:
    """`llama-server` with a draft, plainly, with synthetic acceptance, and `llama-cli`."""
    policy = serving.policy
    draft = [
        *quote_words("--spec-type", "draft-simple", "--spec-draft-model", serving.draft),
        *quote_words("--spec-draft-n-max", policy.draft_tokens, "--spec-draft-n-min", 0),
        *quote_words("--spec-draft-p-min", f"{policy.floor or 0:g}"),
    ]
    synthetic = [*draft, *quote_words("--spec-synth-rates", ",".join(f"{rate:g}" for rate in rounded_rates(serving)))]
    files = (
        serving_file(_llama_server(serving, "Serve the plan with llama.cpp.", draft), LLAMA_CPP_PORT),
        plain_file(_llama_server(serving, "Serve the target alone with llama.cpp, to compare.", [])),
        TextFile(
            name="serve-synthetic.sh",
            text=_llama_server(serving, "Accept drafted tokens at the planned rates, for load tests.", synthetic),
            purpose="load tests on any prompts: accepts at the planned rates, so its text is wrong",
            is_command=True,
        ),
        TextFile(
            name="generate.sh",
            text=_llama_cli(serving, draft),
            purpose='continues a text: ./generate.sh -p "Once upon a time"',
            is_command=True,
        ),
    )
    notes = (
        "`--spec-draft-model` alone does not draft: `--spec-type draft-simple` is needed as well.",
        "llama-server takes no draft length with a request: one server for each length.",
        f"The scripts give one sequence and a context of {_llama_context(serving)} tokens; the models allow "
        f"{serving.context_tokens}. llama.cpp takes memory for all of it when it starts: --ctx-size and --parallel change it.",
        "LLAMA_SERVER and LLAMA_CLI name other programs than those on the PATH.",
    )
    return EngineFiles(files=files, notes=notes, default_port=LLAMA_CPP_PORT)


def _llama_server(serving: Serving, purpose: str, draft: list[str]) -> str:
    words = [
        f'"${{LLAMA_SERVER:-llama-server}}" --model {TARGET_VARIABLE}',
        *address_words(),
        *_llama_limits(serving),
        *quote_words("--parallel", 1, "--metrics"),
        *draft,
    ]
    return script(serving, purpose, [f"exec {command_lines(words)}"], port=LLAMA_CPP_PORT)


def _llama_cli(serving: Serving, draft: list[str]) -> str:
    words = [f'"${{LLAMA_CLI:-llama-cli}}" --model {TARGET_VARIABLE}', *_llama_limits(serving), *draft]
    return script(serving, "Continue a text with the plan: generate.sh -p TEXT.", [f"exec {command_lines(words)}"])


def _llama_limits(serving: Serving) -> list[str]:
    """Context and threads."""
    threads = [] if serving.num_threads is None else ["--threads", serving.num_threads]
    return quote_words("--ctx-size", _llama_context(serving), *threads)


def _llama_context(serving: Serving) -> Tokens:
    return min(serving.context_tokens, max(MIN_CONTEXT, CONTEXT_FACTOR * serving.text_tokens))


def mlx_lm_files(serving: Serving) -> EngineFiles:
    """`mlx_lm.server` and `mlx_lm.generate` with a draft."""
    draft = quote_words("--draft-model", serving.draft, "--num-draft-tokens", serving.policy.draft_tokens)
    files = (
        serving_file(_mlx_server(serving, "Serve the plan with MLX-LM.", draft), MLX_PORT),
        plain_file(_mlx_server(serving, "Serve the target alone with MLX-LM, to compare.", [])),
        TextFile(
            name="generate.sh",
            text=script(
                serving,
                "Continue a text with the plan: generate.sh --prompt TEXT.",
                [f"exec {command_lines([f'mlx_lm.generate --model {TARGET_VARIABLE}', *draft])}"],
            ),
            purpose='continues a text: ./generate.sh --prompt "Once upon a time"',
            is_command=True,
        ),
    )
    notes = ("With a draft, mlx_lm.server decodes one request at a time.",)
    return EngineFiles(files=files, notes=notes, default_port=MLX_PORT)


def _mlx_server(serving: Serving, purpose: str, draft: list[str]) -> str:
    words = [f"mlx_lm.server --model {TARGET_VARIABLE}", *address_words(), *draft]
    return script(serving, purpose, [f"exec {command_lines(words)}"], port=MLX_PORT)
