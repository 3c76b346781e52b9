"""Read torchao's quantisation block: config objects by class name.

One object is for all modules, or one for each named module.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from perfmodel.quantisation.module_names import EMBEDDING_NAMES, regex_matcher
from perfmodel.quantisation.quantisation_block import BlockReader, Rules
from perfmodel.quantisation.weight_schemes import FP8_PER_ROW, PLAIN, SCALE_BITS, Scheme, int8_w8a8_scheme, integer_scheme


def read_torchao(reader: BlockReader) -> Rules:
    """`quant_type`: a config object with its class name, one object per named module, or a text in older files."""
    if isinstance(reader.get("quant_type"), str):
        schemes = {_DEFAULT: _torchao_scheme(reader, reader.text("quant_type"), reader.section("quant_type_kwargs"))}
    else:
        schemes = _torchao_objects(reader.section("quant_type").section("default"))
    scheme = schemes.pop(_DEFAULT, PLAIN)
    embedding = next((own for name, own in schemes.items() if name in EMBEDDING_NAMES), PLAIN)
    tables = reader.flag("include_input_output_embeddings", default=False)
    unquantised, head = reader.unquantised_modules("modules_to_not_convert")
    return Rules(
        label=f"torchao {scheme.label}",
        scheme=scheme,
        unquantised=unquantised,
        overrides=tuple((regex_matcher((name,)), own) for name, own in schemes.items()),
        head=scheme if tables else head or scheme,
        embedding=scheme if tables and embedding is PLAIN else embedding,
    )


_DEFAULT = "_default"
"""Key of all modules that are not named."""


def _torchao_objects(default: BlockReader) -> dict[str, Scheme]:
    """The default scheme and the schemes of named modules; null means 16 bits."""
    if _torchao_name(default.text("_type", "")) not in ("fqnto", "modulefqnto"):
        return {_DEFAULT: _torchao_object(default)}
    data = default.section("_data")
    named = data.section("fqn_to_config" if data.get("fqn_to_config") is not None else "module_fqn_to_config")
    return {str(name): PLAIN if named.block[name] is None else _torchao_object(named.section(name)) for name in named.block}


def _torchao_object(settings: BlockReader) -> Scheme:
    return _torchao_scheme(settings, settings.text("_type", ""), settings.section("_data"), key="_type")


def _torchao_name(name: str) -> str:
    return name.casefold().replace("_", "").removesuffix("config")


def _torchao_scheme(reader: BlockReader, name: str, settings: BlockReader, key: str = "quant_type") -> Scheme:
    read = _TORCHAO.get(_torchao_name(name))
    if read is None:
        reader.reject(key, "Int4WeightOnlyConfig, Int8WeightOnlyConfig, Float8WeightOnlyConfig or a similar class")
    return read(settings)


def _torchao_intx(settings: BlockReader) -> Scheme:
    """Integers of `weight_dtype`, in groups or with a scale per row."""
    kind = settings.get("weight_dtype", default="int8")
    kind = settings.section("weight_dtype").get("_data") if isinstance(kind, dict) else kind
    bits = str(kind).removeprefix("torch.").removeprefix("uint").removeprefix("int")
    if not bits.isdecimal() or not 1 <= int(bits) <= 8:
        settings.reject("weight_dtype", "int1 to int8")
    granularity = settings.section("weight_granularity" if settings.get("weight_granularity") is not None else "granularity")
    group = granularity.section("_data").group("group_size", default=settings.group("group_size"))
    return integer_scheme(int(bits), group, has_zero_points=False, scale_bits=SCALE_BITS)


def _torchao_int4(default_group: int) -> Callable[[BlockReader], Scheme]:
    def read(settings: BlockReader) -> Scheme:
        group = settings.group("group_size", default=default_group)
        return integer_scheme(4, group, has_zero_points=False, scale_bits=2 * SCALE_BITS)

    return read


_TORCHAO: Mapping[str, Callable[[BlockReader], Scheme]] = {
    "int4weightonly": _torchao_int4(128),
    "int8dynamicactivationint4weight": _torchao_int4(32),
    "int8dynamicactivationintxweight": _torchao_intx,
    "intxweightonly": _torchao_intx,
    "int8weightonly": lambda settings: integer_scheme(8, settings.group("group_size"), has_zero_points=False),
    "int8dynamicactivationint8weight": lambda settings: int8_w8a8_scheme(SCALE_BITS),
    "float8weightonly": lambda settings: replace(FP8_PER_ROW, arithmetic=None),
    "float8dynamicactivationfloat8weight": lambda settings: FP8_PER_ROW,
    "float8staticactivationfloat8weight": lambda settings: FP8_PER_ROW,
}
"""By the config's class name in lower case, without `Config`."""
