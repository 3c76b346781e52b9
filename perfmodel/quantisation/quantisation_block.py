"""A quantisation block as it stands in a file: typed access to its keys, and the rules that it comes to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from perfmodel.core.errors import UserInputError, quoted
from perfmodel.models.geometry import ModelGeometry
from perfmodel.quantisation.module_names import HEAD_NAMES, Matches, by_glob, by_transformers_rule, layer_names
from perfmodel.quantisation.weight_format import WeightFormat, format_by_module
from perfmodel.quantisation.weight_schemes import PLAIN, Scheme

Block: TypeAlias = Mapping[str, Any]

HEAD = "lm_head"
"""What files call the LM head."""
MAX_BITS = 16
_MAX_GROUP = 1 << 20
WHOLE_ROW = -1
"""A group size that stands for one scale per row."""
_NO_MODULE: Matches = by_glob(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """A quantisation block as it stands in a model's files, not yet read."""

    model_name: str
    where: str
    """`quantization_config` of its config.json, or the file beside it."""
    method: str
    """In lower case; empty where the block names none."""
    block: Block

    @property
    def label(self) -> str:
        """What a message calls it."""
        return self.method or "an unnamed method"

    def refuse(self, problem: str) -> NoReturn:
        """Raise the one sentence about a block that cannot be priced as it is stored."""
        raise UserInputError(
            f"model {quoted(self.model_name)} is stored quantised {problem} ({self.where}): its bytes are not known. Give the "
            "--dtype that comes nearest, such as --dtype int4, to price it in that."
        )


def plain_name(method: str) -> str:
    """A method or algorithm in lower case with dashes."""
    return method.casefold().replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a reader found: which matrices are stored how."""

    label: str
    scheme: Scheme
    """Of every matrix of the layers that no rule names."""
    kept: Matches = _NO_MODULE
    """Modules left in 16 bits."""
    others: tuple[tuple[Matches, Scheme], ...] = ()
    """Modules with a scheme of their own; the first that matches holds."""
    head: Scheme | None = None
    """None: 16 bits, unless the rules above name it."""
    embedding: Scheme = PLAIN
    kv_cache: str | None = None

    def weight_format(self, model: ModelGeometry) -> WeightFormat:
        """The rules applied to every matrix of a model."""
        return format_by_module(
            self.label,
            model,
            lambda layer, module: self._scheme_of(layer_names(layer, module), self.scheme),
            head=self._scheme_of(HEAD_NAMES, PLAIN if self.head is None else self.head),
            embedding=self.embedding,
            kv_cache=self.kv_cache,
        )

    def _scheme_of(self, names: tuple[str, ...], default: Scheme) -> Scheme:
        if self.kept(names):
            return PLAIN
        return next((scheme for matches, scheme in self.others if matches(names)), default)


class BlockReader:
    """Typed access to a block; a value of the wrong kind is refused in one sentence.

    Args:
        quantisation: of the model, for the refusal.
        block: the object to read; the whole block when None.
        path: the keys that lead to it, each with a dot behind it.
    """

    def __init__(self, quantisation: Quantisation, block: Block | None = None, path: str = "") -> None:
        self._quantisation = quantisation
        self._path = path
        self.block = quantisation.block if block is None else block

    def wrong(self, key: str, expected: str) -> NoReturn:
        """Refuse the value of a key."""
        value = quoted(self.block.get(key))
        place = quoted(f"{self._path}{key}")[1:-1]  # keys are from the file: escaped, and cut
        self._quantisation.refuse(f"by {quoted(self._quantisation.label)}, and {place} is {value}, expected {expected}")

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first key that is there."""
        return next((self.block[key] for key in keys if self.block.get(key) is not None), default)

    def below(self, key: str) -> "BlockReader":
        """An object in the block; an empty one where there is none."""
        value = self.block.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.wrong(key, "an object")
        return BlockReader(self._quantisation, value, f"{self._path}{key}.")

    def with_defaults(self, **values: object) -> "BlockReader":
        """The same block, with values for keys that it leaves out."""
        return BlockReader(self._quantisation, {**values, **self.block}, self._path)

    def bits(self, *keys: str, default: float | None = None) -> float:
        """Bits of a value: more than 0, at most 16, perhaps a fraction."""
        value = self.get(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_BITS:
            self.wrong(keys[0], f"a number of bits up to {MAX_BITS}")
        return float(value)

    def whole_bits(self, *keys: str, default: int | None = None) -> int:
        """Bits of a value: a whole number up to 8, as integer kernels have them."""
        value = self.bits(*keys, default=default)
        if value != int(value) or value > 8:
            self.wrong(keys[0], "a whole number of bits from 1 to 8")
        return int(value)

    def group(self, *keys: str, default: int | None = None) -> int | None:
        """Weights that share a scale; None for a whole row."""
        value = self.get(*keys, default=default)
        if value in (None, WHOLE_ROW, 0) and not isinstance(value, bool):
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_GROUP:
            self.wrong(keys[0], "a number of weights, or -1 for a whole row")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default=default)
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text, in lower case."""
        value = self.get(key, default=default)
        if not isinstance(value, str):
            self.wrong(key, "a text")
        return value.casefold()

    def block_shape(self, key: str) -> tuple[int, int]:
        """Rows and columns of a block of a matrix that shares a scale."""
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(type(one) is int and 1 <= one <= _MAX_GROUP for one in value)
        ):
            self.wrong(key, "two counts, such as [128, 128]")
        return value[0], value[1]

    def names(self, *keys: str) -> tuple[str, ...] | None:
        """A list of texts; None where the key is missing."""
        value = self.get(*keys)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.wrong(keys[0], "a list of module names")
        return tuple(value)

    def skipped(self, *keys: str) -> tuple[Matches, Scheme | None]:
        """Modules that transformers leaves alone, and the head's scheme: where none are listed, the head is left alone."""
        names = self.names(*keys)
        return by_transformers_rule(names or ()), PLAIN if names is None else None


Read: TypeAlias = Callable[[BlockReader], Rules]
"""Reads the block of one method."""
