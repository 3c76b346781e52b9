"""Finds an engine of the table, and its weights, by the words that people use for them."""

from perfmodel.core.errors import UnknownName
from perfmodel.core.near_names import dashed_name
from perfmodel.engines.engine import Engine
from perfmodel.engines.known_engines import ENGINES

LISTED_IN = "s2d-engines list"
_SAME_WEIGHTS = ({"f32", "fp32", "float32"}, {"bf16", "bfloat16"}, {"f16", "fp16", "float16", "half"})
"""Words for one floating-point type."""


def find_engine(name: str) -> Engine:
    """An engine of the table by its name or an alias, in any case.

    Example:
        >>> s2d.find_engine("ort").title
        'ONNX Runtime GenAI'

    Raises:
        UnknownName: lists the nearest names.
    """
    plain = dashed_name(name)
    for engine in ENGINES.values():
        if plain in map(dashed_name, (engine.name, *engine.aliases)):
            return engine
    aliases = {alias: engine.name for engine in ENGINES.values() for alias in engine.aliases}
    raise UnknownName("engine", name, ENGINES, aliases=aliases, listed_in=LISTED_IN)


def engine_weights(engine: Engine, word: str) -> str:
    """The engine's word for a storage of weights: `f16` for `float16`.

    Raises:
        UnknownName: the engine does not load such weights.
    """
    given = word.casefold()
    words = next((group for group in _SAME_WEIGHTS if given in group), {given})
    matches = [known for known in engine.weights if known in words]
    if not matches:
        listed_in = f"{LISTED_IN.replace('list', 'show')} {engine.name}"
        raise UnknownName(f"weights of {engine.title}", word, engine.weights, listed_in=listed_in)
    return matches[0]
