"""Typed access to the quantisation block in a file, and the storage rules read from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from perfmodel.core.errors import UserInputError, quoted
from perfmodel.models.geometry import ModelGeometry
from perfmodel.quantisation.module_names import HEAD_NAMES, ModuleMatcher, glob_matcher, layer_names, transformers_matcher
from perfmodel.quantisation.weight_format import WeightFormat, format_by_module
from perfmodel.quantisation.weight_schemes import PLAIN, Scheme

Block: TypeAlias = Mapping[str, Any]

HEAD = "lm_head"
"""Name of the LM head in files."""
MAX_BITS = 16
_MAX_GROUP = 1 << 20
WHOLE_ROW = -1
"""Group size that means one scale per row."""
_NO_MODULE: ModuleMatcher = glob_matcher(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """A quantisation block in a model's files, before it is interpreted."""

    model_name: str
    location: str
    """`quantization_config` of its config.json, or the separate file."""
    method: str
    """In lower case; empty if the block names no method."""
    block: Block

    @property
    def label(self) -> str:
        """The method's name in messages."""
        return self.method or "an unnamed method"

    def refuse(self, problem: str) -> NoReturn:
        """Raise the error for a block that cannot be priced."""
        raise UserInputError(
            f"model {quoted(self.model_name)} is stored quantised {problem} ({self.location}): its size in bytes is not "
            "known. Give the nearest --dtype, such as --dtype int4, to price it in that dtype."
        )


def plain_name(method: str) -> str:
    """A method or algorithm in lower case with dashes."""
    return method.casefold().replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How each matrix of a model is stored."""

    label: str
    scheme: Scheme
    """Scheme of the layers' matrices that no other rule matches."""
    unquantised: ModuleMatcher = _NO_MODULE
    """Modules stored in 16 bits."""
    overrides: tuple[tuple[ModuleMatcher, Scheme], ...] = ()
    """Modules with their own scheme; the first match applies."""
    head: Scheme | None = None
    """Scheme of the LM head; None means 16 bits unless `overrides` match it."""
    embedding: Scheme = PLAIN
    kv_cache: str | None = None

    def weight_format(self, model: ModelGeometry) -> WeightFormat:
        """The format of a model, from the rules for each of its matrices."""
        return format_by_module(
            self.label,
            model,
            lambda layer, module: self._matrix_scheme(layer_names(layer, module), self.scheme),
            head=self._matrix_scheme(HEAD_NAMES, PLAIN if self.head is None else self.head),
            embedding=self.embedding,
            kv_cache=self.kv_cache,
        )

    def _matrix_scheme(self, names: tuple[str, ...], default: Scheme) -> Scheme:
        if self.unquantised(names):
            return PLAIN
        return next((scheme for matches, scheme in self.overrides if matches(names)), default)


class BlockReader:
    """Typed access to a block; a value of the wrong type raises an error of one sentence.

    Args:
        quantisation: the model's quantisation, for error messages.
        block: the object to read; the whole block when None.
        path: the keys that lead to the object, each followed by a dot.
    """

    def __init__(self, quantisation: Quantisation, block: Block | None = None, path: str = "") -> None:
        self._quantisation = quantisation
        self._path = path
        self.block = quantisation.block if block is None else block

    def reject(self, key: str, expected: str) -> NoReturn:
        """Raise an error about the value of a key."""
        value = quoted(self.block.get(key))
        full_key = quoted(f"{self._path}{key}")[1:-1]  # keys come from the file: escape and shorten them
        self._quantisation.refuse(f"by {quoted(self._quantisation.label)}, and {full_key} is {value}, expected {expected}")

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first key that is present."""
        return next((self.block[key] for key in keys if self.block.get(key) is not None), default)

    def section(self, key: str) -> "BlockReader":
        """A reader of an object in the block; of an empty object if the key is missing."""
        value = self.block.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.reject(key, "an object")
        return BlockReader(self._quantisation, value, f"{self._path}{key}.")

    def with_defaults(self, **values: object) -> "BlockReader":
        """A reader of the same block with defaults for missing keys."""
        return BlockReader(self._quantisation, {**values, **self.block}, self._path)

    def bits(self, *keys: str, default: float | None = None) -> float:
        """Bits per value: more than 0 and at most 16, possibly fractional."""
        value = self.get(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_BITS:
            self.reject(keys[0], f"a number of bits up to {MAX_BITS}")
        return float(value)

    def integer_bits(self, *keys: str, default: int | None = None) -> int:
        """Bits per value: a whole number from 1 to 8, as integer kernels require."""
        value = self.bits(*keys, default=default)
        if value != int(value) or value > 8:
            self.reject(keys[0], "a whole number of bits from 1 to 8")
        return int(value)

    def group(self, *keys: str, default: int | None = None) -> int | None:
        """Number of weights that share a scale; None for a whole row."""
        value = self.get(*keys, default=default)
        if value in (None, WHOLE_ROW, 0) and not isinstance(value, bool):
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_GROUP:
            self.reject(keys[0], "a number of weights, or -1 for a whole row")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default=default)
        if not isinstance(value, bool):
            self.reject(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text, in lower case."""
        value = self.get(key, default=default)
        if not isinstance(value, str):
            self.reject(key, "a text")
        return value.casefold()

    def block_shape(self, key: str) -> tuple[int, int]:
        """Rows and columns of the blocks that share a scale."""
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) != 2
            or not all(type(count) is int and 1 <= count <= _MAX_GROUP for count in value)
        ):
            self.reject(key, "two counts, such as [128, 128]")
        return value[0], value[1]

    def names(self, *keys: str) -> tuple[str, ...] | None:
        """A list of texts; None if the key is missing."""
        value = self.get(*keys)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self.reject(keys[0], "a list of module names")
        return tuple(value)

    def unquantised_modules(self, *keys: str) -> tuple[ModuleMatcher, Scheme | None]:
        """Modules that transformers does not quantise, and the head's scheme: 16 bits if the block lists no modules."""
        names = self.names(*keys)
        return transformers_matcher(names or ()), PLAIN if names is None else None


RuleReader: TypeAlias = Callable[[BlockReader], Rules]
"""Converts the block of one method to rules."""
