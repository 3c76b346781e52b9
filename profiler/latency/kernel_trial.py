"""Which kernels are fastest on this device for the shapes of a pair: a few layers of random weights, timed in turns.

Every combination of `perfmodel.passes.kernels` that can run there gets a decoder of its own, launched as the pair will be. Where the
model is large enough, it has so many layers that no cache of a GPU holds its weights between two passes. The combinations take
turns in random order, so that a drifting clock affects all of them alike, and the time of a combination is its median. All have
the same weights, so that their results are compared too.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import DeviceKey, EngineMode
from perfmodel.passes.kernels import STANDARD_KERNELS, TRIAL_ROWS, Kernels, KernelTrial, fastest_kernels, parse_kernels
from perfmodel.passes.latency_profile import PROFILE_FILE
from perfmodel.passes.passes import graph_width
from s2d.decoding.clock import Clock
from s2d.loading.convert_weights import random_weights, with_kernels
from s2d.loading.load_model import DECODERS
from s2d.model.check_kernels import check_kernels, runnable_kernels
from s2d.model.decoder import Decoder
from s2d.model.torch_dtypes import torch_dtype

CACHED_TOKENS: Tokens = 512
NUM_TURNS = 20
NUM_WARM_UPS = 3
SEED = 0
MAX_ERROR_FRAC = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.02}
"""What rounding may make of a few layers, in another order of sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenKernels:
    """What to compute with, and why."""

    kernels: Kernels
    trials: tuple[KernelTrial, ...]
    """Empty where nothing was timed."""


def choose_kernels(
    asked: str | None,
    target: ModelGeometry,
    draft: DraftGeometry,
    dtype: Dtype,
    device: str,
    *,
    engine: EngineMode,
    recorded: ChosenKernels | None,
    least_bytes: Bytes = 2 * MAX_CACHE_BYTES,
) -> ChosenKernels:
    """The kernels to profile with.

    Args:
        asked: `measured`, `standard`, or a label; None is `measured` on a GPU and `standard` on a CPU.
        target: its shape.
        draft: its shape.
        dtype: to compute in.
        device: torch's name for it.
        engine: how passes are launched.
        recorded: what an earlier profile was measured with. Kernels are timed once: not again where it has trials, and never
            where nothing was asked for.
        least_bytes: see `try_kernels`.

    Raises:
        UserInputError: a label of kernels that there are not, or that do not run there.
    """
    default = "measured" if torch.device(device).type == "cuda" else "standard"
    how = default if asked is None else asked
    if how == "measured":
        if recorded is not None and (asked is None or recorded.trials):
            return recorded
        trials = try_kernels(target, draft, dtype, device, engine=engine, least_bytes=least_bytes)
        layers = {"draft_layers": draft.exit_layers[-1], "target_layers": target.num_layers}
        return ChosenKernels(kernels=fastest_kernels(trials, **layers), trials=trials)
    if how == "standard":
        return ChosenKernels(kernels=STANDARD_KERNELS, trials=())
    try:
        kernels = parse_kernels(how)
    except ValueError as err:
        raise UserInputError(f"--kernels: {err}; or measured, or standard.") from err
    check_kernels(kernels, device, dtype, engine, fix="Give one of these with --kernels, or leave it out.")
    return ChosenKernels(kernels=kernels, trials=())


def recorded_kernels(folder: Path, here: DeviceKey) -> ChosenKernels | None:
    """What the profiles of a folder were measured with, finished or not; None where there are none of this device.

    Args:
        folder: holds what `s2d-profile` wrote.
        here: the device now, whatever its kernels.
    """
    for path in sorted(folder.glob("*.latency*.json")):
        try:
            profile = PROFILE_FILE.read(path).record
        except BadFile:  # reported where the file is needed
            continue
        if profile.device.kernels is not None and replace(profile.device, kernels=here.kernels) == here:
            return ChosenKernels(kernels=profile.device.kernels, trials=profile.kernel_trials)
    return None


def try_kernels(
    target: ModelGeometry,
    draft: DraftGeometry,
    dtype: Dtype,
    device: str,
    *,
    engine: EngineMode,
    least_bytes: Bytes = 2 * MAX_CACHE_BYTES,
    num_turns: int = NUM_TURNS,
) -> tuple[KernelTrial, ...]:
    """Time every candidate on layers and heads of the draft's shape and of the target's.

    Args:
        target: its shape.
        draft: its shape.
        dtype: to compute in.
        device: torch's name for it.
        engine: how passes are launched.
        least_bytes: weights of the layers of a trial.
        num_turns: timed passes of each candidate.
    """
    kernels = runnable_kernels(device, dtype, engine)
    draft_s, target_s = (
        _median_seconds(model, rows, kernels, dtype, device, engine, least_bytes, num_turns)
        for model, rows in ((draft.model, 1), (target, TRIAL_ROWS))
    )
    return tuple(
        KernelTrial(
            kernels=one,
            draft_layer_s=draft_s[one][0],
            draft_head_s=draft_s[one][1],
            target_layer_s=target_s[one][0],
            target_head_s=target_s[one][1],
        )
        for one in kernels
        if one in draft_s and one in target_s
    )


def trial_model(model: ModelGeometry, dtype: Dtype, least_bytes: Bytes) -> ModelGeometry:
    """A Llama with a head and layers of a model's shape, as many layers as hold so many bytes of weights."""
    layer_bytes = model.layer_params * DTYPE_BYTES[dtype]
    return ModelGeometry(
        name=f"layers of {model.name}",
        num_layers=min(model.num_layers, int(-(-least_bytes // layer_bytes))),
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


def _median_seconds(
    model: ModelGeometry,
    rows: Tokens,
    kernels: Sequence[Kernels],
    dtype: Dtype,
    device: str,
    engine: EngineMode,
    least_bytes: Bytes,
    num_turns: int,
) -> dict[Kernels, tuple[Seconds, Seconds]]:
    """Median seconds of one layer, and of the head, with each of the kernels that run and compute what the standard ones do."""
    cut = trial_model(model, dtype, least_bytes)
    timed = _timed_passes(cut, rows, kernels, dtype, device, engine)
    rng = np.random.default_rng(SEED)
    found: dict[Kernels, list[tuple[Seconds, Seconds]]] = {one: [] for one in timed}
    order = list(timed)
    for turn in range(NUM_WARM_UPS + num_turns):
        for place in rng.permutation(len(order)):
            took_s = timed[order[place]].seconds()
            if turn >= NUM_WARM_UPS:
                found[order[place]].append(took_s)
    medians = {one: np.median(seconds, axis=0).tolist() for one, seconds in found.items()}
    return {one: (layers_s / cut.num_layers, head_s) for one, (layers_s, head_s) in medians.items()}


def _timed_passes(
    model: ModelGeometry, rows: Tokens, kernels: Sequence[Kernels], dtype: Dtype, device: str, engine: EngineMode
) -> dict[Kernels, _TimedPass]:
    """A pass for each of the kernels, the first of which are the standard ones. All compute with the same numbers.

    Kernels that PyTorch refuses here, or that compute something else, are left out with a warning.
    """
    standard = random_weights(model, torch_dtype(dtype), device, seed=SEED)
    folded = {STANDARD_KERNELS: standard}
    timed: dict[Kernels, _TimedPass] = {}
    for one in kernels:
        # Weights do not depend on the attention kernel.
        unattended = replace(one, attention=STANDARD_KERNELS.attention)
        if unattended not in folded:
            folded[unattended] = with_kernels(standard, unattended)
        try:
            candidate = _TimedPass(DECODERS[engine](model, replace(folded[unattended], kernels=one)), rows)
            error_frac = candidate.error_frac(timed[STANDARD_KERNELS]) if timed else 0.0
        except (RuntimeError, TypeError, ValueError) as err:  # as PyTorch refuses a device, a dtype, or an argument
            if one == STANDARD_KERNELS:
                raise
            print_err(f"warning: kernels {one.label} do not run here ({str(err).splitlines()[0]}): they are not tried")
            continue
        if not error_frac <= MAX_ERROR_FRAC[dtype]:
            print_err(f"warning: kernels {one.label} are off by {error_frac:.1%} of the standard ones: they are not tried")
            continue
        timed[one] = candidate
    return timed


class _TimedPass:
    """A verification of some rows behind `CACHED_TOKENS`, and the head after it."""

    def __init__(self, decoder: Decoder, rows: Tokens) -> None:
        self._decoder = decoder
        self._cache = decoder.new_cache((decoder.geometry.num_layers,), CACHED_TOKENS + rows)
        end, width = CACHED_TOKENS + rows, graph_width(rows)
        decoder.prepare(self._cache, end, end, widths=(width,) if width else None)
        self._states = decoder.embed(list(range(rows)))
        self._rows = rows
        self._clock = Clock(decoder.device)

    @torch.inference_mode()
    def error_frac(self, standard: _TimedPass) -> float:
        """How far the rows that come out differ from those of another pass: RMS of the difference over their own."""
        found, expected = (one._run().float()[:, : one._decoder.geometry.hidden_size] for one in (self, standard))
        return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())

    def _run(self) -> Tensor:
        self._cache.lengths = [CACHED_TOKENS]
        return self._decoder.forward_segment(self._states, self._cache.segments[0], self._cache)

    @torch.inference_mode()
    def seconds(self) -> tuple[Seconds, Seconds]:
        """Of all layers, and of the head."""
        if self._decoder.device.type == "cuda":
            self._run()  # keeps the device busy while the host launches the timed pass, whose time is then the device's alone
        self._clock.start()
        states = self._run()
        self._clock.lap("verify", 0, self._rows, CACHED_TOKENS)
        self._decoder.exit_logits(states)
        self._clock.lap("exit", 0, self._rows, 0)
        layers_s, head_s = self._clock.lap_seconds()
        return layers_s, head_s
