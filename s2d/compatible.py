"""What a target and its draft must share to run together, and the longest text that both can hold."""

from perfmodel.errors import BadPolicy, Mismatch, UserInputError
from s2d.load import LoadedModel


def context_tokens(target: LoadedModel, draft: LoadedModel | None) -> int:
    """The longest text that both can hold, and see whole."""
    models = (target, draft) if draft else (target,)
    return min(model.geometry.fully_seen_tokens for model in models)


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
    if draft.decoder.vocab_size != target.decoder.vocab_size:
        raise Mismatch(
            f"draft {draft.geometry.name}",
            made_for=f"a vocabulary of {draft.decoder.vocab_size} tokens",
            given=f"{target.geometry.name} with {target.decoder.vocab_size}",
            fix="Use a draft that shares the target's tokenizer; `load_pair` evens out their padding",
        )
    if not draft.exit_layers:
        raise BadPolicy(f"draft {draft.geometry.name} without exits", "exit layers in its sidecar s2d.json")
