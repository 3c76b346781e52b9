"""The device key: where and how seconds were measured."""

from dataclasses import dataclass
from typing import Literal

from perfmodel.models.dtypes import Dtype
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels

LaunchMode = Literal["eager", "graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKey:
    """Where and how seconds were measured. Seconds of one key do not hold for another."""

    device: str
    """`NVIDIA H200`, or the model name of a CPU."""
    num_devices: int
    num_threads: int | None
    """Threads of a CPU run; None on a GPU."""
    dtype: Dtype
    mode: LaunchMode
    kernels: Kernels | None = None
    """Kernels of the runtime; None for seconds that this runtime did not measure."""

    @property
    def label(self) -> str:
        """`2 x A100-80GB-SXM, bf16, graph`; threads are named on a CPU, kernels where they are not the standard ones."""
        threads = "" if self.num_threads is None else f", {self.num_threads} thread{'s' if self.num_threads > 1 else ''}"
        kernels = "" if self.kernels in (None, STANDARD_KERNELS) else f", {self.kernels.label}"
        return f"{self.num_devices} x {self.device}{threads}, {self.dtype}, {self.mode}{kernels}"
