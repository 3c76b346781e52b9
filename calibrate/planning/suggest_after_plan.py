"""Suggest the command after a plan: measure its weakest evidence, or run it.

Only commands that work are suggested. Profiling and running compute in fp32, bf16 and fp16; on several devices they launch
kernels eagerly and split models evenly. Some plans can therefore be measured in part only, or only through the latency law of
their device.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibrate.inputs.acceptance import model_folder, prompts_flags
from calibrate.planning.suggest_after_engine_plan import engine_notes, export_command, profile_engine_command
from calibrate.pricing.draft_placement import Placement
from calibrate.pricing.pricing import memory_needed, pair_weights
from perfmodel.core.console import without_flag
from perfmodel.core.torchrun import torchrun_command
from perfmodel.core.units import format_frac
from perfmodel.hardware.hardware import MEMORY_HEADROOM_FRAC
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import unpublished_note
from perfmodel.models.geometry import SELF_DRAFT, DraftGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import Plan
from perfmodel.results.plan_text import is_published

PROFILED_DTYPES = ("fp32", "bf16", "fp16")
"""Dtypes in which `s2d-profile` and `s2d-run` compute."""
DEFAULT_PLAN_PATH = Path("plan.json")
"""Where a plan is written if no path was given."""
DEFAULT_PROFILE_FOLDER = Path("profile")
"""Where `s2d-profile` writes by default."""


def next_command(plan: Plan, *, command: Sequence[str] | None = None, output: Path | None = None) -> str:
    """The command to run after planning; empty if nothing more can be measured.

    Args:
        plan: complete except for `next_command` and `notes`.
        command: the command line that made the plan, program first. None: suggest a command without files of this machine.
        output: where the plan was written.
    """
    if plan.has_assumed_head:
        return _plan_with_whole_head(plan, command)
    if plan.engine != "s2d":
        return _next_in_engine(plan, command, output)
    is_measured = _latency_levels(plan) == {"measured"}
    if is_measured and _is_traced(plan):
        return _write_and_run(plan, command, output)
    if not is_measured and not _can_run(plan):
        return "" if _is_fitted(plan) else shlex.join(["s2d-profile", "law", *_device_flags(plan.device), "-o", "law"])
    return profile_command(plan, latency=not is_measured, acceptance=not _is_traced(plan))


def _next_in_engine(plan: Plan, command: Sequence[str] | None, output: Path | None) -> str:
    """Run the engine if it was not run, record acceptance if it was not recorded, else export a plan that speculates."""
    draft = draft_argument(plan.draft)
    if plan.engine_setting is None:
        return profile_engine_command(plan, draft)
    if not _is_traced(plan):
        return profile_command(plan, latency=False, acceptance=True)
    if plan.policy is None:
        return ""
    return export_command(plan, draft, command=command, output=output, path=DEFAULT_PLAN_PATH)


def plan_notes(plan: Plan) -> tuple[str, ...]:
    """What the next command cannot do, and how to train the draft where its authors published no weights."""
    if plan.engine != "s2d":
        return engine_notes(plan)
    how_to_train = unpublished_note(plan.draft) if is_published(plan.evidence) else None  # a traced draft has weights
    return tuple(note for note in (next_note(plan), how_to_train) if note is not None)


def next_note(plan: Plan) -> str | None:
    """What the next command cannot do; None if it measures or runs exactly the plan."""
    if plan.has_assumed_head:
        return (
            "No draft with such a head exists. The draft with the whole vocabulary can be measured and run, or one that "
            "s2d-train trim makes of it."
        )
    measured = measured_key(plan.device)
    if _can_run(plan):
        if measured != plan.device:
            return f"s2d-profile and s2d-run use {measured.label}: plan again from the files that s2d-profile writes."
        if not plan.target_weights.is_plain:
            return (
                "s2d-profile and s2d-run load plain weights only: give them the model that "
                f"{plan.target.name} was quantised from, and plan again from its files."
            )
        return None
    problem = (
        f"too large for s2d-profile and s2d-run, which keep {format_frac(MEMORY_HEADROOM_FRAC)} of the memory free. "
        f"The models do not fit on {measured.label}{_split_text(plan)}."
    )
    if _is_fitted(plan):
        return f"{problem} Only the device's latency law can be measured, and this plan uses it."
    return f"{problem} s2d-profile law measures the device's latency law instead, and s2d-plan --fit plans with it."


def _split_text(plan: Plan) -> str:
    if plan.device.num_devices == 1:
        return ""
    return ", even split evenly" if plan.draft_num_devices > 1 else " with the target split evenly and the draft on the first"


def measured_key(planned: DeviceKey) -> DeviceKey:
    """The device as the runtime uses it: in a dtype that it computes in, and eagerly if there are several."""
    default: Dtype = "bf16" if planned.num_threads is None else "fp32"
    dtype = planned.dtype if planned.dtype in PROFILED_DTYPES else default
    return replace(planned, mode=planned.mode if planned.num_devices == 1 else "eager", dtype=dtype)


def _latency_levels(plan: Plan) -> set[str]:
    return {part.level for part in plan.evidence if part.role.endswith(" latency")}


def _is_fitted(plan: Plan) -> bool:
    return bool(_latency_levels(plan) & {"fitted", "extrapolated"})


def _is_traced(plan: Plan) -> bool:
    return any(part.role == "acceptance" and part.level == "traced" for part in plan.evidence)


def _can_run(plan: Plan) -> bool:
    """Whether the devices hold both models as the runtime splits them, in a dtype in which it computes."""
    context_tokens = plan.workload.prompt_tokens + plan.workload.output_tokens
    weights = pair_weights(plan.draft, plan.target, measured_key(plan.device).dtype)
    capacity_bytes = plan.memory.capacity_bytes
    placement = Placement(
        draft=plan.draft,
        target=plan.target,
        draft_weights=weights.draft,
        target_weights=weights.target,
        num_devices=plan.device.num_devices,
        draft_num_devices=plan.draft_num_devices,
    )
    needed = memory_needed(plan.draft, plan.target, weights, context_tokens=context_tokens, capacity_bytes=capacity_bytes)
    return placement.fits(needed)


def _plan_with_whole_head(plan: Plan, command: Sequence[str] | None) -> str:
    if command is not None:
        return shlex.join(without_flag(command, "--draft-vocab"))
    return "s2d-plan --trace path/to/trace.npz" if _is_traced(plan) else f"s2d-plan --target {plan.target.name}"


def _write_and_run(plan: Plan, command: Sequence[str] | None, output: Path | None) -> str:
    """Run the plan, after writing it if it was not written yet."""
    path = output or DEFAULT_PLAN_PATH
    write = [] if command is None or output is not None else [shlex.join([*command, "-o", str(path)])]
    return " && ".join([*write, run_plan_command(plan, path, path.with_name("report.json"))])


def run_plan_command(plan: Plan, path: Path, report: Path, more: Sequence[str] = ()) -> str:
    """The command that runs a plan.

    Args:
        plan: to run.
        path: its file.
        report: where the report goes.
        more: further flags. Prompts among them replace those that the target needs.
    """
    check = [] if plan.workload.sampling.rule == "ratio" else ["--check"]  # the ratio test cannot be compared by token
    folders = {"--target": model_folder(plan.target.name), "--draft": draft_argument(plan.draft)}
    names_in_plan = (plan.target.name, plan.draft.model.name, SELF_DRAFT)
    models = [word for flag, folder in folders.items() if folder not in names_in_plan for word in (flag, folder)]
    prompts = [] if "--prompts" in more else prompts_flags(plan.target.name)
    run = ["s2d-run", "--plan", str(path), *models, *prompts, *more, *check, "-o", str(report)]
    return shlex.join(torchrun_command(run, plan.device.num_devices))


def profile_command(
    plan: Plan, *, latency: bool, acceptance: bool, folder: Path = DEFAULT_PROFILE_FOLDER, more: Sequence[str] = ()
) -> str:
    """The command that measures a plan's pair.

    Args:
        plan: its models, device and sampling.
        latency: whether to measure passes.
        acceptance: whether to record a trace.
        folder: where the files go.
        more: further flags. Prompts among them replace those that the target needs.
    """
    parts = [] if latency and acceptance else ["latency"] if latency else ["acceptance"]
    models = ["--target", model_folder(plan.target.name), "--draft", draft_argument(plan.draft)]
    sampling = _sampling_flags(plan.workload.sampling)
    policy = plan.chosen.policy
    if policy is not None and policy.confidence != "max-prob":
        sampling += ["--confidence", policy.confidence]
    shared = ["--share-draft"] if plan.draft.kind == "separate" and plan.draft_num_devices > 1 else []
    prompts = [] if "--prompts" in more else prompts_flags(plan.target.name)
    flags = [*models, *shared, *prompts, *sampling, *_device_flags(plan.device), *more, "-o", str(folder)]
    return shlex.join(torchrun_command(["s2d-profile", *parts, *flags], plan.device.num_devices))


def draft_argument(draft: DraftGeometry) -> str:
    """The argument that names a draft in a command."""
    return SELF_DRAFT if draft.kind == "self" else model_folder(draft.model.name)


def _sampling_flags(sampling: Sampling) -> list[str]:
    """Flags of `s2d-profile` for a way of decoding; plain greedy decoding needs none."""
    words = [] if sampling.rule == "greedy" else ["--rule", sampling.rule, "--temperature", str(sampling.temperature)]
    flags: dict[str, float | None] = {
        "--top-k": sampling.top_k,
        "--top-p": sampling.top_p,
        "--min-p": sampling.min_p,
        "--repetition-penalty": sampling.repetition_penalty,
        "--presence-penalty": sampling.presence_penalty,
        "--frequency-penalty": sampling.frequency_penalty,
        "--seed": sampling.seed,
    }
    return words + [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]


def _device_flags(planned: DeviceKey) -> list[str]:
    """Flags of `s2d-profile` for a device."""
    threads = planned.num_threads
    device = ["--device", "cuda"] if threads is None else ["--threads", str(threads)] if threads > 1 else []
    measured = measured_key(planned)
    launches_eagerly = threads is None and measured.num_devices == 1 and measured.mode == "eager"
    return [*device, "--dtype", measured.dtype, *(["--mode", "eager"] if launches_eagerly else [])]
