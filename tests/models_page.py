"""docs/models.md: its tables are those of `perfmodel.known_models` and `perfmodel.architectures`."""

import re
from pathlib import Path

from perfmodel.architectures import ARCHITECTURES, UNCOVERED, Architecture
from perfmodel.known_models import ALIASES, KNOWN, KNOWN_DRAFTS, KnownModel

MODELS_PAGE = Path(__file__).parent.parent / "docs" / "models.md"
MODEL_TABLES = re.compile(r"(?<=<!-- model-tables -->\n).*?(?=<!-- /model-tables -->)", re.DOTALL)
FAMILY_TABLES = re.compile(r"(?<=<!-- family-tables -->\n).*?(?=<!-- /family-tables -->)", re.DOTALL)


def models_problems(page: str) -> list[str]:
    if with_model_tables(page) == page and MODEL_TABLES.search(page) and FAMILY_TABLES.search(page):
        return []
    return ["docs/models.md: its tables are not those of perfmodel.known_models: run python tests/check_docs.py --write"]


def with_model_tables(page: str) -> str:
    """The page with its tables made anew between their marks."""
    return FAMILY_TABLES.sub(lambda _: family_tables(), MODEL_TABLES.sub(lambda _: model_tables(), page))


def model_tables() -> str:
    """Every known model: its shapes, then its other names, its source, and who counted its weights."""
    shapes = ["| model | layers | hidden | MLP | heads / kv | head | vocabulary | tied | context | window | weights, M |"]
    shapes += ["|---|" + "---:|" * 6 + "---|" + "---:|" * 3]
    shapes += [shape_row(known) for known in KNOWN]
    sources = ["| model | also found as | from | published, M | counted in |", "|---|---|---|---:|---|"]
    sources += [source_row(known) for known in KNOWN]
    drafts = ["| nested draft | also found as | exits | from |", "|---|---|---|---|"]
    for draft in KNOWN_DRAFTS:
        exits = ", ".join(map(str, draft.exit_layers))
        drafts.append(f"| {draft.model.name} | {aliases_of(draft.model.name)} | {exits} | {draft.model.source} |")
    return "\n" + "\n".join([*shapes, "", *sources, "", *drafts]) + "\n\n"


def shape_row(known: KnownModel) -> str:
    model = known.geometry
    window = f"{model.window_tokens} in {model.windowed_layers} layers" if model.windowed_layers else ""
    cells = [
        model.name,
        *map(str, (model.num_layers, model.hidden_size, model.intermediate_size)),
        f"{model.num_heads} / {model.num_kv_heads}",
        *map(str, (model.head_dim, model.vocab_size)),
        "yes" if model.tied_embeddings else "",
        str(model.max_context_tokens),
        window,
        millions(model.num_params),
    ]
    return f"| {' | '.join(cells)} |"


def source_row(known: KnownModel) -> str:
    name = known.geometry.name
    cells = (name, aliases_of(name), known.geometry.source, millions(known.published_params), known.counted_in)
    return f"| {' | '.join(cells)} |"


def aliases_of(name: str) -> str:
    return ", ".join(alias for alias, known in ALIASES.items() if known == name)


def millions(num_params: int) -> str:
    return f"{num_params / 1e6:,.2f}"


def family_tables() -> str:
    """What is covered and how it differs from a Llama; what is refused and how it is told."""
    covered = ["| architecture | model type | beyond a Llama |", "|---|---|---|"]
    covered += [f"| `{one.class_name}` | `{one.model_type}` | {beyond_a_llama(one)} |" for one in ARCHITECTURES]
    refused = ["| refused | why | told by these keys |", "|---|---|---|"]
    refused += [f"| {one.what} | {one.why} | {', '.join(f'`{key}`' for key in one.keys)} |" for one in UNCOVERED]
    return "\n" + "\n".join([*covered, "", *refused]) + "\n\n"


def beyond_a_llama(one: Architecture) -> str:
    told = {
        "two MLP matrices": not one.gated_mlp,
        f"{one.norms_per_layer} norms a layer": one.norms_per_layer != 2,
        "norms have biases": one.norms_have_biases,
        "queries and keys are normed": one.query_key_norm != "none",
        "biases on Q, K and V": one.biases == "qkv",
        "biases everywhere": one.biases == "all",
        "learned positions": one.has_learned_positions,
        "windows where its config says": one.windows in ("all", "from-layer"),
        "a window in every other layer": one.windows == "every-other",
        "a window in all but every sixth layer": one.windows == "all-but-every",
    }
    return ", ".join(what for what, is_so in told.items() if is_so)
