"""Seconds of single products, over more matrices than any cache holds, launched as the runtime launches its passes."""

from dataclasses import replace

import torch
from device_check import RANDOM_TARGET
from torch import Tensor

from perfmodel.core.units import Bytes, Seconds
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype
from perfmodel.passes.kernels import WeightLayout
from s2d.decoding.clock import Clock
from s2d.loading.convert_weights import random_weights
from s2d.model.cuda_graphs import GraphDecoder
from s2d.model.torch_dtypes import torch_dtype
from s2d.model.weights import new_matrix
from shared.common import median

SEED = 20261124
GEMV_ROWS = (1, 4, 8)
TURNS = 10


@torch.inference_mode()
def product_seconds(
    device: torch.device, dtype: Dtype, shape: tuple[int, int], layout: WeightLayout, least_bytes: Bytes
) -> list[Seconds]:
    """Median seconds of one product, for each of `GEMV_ROWS`; matrices in turn, launched as the runtime does."""
    inputs, outputs = shape
    size = DTYPE_BYTES[dtype]
    number = int(-(-least_bytes // (inputs * outputs * size)))
    generator = torch.Generator(device).manual_seed(SEED)
    matrices = [
        new_matrix(inputs, outputs, torch_dtype(dtype), device, layout).normal_(generator=generator) for _ in range(number)
    ]
    launcher, clock, found = _launcher(device, dtype), Clock(device), []
    for rows in GEMV_ROWS:
        x = torch.randn(rows, inputs, generator=generator, device=device, dtype=torch_dtype(dtype))
        out = torch.empty(rows, outputs, dtype=torch_dtype(dtype), device=device)

        def multiply(x: Tensor = x, out: Tensor = out) -> None:
            for matrix in matrices:
                torch.mm(x, matrix, out=out)

        launch, taken = launcher.capture(multiply), []
        for _ in range(TURNS):
            launch()  # keeps the device busy while the host launches what is timed
            clock.start()
            launch()
            clock.lap("verify", 0, rows, 0)
            taken += clock.lap_seconds()
        found.append(median(taken) / number)
    return found


def _launcher(device: torch.device, dtype: Dtype) -> GraphDecoder:
    """A decoder of one tiny layer, for the way it captures."""
    geometry = replace(RANDOM_TARGET, num_layers=1, vocab_size=2)
    return GraphDecoder(geometry, random_weights(geometry, torch_dtype(dtype), str(device), seed=SEED))
