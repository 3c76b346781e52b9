"""What a target and its draft must share to run together, and the longest text that both can hold."""

from perfmodel.core.errors import BadPolicy, Mismatch, UserInputError
from perfmodel.core.units import Tokens
from s2d.loading.load_model import LoadedModel


def context_tokens(target: LoadedModel, draft: LoadedModel | None) -> int:
    """The longest text that both can hold, and see whole."""
    models = (target, draft) if draft else (target,)
    return min(model.geometry.full_attention_tokens for model in models)


def check_pair(target: LoadedModel, draft: LoadedModel | None) -> None:
    """Refuse a draft that cannot speak for a target; whether tokens mean the same is `check_same_vocabulary`'s to say.

    Raises:
        UserInputError: a target that cannot say every token.
        Mismatch: vocabularies of different sizes, or other devices.
        BadPolicy: a draft without exits.
    """
    if target.geometry.has_reduced_head:
        raise UserInputError(
            f"target {target.geometry.name} has {target.geometry.head_label}: a target says every token. Give the whole model."
        )
    if draft is None:
        return
    check_vocab_sizes(target.geometry.name, target.decoder.vocab_size, draft.geometry.name, draft.decoder.vocab_size)
    if not draft.exit_layers:
        raise BadPolicy(f"draft {draft.geometry.name} without exits", "its exit layers: `load_pair` finds them")


def check_vocab_sizes(target: str, target_tokens: Tokens, draft: str, draft_tokens: Tokens) -> None:
    """Refuse a draft whose logits are of more or fewer tokens than its target's.

    Raises:
        Mismatch: says how many each has.
    """
    if draft_tokens != target_tokens:
        raise Mismatch(
            f"draft {draft}",
            made_for=f"a vocabulary of {draft_tokens} tokens",
            given=f"{target} with {target_tokens}",
            fix="Use a draft that shares the target's tokenizer; `load_pair` evens out their padding",
        )
