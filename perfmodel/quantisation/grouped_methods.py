"""Read compressed-tensors, NVIDIA ModelOpt and AMD Quark: a scheme per group."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from perfmodel.models.dtypes import Dtype
from perfmodel.quantisation.module_names import glob_matcher, regex_matcher
from perfmodel.quantisation.quantisation_block import HEAD, MAX_BITS, BlockReader, RuleReader, Rules, plain_name
from perfmodel.quantisation.weight_schemes import (
    FLOAT32_BITS,
    FP8_PER_MATRIX,
    FP8_PER_ROW,
    MICROSCALING_GROUP,
    MXFP4,
    MXFP8,
    NVFP4,
    PLAIN,
    SCALE_BITS,
    Scheme,
    fp8_blocks,
    fp8_scheme,
    int8_w8a8_scheme,
    integer_scheme,
)

_ALL_LINEAR = "Linear"
"""Class name that means every matrix in the layers, and the LM head unless it is ignored."""


def _compressed_tensors(reader: BlockReader) -> Rules:
    """Groups of modules (`Linear`, names, or `re:` with a regex), each with its own scheme."""
    groups = reader.section("config_groups")
    if not groups.block:
        reader.reject("config_groups", "at least one group of modules")
    schemes = [
        (group.names("targets") or (_ALL_LINEAR,), _compressed_scheme(group)) for group in map(groups.section, groups.block)
    ]
    default = next((scheme for targets, scheme in schemes if _ALL_LINEAR in targets), PLAIN)
    return Rules(
        label=_joined("compressed-tensors", [scheme for _, scheme in schemes]),
        scheme=default,
        unquantised=regex_matcher(reader.names("ignore") or ()),
        overrides=tuple((regex_matcher(targets), scheme) for targets, scheme in schemes),
        head=default,
        kv_cache=_cache_text(reader.get("kv_cache_scheme")),
    )


def _cache_text(scheme: object) -> str | None:
    """The dtype of the KV cache in a file, given as text or as bits and type."""
    if isinstance(scheme, str):
        return _known_cache(scheme.casefold())
    if isinstance(scheme, Mapping):
        kind = "fp" if scheme.get("type") == "float" else "int"
        return _known_cache(f"{kind}{scheme.get('num_bits')}")
    return None


def _known_cache(name: str) -> str | None:
    return name if name in ("fp8", "int8", "fp4", "nvfp4", "int4", "mxfp8") else None


def _compressed_scheme(group: BlockReader) -> Scheme:
    """The scheme of one group; products use the stored type if the activations also have 8 bits."""
    weights, activations = group.section("weights"), group.section("input_activations")
    bits, kind = weights.integer_bits("num_bits"), weights.text("type", "int")
    activation_bits = activations.bits("num_bits", default=MAX_BITS) if activations.block else MAX_BITS
    if kind == "int":
        return _compressed_integers(weights, bits, has_int8_activations=bits == activation_bits == 8)
    if kind != "float" or bits not in (4, 8):
        weights.reject("type", "int, or a float of 4 or 8 bits")
    if bits == 4:
        return MXFP4 if weights.group("group_size") == MICROSCALING_GROUP else NVFP4
    layout, group_weights, scale_bits = _compressed_scales(weights)
    return fp8_scheme(layout, group=group_weights, scale_bits=scale_bits, computes_in_fp8=activation_bits == 8)


def _compressed_integers(weights: BlockReader, bits: int, *, has_int8_activations: bool) -> Scheme:
    _, group_weights, scale_bits = _compressed_scales(weights)
    if has_int8_activations:
        return int8_w8a8_scheme(scale_bits)
    has_zero_points = not weights.flag("symmetric", default=True)
    return integer_scheme(bits, group_weights, has_zero_points=has_zero_points, scale_bits=scale_bits)


def _compressed_scales(weights: BlockReader) -> tuple[str, int | None, float]:
    """The layout of the scales in words, the weights that share one (None: a row), and the bits of one scale."""
    strategy = weights.text("strategy", "group" if weights.get("group_size") else "tensor")
    if strategy == "tensor":
        return "a scale per matrix", 1, 0.0
    if strategy == "block":
        rows, columns = weights.block_shape("block_structure")
        return f"blocks of {rows} x {columns}", rows * columns, SCALE_BITS
    if strategy not in ("channel", "token", "group", "tensor_group"):
        weights.reject("strategy", "tensor, channel, group or block")
    group = weights.group("group_size", default=None if strategy in ("channel", "token") else 128)
    return "a scale per row" if group is None else f"groups of {group}", group, SCALE_BITS


_MODELOPT_SCHEMES: Mapping[str, Scheme] = {
    "fp8": FP8_PER_MATRIX,
    "fp8-pb-wo": fp8_blocks(128, 128),
    "fp8-pb-real": fp8_blocks(128, 128),
    "fp8-per-channel-per-token": FP8_PER_ROW,
    "int8-sq": int8_w8a8_scheme(FLOAT32_BITS),
    "nvfp4": NVFP4,
    "nvfp4-awq": NVFP4,
    "w4a16-nvfp4": NVFP4,
    "w4a16-mxfp4": MXFP4,
    "w4a8-mxfp4-fp8": MXFP4,
    "mxfp4": MXFP4,
    "mxfp8": MXFP8,
}
"""Schemes by `quant_algo`."""
_MODELOPT_GROUPED: Mapping[str, tuple[int, Dtype | None]] = {
    "w4a16-awq": (4, None),
    "w4a16": (4, None),
    "w4a8-awq": (4, "fp8"),
    "w8a16": (8, None),
}
"""Integers by `quant_algo`: bits and product type (None: 16 bits). W8A16 without a group size has a scale per row."""
_MODELOPT_ALGORITHMS = (*_MODELOPT_SCHEMES, *_MODELOPT_GROUPED)


def _modelopt(reader: BlockReader) -> Rules:
    """`quant_algo` for all modules or per module (`quantized_layers`), or the groups of compressed-tensors.

    In a separate file the block is under `quantization`. If `quant_algo` is null, only the KV cache is quantised.
    """
    settings = reader.section("quantization") if reader.get("quantization") is not None else reader
    is_plain = "quant_algo" in settings.block and settings.get("quant_algo") is None
    algorithm = "" if settings.get("quant_algo") is None else plain_name(settings.text("quant_algo"))
    if settings.get("config_groups") is not None and algorithm not in _MODELOPT_ALGORITHMS:
        return _modelopt_groups(settings)
    modules_by_scheme = _modelopt_mixed(settings) if algorithm == "mixed-precision" else {}
    scheme = PLAIN if is_plain or modules_by_scheme else _modelopt_scheme(settings)
    return Rules(
        label=_joined("ModelOpt", tuple(modules_by_scheme) or (scheme,)),
        scheme=scheme,
        unquantised=glob_matcher(_excluded(settings)),
        overrides=tuple((glob_matcher(names), own) for own, names in modules_by_scheme.items()),
        head=scheme,
        kv_cache=_cache_text(settings.get("kv_cache_quant_algo", "kv_cache_scheme")),
    )


def _excluded(settings: BlockReader) -> tuple[str, ...]:
    """Modules stored in 16 bits: the listed ones, or the LM head if there is no list."""
    names = settings.names("exclude_modules", "ignore", "modules_to_not_convert")
    return (HEAD,) if names is None else names


def _joined(method: str, schemes: Sequence[Scheme]) -> str:
    return f"{method} {' and '.join(dict.fromkeys(scheme.label for scheme in schemes))}"


def _modelopt_groups(settings: BlockReader) -> Rules:
    """The groups of compressed-tensors, with globs in every list."""
    rules = _compressed_tensors(settings)
    groups = settings.section("config_groups")
    targets = [groups.section(name).names("targets") or (_ALL_LINEAR,) for name in groups.block]
    schemes = [scheme for _, scheme in rules.overrides]
    return replace(
        rules,
        label=_joined("ModelOpt", schemes),
        unquantised=glob_matcher(_excluded(settings)),
        overrides=tuple((glob_matcher(names), scheme) for names, scheme in zip(targets, schemes, strict=True)),
    )


def _modelopt_mixed(settings: BlockReader) -> dict[Scheme, list[str]]:
    """The modules in `quantized_layers`, by scheme; all others have 16 bits."""
    layers = settings.section("quantized_layers")
    if not layers.block:
        settings.reject("quantized_layers", "the modules and their quant_algo")
    names: dict[Scheme, list[str]] = {}
    for name in layers.block:
        names.setdefault(_modelopt_scheme(layers.section(name)), []).append(name)
    return names


def _modelopt_scheme(settings: BlockReader) -> Scheme:
    algorithm = plain_name(settings.text("quant_algo"))
    if algorithm in _MODELOPT_GROUPED:
        bits, arithmetic = _MODELOPT_GROUPED[algorithm]
        group = settings.group("group_size", default=128) if bits == 4 else settings.group("group_size")
        scheme = integer_scheme(bits, group, has_zero_points=settings.flag("has_zero_point", default=False))
        return replace(scheme, arithmetic=arithmetic)
    if algorithm not in _MODELOPT_SCHEMES:
        settings.reject("quant_algo", "FP8, NVFP4, W4A16_AWQ, W4A8_AWQ, INT8_SQ, MXFP8 or a similar algorithm")
    return _MODELOPT_SCHEMES[algorithm]


_QUARK_KINDS: Mapping[str, Scheme] = {
    "fp8-e4m3": FP8_PER_MATRIX,
    "fp8-e5m2": FP8_PER_MATRIX,
    "fp4": MXFP4,
    "mxfp4": MXFP4,
}
_QUARK_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int3": 3, "int2": 2}


def _quark(reader: BlockReader) -> Rules:
    """`global_quant_config`, and settings for modules matched by glob."""
    scheme = _quark_scheme(reader.section("global_quant_config"))
    own = reader.section("layer_quant_config")
    overrides = tuple((glob_matcher((str(name),)), _quark_scheme(own.section(str(name)))) for name in own.block)
    excluded = glob_matcher(reader.names("exclude") or ())
    return Rules(label=f"Quark {scheme.label}", scheme=scheme, unquantised=excluded, overrides=overrides, head=scheme)


def _quark_scheme(settings: BlockReader) -> Scheme:
    weights = settings.section("weight")
    kind = plain_name(weights.text("dtype", ""))
    by_row = weights.text("qscheme", "per_tensor") == "per_channel"
    if kind in _QUARK_KINDS:
        return FP8_PER_ROW if kind.startswith("fp8") and by_row else _QUARK_KINDS[kind]
    if kind not in _QUARK_BITS:
        weights.reject("dtype", "fp8_e4m3, fp4, int4, uint4 or int8")
    bits, inputs = _QUARK_BITS[kind], settings.section("input_tensors")
    if bits == 8 and inputs.block and inputs.text("dtype", "") == "int8":
        return int8_w8a8_scheme(FLOAT32_BITS)
    return integer_scheme(bits, weights.group("group_size"), has_zero_points=not weights.flag("symmetric", default=True))


GROUPED_METHODS: Mapping[str, RuleReader] = {"compressed-tensors": _compressed_tensors, "modelopt": _modelopt, "quark": _quark}
