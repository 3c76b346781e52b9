"""Several drafts of one target: each is planned with its own evidence, and the fastest is chosen."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.choose_draft import have_one_target, plan_drafts
from calibrate.planning.make_plan import make_plan
from calibrate.planning.make_portfolio import with_own_profiles
from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.errors import UserInputError
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import PLAN_FILE
from tests.calibrate.factories import DRAFT, DRAFT_SHA256, TARGET, make_profile, make_trace, provenance, unfolded, write_profile

TRIMMED, TRIMMED_SHA256 = replace(DRAFT.model, name="trimmed", head_vocab_size=512), "5" * 64


def trimmed_trace(trace: Trace) -> Trace:
    return replace(trace, header=replace(trace.header, draft_model=TRIMMED, draft_sha256=TRIMMED_SHA256))


@pytest.fixture
def requests(tmp_path: Path) -> list[PlanRequest]:
    """Each folder as `s2d-profile` leaves it, and all profiles given to both."""
    requests, profiles = [], []
    for model, sha256 in ((DRAFT.model, DRAFT_SHA256), (TRIMMED, TRIMMED_SHA256)):
        folder = tmp_path / model.name
        folder.mkdir()
        TRACE_FILE.write(
            folder / "trace.npz", make_trace() if model == DRAFT.model else trimmed_trace(make_trace(1)), provenance()
        )
        profiles.append(write_profile(folder / "target.latency.json", make_profile(TARGET, (), "a" * 64, model.name)))
        draft = make_profile(model, DRAFT.exit_layers, sha256, TARGET.name)
        profiles.append(write_profile(folder / "draft.latency.json", draft))
        requests.append(PlanRequest(trace=folder / "trace.npz"))
    return with_own_profiles([replace(request, profiles=tuple(profiles)) for request in requests])


def flags_of(requests: list[PlanRequest]) -> list[str]:
    paths = [("--trace", request.trace) for request in requests]
    paths += [("--profile", path) for request in requests for path in request.profiles]
    return [str(word) for flag, path in paths for word in (flag, path)]


def test_every_draft_is_planned_with_its_own_profiles(requests: list[PlanRequest]) -> None:
    assert have_one_target(requests)
    for request in requests:
        assert request.trace is not None
        assert {path.parent for path in request.profiles} == {request.trace.parent}
    planned = plan_drafts(requests)
    assert {candidate.plan.draft.model.name for candidate in planned} == {DRAFT.model.name, "trimmed"}
    for candidate in planned:
        assert candidate.plan == make_plan(candidate.request)
    speedups = [candidate.plan.chosen.speedup.speedup.value for candidate in planned]
    assert speedups == sorted(speedups, reverse=True)
    trimmed = next(candidate.plan for candidate in planned if candidate.plan.draft.model == TRIMMED)
    assert (trimmed.draft_sha256, trimmed.has_assumed_head) == (TRIMMED_SHA256, False)
    assert "assumed" not in " ".join(part.description for part in trimmed.evidence)


def test_the_plan_of_the_fastest_draft_is_printed_and_its_next_command_finds_the_files(requests, tmp_path, capsys) -> None:
    out = tmp_path / "plan.json"
    assert main_plan([*flags_of(requests), "-o", str(out)]) == 0
    [fastest, other] = plan_drafts(requests)
    shown = capsys.readouterr().out
    header, *lines = shown.splitlines()
    first, second = (line for line in lines if line.startswith(("trimmed ", f"{DRAFT.model.name} ")))
    assert header.split()[:3] == ["draft", "head", "tokens"]
    assert first.split()[:2] == [fastest.plan.draft.model.name, str(fastest.plan.draft.model.num_head_tokens)]
    assert second.split()[:2] == [other.plan.draft.model.name, str(other.plan.draft.model.num_head_tokens)]
    assert "as fast as the next" in shown
    assert PLAN_FILE.read(out).record.draft == fastest.plan.draft
    assert "next: s2d-run " in unfolded(shown)


def test_a_draft_given_twice_and_traces_with_different_sampling_are_refused(
    requests: list[PlanRequest], tmp_path: Path
) -> None:
    with pytest.raises(UserInputError, match="are of one draft at one target"):
        plan_drafts([requests[0], requests[0]])
    noisy = Sampling(rule="shared-noise", temperature=0.8, top_k=None, top_p=None, seed=1)
    trace = trimmed_trace(make_trace())
    TRACE_FILE.write(tmp_path / "noisy.npz", replace(trace, header=replace(trace.header, sampling=noisy)), provenance())
    datasheet = PlanRequest(device=DeviceRequest(device="a100"))
    with pytest.raises(
        UserInputError, match=r"traced on greedy and on shared-noise T=0\.8 text: record all of them with the same"
    ):
        plan_drafts([replace(datasheet, trace=path) for path in (requests[0].trace, tmp_path / "noisy.npz")])
