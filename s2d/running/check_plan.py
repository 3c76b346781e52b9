"""Check that a plan can run with these models, on this device, in this many processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfmodel.core.errors import Mismatch
from perfmodel.core.torchrun import num_processes, torchrun_command
from perfmodel.models.geometry import same_shape
from perfmodel.results.plan import Plan

if TYPE_CHECKING:
    from s2d.decoding.pair import Pair


def check_plan_runs(name: str, plan: Plan) -> None:
    """Check everything that depends on the plan alone, before any model is loaded.

    Args:
        name: how messages refer to the plan: `plan 'plan.json'`.
        plan: the plan.

    Raises:
        Mismatch: the plan is for another engine, the draft's reduced head is assumed, the target's weights are quantised, or
            the number of processes differs from the number of devices.
    """
    if plan.engine != "s2d":
        fix = "Serve it with that engine: s2d-plan export --plan FILE -o FOLDER. Or plan again without --engine"
        raise Mismatch(name, made_for=f"engine {plan.engine}", given="s2d, the bundled runtime, whose seconds differ", fix=fix)
    if plan.has_assumed_head:
        made_for = f"a draft with {plan.draft.model.head_label}, assumed"
        fix = "Plan again without --draft-vocab, or from a trace of a draft that s2d-train trim made"
        raise Mismatch(name, made_for=made_for, given="an existing draft", fix=fix)
    if not plan.target_weights.is_plain:
        made_for = f"target weights stored as {plan.target_weights.label}"
        fix = "Serve it with an engine that loads such weights, or plan again for the original model"
        raise Mismatch(name, made_for=made_for, given="plain weights, the only kind that s2d runs", fix=fix)
    planned, given = plan.device.num_devices, num_processes()
    if planned != given:
        profile, run = (
            " ".join(torchrun_command([command], number)) for command, number in (("s2d-profile", given), ("s2d-run", planned))
        )
        raise Mismatch(
            name,
            made_for=f"{planned} x {plan.device.device}",
            given=f"{given}, one for each process",
            fix=f"Run it with {run}; to plan for {given}, profile with {profile}",
        )


def check_plan_fits(name: str, plan: Plan, pair: Pair) -> None:
    """Check that the models, the tokenizer and the device are those of the plan.

    Args:
        name: how messages refer to the plan: `plan 'plan.json'`.
        plan: the plan.
        pair: the loaded models.

    Raises:
        Mismatch: one of these differs. The error names it.
    """
    fix = "Give the models of the plan, or plan again for these"
    models = (("target", plan.target, pair.target.geometry), ("draft", plan.draft.model, pair.draft.geometry))
    for role, planned, loaded in models:
        if not same_shape(planned, loaded):
            raise Mismatch(name, made_for=f"{role} {planned.name}", given=f"{loaded.name}, which has another shape", fix=fix)
    hashes = (
        ("target weights", plan.target_sha256, pair.target.sha256),
        ("draft weights", plan.draft_sha256, pair.draft.sha256),
        ("tokenizer", plan.tokenizer_sha256, pair.tokenizer_sha256),
    )
    for role, planned_hash, loaded_hash in hashes:
        if planned_hash is not None and planned_hash != loaded_hash:
            raise Mismatch(name, made_for=f"{role} {planned_hash[:12]}", given=f"{role} {loaded_hash[:12]}", fix=fix)
    if plan.device != pair.device_key:
        fix = "Profile this device with s2d-profile and plan again with --profile"
        raise Mismatch(name, made_for=plan.device.label, given=pair.device_key.label, fix=fix)
