"""Latency profiles of a pair, and their files: finished and unfinished, one per model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from perfmodel.core.cpu_contention import Contention
from perfmodel.core.errors import Mismatch
from perfmodel.core.provenance import Provenance
from perfmodel.core.units import Frac
from perfmodel.passes.kernels import KernelTrial
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.policies.sampling import Sampling
from profiler.latency.pass_log import PassLog
from s2d.decoding.pair import ModelPair


def pair_profiles(
    log: PassLog, pair: ModelPair, sampling: Sampling, kernel_trials: tuple[KernelTrial, ...] = ()
) -> dict[str, LatencyProfile]:
    """The profiles of draft and target by role; a self-draft has only the target's, with all passes.

    Args:
        log: their passes.
        pair: the models.
        sampling: how they decoded.
        kernel_trials: the trials that chose the pair's kernels.
    """
    draft, target, exit_layers = pair.draft, pair.target, pair.geometry.exit_layers
    profile = partial(LatencyProfile, rule=sampling.rule, processing=sampling.processing, kernel_trials=kernel_trials)
    target_profile = partial(profile, model=target.geometry, model_sha256=target.sha256, device=pair.device_key)
    if pair.geometry.kind == "self":
        return {"target": target_profile(exit_layers=exit_layers, beside=None, samples=log.samples())}
    return {
        "draft": profile(
            model=draft.geometry,
            model_sha256=draft.sha256,
            exit_layers=exit_layers,
            beside=target.geometry.name,
            device=pair.draft_device_key,
            samples=log.samples("draft"),
        ),
        "target": target_profile(exit_layers=(), beside=draft.geometry.name, samples=log.samples("target")),
    }


class LatencyFiles:
    """The files of the profiles made from one log.

    Args:
        folder: holds `NAME.latency.json` of every profile, and during the measurement `NAME.latency.partial.json`.
        make_profiles: turns a log into profiles by name.
        provenance: written to the files.
        contention: observes other programs during the measurement; None if nothing does.
    """

    def __init__(
        self,
        folder: Path,
        make_profiles: Callable[[PassLog], dict[str, LatencyProfile]],
        provenance: Provenance,
        contention: Contention | None = None,
    ) -> None:
        self.folder = folder
        self._make_profiles = make_profiles
        self._provenance = provenance
        self._contention = contention
        self._waited_fracs: list[Frac] = []
        """Shares of waiting in earlier parts of the measurement, before interruptions."""
        self._names = tuple(make_profiles(PassLog()))

    @property
    def partial_paths(self) -> tuple[Path, ...]:
        """The unfinished files."""
        return tuple(self.folder / f"{name}.latency.partial.json" for name in self._names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The finished files."""
        return tuple(self.folder / f"{name}.latency.json" for name in self._names)

    @property
    def contention_warning(self) -> str | None:
        """A warning if other programs used the processor during the measurement."""
        return None if self._contention is None else self._contention.warning

    def resumed(self) -> PassLog:
        """The passes of an unfinished measurement; an empty log if there is none.

        Raises:
            Mismatch: the measurement was of other models or on another device.
        """
        log = PassLog()
        expected = self._make_profiles(log)
        for path, requested in zip(self.partial_paths, expected.values(), strict=True):
            if not path.exists():
                continue
            kept = PROFILE_FILE.read(path).record
            if _identity(kept) != _identity(requested):
                raise Mismatch(
                    f"the unfinished profile {str(path)!r}",
                    made_for=_identity(kept),
                    given=_identity(requested),
                    fix="Repeat the original command to continue, or delete it, or give another folder with -o",
                )
            log.add(kept.samples)
            if kept.waited_frac is not None:
                self._waited_fracs.append(kept.waited_frac)
        return log

    @property
    def _waited_frac(self) -> Frac | None:
        """The largest share of waiting among all parts of the measurement."""
        now = None if self._contention is None else self._contention.waited_frac
        return max([*self._waited_fracs, *([] if now is None else [now])], default=None)

    def write_partial(self, log: PassLog) -> None:
        """Write the passes so far to the unfinished files."""
        self._write(log, self.partial_paths)

    def write(self, log: PassLog) -> tuple[Path, ...]:
        """Write the finished profiles, and delete the unfinished files."""
        self._write(log, self.paths)
        for path in self.partial_paths:
            path.unlink(missing_ok=True)
        return self.paths

    def _write(self, log: PassLog, paths: tuple[Path, ...]) -> None:
        profiles = self._make_profiles(log).values()
        for path, record in zip(paths, profiles, strict=True):
            PROFILE_FILE.write(path, replace(record, waited_frac=self._waited_frac), self._provenance)


def _identity(profile: LatencyProfile) -> str:
    """The models, weights, decoding and device of a profile, as text.

    Prompts, the longest draft and new tokens are left out. They only decide which passes occur, and each pass is stored with
    its rows, cached tokens and index in the round, from which it is priced.
    """
    co_loaded = f", loaded with {profile.beside}" if profile.beside else ""
    weights = f"weights {profile.model_sha256[:12]}"
    processing = f" with {', '.join(profile.processing)}" if profile.processing else ""
    return f"{profile.model.name} ({weights}){co_loaded}, {profile.rule} decoding{processing} on {profile.device.label}"
