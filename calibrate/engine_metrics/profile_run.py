"""Metrics from an engine profile: the run with the plan's policy, and plain decoding."""

from __future__ import annotations

from collections.abc import Iterable

from calibrate.engine_metrics.metrics import Metrics
from calibrate.engine_metrics.metrics_file import MetricsFile
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE, EngineCall, EngineRun
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.results.engine_report import EngineCounts


def is_profile(file: MetricsFile) -> bool:
    """Whether the file is an engine profile."""
    return file.first.values.get("schema") == ENGINE_PROFILE_FILE.schema


def read_profile_run(file: MetricsFile, policy: Policy | None) -> Metrics:
    """The profiled run with the exit and the draft length of a policy, and plain decoding.

    Raises:
        UserInputError: no policy was given.
        Mismatch: the profile has no such run.
        BadFile: the file is not a complete profile.
    """
    profile = ENGINE_PROFILE_FILE.read(file.path).record
    if policy is None:
        raise UserInputError(f"{str(file.path)!r} holds several runs, expected the policy of one. Give the plan that drafts.")
    layer, length = policy.exits[-1], policy.tokens
    runs = [run for run in profile.runs if run.draft_tokens]
    matches = [run for run in runs if len(policy.exits) == 1 and _executes(run, policy)]
    if not matches:
        raise Mismatch(
            f"the profile {str(file.path)!r}",
            made_for=_runs_text(runs),
            given=policy.label,
            fix="Profile the plan's exit and length too: s2d-profile engine",
        )
    run, plain = matches[0], profile.plain
    return Metrics(
        engine=profile.setting.engine,
        version=profile.setting.version,
        model=profile.target.name,
        weights=profile.setting.weights,
        target_sha256=profile.target_sha256,
        draft_sha256=profile.draft_sha256,
        exit_layer=layer,
        draft_tokens=length,
        concurrency=1,
        runs=tuple(map(_counts, run.calls)),
        plain_runs=tuple(map(_counts, plain.calls)),
    )


def _executes(run: EngineRun, policy: Policy) -> bool:
    floor = policy.stop.floor if isinstance(policy.stop, ConfidenceFloor) else None
    return (run.exit_layer, run.draft_tokens, run.floor) == (policy.exits[-1], policy.tokens, floor)


def _counts(call: EngineCall) -> EngineCounts:
    return EngineCounts(
        prompt=call.prompt,
        num_tokens=call.num_tokens - call.untimed_tokens,
        num_rounds=call.num_rounds,
        num_drafted=call.num_drafted,
        num_accepted=call.num_accepted,
        decode_s=call.decode_s,
        draft_s=call.draft_s,
        verify_s=call.verify_s,
    )


def _runs_text(runs: Iterable[EngineRun]) -> str:
    texts = [f"exit {run.exit_layer} with {run.draft_tokens} tokens" for run in runs]
    return f"{', '.join(texts[:5])}{' …' if len(texts) > 5 else ''}" if texts else "plain decoding"
