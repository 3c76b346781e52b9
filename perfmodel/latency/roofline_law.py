"""Coefficients of the latency law from a datasheet and measured kernel efficiencies."""

from perfmodel.core.units import Seconds
from perfmodel.hardware.hardware import Hardware
from perfmodel.models.dtypes import Dtype, WeightKernels
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.latency_law import Law
from perfmodel.quantisation.weight_format import WeightFormat


def roofline_law(hardware: Hardware, weights: WeightFormat, mode: LaunchMode, num_devices: int) -> Law:
    """The law's coefficients on a device of the table, for weights of some format.

    Raises:
        UserInputError: the device has no such launch mode.
        OutOfDomain: no link joins this many devices.
    """
    costs, host, link = hardware.costs, hardware.launch_costs(mode), hardware.link_between(num_devices)
    activations = hardware.activation_dtype(weights)

    def byte_s(kernels: WeightKernels) -> Seconds:
        return 1 / (hardware.memory_bytes_per_s * hardware.weight_bandwidth_frac[kernels])

    def flop_s(arithmetic: Dtype | None) -> Seconds:
        return 1 / (hardware.peak_flops_per_s[hardware.matrix_dtype(arithmetic)] * costs.flops_frac)

    shares = weights.layers
    gguf_frac = sum(share.frac for share in shares if share.kernels == "gguf")
    return Law(
        pass_s=host.pass_s,
        sync_s=host.sync_s,
        round_s=host.round_s,
        round_row_s=0.0,
        layer_s=costs.layer_floor_s + costs.attn_floor_s + costs.gguf_layer_s * gguf_frac,
        row_layer_s=costs.row_layer_s,
        many_rows_layer_s=0.0,
        host_layer_s=host.host_layer_s,
        weight_byte_s=sum(share.frac * share.bits / weights.layer_bits * byte_s(share.kernels) for share in shares),
        head_byte_s=byte_s(weights.head_kernels),
        many_rows_byte_s=0.0,
        far_byte_s=0.0,
        cache_bytes=0.0,
        flop_s=sum(share.frac * flop_s(share.arithmetic) for share in shares),
        head_flop_s=flop_s(activations),
        kv_byte_s=byte_s("bf16"),
        attn_flop_s=flop_s(activations),
        all_reduce_s=link.all_reduce_s if link else 0.0,
        link_byte_s=1 / link.bytes_per_s if link else 0.0,
    )
