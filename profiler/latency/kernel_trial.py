"""Find the fastest kernels on this device by timing random layers with a pair's shapes.

Each combination of `perfmodel.passes.kernels` that can run on the device gets a decoder, launched as the pair will be. A large
model gets so many layers that no GPU cache holds its weights between two passes. The combinations are timed interleaved, in
random order: a drifting clock affects all of them alike. The time of a combination is its median. All have the same weights,
and their results are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perfmodel.core.console import print_err
from perfmodel.core.errors import BadFile, UserInputError
from perfmodel.core.units import Bytes, Seconds, Tokens
from perfmodel.latency.lower_bound import MAX_CACHE_BYTES
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.kernels import STANDARD_KERNELS, TRIAL_ROWS, Kernels, KernelTrial, fastest_kernels, parse_kernels
from perfmodel.passes.latency_profile import PROFILE_FILE
from perfmodel.passes.passes import graph_width
from s2d.decoding.clock import Clock
from s2d.loading.convert_weights import random_weights, with_kernels
from s2d.loading.load_model import DECODERS
from s2d.loading.memory import PairPlacement
from s2d.model.check_kernels import check_kernels, runnable_kernels
from s2d.model.decoder import Decoder
from s2d.model.torch_dtypes import torch_dtype

CACHED_TOKENS: Tokens = 512
NUM_TIMED_PASSES = 20
NUM_WARM_UPS = 3
SEED = 0
MAX_ERROR_FRAC = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.02}
"""Largest relative error of a few layers from rounding alone, when sums are taken in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenKernels:
    """The kernels of a measurement, and the trials that chose them."""

    kernels: Kernels
    trials: tuple[KernelTrial, ...]
    """Empty if nothing was timed."""


def choose_kernels(
    requested: str | None,
    models: PairPlacement,
    *,
    recorded: ChosenKernels | None,
    min_weight_bytes: Bytes = 2 * MAX_CACHE_BYTES,
) -> ChosenKernels:
    """The kernels to profile with.

    Args:
        requested: `measured`, `standard`, or a label; None is `measured` on a GPU and `standard` on a CPU.
        models: the pair, and how it computes.
        recorded: the kernels of an earlier profile, which are not timed again. They are used if they have trials and
            `measured` is requested, and always if nothing is requested.
        min_weight_bytes: see `try_kernels`.

    Raises:
        UserInputError: the label is unknown, or its kernels do not run on the device.
    """
    default = "measured" if models.device.type == "cuda" else "standard"
    choice = default if requested is None else requested
    if choice == "measured":
        if recorded is not None and (requested is None or recorded.trials):
            return recorded
        trials = try_kernels(models, min_weight_bytes=min_weight_bytes)
        layers = {"draft_layers": models.draft.exit_layers[-1], "target_layers": models.target.num_layers}
        return ChosenKernels(kernels=fastest_kernels(trials, **layers), trials=trials)
    if choice == "standard":
        return ChosenKernels(kernels=STANDARD_KERNELS, trials=())
    try:
        kernels = parse_kernels(choice)
    except ValueError as err:
        raise UserInputError(f"--kernels: {err}; or measured, or standard.") from err
    check_kernels(kernels, models.device, models.dtype, models.mode, fix="Give one of these with --kernels, or leave it out.")
    return ChosenKernels(kernels=kernels, trials=())


def recorded_kernels(folder: Path, here: DeviceKey) -> ChosenKernels | None:
    """The kernels of the profiles in a folder, finished or not; None if it has no profile of this device.

    Args:
        folder: the output folder of `s2d-profile`.
        here: the current device; its kernels do not matter.
    """
    for path in sorted(folder.glob("*.latency*.json")):
        try:
            profile = PROFILE_FILE.read(path).record
        except BadFile:  # reported when the file is needed
            continue
        if profile.device.kernels is not None and replace(profile.device, kernels=here.kernels) == here:
            return ChosenKernels(kernels=profile.device.kernels, trials=profile.kernel_trials)
    return None


def try_kernels(
    models: PairPlacement, *, min_weight_bytes: Bytes = 2 * MAX_CACHE_BYTES, num_passes: int = NUM_TIMED_PASSES
) -> tuple[KernelTrial, ...]:
    """Time every candidate on layers and heads with the shapes of the draft and the target.

    Args:
        models: the pair, and how it computes.
        min_weight_bytes: minimum size of the timed layers, unless the model is smaller.
        num_passes: timed passes of each candidate.
    """
    draft_s, target_s = (
        _median_seconds(_trial_passes(trial_model(model, models.dtype, min_weight_bytes), rows, models), num_passes)
        for model, rows in ((models.draft.model, 1), (models.target, TRIAL_ROWS))
    )
    return tuple(
        KernelTrial(
            kernels=kernels,
            draft_layer_s=draft_s[kernels][0],
            draft_head_s=draft_s[kernels][1],
            target_layer_s=target_s[kernels][0],
            target_head_s=target_s[kernels][1],
        )
        for kernels in draft_s
        if kernels in target_s
    )


def trial_model(model: ModelGeometry, dtype: Dtype, min_weight_bytes: Bytes) -> ModelGeometry:
    """A Llama with the head and layer shapes of a model. It has enough layers for `min_weight_bytes`, or all."""
    layer_bytes = model.layer_params * DTYPE_BYTES[dtype]
    return ModelGeometry(
        name=f"layers of {model.name}",
        num_layers=min(model.num_layers, int(-(-min_weight_bytes // layer_bytes))),
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=max(model.num_head_tokens, TRIAL_ROWS),
        tied_embeddings=False,
        max_context_tokens=CACHED_TOKENS + TRIAL_ROWS,
        source="random weights, to time kernels",
    )


def _median_seconds(passes: dict[Kernels, _TrialPass], num_passes: int) -> dict[Kernels, tuple[Seconds, Seconds]]:
    """Median seconds of one layer and of the head, for each combination of kernels."""
    rng = np.random.default_rng(SEED)
    seconds: dict[Kernels, list[tuple[Seconds, Seconds]]] = {kernels: [] for kernels in passes}
    order = list(passes)
    for repeat in range(NUM_WARM_UPS + num_passes):
        for index in rng.permutation(len(order)):
            timed_s = passes[order[index]].seconds()
            if repeat >= NUM_WARM_UPS:
                seconds[order[index]].append(timed_s)
    medians = {kernels: np.median(values, axis=0).tolist() for kernels, values in seconds.items()}
    return {kernels: (layers_s / passes[kernels].num_layers, head_s) for kernels, (layers_s, head_s) in medians.items()}


def _trial_passes(model: ModelGeometry, rows: Tokens, models: PairPlacement) -> dict[Kernels, _TrialPass]:
    """A pass for each combination of kernels that runs on the device, the standard ones first. All have the same weights.

    Kernels that PyTorch refuses, or that compute something else, are left out with a warning.
    """
    dtype, device = models.dtype, str(models.device)
    standard = random_weights(model, torch_dtype(dtype), device, seed=SEED)
    converted = {STANDARD_KERNELS: standard}
    passes: dict[Kernels, _TrialPass] = {}
    for kernels in runnable_kernels(models.device, dtype, models.mode):
        layout = replace(kernels, attention=STANDARD_KERNELS.attention)  # weights do not depend on the attention kernel
        if layout not in converted:
            converted[layout] = with_kernels(standard, layout)
        try:
            candidate = _TrialPass(DECODERS[models.mode](model, replace(converted[layout], kernels=kernels)), rows)
            error_frac = candidate.error_frac(passes[STANDARD_KERNELS]) if passes else 0.0
        except (RuntimeError, TypeError, ValueError) as err:  # PyTorch refuses a device, a dtype or an argument
            if kernels == STANDARD_KERNELS:
                raise
            print_err(f"warning: kernels {kernels.label} do not run here ({str(err).splitlines()[0]}): they are left out")
            continue
        if not error_frac <= MAX_ERROR_FRAC[dtype]:
            print_err(f"warning: kernels {kernels.label} differ by {error_frac:.1%} from the standard ones: they are left out")
            continue
        passes[kernels] = candidate
    return passes


class _TrialPass:
    """A verification of some rows after `CACHED_TOKENS`, and the head after it."""

    def __init__(self, decoder: Decoder, rows: Tokens) -> None:
        self._decoder = decoder
        self._cache = decoder.new_cache((decoder.geometry.num_layers,), CACHED_TOKENS + rows)
        end, width = CACHED_TOKENS + rows, graph_width(rows)
        decoder.prepare(self._cache, end, end, widths=(width,) if width else None)
        self._states = decoder.embed(list(range(rows)))
        self._rows = rows
        self.num_layers = decoder.geometry.num_layers
        self._clock = Clock(decoder.device)

    @torch.inference_mode()
    def error_frac(self, standard: _TrialPass) -> float:
        """RMS difference of the output from another pass, over the RMS of that pass."""
        hidden_size = self._decoder.geometry.hidden_size
        output, expected = (trial._run().float()[:, :hidden_size] for trial in (self, standard))  # [T, D]
        return float((output - expected).square().mean().sqrt() / expected.square().mean().sqrt())

    def _run(self) -> Tensor:
        self._cache.lengths = [CACHED_TOKENS]
        return self._decoder.forward_segment(self._states, self._cache.segments[0], self._cache)

    @torch.inference_mode()
    def seconds(self) -> tuple[Seconds, Seconds]:
        """Seconds of all layers, and of the head."""
        if self._decoder.device.type == "cuda":
            self._run()  # keeps the device busy during the launch of the timed pass, which then contains no host time
        self._clock.start()
        states = self._run()
        self._clock.lap("verify", 0, self._rows, CACHED_TOKENS)
        self._decoder.exit_logits(states)
        self._clock.lap("exit", 0, self._rows, 0)
        layers_s, head_s = self._clock.lap_seconds()
        return layers_s, head_s
