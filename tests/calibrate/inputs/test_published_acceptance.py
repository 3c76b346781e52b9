"""The shipped acceptance evidence has the published means, and the code in the repository makes it again."""

import numpy as np
import pytest

from calibrate.inputs.acceptance import find_shipped_path, load_acceptance, shipped_pairs, shipped_path
from calibrate.inputs.draft import resolve_draft_name
from calibrate.inputs.published_acceptance import (
    DRAFT,
    PUBLISHED,
    S2D_POLICY,
    SINGLE_EXIT_POLICIES,
    PublishedMat,
    derive_trace,
    draw_noise,
    mean_accepted_tokens,
)
from calibrate.inputs.target import resolve_target
from perfmodel.acceptance.trace import Trace

MAT_TOLERANCE = 0.01
MAX_TOTAL_BYTES = 150_000

every_target = pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.target)


def shipped(published: PublishedMat) -> Trace:
    return load_acceptance(shipped_path(DRAFT, published.target)).trace


@every_target
def test_the_published_policies_have_their_published_mean_accepted_tokens(published: PublishedMat) -> None:
    trace = shipped(published)
    single = [mean_accepted_tokens(trace, policy) for policy in SINGLE_EXIT_POLICIES]
    assert single == pytest.approx(published.single_exit, abs=MAT_TOLERANCE)
    assert mean_accepted_tokens(trace, S2D_POLICY) == pytest.approx(published.s2d, abs=MAT_TOLERANCE)


@every_target
def test_the_command_makes_the_shipped_file_again(published: PublishedMat) -> None:
    trace, derived = shipped(published), derive_trace(published)
    assert derived.header == trace.header
    for name in ("confidence", "draft_token", "target_token", "accept_prob"):
        np.testing.assert_array_equal(getattr(derived, name), getattr(trace, name))


@every_target
def test_confidence_has_the_means_of_the_authors_plot(published: PublishedMat) -> None:
    """About 0.8 inside an accepted run and 0.43 at the first rejected token, for exit 6."""
    trace = shipped(published)
    agreed = trace.draft_token[:, 0] == 1
    assert trace.confidence[agreed, 0].mean() == pytest.approx(0.80, abs=0.01)
    assert trace.confidence[~agreed, 0].mean() == pytest.approx(0.43, abs=0.01)


@every_target
def test_a_deeper_exit_agrees_wherever_a_shallower_one_does_and_elsewhere_too(published: PublishedMat) -> None:
    agreed = shipped(published).draft_token == 1
    assert not (agreed[:, :-1] & ~agreed[:, 1:]).any()
    assert np.all(np.diff(agreed.mean(axis=0)) > 0)


def test_difficulty_is_standard_normal_and_remembers_the_token_before() -> None:
    difficulty = draw_noise(1).difficulty
    assert difficulty.std() == pytest.approx(1.0, abs=0.05)
    neighbouring = np.corrcoef(difficulty[:-1], difficulty[1:])[0, 1]
    assert neighbouring == pytest.approx(0.05 + 0.20 * 0.90, abs=0.05)


def test_the_evidence_is_small_and_known_by_draft_and_target() -> None:
    assert shipped_pairs() == [(DRAFT, published.target) for published in PUBLISHED]
    sizes = [
        find_shipped_path(resolve_target(target), resolve_draft_name(draft)).stat().st_size for draft, target in shipped_pairs()
    ]
    assert sum(sizes) < MAX_TOTAL_BYTES
