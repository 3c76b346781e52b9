"""The latency profile: measured passes of one model on one device."""

from dataclasses import dataclass

from perfmodel.core.files import FileFormat
from perfmodel.core.units import Frac
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.kernels import KernelTrial
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.sampling import AcceptanceRule
from perfmodel.quantisation.dtype_format import dtype_format


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """Measured passes of one model on one device, taken in the running loop with the other model.

    The draft's profile holds the draft's passes (`PASS_MODEL`), the target's profile the target's. With a self-draft there is
    one profile with both.
    """

    model: ModelGeometry
    model_sha256: str
    """Hash of the weights. It distinguishes models of the same shape."""
    exit_layers: tuple[int, ...]
    """The exits that cut the model into segments; empty for a target that does not draft."""
    beside: str | None
    """Name of the model that shared the caches in the measured loop; None if the model ran alone."""
    device: DeviceKey
    """Where this model ran. A draft may run whole on the first of several devices; its key then has one device."""
    rule: AcceptanceRule
    """Acceptance rule of the measured loop. Exit checks and verifications take other times under other rules."""
    processing: tuple[str, ...] | None
    """Logit processing of the measured loop, as `Sampling.processing` names it; None if unknown."""
    samples: PassSamples
    kernel_trials: tuple[KernelTrial, ...] = ()
    """Measurements by which the kernels were chosen; empty if none were taken."""
    waited_frac: Frac | None = None
    """Share of the measurement in which other programs had the processor (`perfmodel.core.cpu_contention`); None if unknown."""

    def __post_init__(self) -> None:
        num_stages = max(1, len(self.exit_layers))
        last_stage = max(self.samples.stage, default=0)
        if last_stage >= num_stages:
            raise ValueError(f"samples hold a pass of stage {last_stage}, expected at most {num_stages - 1}: one per exit")

    @property
    def setting(self) -> PassSetting:
        """How the profile's passes ran, without padding of rows. A model that has layers with a window needs a context too."""
        return PassSetting(
            model=self.model,
            exit_layers=self.exit_layers,
            weights=dtype_format(self.device.dtype, self.model),
            num_devices=self.device.num_devices,
        )

    @property
    def pads_rows(self) -> bool:
        """Whether passes through layers ran at `graph_width` rows. The runtime captures passes on a GPU only."""
        return self.device.mode == "graph" and self.device.num_threads is None


PROFILE_FILE = FileFormat(record=LatencyProfile, schema="s2d/latency-profile", made_with="s2d-profile latency")
