"""Suggest the command after a plan for an engine: run the engine to measure it, or export the plan for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from calibrate.inputs.acceptance import model_folder, prompts_flags
from perfmodel.core.errors import UnknownName
from perfmodel.core.units import format_interval, format_speedup
from perfmodel.engines.engine import Engine
from perfmodel.engines.find_engine import engine_weights, find_engine
from perfmodel.results.plan import Plan

DEFAULT_EXPORT_FOLDER = Path("served")
"""Where the suggested command exports a plan."""


def profile_engine_command(plan: Plan, draft: str) -> str:
    """The command that measures a plan's pair in its engine.

    Args:
        plan: for the engine.
        draft: the argument that names the draft.
    """
    engine = find_engine(plan.engine)
    models = ["--target", model_folder(plan.target.name), "--draft", draft]
    weights, threads = _weights_word(plan, engine), plan.device.num_threads
    flags = [*models, *prompts_flags(plan.target.name), *(["--weights", weights] if weights else [])]
    flags += ["--device", "cuda"] if threads is None else ["--threads", str(threads)]
    return shlex.join(["s2d-profile", "engine", "--engine", engine.name, *flags, "-o", f"{engine.name}.engine.json"])


def export_command(plan: Plan, draft: str, *, command: Sequence[str] | None, output: Path | None, path: Path) -> str:
    """The command that writes everything with which the engine serves the plan, after writing the plan if it was not written.

    Args:
        plan: for the engine.
        draft: the argument that names the draft.
        command: the command line that made the plan; None: unknown.
        output: where the plan was written; None: nowhere.
        path: where to write it then.
    """
    write = [] if command is None or output is not None else [shlex.join([*command, "-o", str(path)])]
    models = ["--target", model_folder(plan.target.name), "--draft", draft]
    export = ["s2d-plan", "export", "--plan", str(output or path), *models, "-o", str(DEFAULT_EXPORT_FOLDER)]
    return " && ".join([*write, shlex.join(export)])


def engine_notes(plan: Plan) -> tuple[str, ...]:
    """What a plan for an engine leaves open."""
    engine, notes = find_engine(plan.engine), []
    if plan.engine_setting is None:
        notes.append(
            f"Nothing was run in {engine.title}: a datasheet knows its launches and the passes of its rounds, not its kernels. "
            "Measure it before relying on the speedup."
        )
    best = next((candidate for candidate in plan.runners_up if candidate.policy is not None), None)
    if plan.policy is None and best is not None and best.policy is not None:
        interval = best.speedup.speedup
        limits = format_interval(interval.low, interval.high, format_speedup)
        notes.append(f"The best draft, {best.policy.label}, is predicted to give {format_speedup(interval.value)} ({limits}).")
    if plan.policy is not None and not engine.has_tokens_by_batch and engine.max_batch != 1:
        notes.append(f"{engine.title} takes one draft length for all batch sizes: the plan is for batch {plan.workload.batch}.")
    return tuple(notes)


def _weights_word(plan: Plan, engine: Engine) -> str | None:
    """The engine's word for the planned weights; None if it has none, or if the target's files decide."""
    if not plan.target_weights.is_plain:
        return None
    try:
        return engine_weights(engine, plan.device.dtype)
    except UnknownName:
        return None
