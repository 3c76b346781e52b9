"""What a device did: raw times of one model's passes, as measured."""

from dataclasses import dataclass

from perfmodel.core.files import FileFormat
from perfmodel.core.units import Frac
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.kernels import KernelTrial
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.sampling import AcceptanceRule


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """Raw pass times of one model on one device, taken while it ran beside another.

    A draft's profile holds the passes whose `PASS_MODEL` is the draft, a target's the others. A self-draft's profile is the
    target's, with both.
    """

    model: ModelGeometry
    model_sha256: str
    """Hash of the weights, so that a profile of other weights of the same shape is told apart."""
    exit_layers: tuple[int, ...]
    """The exits that cut the model into segments; empty for a target that does not draft."""
    beside: str | None
    """Name of the model it shared caches with in the measured loop; None when it was timed alone."""
    device: DeviceKey
    """Of this model: one device where the first of several had the draft whole."""
    rule: AcceptanceRule
    """How tokens were chosen and judged in the measured loop: exit checks and verifies cost otherwise under another rule."""
    processing: tuple[str, ...] | None
    """What was done to logits there, as `Sampling.processing` names it; None where unknown."""
    samples: PassSamples
    kernel_trials: tuple[KernelTrial, ...] = ()
    """What the device's kernels were chosen by; empty where they were not measured."""
    waited_frac: Frac | None = None
    """Share of the measurement during which other programs had the processor (`perfmodel.core.cpu_contention`); None where unknown."""

    def __post_init__(self) -> None:
        num_stages = max(1, len(self.exit_layers))
        beyond = max(self.samples.stage, default=0)
        if beyond >= num_stages:
            raise ValueError(
                f"samples hold a pass of stage {beyond}, expected at most {num_stages - 1}: stages count the exits"
            )

    @property
    def pads_rows(self) -> bool:
        """Whether passes through layers ran as wide as `graph_width`: the runtime captures passes on one GPU alone."""
        return self.device.engine == "graph" and self.device.num_threads is None


PROFILE_FILE = FileFormat(record=LatencyProfile, schema="s2d/latency-profile", made_with="s2d-profile latency")
