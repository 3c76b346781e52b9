"""What a target and its draft must share to run together, and the longest text that both can hold."""

from perfmodel.errors import BadPolicy, Mismatch
from s2d.load import LoadedModel


def context_tokens(target: LoadedModel, draft: LoadedModel | None) -> int:
    """The longest text that both can hold."""
    models = (target, draft) if draft else (target,)
    return min(model.geometry.max_context_tokens for model in models)


def check_pair(target: LoadedModel, draft: LoadedModel | None) -> None:
    """Refuse a draft that cannot speak for a target; whether tokens mean the same is `check_same_vocabulary`'s to say.

    Raises:
        Mismatch: vocabularies of different sizes, or other devices.
        BadPolicy: a draft without exits.
    """
    if draft is None:
        return
    if draft.geometry.vocab_size != target.geometry.vocab_size:
        raise Mismatch(
            f"draft {draft.geometry.name}",
            made_for=f"a vocabulary of {draft.geometry.vocab_size} tokens",
            given=f"{target.geometry.name} with {target.geometry.vocab_size}",
            fix="Use a draft that shares the target's tokenizer",
        )
    if not draft.exit_layers:
        raise BadPolicy(f"draft {draft.geometry.name} without exits", "exit layers in its sidecar s2d.json")
