"""Find the quantisation block in a checkpoint's files and convert it to a weight format.

The block is `quantization_config` in config.json (transformers, compressed-tensors, NVIDIA ModelOpt), possibly inside the text
decoder's config of a multimodal model; `quantization` in config.json (MLX); or in a separate hf_quant_config.json (ModelOpt).
An unknown method, or a block without its bits, is refused: quantised weights are never silently priced as 16 bits.
"""

from collections.abc import Mapping
from dataclasses import replace

from perfmodel.core.errors import UserInputError, quoted
from perfmodel.core.units import format_bytes
from perfmodel.models.architectures import decoder_config
from perfmodel.models.geometry import ModelGeometry
from perfmodel.quantisation.grouped_methods import GROUPED_METHODS
from perfmodel.quantisation.module_regex import UnreadablePattern
from perfmodel.quantisation.quantisation_block import Block, BlockReader, Quantisation, RuleReader, plain_name
from perfmodel.quantisation.weight_format import WeightFormat, model_weight_bytes
from perfmodel.quantisation.weight_only_methods import ONE_SCHEME_METHODS

METHODS: Mapping[str, RuleReader] = {**ONE_SCHEME_METHODS, **GROUPED_METHODS}
"""By `quant_method`, in lower case with dashes."""
SIZE_TOLERANCE_FRAC = 0.02
"""Relative difference in bytes up to which two blocks agree; one of them may omit the size of a scale."""


def find_quantisation(config: Block, separate_file: object, model_name: str) -> Quantisation | None:
    """The quantisation block in a model's files; None if its weights are not quantised.

    Args:
        config: the object in config.json.
        separate_file: the content of hf_quant_config.json; None without such a file.
        model_name: the name in messages.

    Raises:
        UserInputError: the block is not an object, or its method is not a text.
    """
    in_config = "quantization_config of its config.json"
    locations = (
        ("quantization of its config.json", config.get("quantization")),
        (in_config, config.get("quantization_config")),
        (in_config, decoder_config(config).get("quantization_config")),
        ("hf_quant_config.json next to its config.json", separate_file),
    )
    location, block = next(((location, value) for location, value in locations if value is not None), (None, None))
    if location is None:
        return None
    quantisation = Quantisation(model_name=model_name, location=location, method="", block={})
    if not isinstance(block, Mapping):
        quantisation.refuse(f"by {quoted(block)}, where an object is expected")
    method = _method_name(block, is_mlx=block is config.get("quantization"))
    if not isinstance(method, str):
        quantisation.refuse(f"by {quoted(method)}, where the name of a method is expected")
    return replace(quantisation, method=plain_name(method), block=block)


def _method_name(block: Block, *, is_mlx: bool) -> object:
    """The method of a block; MLX and ModelOpt blocks do not name it and are recognised by their keys."""
    if block.get("quant_method") is not None:
        return block["quant_method"]
    if "quant_algo" in block or isinstance(block.get("quantization"), Mapping):
        return "modelopt"
    return "mlx" if is_mlx else ""


def stored_format(quantisation: Quantisation, model: ModelGeometry) -> WeightFormat:
    """The format in which a model's weights are stored.

    Raises:
        UserInputError: the method is unknown, or its block does not state the bits per weight.
    """
    read = METHODS.get(quantisation.method)
    if read is None:
        quantisation.refuse(f"by {quoted(quantisation.label)}, a method with unknown bits per weight")
    try:
        return read(BlockReader(quantisation)).weight_format(model)
    except UnreadablePattern as err:
        quantisation.refuse(f"by {quoted(quantisation.label)}, and a list of modules has {err}")


def check_same_weight_bytes(stored: WeightFormat, separate_file: object, model: ModelGeometry) -> None:
    """Check that config.json and hf_quant_config.json agree; a separate file that cannot be interpreted is ignored.

    Args:
        stored: the format read from config.json.
        separate_file: the content of hf_quant_config.json; None without such a file.
        model: the shapes of the model.

    Raises:
        UserInputError: the two files give different sizes.
    """
    try:
        quantisation = find_quantisation({}, separate_file, model.name)
        other = stored if quantisation is None else stored_format(quantisation, model)
    except UserInputError:
        return
    sizes = model_weight_bytes(model, stored), model_weight_bytes(model, other)
    if abs(sizes[1] / sizes[0] - 1) > SIZE_TOLERANCE_FRAC:
        raise UserInputError(
            f"model {quoted(model.name)}: its config.json declares {stored.label}, {format_bytes(sizes[0])}, but "
            f"hf_quant_config.json next to it {other.label}, {format_bytes(sizes[1])}. Remove the wrong file, or give --dtype "
            "to override both."
        )
