"""The latency profiles of a pair: one file for the draft, one for the target, and their unfinished forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from s2d.loading.load_model import LoadedModel


def pair_profiles(
    log: PassLog, pair: ModelPair, sampling: Sampling, kernel_trials: tuple[KernelTrial, ...] = ()
) -> dict[str, LatencyProfile]:
    """The draft's and the target's profile by role; a self-draft has the target's alone, with everything in it.

    Args:
        log: their passes.
        pair: whose passes they are.
        sampling: how they decoded.
        kernel_trials: what the pair's kernels were chosen by.
    """
    draft, target = pair.draft, pair.target
    if pair.geometry.kind == "self":
        exit_layers = pair.geometry.exit_layers
        return {
            "target": LatencyProfile(
                model=target.geometry,
                model_sha256=target.sha256,
                exit_layers=exit_layers,
                beside=None,
                device=pair.device_key,
                rule=sampling.rule,
                processing=sampling.processing,
                samples=log.samples(),
                kernel_trials=kernel_trials,
            )
        }

    def profile(model: LoadedModel, exit_layers: tuple[int, ...], beside: LoadedModel, *, is_draft: bool) -> LatencyProfile:
        return LatencyProfile(
            model=model.geometry,
            model_sha256=model.sha256,
            exit_layers=exit_layers,
            beside=beside.geometry.name,
            device=pair.draft_device_key if is_draft else pair.device_key,
            rule=sampling.rule,
            processing=sampling.processing,
            samples=log.samples("draft" if is_draft else "target"),
            kernel_trials=kernel_trials,
        )

    return {
        "draft": profile(draft, pair.geometry.exit_layers, target, is_draft=True),
        "target": profile(target, (), draft, is_draft=False),
    }


class LatencyFiles:
    """Where the profiles made of one log are kept.

    Args:
        folder: holds `NAME.latency.json` of every profile, and while they grow `NAME.latency.partial.json`.
        profiles_of: a log as profiles, by name.
        provenance: of the files.
        contention: of the measurement; None where nobody watched.
    """

    def __init__(
        self,
        folder: Path,
        profiles_of: Callable[[PassLog], dict[str, LatencyProfile]],
        provenance: Provenance,
        contention: Contention | None = None,
    ) -> None:
        self._folder = folder
        self._profiles_of = profiles_of
        self._provenance = provenance
        self._contention = contention
        self._waited_fracs: list[Frac] = []
        """Of earlier parts of the measurement."""
        self._names = tuple(profiles_of(PassLog()))

    @property
    def partial_paths(self) -> tuple[Path, ...]:
        """Unfinished files."""
        return tuple(self._folder / f"{name}.latency.partial.json" for name in self._names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Finished files."""
        return tuple(self._folder / f"{name}.latency.json" for name in self._names)

    def resumed(self) -> PassLog:
        """The passes of an unfinished measurement; an empty log where there is none.

        Raises:
            Mismatch: it was of other models or another device.
        """
        log = PassLog()
        expected = self._profiles_of(log)
        for path, wanted in zip(self.partial_paths, expected.values(), strict=True):
            if not path.exists():
                continue
            found = PROFILE_FILE.read(path).record
            if _identity(found) != _identity(wanted):
                raise Mismatch(
                    f"the unfinished profile {str(path)!r}",
                    made_for=_identity(found),
                    given=_identity(wanted),
                    fix="Repeat the command that began it to go on, or delete it, or give another folder with -o",
                )
            log.add(found.samples)
            if found.waited_frac is not None:
                self._waited_fracs.append(found.waited_frac)
        return log

    @property
    def _waited_frac(self) -> Frac | None:
        """Of the part of the measurement that was disturbed most."""
        now = None if self._contention is None else self._contention.waited_frac
        return max([*self._waited_fracs, *([] if now is None else [now])], default=None)

    def write_partial(self, log: PassLog) -> None:
        """Keep what was measured so far."""
        self._write(log, self.partial_paths)

    def write(self, log: PassLog) -> tuple[Path, ...]:
        """Write the finished profiles; the unfinished ones go."""
        self._write(log, self.paths)
        for path in self.partial_paths:
            path.unlink(missing_ok=True)
        return self.paths

    def _write(self, log: PassLog, paths: tuple[Path, ...]) -> None:
        profiles = self._profiles_of(log).values()
        for path, record in zip(paths, profiles, strict=True):
            PROFILE_FILE.write(path, replace(record, waited_frac=self._waited_frac), self._provenance)


def _identity(profile: LatencyProfile) -> str:
    """What a profile is of, in words that differ where it matters.

    Prompts, the longest draft and new tokens do not: they decide which passes are met, and every pass is kept with the rows,
    the cached tokens and the place in its round that it had, by which it is priced.
    """
    beside = f" beside {profile.beside}" if profile.beside else ""
    weights = f"weights {profile.model_sha256[:12]}"
    processing = f" with {', '.join(profile.processing)}" if profile.processing else ""
    return f"{profile.model.name} ({weights}){beside}, {profile.rule} decoding{processing} on {profile.device.label}"
