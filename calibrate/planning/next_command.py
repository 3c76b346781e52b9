"""The command after a plan: what replaces its weakest evidence by a measurement, or runs it when all is measured.

Only commands that work: profiling and running compute in a few dtypes, and on several devices eagerly, with models dealt out
evenly; so some plans can be measured in part, and some only by the law of their device.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibrate.inputs.load_acceptance import model_folder
from calibrate.pricing.datasheet_pricing import memory_needed, pair_weights
from calibrate.pricing.draft_placement import Placement
from perfmodel.core.console import without_flag
from perfmodel.core.torchrun import launched
from perfmodel.core.units import format_frac
from perfmodel.hardware.hardware import MEMORY_HEADROOM_FRAC
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import unpublished_note
from perfmodel.models.geometry import REFERENCE_PREFIX, SELF_DRAFT, DraftGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import Plan
from perfmodel.results.plan_text import is_published

PROFILED_DTYPES = ("fp32", "bf16", "fp16")
"""Those `s2d-profile` can run, and `s2d-run` after it."""
PLAN_FILE = Path("plan.json")
"""Where a plan is taken to be as long as nobody said."""
PROFILE_FOLDER = Path("profile")
"""Where `s2d-profile` writes unless told otherwise."""


def next_command(plan: Plan, *, command: Sequence[str] | None = None, output: Path | None = None) -> str:
    """The command to run after planning; empty where nothing of ours could measure more.

    Args:
        plan: all but its own `next_command`.
        command: the one that made it, program first; None for a command that names no file of this machine.
        output: where the plan was written.
    """
    if plan.has_assumed_head:
        return _plan_whole_head(plan, command)
    is_measured = _latency_levels(plan) == {"measured"}
    if is_measured and _is_traced(plan):
        return _run(plan, command, output)
    if not is_measured and not _fits(plan):
        return "" if _is_fitted(plan) else _profile_law(plan)
    return profile_command(plan, latency=not is_measured, acceptance=not _is_traced(plan))


def plan_notes(plan: Plan) -> tuple[str, ...]:
    """What the next command cannot do, and how to train the draft where its authors published no weights."""
    how_to_train = unpublished_note(plan.draft) if is_published(plan.evidence) else None  # a traced draft has weights
    return tuple(note for note in (next_note(plan), how_to_train) if note is not None)


def next_note(plan: Plan) -> str | None:
    """What the next command cannot do; None where it measures or runs what was planned."""
    if plan.has_assumed_head:
        return (
            "No draft here has such a head: what can be measured and run is the one that says every token, or one that "
            "s2d-train trim makes of it."
        )
    measured = measured_key(plan.device)
    if _fits(plan):
        again = f"What s2d-profile measures and s2d-run runs is {measured.label}: plan again from its files."
        return _original_note(plan) if measured == plan.device else again
    where = (
        f"s2d-profile and s2d-run cannot run these models on {measured.label}: they do not fit in memory"
        f"{_split_text(plan)}, with {format_frac(MEMORY_HEADROOM_FRAC)} of it kept free."
    )
    if _is_fitted(plan):
        return f"{where} Only the device's latency law can be measured, and this plan uses it."
    return f"{where} s2d-profile law measures the device's latency law instead, and s2d-plan --fit plans with it."


def _original_note(plan: Plan) -> str | None:
    """That the target's files, being quantised, can be priced and not run; None where they are plain."""
    if plan.target_weights.is_plain:
        return None
    return (
        f"s2d-profile and s2d-run load plain weights only: give them the model that {plan.target.name} was quantised from, and "
        "plan again from its files."
    )


def _split_text(plan: Plan) -> str:
    if plan.device.num_devices == 1:
        return ""
    return ", even split evenly" if plan.draft_num_devices > 1 else " with the target split evenly and the draft on the first"


def measured_key(planned: DeviceKey) -> DeviceKey:
    """What is measured of a device: in a dtype that the runtime computes in, several devices eagerly."""
    usual: Dtype = "bf16" if planned.num_threads is None else "fp32"
    dtype = planned.dtype if planned.dtype in PROFILED_DTYPES else usual
    return replace(planned, engine=planned.engine if planned.num_devices == 1 else "eager", dtype=dtype)


def draft_folder(draft: DraftGeometry) -> str:
    """How a command finds a draft."""
    return SELF_DRAFT if draft.kind == "self" else model_folder(draft.model.name)


def _latency_levels(plan: Plan) -> set[str]:
    return {part.level for part in plan.evidence if part.role.endswith(" latency")}


def _is_fitted(plan: Plan) -> bool:
    return bool(_latency_levels(plan) & {"fitted", "extrapolated"})


def _is_traced(plan: Plan) -> bool:
    return any(part.role == "acceptance" and part.level == "traced" for part in plan.evidence)


def _fits(plan: Plan) -> bool:
    """Whether the devices hold the models as they are dealt out, in a dtype that they can be run in."""
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


def _plan_whole_head(plan: Plan, command: Sequence[str] | None) -> str:
    if command is not None:
        return shlex.join(without_flag(command, "--draft-vocab"))
    return "s2d-plan --trace path/to/trace.npz" if _is_traced(plan) else f"s2d-plan --target {plan.target.name}"


def _run(plan: Plan, command: Sequence[str] | None, output: Path | None) -> str:
    """Run it, after writing it where that was not asked for."""
    path = output or PLAN_FILE
    first = [] if command is None or output is not None else [shlex.join([*command, "-o", str(path)])]
    return " && ".join([*first, run_text(plan, path, path.with_name("report.json"))])


def run_text(plan: Plan, path: Path, report: Path, more: Sequence[str] = ()) -> str:
    """The command that runs a plan.

    Args:
        plan: what to run.
        path: where the plan is.
        report: where its report goes.
        more: further flags; prompts among them stand for those that the plan's target needs.
    """
    check = [] if plan.workload.sampling.rule == "ratio" else ["--check"]  # which compares token by token
    prompts = [] if "--prompts" in more else _prompts(plan)
    run = ["s2d-run", "--plan", str(path), *_models_of_a_run(plan), *prompts, *more, *check, "-o", str(report)]
    return shlex.join(launched(run, plan.device.num_devices))


def _models_of_a_run(plan: Plan) -> list[str]:
    """Where models are, unless they are in the box."""
    folders = {"--target": model_folder(plan.target.name), "--draft": draft_folder(plan.draft)}
    named = plan.target.name, plan.draft.model.name, "self"  # which s2d-run finds by the plan alone
    return [word for flag, folder in folders.items() if folder not in named for word in (flag, folder)]


def _prompts(plan: Plan) -> list[str]:
    """The prompts in the box are for the models in the box."""
    return [] if plan.target.name.startswith(REFERENCE_PREFIX) else ["--prompts", "path/to/prompts.jsonl"]


def profile_command(
    plan: Plan, *, latency: bool, acceptance: bool, folder: Path = PROFILE_FOLDER, more: Sequence[str] = ()
) -> str:
    """The command that measures a plan's pair.

    Args:
        latency: whether to measure passes.
        acceptance: whether to record a trace.
        folder: where the files go.
        more: further flags; prompts among them stand for those that the plan's target needs.
    """
    what = [] if latency and acceptance else ["latency"] if latency else ["acceptance"]
    models = ["--target", model_folder(plan.target.name), "--draft", draft_folder(plan.draft)]
    decoding = _decoding(plan.workload.sampling)
    policy = plan.chosen.policy
    if policy is not None and policy.confidence != "max-prob":
        decoding += ["--confidence", policy.confidence]
    shared = ["--share-draft"] if plan.draft.kind == "separate" and plan.draft_num_devices > 1 else []
    prompts = [] if "--prompts" in more else _prompts(plan)
    words = ["s2d-profile", *what, *models, *shared, *prompts, *decoding, *_place(plan.device), *more, "-o", str(folder)]
    return shlex.join(launched(words, plan.device.num_devices))


def _profile_law(plan: Plan) -> str:
    return shlex.join(["s2d-profile", "law", *_place(plan.device), "-o", "law"])


def _decoding(sampling: Sampling) -> list[str]:
    """The flags of `s2d-profile` that decode so; plain greedy decoding needs none."""
    is_greedy = sampling.rule == "greedy"
    words = [] if is_greedy else ["--rule", sampling.rule, "--temperature", str(sampling.temperature)]
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


def _place(planned: DeviceKey) -> list[str]:
    """The flags of `s2d-profile` for a device."""
    threads = planned.num_threads
    where = ["--device", "cuda"] if threads is None else ["--threads", str(threads)] if threads > 1 else []
    measured = measured_key(planned)
    by_kernel = threads is None and measured.num_devices == 1 and measured.engine == "eager"
    return [*where, "--dtype", measured.dtype, *(["--engine", "eager"] if by_kernel else [])]
