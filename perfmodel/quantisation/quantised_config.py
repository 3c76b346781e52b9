"""The quantisation block of a checkpoint's files -> how its weights are stored.

Where the block stands: `quantization_config` in config.json (transformers, compressed-tensors, NVIDIA modelopt), of a
multimodal config perhaps that of its text decoder; `quantization` (MLX); or `hf_quant_config.json` beside config.json
(modelopt). A method that is in no table, or a block that lacks its bits, is refused: nothing is priced as 16 bits silently.
"""

from collections.abc import Mapping
from dataclasses import replace

from perfmodel.core.errors import UserInputError, quoted
from perfmodel.core.units import format_bytes
from perfmodel.models.architectures import decoder_config
from perfmodel.models.geometry import ModelGeometry
from perfmodel.quantisation.grouped_methods import GROUPED_METHODS
from perfmodel.quantisation.module_regex import UnreadablePattern
from perfmodel.quantisation.quantisation_block import Block, BlockReader, Quantisation, Read, plain_name
from perfmodel.quantisation.weight_format import WeightFormat, model_weight_bytes
from perfmodel.quantisation.weight_only_methods import ONE_SCHEME_METHODS

METHODS: Mapping[str, Read] = {**ONE_SCHEME_METHODS, **GROUPED_METHODS}
"""By `quant_method`, in lower case with dashes."""
AGREEMENT_TOLERANCE = 0.02
"""Relative difference in bytes up to which two blocks say the same: one may leave out what a scale takes."""


def find_quantisation(config: Block, beside: object, model_name: str) -> Quantisation | None:
    """The quantisation block of a model's files; None where its weights are plain.

    Args:
        config: the object in config.json.
        beside: what hf_quant_config.json holds; None where there is no such file.
        model_name: for messages.

    Raises:
        UserInputError: the block is no object, or its method no text.
    """
    in_config = "quantization_config of its config.json"
    places = (
        ("quantization of its config.json", config.get("quantization")),
        (in_config, config.get("quantization_config")),
        (in_config, decoder_config(config).get("quantization_config")),
        ("hf_quant_config.json beside its config.json", beside),
    )
    where, block = next(((place, value) for place, value in places if value is not None), (None, None))
    if where is None:
        return None
    found = Quantisation(model_name=model_name, where=where, method="", block={})
    if not isinstance(block, Mapping):
        found.refuse(f"by {quoted(block)}, where an object is expected")
    method = _method_of(block, is_mlx=block is config.get("quantization"))
    if not isinstance(method, str):
        found.refuse(f"by {quoted(method)}, where the name of a method is expected")
    return replace(found, method=plain_name(method), block=block)


def _method_of(block: Block, *, is_mlx: bool) -> object:
    """The method that a block names, or is known by: MLX's and modelopt's do not name theirs."""
    if block.get("quant_method") is not None:
        return block["quant_method"]
    if "quant_algo" in block or isinstance(block.get("quantization"), Mapping):
        return "modelopt"
    return "mlx" if is_mlx else ""


def stored_format(quantisation: Quantisation, model: ModelGeometry) -> WeightFormat:
    """How the weights of a model of some shapes are stored.

    Raises:
        UserInputError: the method is not known, or its block does not say how many bits a weight has.
    """
    read = METHODS.get(quantisation.method)
    if read is None:
        quantisation.refuse(f"by {quoted(quantisation.label)}, a method whose bits are not known")
    try:
        return read(BlockReader(quantisation)).weight_format(model)
    except UnreadablePattern as err:
        quantisation.refuse(f"by {quoted(quantisation.label)}, and a list of its modules has {err}")


def check_agreement(first: WeightFormat, beside: object, model: ModelGeometry) -> None:
    """Refuse a config.json and a file beside it that come to different bits; a second file that is not understood is ignored.

    Args:
        first: read from the config.
        beside: what hf_quant_config.json holds; None where there is no such file.
        model: its shapes.

    Raises:
        UserInputError: they contradict each other.
    """
    try:
        second = find_quantisation({}, beside, model.name)
        other = first if second is None else stored_format(second, model)
    except UserInputError:
        return
    sizes = model_weight_bytes(model, first), model_weight_bytes(model, other)
    if abs(sizes[1] / sizes[0] - 1) > AGREEMENT_TOLERANCE:
        raise UserInputError(
            f"model {quoted(model.name)}: its config.json says {first.label}, {format_bytes(sizes[0])}, and "
            f"hf_quant_config.json beside it {other.label}, {format_bytes(sizes[1])}. Remove the one that is wrong, or give "
            "--dtype to overrule both."
        )
