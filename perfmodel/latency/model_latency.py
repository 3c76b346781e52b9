"""Seconds of a model's passes by name: the public `latency` function."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from perfmodel.core.blocks import Block, Facts, Printable, Table
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import BadPolicy, OutOfDomain, UnknownName, UserInputError
from perfmodel.core.units import Frac, Seconds, Tokens, format_bytes, format_frac, format_seconds
from perfmodel.hardware.find_device import find_device
from perfmodel.hardware.hardware import Hardware
from perfmodel.latency.latency_model import FittedLatency, LatencyLevel, LatencyModel, MeasuredLatency, RooflineLatency
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import ModelGeometry, check_degree
from perfmodel.passes.device_key import DeviceKey, LaunchMode
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.latency_law import FIT_FILE, LatencyFit
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.passes.passes import PassName, kind_label
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import model_weight_bytes

_SHOWN_CONTEXTS: tuple[Tokens, ...] = (0, 1000)
_SHOWN_ROWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLatency(Printable):
    """Seconds of one model's passes on one device. `latency` makes it.

    All methods return the seconds of one warm pass and raise `OutOfDomain` if a profile or a fit has no evidence near it.
    """

    model: ModelGeometry
    device: DeviceKey
    exits: tuple[int, ...]
    """Layers after which the model has exits; they cut it into segments. Empty for a target that does not draft."""
    batch: int
    """Sequences in every pass."""
    evidence: str
    """What the seconds are based on."""
    at_context: Callable[[Tokens], LatencyModel] = field(repr=False)
    """The latency model at a number of cached tokens."""

    @property
    def level(self) -> LatencyLevel:
        """The kind of evidence: `roofline`, `extrapolated`, `fitted` or `measured`."""
        return self.at_context(0).level

    @property
    def error_frac(self) -> Frac:
        """One standard deviation of the relative error of a step. Beyond the contexts of a fit, it is larger."""
        latency = self.at_context(0)
        return latency.step_error_frac if isinstance(latency, RooflineLatency) else latency.error_frac

    def verify(self, *, rows: int, context: Tokens) -> Seconds:
        """Verification of a drafted block: one pass through all layers and the head.

        A model with exits is a self-draft: its verification continues from the draft's hidden states, above the last exit.

        Args:
            rows: drafted tokens + 1, for each sequence.
            context: tokens in the KV cache.

        Raises:
            UserInputError: the last exit is at the last layer, so the model is a draft that verifies nothing.
        """
        if self._is_draft_only and rows > 1:
            raise UserInputError(f"{self.model.name!r} has its last exit at its last layer: it drafts, and verifies nothing.")
        return self._seconds(("verify", 0, rows), context)

    def plain(self, *, context: Tokens) -> Seconds:
        """One step of plain decoding: a pass of one row, and the host's bookkeeping."""
        return self.verify(rows=1, context=context) + self.bookkeeping(drafted=0)

    def segment(self, *, stage: int = 0, rows: int = 1, context: Tokens) -> Seconds:
        """One segment of a draft, without its exit.

        Args:
            stage: zero-based segment.
            rows: new tokens and those that the segment has to catch up on.
            context: tokens in the KV cache.
        """
        return self._seconds(("segment", stage, rows), context)

    def exit_check(self, *, stage: int = 0) -> Seconds:
        """One exit of a draft: norm, LM head, softmax, and the host's wait for token and confidence.

        Args:
            stage: zero-based exit.
        """
        return self._seconds(("exit", stage, 1), 0)

    def bookkeeping(self, *, drafted: Tokens) -> Seconds:
        """The rest of a round on the host, after `drafted` tokens were drafted and verified."""
        return self._seconds(("round", 0, drafted), 0)

    def prefill(self, *, tokens: Tokens, stage: int | None = None) -> Seconds:
        """A pass over the prompt.

        Args:
            tokens: tokens of the prompt in the pass.
            stage: zero-based segment of a draft with its own weights; None for all layers of a target.
        """
        return self._seconds(("target_prefill", 0, tokens) if stage is None else ("draft_prefill", stage, tokens), 0)

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """Model, device, evidence and a few prices as blocks of text."""
        error = f"± {format_frac(self.error_frac)} (one standard deviation)"
        weight_bytes = model_weight_bytes(self.model, dtype_format(self.device.dtype, self.model))
        facts = Facts(
            [
                ("model", f"{self.model.name}, {self.model.num_layers} layers, weights of {format_bytes(weight_bytes)}"),
                ("device", self.device.label + (f", batch {self.batch}" if self.batch > 1 else "")),
                ("level", f"{self.level}: {self.evidence}, {error}"),
            ]
        )
        shown: dict[str, list[PassName]] = {}
        if not self._is_draft_only:
            shown["step of plain decoding"] = [("verify", 0, 1), ("round", 0, 0)]
            shown[f"verify, {_SHOWN_ROWS} rows"] = [("verify", 0, _SHOWN_ROWS)]
        if self.exits:
            shown |= {f"segment {stage + 1}, 1 row": [("segment", stage, 1)] for stage in range(len(self.exits))}
            shown["exit check"] = [("exit", 0, 1)]
        rows = [[label, *cells] for label, names in shown.items() if (cells := self._cells(names))]
        return [facts, Table(rows, ["pass", *(f"{context} cached tokens" for context in _SHOWN_CONTEXTS)])]

    @property
    def _is_draft_only(self) -> bool:
        return bool(self.exits) and self.exits[-1] == self.model.num_layers

    def _cells(self, names: Sequence[PassName]) -> list[str]:
        """Total seconds of some passes at the shown contexts; empty if the evidence does not cover them."""
        try:
            totals_s = [sum(self._seconds(name, context) for name in names) for context in _SHOWN_CONTEXTS]
        except OutOfDomain:
            return []
        return [format_seconds(total_s) for total_s in totals_s]

    def _seconds(self, name: PassName, context: Tokens) -> Seconds:
        kind, stage, rows = name
        if rows < (0 if kind == "round" else 1) or context < 0:
            expected = "expected at least 1 row and 0 cached tokens"
            raise UserInputError(f"a {kind_label(kind)} pass of {rows} rows over {context} cached tokens: {expected}.")
        if kind in ("segment", "exit", "draft_prefill") and not 0 <= stage < len(self.exits):
            expected = f"expected 0 to {len(self.exits) - 1}" if self.exits else "expected a draft. Give exits= to s2d.latency"
            raise UserInputError(f"stage {stage} of {self.model.name!r}, which has {len(self.exits)} exits: {expected}.")
        return self.at_context(context).line(kind, stage, rows).at(context)


def latency(
    model: str | Path | ModelGeometry | LatencyProfile,
    *,
    device: str | Hardware | None = None,
    dtype: Dtype | None = None,
    mode: LaunchMode | None = None,
    num_devices: int = 1,
    batch: int = 1,
    exits: Sequence[int] | None = None,
    fit: PathLike | LatencyFit | None = None,
) -> ModelLatency:
    """Seconds of a model's passes from a datasheet, a fit or a profile.

    Args:
        model: a known target or draft by name, shapes, or a latency profile (a record or the path of its file). A profile is
            measured on its own device, so it takes no other argument.
        device: a name of docs/reference/hardware.md, `cpu` for this machine's CPU, or a file that describes a device. Required
            unless a profile or a fit is given.
        dtype: dtype of the weights; by default the device's.
        mode: `graph` or `eager`; by default `graph` if the device has it.
        num_devices: tensor-parallel degree. Memory is not checked.
        batch: sequences in every pass.
        exits: layers after which a draft has exits; by default those of a known draft, and none for a target.
        fit: a fit of the latency law to other models on a device (a record or the path of its file, from `s2d-plan fit`). It
            is made for its own device, dtype, mode and number of devices.

    Raises:
        UnknownName: no such model or device; lists the nearest names.
        UserInputError: the device does not compute in the dtype, has no such launch mode, or an argument is missing or
            contradicts the profile or the fit.
        OutOfDomain: no link joins this many devices.
        BadPolicy: the exits are not layers of the model in rising order.
        BadFile: a file is not a latency profile or a fit.

    Example:
        >>> cost = s2d.latency("llama-2-7b", device="a100-80gb")
        >>> f"{cost.verify(rows=6, context=768):.4f} {cost.plain(context=768):.4f}"  # seconds
        '0.0103 0.0103'
        >>> draft = s2d.latency("s2d-vicuna-12", device="a100-80gb")
        >>> draft_s = draft.segment(stage=0, context=768) + draft.exit_check(stage=0)
        >>> s2d.latency("profile/target.latency.json").level  # measured by s2d-profile
        'measured'
    """
    fixed = {"device": device, "dtype": dtype, "mode": mode}
    numbers = {"num_devices": num_devices, "batch": batch}
    if isinstance(model, Path) or (isinstance(model, str) and model.endswith(".json")):
        model = PROFILE_FILE.read(model).record
    if isinstance(model, LatencyProfile):
        _refuse_fixed("a latency profile", {**fixed, "exits": exits, "fit": fit}, numbers)
        return _measured(model)
    geometry, exit_layers = _shapes(model, exits)
    if fit is not None:
        _refuse_fixed("a fit", fixed, numbers)
        return _fitted(fit if isinstance(fit, LatencyFit) else FIT_FILE.read(fit).record, geometry, exit_layers)
    if batch < 1:
        raise UserInputError(f"batch {batch}: expected at least 1.")
    if device is None:
        raise UserInputError(
            f"no device for {geometry.name!r}: expected device='a100-80gb' (docs/reference/hardware.md lists all), "
            "device='cpu', or a fit. Give one of them."
        )
    hardware = device if isinstance(device, Hardware) else find_device(device).hardware
    key = DeviceKey(
        device=hardware.name,
        num_devices=num_devices,
        num_threads=hardware.num_threads,
        dtype=hardware.default_dtype if dtype is None else dtype,
        mode=hardware.default_mode if mode is None else mode,
    )
    return _roofline(geometry, exit_layers, hardware, key, batch)


def _refuse_fixed(evidence: str, arguments: Mapping[str, object], numbers: Mapping[str, int]) -> None:
    """Refuse arguments that a profile or a fit fixes."""
    given = [name for name, value in arguments.items() if value is not None]
    given += [name for name, value in numbers.items() if value != 1]
    if given:
        raise UserInputError(f"{evidence} has its own device and setting: leave out {', '.join(f'{name}=' for name in given)}.")


def _shapes(model: str | ModelGeometry, exits: Sequence[int] | None) -> tuple[ModelGeometry, tuple[int, ...]]:
    """Shapes and exits of a model: the exits of the caller, or those of a known draft."""
    geometry, known_exits = (model, ()) if isinstance(model, ModelGeometry) else _known_shapes(model)
    exit_layers = known_exits if exits is None else tuple(exits)
    if list(exit_layers) != sorted({layer for layer in exit_layers if 0 < layer <= geometry.num_layers}):
        raise BadPolicy(f"exits {list(exit_layers)} of {geometry.name!r}", f"layers from 1 to {geometry.num_layers}, rising")
    return geometry, exit_layers


def _known_shapes(name: str) -> tuple[ModelGeometry, tuple[int, ...]]:
    try:
        draft = find_draft(name)
    except UnknownName:
        return find_model(name), ()
    return draft.model, draft.exit_layers


def _measured(profile: LatencyProfile) -> ModelLatency:
    measured = MeasuredLatency(profile)
    return ModelLatency(
        model=profile.model,
        device=profile.device,
        exits=profile.exit_layers,
        batch=1,
        evidence=f"{len(profile.samples)} passes on this device",
        at_context=lambda context: measured,
    )


def _fitted(fit: LatencyFit, model: ModelGeometry, exit_layers: tuple[int, ...]) -> ModelLatency:
    return ModelLatency(
        model=model,
        device=fit.device,
        exits=exit_layers,
        batch=1,
        evidence=f"fit to {fit.num_samples} passes of {len(fit.models)} model{'s' if len(fit.models) > 1 else ''}",
        at_context=cache(lambda context: FittedLatency(fit, model, exit_layers, context_tokens=context)),
    )


def _roofline(
    model: ModelGeometry, exit_layers: tuple[int, ...], hardware: Hardware, key: DeviceKey, batch: int
) -> ModelLatency:
    hardware.compute_dtype(key.dtype)
    fix = "Give one of these as num_devices"
    check_degree(model, key.num_devices, noun="devices", fix=fix, max_degree=hardware.max_devices)
    weights = dtype_format(key.dtype, model)

    @cache
    def at_context(context: Tokens) -> LatencyModel:
        setting = PassSetting(
            model=model,
            exit_layers=exit_layers,
            weights=weights,
            batch=batch,
            num_devices=key.num_devices,
            context_tokens=context,
        )
        return RooflineLatency(setting, hardware, key.mode)

    at_context(0)
    return ModelLatency(
        model=model,
        device=key,
        exits=exit_layers,
        batch=batch,
        evidence=f"{hardware.name} datasheet, {hardware.kernels_label}",
        at_context=at_context,
    )
