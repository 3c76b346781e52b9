"""Time single matrix products over more matrices than any cache holds, launched like the runtime's passes."""

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
NUM_RUNS = 10


@torch.inference_mode()
def product_seconds(
    device: torch.device, dtype: Dtype, shape: tuple[int, int], layout: WeightLayout, min_bytes: Bytes
) -> list[Seconds]:
    """Median seconds of one product for each of `GEMV_ROWS`. The matrices take turns, launched like the runtime's passes."""
    inputs, outputs = shape
    size = DTYPE_BYTES[dtype]
    number = int(-(-min_bytes // (inputs * outputs * size)))
    generator = torch.Generator(device).manual_seed(SEED)
    matrices = [
        new_matrix(inputs, outputs, torch_dtype(dtype), device, layout).normal_(generator=generator) for _ in range(number)
    ]
    launcher, clock, medians = _launcher(device, dtype), Clock(device), []
    for rows in GEMV_ROWS:
        x = torch.randn(rows, inputs, generator=generator, device=device, dtype=torch_dtype(dtype))
        out = torch.empty(rows, outputs, dtype=torch_dtype(dtype), device=device)

        def multiply(x: Tensor = x, out: Tensor = out) -> None:
            for matrix in matrices:
                torch.mm(x, matrix, out=out)

        launch, samples = launcher.capture(multiply), []
        for _ in range(NUM_RUNS):
            launch()  # keeps the device busy while the host launches the timed work
            clock.start()
            launch()
            clock.lap("verify", 0, rows, 0)
            samples += clock.lap_seconds()
        medians.append(median(samples) / number)
    return medians


def _launcher(device: torch.device, dtype: Dtype) -> GraphDecoder:
    """A decoder with one tiny layer, used for its captures."""
    geometry = replace(RANDOM_TARGET, num_layers=1, vocab_size=2)
    return GraphDecoder(geometry, random_weights(geometry, torch_dtype(dtype), str(device), seed=SEED))
