"""Which kernels (`perfmodel.passes.kernels`) can run on a device."""

from itertools import product
from typing import get_args

import torch

from perfmodel.core.errors import UserInputError
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.kernels import STANDARD_KERNELS, AttentionKernel, Kernels, NormKernel, WeightLayout


def runnable_kernels(device: torch.device | str, dtype: Dtype, mode: LaunchMode) -> tuple[Kernels, ...]:
    """All combinations that can run, the standard one first.

    Args:
        device: the device, or torch's name of it.
        dtype: the dtype of the computation.
        mode: how passes are launched.
    """
    has_varlen = torch.device(device).type == "cuda" and dtype != "fp32" and mode == "graph" and _torch_has_varlen()
    attentions: tuple[AttentionKernel, ...] = ("products", "varlen") if has_varlen else ("products",)
    combinations = [
        Kernels(weight_layout=layout, attention=attention, norm=norm)
        for layout, norm, attention in product(get_args(WeightLayout), get_args(NormKernel), attentions)
    ]
    return tuple(sorted(combinations, key=lambda kernels: kernels != STANDARD_KERNELS))


def check_kernels(kernels: Kernels, device: torch.device | str, dtype: Dtype, mode: LaunchMode, *, fix: str) -> None:
    """Check that kernels can run on a device.

    Raises:
        UserInputError: they cannot; the message lists those that can.
    """
    runnable = runnable_kernels(device, dtype, mode)
    if kernels not in runnable:
        setting = f"{torch.device(device).type} in {dtype} with mode {mode} and PyTorch {torch.__version__}"
        labels = ", ".join(other.label for other in runnable)
        raise UserInputError(f"kernels {kernels.label} do not run on {setting}: expected one of {labels}. {fix}")


def _torch_has_varlen() -> bool:
    """Whether this PyTorch has attention that reads lengths on the device."""
    try:
        from torch.nn.attention.varlen import varlen_attn_out  # noqa: F401
    except ImportError:
        return False
    return True
