"""Models that are no target, and no draft that can be priced or run: those that write no text, and heads of other models.

Both look like decoders in most keys of their config.json. They are recognised by their class, by keys that only they have, by
files beside the config, and last by their own name, which is all that tells Qwen3-Embedding from Qwen3.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from perfmodel.core.errors import quoted
from perfmodel.models.architectures import Config, architecture_names
from perfmodel.models.known_architectures import ARCHITECTURES


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A kind of draft that reads its target's hidden states."""

    what: str
    name_parts: tuple[str, ...]
    """Found in its class or type, in lower case and without separators."""
    keys: tuple[str, ...] = ()
    """Present, with a value that is neither empty, zero nor false."""


HEADS: tuple[Head, ...] = (
    Head(what="a DSpark head", name_parts=("dspark",)),
    Head(what="a DFlash head", name_parts=("dflash",), keys=("dflash_config", "target_layer_ids")),
    Head(what="a P-EAGLE head", name_parts=("peagle",)),
    Head(what="an EAGLE-3 head", name_parts=("eagle3",), keys=("eagle_config", "draft_vocab_size")),
    Head(what="an EAGLE head", name_parts=("eagle",)),
    Head(what="a HASS head", name_parts=("hass",)),
    Head(what="a set of Medusa heads", name_parts=("medusa",), keys=("medusa_num_heads", "medusa_num_layers")),
    Head(what="a set of Hydra heads", name_parts=("hydrafor",), keys=("hydra_num_heads", "hydra_num_layers")),
    Head(what="a set of parallel heads", name_parts=("parallelhead",)),
    Head(what="an MLP speculator", name_parts=("mlpspeculator",), keys=("speculator_width",)),
    Head(what="an MTP head", name_parts=("mtp", "assistant")),
    Head(what="a speculators head", name_parts=("speculator",), keys=("speculators_model_type", "speculators_config")),
    Head(what="a draft head", name_parts=("draftmodel",), keys=("num_target_layers", "target_model_type")),
)

_NAMED_HEADS = {"eagle": "an EAGLE head", "eagle2": "an EAGLE head", "eagle3": "an EAGLE-3 head", "hass": "a HASS head"}
"""By a word of the model's own name: the files of the first EAGLE heads read like those of Llamas of one layer."""
_NAMED_SILENT = {
    "embedding": "an embedding model",
    "embed": "an embedding model",
    "reward": "a reward model",
    "reranker": "a reranker",
}
"""By a word of the model's own name."""
_SILENT_ENDINGS = {
    "ForSequenceClassification": "a reward model or classifier",
    "ForTokenClassification": "a reward model or classifier",
    "ForRewardModel": "a reward model",
    "RewardModel": "a reward model",
    "ForQuestionAnswering": "a classifier",
    "ForMultipleChoice": "a classifier",
    "ForMaskedLM": "an encoder",
    "ForRetrieval": "an embedding model",
}
_ENCODER = re.compile(r"bert|electra|mpnet", re.IGNORECASE)
_CAUSAL = re.compile(r"CausalLM|LMHead|Decoder", re.IGNORECASE)
_BOTH_WAYS = {"is_causal": False, "use_bidirectional_attention": True}
_SENTENCE_FILES = ("modules.json", "1_Pooling", "config_sentence_transformers.json")


def other_role(config: Config, name: str, beside: Collection[str] = ()) -> str | None:
    """What a model is that can be neither target nor draft, as the rest of a sentence about it; None where it can be.

    Args:
        config: the object in its config.json.
        name: the model's own name.
        beside: the names of the files in its folder.
    """
    head = _head(config, name)
    if head is not None:
        return f"{head}, which reads its target's hidden states: it is neither a target nor a draft that this version can price"
    silent = _silent_by_file(config, beside) or _by_own_name(name, _NAMED_SILENT)
    return silent and f"{silent}: it does not generate text, so it is neither a target nor a draft"


def _head(config: Config, name: str) -> str | None:
    """`an EAGLE-3 head (draft_vocab_size = 32000)`."""
    written = [*architecture_names(config), str(config.get("speculators_model_type") or "")]
    for head in HEADS:
        by_class = next((quoted(one) for one in written if any(part in _plain(one) for part in head.name_parts)), None)
        by_key = next((f"{key} = {quoted(config[key])}" for key in head.keys if config.get(key)), None)
        if by_class or by_key:
            return f"{head.what} ({by_class or by_key})"
    return _by_own_name(name, _NAMED_HEADS) if config.get("num_hidden_layers") == 1 else None


def _silent_by_file(config: Config, beside: Collection[str]) -> str | None:
    """`a reward model (LlamaForRewardModel)`: by the class, by a key, or by files of sentence-transformers."""
    for name in architecture_names(config):
        for ending, what in _SILENT_ENDINGS.items():
            if name.endswith(ending):
                return f"{what} ({quoted(name)})"
        if name in _HEADLESS or (_ENCODER.search(name) and not _CAUSAL.search(name)):
            return f"a model without a head for the next token ({quoted(name)})"
    for key, value in _BOTH_WAYS.items():
        if config.get(key) is value:
            return f"an embedding model ({key} = {quoted(value)}: it attends in both directions)"
    mark = next((file for file in _SENTENCE_FILES if file in beside), None)
    return mark and f"an embedding model ({mark} of sentence-transformers is beside its config)"


def _by_own_name(name: str, kinds: dict[str, str]) -> str | None:
    words = re.split(r"[^a-z0-9]+", name.casefold())
    what = next((kinds[word] for word in words if word in kinds), None)
    return what and f"{what} by its name"


def _headless_classes() -> frozenset[str]:
    """`LlamaModel`, `Gemma3TextModel` …: the classes of known families that end before the LM head."""
    known = {one.class_name for one in ARCHITECTURES}
    stems = {re.sub(r"(ForCausalLM|ForConditionalGeneration|LMHeadModel)$", "", name) for name in known}
    return frozenset({f"{stem}{ending}" for stem in stems for ending in ("Model", "TextModel")} - known)


_HEADLESS = _headless_classes()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
