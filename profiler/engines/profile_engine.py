"""Profile a target and exits of a draft in an engine, by running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from perfmodel.core.console import Progress, keep_progress, print_err, save_or_warn
from perfmodel.core.disk import PathLike, check_writable, translate_write_errors
from perfmodel.core.errors import MAX_LISTED_NAMES, Mismatch
from perfmodel.core.lock import locked_folder
from perfmodel.core.provenance import Provenance, make_provenance
from perfmodel.core.units import Bytes, Tokens
from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE, EngineProfile, EngineRun, EngineSetting
from perfmodel.engines.engine_profile_text import profile_warnings
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from profiler.engines.engine_models import EngineModels, engine_models
from profiler.engines.engine_request import DEFAULT_LENGTHS, Arm, EngineProfileRequest, arms_of, read_engine_prompts
from profiler.engines.measure_engine import EngineMeasurement, Part, Step, log_folder
from profiler.machine.machine_facts import device_facts
from s2d.engines.session import check_installed
from s2d.engines.session_request import EngineFacts
from s2d.loading.memory import free_device_bytes
from s2d.model.torch_device import use_device
from s2d.prompts.conversation import Prompt

_INTERFACE = "interface="
"""The option of a profile whose interface was requested."""
_HASH_CHARS = 12
"""Characters of a hash in a message."""
_SHARED_FIELDS = (
    "engine",
    "target",
    "draft",
    "weights",
    "threads",
    "interface",
    "repeats",
    "restarts",
    "warm_up_tokens",
    "models_folder",
)
"""What requests that are measured together have in common."""


def profile_engine(
    target: str,
    *,
    draft: str,
    engine: str,
    output: PathLike | None = None,
    exits: Sequence[int] | None = None,
    lengths: Sequence[Tokens] = DEFAULT_LENGTHS,
    weights: str | None = None,
    threads: int | None = 1,
    prompts: PathLike | Sequence[str | Prompt] | None = None,
    num_prompts: int = 8,
    max_new_tokens: Tokens = 96,
    repeats: int = 2,
) -> EngineProfile:
    """Measure plain decoding, every exit alone, and every exit with a few draft lengths, in an engine. Progress goes to stderr.

    The engine runs in an environment of its own: `s2d-engines install NAME` makes it. Servers listen on 127.0.0.1 alone. All
    processes of the engine end with this call, however it ends. `run_profile_engine` takes an `EngineProfileRequest`, which
    has all options of `s2d-profile engine`.

    Args:
        target: a model folder, a name of the reference family (`ref-target-16`), or `org/name` on the Hugging Face hub.
        draft: as for `target`. Its exits are written as ordinary checkpoints, in the engine's format.
        engine: a name in the table of engines: `s2d-engines list`.
        output: the file to write. A repeated call continues an interrupted measurement there. None: `ENGINE.engine.json`.
        exits: exits to run; None takes the first and the last.
        lengths: draft lengths to run.
        weights: storage of the weights of both models, in the engine's words; None takes the first that its row names.
        threads: threads of a CPU run; None runs on the engine's GPU.
        prompts: a prompt file, or the prompts themselves. None takes the prompts of the reference family.
        num_prompts: the maximum number of prompts to choose from the calibration half of a file.
        max_new_tokens: tokens written after each prompt.
        repeats: how often every configuration decodes every prompt.

    Raises:
        UserInputError: an input is missing, cannot be read, or does not fit the others; or the engine is not installed.
        EngineFailure: the engine does not start, fails or ends. What was measured is kept.
        Mismatch: the file holds an unfinished measurement of other models or settings.

    Example:
        >>> measured = s2d.profile_engine(  # doctest: +SKIP
        ...     "ref-target-16", draft="ref-draft", engine="onnxruntime", exits=(2, 4), num_prompts=4
        ... )
        >>> print(measured)  # doctest: +SKIP
    """
    request = EngineProfileRequest(
        engine=engine,
        target=target,
        draft=draft,
        output=None if output is None else Path(output),
        exits=None if exits is None else tuple(exits),
        lengths=tuple(lengths),
        weights=weights,
        threads=threads,
        prompts=prompts,
        num_prompts=num_prompts,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
    )
    return run_profile_engine(request, read_engine_prompts(request))


def run_profile_engine(
    request: EngineProfileRequest, prompts: Sequence[Prompt], *, command: Sequence[str] | None = None
) -> EngineProfile:
    """Carry out a request; see `profile_engine`.

    Args:
        request: the models and settings.
        prompts: from `read_engine_prompts`.
        command: the command line for the provenance of the file; None takes that of the process.

    Raises:
        UserInputError: besides what `profile_engine` raises: another process uses the same folder of models.
    """
    [profile] = run_profiles_together([(request, prompts)], command=command)
    return profile


def run_profiles_together(
    requests: Sequence[tuple[EngineProfileRequest, Sequence[Prompt]]], *, command: Sequence[str] | None = None
) -> tuple[EngineProfile, ...]:
    """Measure several profiles at once: they take turns over the whole time, so that the machine's drift is in all alike.

    Args:
        requests: the requests with their prompts, each with a file of its own. They differ only in prompts, configurations,
            tokens and seed.
        command: as in `run_profile_engine`.

    Raises:
        ValueError: the requests differ in other fields.
    """
    _check_together([request for request, _ in requests])
    first = requests[0][0]
    device = torch.device("cpu" if first.threads is not None else "cuda")
    use_device(device.type)
    check_installed(first.row.name, first.interface)
    for request, _ in requests:
        check_writable(request.file)
    with translate_write_errors(first.models_folder):
        log_folder(first).mkdir(parents=True, exist_ok=True)
    with locked_folder(first.models_folder):
        return _profiles(requests, device, command)


def _profiles(
    requests: Sequence[tuple[EngineProfileRequest, Sequence[Prompt]]], device: torch.device, command: Sequence[str] | None
) -> tuple[EngineProfile, ...]:
    """Carry out requests while no other process uses their folder of models."""
    models = [engine_models(request, prompts) for request, prompts in requests]
    facts = device_facts(device)
    files = [
        _ProfileFile(
            request,
            loaded,
            facts.name,
            make_provenance(argv=command, device=facts.name, driver=facts.driver, seed=request.seed),
        )
        for (request, _), loaded in zip(requests, models, strict=True)
    ]
    partial = [request.partial_file for request, _ in requests]
    kept = (partial[0], ()) if len(partial) == 1 else (partial[0].parent, [path.name for path in partial])
    with keep_progress(kept[0], patterns=kept[1]):
        reported = _measure(files, free_device_bytes(device))
    return tuple(file.finish(reported) for file in files)


def _check_together(requests: Sequence[EngineProfileRequest]) -> None:
    """Refuse requests that one set of processes cannot measure."""
    first = requests[0]
    for request in requests[1:]:
        other = [name for name in _SHARED_FIELDS if getattr(request, name) != getattr(first, name)]
        if other:
            raise ValueError(f"profiles that are measured together differ in {', '.join(other)}")


def _measure(files: Sequence[_ProfileFile], free_bytes: Bytes) -> EngineFacts | None:
    """Make the calls that are left, and save after every visit. What the engine reports of itself; None if no call was left.

    Raises:
        EngineFailure: the engine fails. The unfinished files keep what was measured.
        Mismatch: another version of the engine is installed than in an unfinished file, or it gets other options.
    """
    measurement, request = EngineMeasurement([file.part for file in files]), files[0].part.request
    groups = measurement.groups(free_bytes)
    if len(groups) > 1:
        print_err(f"the processes of {request.row.title} run in {len(groups)} groups, one after another")
    planned = measurement.steps(groups)
    progress = Progress(request.row.name, sum(len(steps) for _, steps in planned) or 1)

    def on_start(facts: EngineFacts) -> None:
        for file in files:
            file.check_facts(facts)
        progress.restart()

    def on_call(step: Step, is_last: bool) -> None:
        progress.step(f"{step.prompt.name}, {step.arm.label}")
        if is_last:
            save_or_warn(lambda: files[step.part].save(measurement.facts))

    with progress:
        for group, steps in planned:
            measurement.measure(group, steps, on_start=on_start, on_call=on_call)
    return measurement.facts


class _ProfileFile:
    """A requested profile and its unfinished file.

    Args:
        request: what to measure.
        models: in the engine's format.
        device: name of the device.
        provenance: of the file.

    Raises:
        Mismatch: the unfinished file is of other models or settings.
    """

    def __init__(self, request: EngineProfileRequest, models: EngineModels, device: str, provenance: Provenance) -> None:
        self._request, self._models, self._device, self._provenance = request, models, device, provenance
        arms = request.configurations or arms_of(models.exits, request.lengths)
        self.part = Part(request=request, models=models, arms=arms, calls={})
        self._kept = ENGINE_PROFILE_FILE.read(request.partial_file).record if request.partial_file.exists() else None
        if self._kept is not None:
            check_resumable(request.partial_file, self._kept, self._with_runs(_facts_of(self._kept), self._kept.runs))
            self.part.calls.update({Arm.of(run): list(run.calls) for run in self._kept.runs})
            self._check_calls()
            print_err(f"continuing with the {sum(map(len, self.part.calls.values()))} calls in {request.partial_file}")

    def save(self, facts: EngineFacts | None) -> None:
        """Write what has been measured to the unfinished file."""
        if self.part.calls:
            ENGINE_PROFILE_FILE.write(self._request.partial_file, self._profile(facts), self._provenance)

    def finish(self, facts: EngineFacts | None) -> EngineProfile:
        """Write the file, and warn of what looks wrong."""
        profile = self._profile(facts)
        ENGINE_PROFILE_FILE.write(self._request.file, profile, self._provenance)
        self._request.partial_file.unlink(missing_ok=True)
        for warning in profile_warnings(profile):
            print_err(f"warning: {warning}")
        return profile

    def check_facts(self, facts: EngineFacts) -> None:
        """Refuse another version of the engine than in the unfinished file, or other options."""
        if self._kept is not None and facts != _facts_of(self._kept):
            raise _mismatch(self._request.partial_file, _facts_text(_facts_of(self._kept)), _facts_text(facts))

    def _profile(self, facts: EngineFacts | None) -> EngineProfile:
        """What has been measured. Without facts, no process was started: they are those of the unfinished file."""
        return self._with_runs(facts or (_facts_of(self._kept) if self._kept else EngineFacts(version="")), self.part.runs)

    def _check_calls(self) -> None:
        """Refuse kept configurations and prompts that are not requested."""
        calls = self.part.calls
        lengths = {prompt.name: len(prompt.token_ids) for prompt in self._models.prompts}
        extra = [arm.label for arm in calls if arm not in self.part.arms]
        others = {call.prompt for kept in calls.values() for call in kept if lengths.get(call.prompt) != call.prompt_tokens}
        if extra or others:
            made_for = ", ".join([*extra, *(f"prompt {name!r}" for name in sorted(others))][:MAX_LISTED_NAMES])
            raise _mismatch(self._request.partial_file, made_for, "the configurations and prompts of this request")

    def _with_runs(self, facts: EngineFacts, runs: tuple[EngineRun, ...]) -> EngineProfile:
        request, models = self._request, self._models
        setting = EngineSetting(
            engine=request.row.name,
            version=facts.version,
            weights=request.stored_weights,
            device=self._device,
            num_devices=1,
            num_threads=request.threads,
            options=(*_interface_options(request), *facts.options),
        )
        return EngineProfile(
            setting=setting,
            target=models.target,
            target_sha256=models.target_sha256,
            draft=models.draft,
            draft_sha256=models.draft_sha256,
            tokenizer_sha256=models.tokenizer_sha256,
            max_new_tokens=request.max_new_tokens,
            runs=runs,
        )


def _interface_options(request: EngineProfileRequest) -> tuple[str, ...]:
    return () if request.interface is None else (f"{_INTERFACE}{request.interface}",)


def _facts_of(profile: EngineProfile) -> EngineFacts:
    """What the engine reported of itself when a profile was measured."""
    options = (option for option in profile.setting.options if not option.startswith(_INTERFACE))
    return EngineFacts(version=profile.setting.version, options=tuple(options))


def _facts_text(facts: EngineFacts) -> str:
    return ", ".join([f"version {facts.version}", *facts.options])


def check_resumable(path: Path, kept: EngineProfile, requested: EngineProfile) -> None:
    """Refuse to continue a measurement of other models or settings.

    Args:
        path: the unfinished file.
        kept: its content.
        requested: what this request would write, with the same runs.

    Raises:
        Mismatch: they differ.
    """
    names = [field.name for field in fields(EngineProfile) if getattr(kept, field.name) != getattr(requested, field.name)]
    if names:
        made_for, given = (", ".join(_field_text(profile, name) for name in names) for profile in (kept, requested))
        raise _mismatch(path, made_for, given)


def _field_text(profile: EngineProfile, name: str) -> str:
    """A field of a profile as text."""
    match getattr(profile, name):
        case EngineSetting() as setting:
            return ", ".join([setting.label, *setting.options])
        case ModelGeometry() as geometry:
            return f"target {geometry.name}"
        case DraftGeometry() as draft:
            return f"draft {draft.model.name}"
        case value:
            return f"{name.replace('_', ' ')} {str(value)[:_HASH_CHARS]}"


def _mismatch(path: Path, made_for: str, given: str) -> Mismatch:
    return Mismatch(
        f"the unfinished profile {str(path)!r}",
        made_for=made_for,
        given=given,
        fix="Repeat the original command to continue, or delete it, or give another file with -o",
    )
