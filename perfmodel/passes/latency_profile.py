"""The latency profile: measured passes of one model on one device."""

from dataclasses import asdict, dataclass
from itertools import compress
from typing import Any

from perfmodel.core.disk import PathLike
from perfmodel.core.files import Stored, Upgrades, read_record, write_record
from perfmodel.core.provenance import Provenance
from perfmodel.core.units import Frac
from perfmodel.models.geometry import ModelGeometry, with_llama_layers, with_whole_heads
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.kernels import STANDARD_KERNELS, KernelTrial
from perfmodel.passes.passes import PassSamples, with_prefills_by_model
from perfmodel.policies.sampling import AcceptanceRule
from perfmodel.quantisation.dtype_format import dtype_format

LATENCY_PROFILE_SCHEMA = "s2d/latency-profile"
LATENCY_PROFILE_VERSION = 9


def with_standard_kernels(body: dict[str, Any]) -> dict[str, Any]:
    """An older file's body, when there was one choice of kernels."""
    return {**body, "device": {**body["device"], "kernels": asdict(STANDARD_KERNELS)}}


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
        """How the profile's passes ran. Rows are those asked for; a model that has layers with a window needs a context too."""
        return PassSetting(
            model=self.model,
            exit_layers=self.exit_layers,
            weights=dtype_format(self.device.dtype, self.model),
            num_devices=self.device.num_devices,
        )

    @property
    def pads_rows(self) -> bool:
        """Whether passes through layers ran at `graph_width` rows. The runtime captures passes on a GPU only."""
        return self.device.engine == "graph" and self.device.num_threads is None


def _from_version_4(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "processing": None}


def _from_version_5(body: dict[str, Any]) -> dict[str, Any]:
    """A draft with weights of its own was always whole on the first device, whose key told those of the target.

    Its prompt was one pass through all segments, which no prefill of today is.
    """
    samples, device = body["samples"], body["device"]
    is_kept = [kind != "prefill" or not stage for kind, stage in zip(samples["kind"], samples["stage"], strict=True)]
    kept = {name: list(compress(column, is_kept)) for name, column in samples.items()}
    is_of_draft = bool(body["exit_layers"]) and body["beside"] is not None
    return {**body, "samples": kept, "device": {**device, "num_devices": 1} if is_of_draft else device}


def _from_version_6(body: dict[str, Any]) -> dict[str, Any]:
    """No pass ran ahead of an exit's answer."""
    return body


def _from_version_7(body: dict[str, Any]) -> dict[str, Any]:
    """A draft's profile held the prompt's passes of its first segment alone; those of the others were in the target's."""
    samples = with_prefills_by_model(body["samples"])
    if not body["exit_layers"]:
        is_kept = [kind != "draft_prefill" for kind in samples["kind"]]
        samples = {name: list(compress(column, is_kept)) for name, column in samples.items()}
    return {**with_standard_kernels(body), "samples": samples, "kernel_trials": []}


def with_unknown_waits(body: dict[str, Any]) -> dict[str, Any]:
    """An older file's body: how long others had the processor was shown and not kept."""
    return {**body, "waited_frac": None}


LATENCY_PROFILE_UPGRADES: Upgrades = {
    2: with_llama_layers,
    3: with_whole_heads,
    4: _from_version_4,
    5: _from_version_5,
    6: _from_version_6,
    7: _from_version_7,
    8: with_unknown_waits,
}


def write_latency_profile(path: PathLike, profile: LatencyProfile, provenance: Provenance) -> None:
    """Write a profile, whole or not at all."""
    write_record(path, profile, schema=LATENCY_PROFILE_SCHEMA, version=LATENCY_PROFILE_VERSION, provenance=provenance)


def read_latency_profile(path: PathLike) -> Stored[LatencyProfile]:
    """Read a profile back.

    Raises:
        BadFile: anything but a whole profile; says what it is and what to do.
    """
    schema, version, upgrades = LATENCY_PROFILE_SCHEMA, LATENCY_PROFILE_VERSION, LATENCY_PROFILE_UPGRADES
    return read_record(path, LatencyProfile, schema=schema, version=version, upgrades=upgrades)
