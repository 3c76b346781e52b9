"""The tables of docs/reference/models.md: known models and covered families."""

from docs.generate.marks import with_part
from perfmodel.models.architectures import UNSUPPORTED_FEATURES
from perfmodel.models.known_architectures import ARCHITECTURES, WRAPPERS, Architecture
from perfmodel.models.known_models import ALIASES, KNOWN_DRAFTS, KNOWN_ROWS, KnownModel
from perfmodel.models.model_roles import DRAFT_HEADS


def with_model_tables(page: str) -> str:
    """The page with its two parts made anew."""
    return with_part(with_part(page, "model-tables", model_tables()), "family-tables", family_tables())


def model_tables() -> str:
    """Every known model: its shapes, then its other names, its source, and who counted its weights."""
    shapes = ["| model | layers | hidden | MLP | heads / kv | head | vocabulary | tied | context | window | weights, M |"]
    shapes += ["|---|" + "---:|" * 6 + "---|" + "---:|" * 3]
    shapes += [shape_row(known) for known in KNOWN_ROWS]
    sources = ["| model | also found as | from | published, M | counted in |", "|---|---|---|---:|---|"]
    sources += [source_row(known) for known in KNOWN_ROWS]
    drafts = ["| nested draft | also found as | exits | from |", "|---|---|---|---|"]
    for draft in KNOWN_DRAFTS:
        exits = ", ".join(map(str, draft.exit_layers))
        drafts.append(f"| {draft.model.name} | {aliases_of(draft.model.name)} | {exits} | {draft.model.source} |")
    return "\n".join([*shapes, "", *sources, "", *drafts])


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
    cells = (name, aliases_of(name), known.geometry.source, millions(known.published_params), known.count_source)
    return f"| {' | '.join(cells)} |"


def aliases_of(name: str) -> str:
    return ", ".join(alias for alias, known in ALIASES.items() if known == name)


def millions(num_params: int) -> str:
    return f"{num_params / 1e6:,.2f}"


def family_tables() -> str:
    """Covered architectures and their differences from a Llama; refused features and how they are recognised."""
    covered = ["| architecture | model type | beyond a Llama | text decoder of |", "|---|---|---|---|"]
    covered += [
        f"| `{one.class_name}` | `{one.model_type}` | {beyond_a_llama(one)} | {', '.join(wrappers_of(one))} |"
        for one in ARCHITECTURES
    ]
    refused = ["| refused | why | recognised by these keys, or by name |", "|---|---|---|"]
    refused += [f"| {one.name} | {one.reason} | {', '.join(f'`{key}`' for key in one.keys)} |" for one in UNSUPPORTED_FEATURES]
    for head in DRAFT_HEADS:
        marks = ", ".join(f"`{key}`" for key in head.keys)
        refused.append(f"| {head.name} | it reads its target's hidden states | {marks} |")
    return "\n".join([*covered, "", *refused])


def wrappers_of(one: Architecture) -> list[str]:
    """The model types and classes that also see or hear, whose text decoder is of a family."""
    wrappers = [wrapper.model_type for wrapper in WRAPPERS if wrapper.text_model_type == one.model_type]
    return [f"`{name}`" for name in dict.fromkeys([*wrappers, *one.other_names])]


def beyond_a_llama(one: Architecture) -> str:
    marks = {
        "two MLP matrices": not one.gated_mlp,
        "one norm a layer": one.norms_per_layer == 1,
        f"{one.norms_per_layer} norms a layer": one.norms_per_layer > 2,
        "norms have biases": one.norms_have_biases,
        "queries and keys are normed": one.query_key_norm != "none" and one.query_key_norm_key is None,
        "biases on Q, K and V": one.qkv_bias is True and one.attn_out_bias is False,
        "biases everywhere": one.qkv_bias is True and one.mlp_bias is True,
        "learned positions": one.learned_position_offset is not None,
        "windows where its config says": one.windows in ("all", "from-layer"),
        "a window in every other layer": one.windows == "every-other",
        f"a window in all but every {one.defaults.get('sliding_window_pattern')}th layer": one.windows.startswith("all-but"),
    }
    return ", ".join(what for what, is_so in marks.items() if is_so)
