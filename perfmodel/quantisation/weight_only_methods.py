"""Read quantisation methods with one scheme for all modules but listed ones.

The methods are from transformers, exllama and MLX. Defaults are from transformers' `quantization_config` classes.
"""

from collections.abc import Mapping
from dataclasses import replace

from perfmodel.quantisation.module_names import EMBEDDING_NAMES, ModuleMatcher, regex_matcher, transformers_matcher
from perfmodel.quantisation.quantisation_block import HEAD, MAX_BITS, WHOLE_ROW, BlockReader, RuleReader, Rules
from perfmodel.quantisation.torchao_method import read_torchao
from perfmodel.quantisation.weight_schemes import (
    FLOAT32_BITS,
    FP8_PER_MATRIX,
    FP8_PER_ROW,
    FP8_SCALE_BITS,
    MXFP4,
    MXFP8,
    NVFP4,
    PLAIN,
    SCALE_BITS,
    Scheme,
    fp8_blocks,
    fp8_scheme,
    integer_scheme,
    mean_bits_scheme,
)


def _weight_only(label: str, reader: BlockReader, scheme: Scheme, *, skip: tuple[str, ...], keeps_head: bool) -> Rules:
    """A transformers method that quantises all linear layers except listed ones, and the head unless listed or kept."""
    unquantised, head = reader.unquantised_modules(*skip)
    return Rules(
        label=f"{label} {scheme.label}".strip(),
        scheme=scheme,
        unquantised=unquantised,
        head=PLAIN if keeps_head else head or scheme,
    )


_SKIP = ("modules_to_not_convert",)


def _awq(reader: BlockReader) -> Rules:
    bits, group = reader.integer_bits("bits", "w_bit", default=4), reader.group("group_size", "q_group_size", default=128)
    scheme = integer_scheme(bits, group, has_zero_points=reader.flag("zero_point", default=True))
    return _weight_only("AWQ", reader, scheme, skip=_SKIP, keeps_head=True)


def _gptq(reader: BlockReader) -> Rules:
    """Zero points are always stored; `dynamic` overrides the settings of modules."""
    scheme = integer_scheme(reader.integer_bits("bits"), reader.group("group_size", default=128), has_zero_points=True)
    head = scheme if reader.flag("lm_head", default=False) else PLAIN
    order = ", in the order of activations" if reader.flag("desc_act", default=False) else ""
    unquantised, overrides = _gptq_dynamic(reader)
    return Rules(label=f"GPTQ {scheme.label}{order}", scheme=scheme, head=head, unquantised=unquantised, overrides=overrides)


def _gptq_dynamic(reader: BlockReader) -> tuple[ModuleMatcher, tuple[tuple[ModuleMatcher, Scheme], ...]]:
    """GPTQModel's `dynamic`: settings by regex; the prefix `-:` marks modules that are not quantised."""
    dynamic = reader.section("dynamic")
    patterns = [str(pattern) for pattern in dynamic.block]
    unquantised = [f"re:.*(?:{pattern[2:]})" for pattern in patterns if pattern.startswith("-:")]
    overrides = []
    for pattern in patterns:
        if not pattern.startswith("-:"):
            own = dynamic.section(pattern)
            bits = own.integer_bits("bits", default=reader.integer_bits("bits"))
            group = own.group("group_size", default=reader.group("group_size", default=128) or WHOLE_ROW)
            own_scheme = integer_scheme(bits, group, has_zero_points=True)
            overrides.append((regex_matcher((f"re:.*(?:{pattern.removeprefix('+:')})",)), own_scheme))
    return regex_matcher(unquantised), tuple(overrides)


def _auto_round(reader: BlockReader) -> Rules:
    scheme = integer_scheme(
        reader.integer_bits("bits", default=4), reader.group("group_size", default=128), has_zero_points=True
    )
    own = reader.section("extra_config")
    overrides = []
    for name in own.block:
        setting = own.section(str(name))
        bits = setting.bits("bits", default=scheme.value_bits)
        own_scheme = PLAIN
        if bits < MAX_BITS:
            own_scheme = integer_scheme(setting.integer_bits("bits"), scheme.group_weights, has_zero_points=True)
        overrides.append((regex_matcher((str(name),)), own_scheme))
    return Rules(label=f"AutoRound {scheme.label}", scheme=scheme, overrides=tuple(overrides))


def _bitsandbytes(reader: BlockReader) -> Rules:
    """Blocks of 64 with an fp32 maximum; double quantisation stores it in 8 bits plus an fp32 number per 256 blocks."""
    if reader.flag("load_in_4bit", default=False):
        kind = reader.text("bnb_4bit_quant_type", "fp4")
        if kind not in ("fp4", "nf4"):
            reader.reject("bnb_4bit_quant_type", "fp4 or nf4")
        double = reader.flag("bnb_4bit_use_double_quant", default=False)
        scale_bits = 8 + FLOAT32_BITS / 256 if double else FLOAT32_BITS
        scheme = Scheme(
            label=f"{kind}, groups of 64",
            value_bits=4,
            group_weights=64,
            scale_bits=scale_bits,
            kernels="int4",
            arithmetic=None,
        )
    elif reader.flag("load_in_8bit", default=False):
        scheme = integer_scheme(8, None, has_zero_points=False, scale_bits=FLOAT32_BITS)
    else:
        reader.reject("load_in_4bit", "true, or load_in_8bit true")
    return _weight_only("bitsandbytes", reader, scheme, skip=("llm_int8_skip_modules",), keeps_head=False)


def _finegrained_fp8(reader: BlockReader) -> Rules:
    """Blocks with an fp32 scale (8 bits if `scale_fmt` is ue8m0); without blocks, a scale per matrix."""
    scheme = FP8_PER_MATRIX
    if reader.get("weight_block_size") is not None:
        scale_bits = FP8_SCALE_BITS if reader.text("scale_fmt", "float") == "ue8m0" else FLOAT32_BITS
        scheme = fp8_blocks(*reader.block_shape("weight_block_size"), scale_bits)
    skip = ("modules_to_not_convert", "ignored_layers")
    return _weight_only("", reader, scheme, skip=skip, keeps_head=True)


def _fbgemm_fp8(reader: BlockReader) -> Rules:
    return _weight_only("FBGEMM", reader, FP8_PER_ROW, skip=_SKIP, keeps_head=True)


def _eetq(reader: BlockReader) -> Rules:
    if reader.text("weights", "int8") != "int8":
        reader.reject("weights", "int8")
    return _weight_only("EETQ", reader, integer_scheme(8, None, has_zero_points=False), skip=_SKIP, keeps_head=False)


_QUANTO_BITS = {"int8": 8, "int4": 4, "int2": 2}


def _quanto(reader: BlockReader) -> Rules:
    """8 bits: a scale per row. Fewer bits: groups of 128 with a scale and a shift."""
    kind = reader.text("weights", "int8")
    if kind == "float8":
        scheme = fp8_scheme(
            "a scale per row", group=None, scale_bits=SCALE_BITS, computes_in_fp8=reader.get("activations") is not None
        )
    elif kind in _QUANTO_BITS:
        bits = _QUANTO_BITS[kind]
        scheme = integer_scheme(
            bits, None if bits == 8 else 128, has_zero_points=False, scale_bits=SCALE_BITS * (1 if bits == 8 else 2)
        )
    else:
        reader.reject("weights", "float8, int8, int4 or int2")
    return _weight_only("Quanto", reader, scheme, skip=_SKIP, keeps_head=False)


def _hqq(reader: BlockReader) -> Rules:
    """A 16-bit scale and a 16-bit zero point per group; hqq's own files nest the settings under weight_quant_params."""
    settings = reader.section("quant_config").section("weight_quant_params")
    settings = settings if settings.block else reader
    bits, group = settings.integer_bits("nbits", "bits", default=4), settings.group("group_size", default=64)
    scheme = integer_scheme(bits, group, has_zero_points=False, scale_bits=2 * SCALE_BITS)
    unquantised = transformers_matcher(reader.names("skip_modules") or (HEAD,))
    return Rules(label=f"HQQ {scheme.label}", scheme=scheme, unquantised=unquantised, head=scheme)


def _sinq(reader: BlockReader) -> Rules:
    bits, group = reader.integer_bits("nbits", default=4), reader.group("group_size", default=64)
    return _weight_only(
        "SINQ",
        reader,
        integer_scheme(bits, group, has_zero_points=False, scale_bits=2 * SCALE_BITS),
        skip=_SKIP,
        keeps_head=False,
    )


def _higgs(reader: BlockReader) -> Rules:
    scheme = integer_scheme(
        reader.integer_bits("bits", default=4), reader.group("group_size", default=256), has_zero_points=False
    )
    return _weight_only("HIGGS", reader, scheme, skip=_SKIP, keeps_head=True)


_BLOCK_FLOATS: Mapping[str, Scheme] = {"mxfp4": MXFP4, "mxfp8": MXFP8, "nvfp4": NVFP4}


def _block_floats(scheme: Scheme) -> RuleReader:
    def read(reader: BlockReader) -> Rules:
        unquantised, _ = reader.unquantised_modules(*_SKIP)
        return Rules(label=scheme.label, scheme=scheme, unquantised=unquantised)

    return read


def _float4(label: str, *keys: str) -> RuleReader:
    """A method that names nvfp4 or mxfp4 under the first key that is present; nvfp4 by default."""

    def read(reader: BlockReader) -> Rules:
        key = next((key for key in keys if reader.get(key) is not None), keys[-1])
        kind = reader.text(key, "nvfp4")
        if kind not in ("nvfp4", "mxfp4"):
            reader.reject(key, "nvfp4 or mxfp4")
        return replace(_block_floats(_BLOCK_FLOATS[kind])(reader), label=f"{label} {_BLOCK_FLOATS[kind].label}")

    return read


def _gemma(reader: BlockReader) -> Rules:
    """A scale per row; regexes override the bits of modules."""
    scheme = integer_scheme(reader.integer_bits("num_bits", default=4), None, has_zero_points=False)
    own = reader.section("module_quant_configs")
    overrides = tuple(
        (
            regex_matcher((f"re:.*(?:{name})",)),
            integer_scheme(own.section(str(name)).integer_bits("num_bits", default=4), None, has_zero_points=False),
        )
        for name in own.block
    )
    unquantised, head = reader.unquantised_modules(*_SKIP)
    embedding = scheme if reader.flag("quantize_embeddings", default=False) else PLAIN
    return Rules(
        label=f"Gemma {scheme.label}",
        scheme=scheme,
        unquantised=unquantised,
        overrides=overrides,
        head=head or scheme,
        embedding=embedding,
    )


def _exllama(name: str, default_head_bits: float) -> RuleReader:
    def read(reader: BlockReader) -> Rules:
        scheme = mean_bits_scheme(name, reader.bits("bits"))
        head = mean_bits_scheme(name, reader.bits("head_bits", default=default_head_bits))
        return Rules(label=name, scheme=scheme, head=head)

    return read


def _mlx(reader: BlockReader) -> Rules:
    """A 16-bit scale and bias per group for every matrix, including embedding and LM head, unless overridden by name."""
    scheme = _mlx_scheme(reader)
    overrides = []
    for name, own in reader.block.items():
        if isinstance(own, Mapping):
            overrides.append((_names_exactly(name), _mlx_scheme(reader.section(name), scheme)))
        elif own is False:
            overrides.append((_names_exactly(name), PLAIN))
    embedding = next((own for matches, own in overrides if matches(EMBEDDING_NAMES)), scheme)
    return Rules(label=f"MLX {scheme.label}", scheme=scheme, overrides=tuple(overrides), head=scheme, embedding=embedding)


def _names_exactly(name: str) -> ModuleMatcher:
    return lambda names: name in names


def _mlx_scheme(reader: BlockReader, default: Scheme | None = None) -> Scheme:
    mode = reader.text("mode", "affine")
    if mode in _BLOCK_FLOATS:
        return _BLOCK_FLOATS[mode]
    bits = reader.integer_bits("bits", default=None if default is None else int(default.value_bits))
    group = reader.group("group_size", default=64 if default is None else default.group_weights)
    return integer_scheme(bits, group, has_zero_points=False, scale_bits=2 * SCALE_BITS)


def _metal(reader: BlockReader) -> Rules:
    scheme = _mlx_scheme(reader.with_defaults(bits=4, group_size=64))
    return _weight_only("Metal", reader, scheme, skip=_SKIP, keeps_head=False)


def _aqlm(reader: BlockReader) -> Rules:
    """Codes per group of weights. The codebooks and the scale per row are small and not counted."""
    books, bits = reader.group("num_codebooks", default=1) or 1, reader.bits("nbits_per_codebook", default=16)
    weights = (reader.group("in_group_size", default=8) or 1) * (reader.group("out_group_size", default=1) or 1)
    mean_bits = books * bits / weights
    if mean_bits > MAX_BITS:
        reader.reject("nbits_per_codebook", f"codes of at most {MAX_BITS} bits per weight")
    scheme = mean_bits_scheme("AQLM", mean_bits)
    names = reader.names("linear_weights_not_to_quantize") or ()
    unquantised = transformers_matcher(tuple(name.removesuffix(".weight") for name in names))
    return Rules(label=scheme.label, scheme=scheme, unquantised=unquantised)


def _spqr(reader: BlockReader) -> Rules:
    """Values, and two-level scales and zero points for groups of beta1 by beta2; outliers are not counted."""
    bits = reader.integer_bits("bits", default=3)
    first, second = reader.group("beta1", default=16) or 16, reader.group("beta2", default=16) or 16
    scheme = mean_bits_scheme("SpQR", bits + 2 * bits / first + 4 * SCALE_BITS / (first * second))
    return _weight_only("", reader, scheme, skip=_SKIP, keeps_head=True)


def _vptq(reader: BlockReader) -> Rules:
    """Bits of the codes of a vector and its residual, divided by the vector's length."""
    layers = reader.section("config_for_layers")
    name = next(iter(layers.block), None)
    settings = reader.section("shared_layer_config") if name is None else layers.section(str(name))
    scheme = mean_bits_scheme("VPTQ", _vptq_bits(settings))
    return _weight_only("", reader, scheme, skip=_SKIP, keeps_head=True)


def _vptq_bits(reader: BlockReader) -> float:
    bits = 0.0
    lengths = reader.get("vector_lens")
    if not isinstance(lengths, list) or not lengths or type(lengths[-1]) is not int or lengths[-1] < 1:
        reader.reject("vector_lens", "the lengths of its vectors")
    for key in ("num_centroids", "num_res_centroids"):
        counts = reader.get(key, default=[-1])
        if not isinstance(counts, list) or not counts or type(counts[-1]) is not int or counts[-1] > 1 << 32:
            reader.reject(key, "numbers of centroids")
        bits += (counts[-1] - 1).bit_length() / lengths[-1] if counts[-1] > 1 else 0.0
    if not 0 < bits <= MAX_BITS:
        reader.reject("num_centroids", "at least two centroids")
    return bits


def _quip(reader: BlockReader) -> Rules:
    """The name of a QuIP# codebook determines the bits: E8P12 2, E8P12RVQ3B 3, E8P12RVQ4B 4."""
    bits_by_codebook = {"e8p12": 2, "e8p12rvq3b": 3, "e8p12rvq4b": 4}
    bits: float = bits_by_codebook.get(reader.text("codebook", ""), 0) or reader.bits("bits", "wbits")
    scheme = mean_bits_scheme("QuIP", bits)
    return _weight_only("", reader, scheme, skip=_SKIP, keeps_head=True)


def _bitnet(reader: BlockReader) -> Rules:
    """Four ternary weights per byte."""
    return _weight_only(
        "BitNet", reader, integer_scheme(2, None, has_zero_points=False, scale_bits=0.0), skip=_SKIP, keeps_head=True
    )


ONE_SCHEME_METHODS: Mapping[str, RuleReader] = {
    "aqlm": _aqlm,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "awq": _awq,
    "bitnet": _bitnet,
    "bitsandbytes": _bitsandbytes,
    "eetq": _eetq,
    "exl2": _exllama("EXL2", 6.0),
    "exl3": _exllama("EXL3", 6.0),
    "fbgemm-fp8": _fbgemm_fp8,
    "fouroversix": _float4("FourOverSix", "weight_dtype", "dtype"),
    "fp-quant": _float4("FP-Quant", "forward_dtype"),
    "fp8": _finegrained_fp8,
    "gemma": _gemma,
    "gptq": _gptq,
    "higgs": _higgs,
    "hqq": _hqq,
    "metal": _metal,
    "mlx": _mlx,
    **{name: _block_floats(scheme) for name, scheme in _BLOCK_FLOATS.items()},
    "quanto": _quanto,
    "quip": _quip,
    "quip-sharp": _quip,
    "quip#": _quip,
    "sinq": _sinq,
    "spqr": _spqr,
    "torchao": read_torchao,
    "vptq": _vptq,
}
