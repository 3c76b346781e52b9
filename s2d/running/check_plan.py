"""What a plan was made for, held against the models, the processes and the device that are here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perfmodel.core.errors import Mismatch
from perfmodel.core.torchrun import num_processes, torchrun_command
from perfmodel.models.geometry import ModelGeometry
from perfmodel.results.plan import Plan

if TYPE_CHECKING:
    from s2d.decoding.pair import Pair


def check_plan_fits(path: Path, plan: Plan, pair: Pair) -> None:
    """Refuse a plan that was made for other weights, another tokenizer or another device.

    Raises:
        Mismatch: says which.
    """
    what, fix = f"plan {str(path)!r}", "Give the models it was made for, or plan again for these"
    for role, known, found in (("target", plan.target, pair.target.geometry), ("draft", plan.draft.model, pair.draft.geometry)):
        if _shape(known) != _shape(found):
            raise Mismatch(what, made_for=f"{role} {known.name}", given=f"{found.name}, which has another shape", fix=fix)
    hashes = (
        ("target weights", plan.target_sha256, pair.target.sha256),
        ("draft weights", plan.draft_sha256, pair.draft.sha256),
        ("tokenizer", plan.tokenizer_sha256, pair.tokenizer_sha256),
    )
    for role, known_hash, found_hash in hashes:
        if known_hash is not None and known_hash != found_hash:
            raise Mismatch(what, made_for=f"{role} {known_hash[:12]}", given=f"{role} {found_hash[:12]}", fix=fix)
    if plan.device != pair.device_key:
        fix = "Profile this device with s2d-profile and plan again with --profile"
        raise Mismatch(what, made_for=plan.device.label, given=pair.device_key.label, fix=fix)


def check_head(path: Path, plan: Plan) -> None:
    """Refuse what no draft loaded here can be; its models may not even exist."""
    if plan.has_assumed_head:
        made_for, given = f"a draft with {plan.draft.model.head_label}, assumed", "one that there is"
        fix = "Plan again without --draft-vocab, or from a trace of a draft that s2d-train trim made"
        raise Mismatch(f"plan {str(path)!r}", made_for=made_for, given=given, fix=fix)


def check_plain_weights(path: Path, plan: Plan) -> None:
    """Refuse a plan that was priced for a quantised target, which is never loaded here: plain weights take other seconds."""
    if not plan.target_weights.is_plain:
        fix = "Serve it with an engine that loads such weights, or plan again for the original model"
        made_for = f"target weights stored as {plan.target_weights.label}"
        raise Mismatch(f"plan {str(path)!r}", made_for=made_for, given="plain weights, the only ones that are run", fix=fix)


def check_num_devices(path: Path, plan: Plan) -> None:
    """Refuse, before anything is loaded, a plan for more or fewer devices than there are processes."""
    planned, given = plan.device.num_devices, num_processes()
    if planned != given:
        again = f"to plan for {given}, profile with {' '.join(torchrun_command(['s2d-profile'], given))}"
        raise Mismatch(
            f"plan {str(path)!r}",
            made_for=f"{planned} x {plan.device.device}",
            given=f"{given}, a process for each",
            fix=f"Run it with {' '.join(torchrun_command(['s2d-run'], planned))}; {again}",
        )


def _shape(model: ModelGeometry) -> ModelGeometry:
    return replace(model, name="", source="")
