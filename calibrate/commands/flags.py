"""Flags that several commands share, and the requests made from them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibrate.inputs.requests import DeviceRequest


def add_device_flags(group: argparse._ActionsContainer) -> None:
    """Add the flags for the device, the number of devices, the dtype and the mode."""
    add = group.add_argument
    device_help = (
        "a known device (docs/reference/hardware.md), cpu, or a device file (default: the GPU found here, else a100-80gb)"
    )
    add("--device", metavar="NAME", help=device_help)
    add("--num-devices", type=int, metavar="DEVICES", help="tensor-parallel degree (default: the fewest that hold the models)")
    add(
        "--dtype",
        choices=("fp32", "fp16", "bf16", "fp8", "int8", "int4", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0"),
        help="type of the weights (default: a target's as its files store it; otherwise bf16, or what the device supports)",
    )
    add(
        "--mode",
        choices=("eager", "graph"),
        help="launch kernels one by one, or as CUDA graphs (default: graph; eager on a CPU)",
    )


def device_request(args: argparse.Namespace) -> DeviceRequest:
    """The request behind the flags of `add_device_flags`."""
    from calibrate.inputs.requests import DeviceRequest

    return DeviceRequest(
        device=args.device, num_devices=args.num_devices, draft_num_devices=None, dtype=args.dtype, mode=args.mode
    )
