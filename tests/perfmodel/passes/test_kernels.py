"""Labels of kernels, and the choice of the fastest trial."""

from dataclasses import replace

import pytest

from perfmodel.passes.kernels import STANDARD_KERNELS, TRIAL_ROWS, Kernels, KernelTrial, fastest_kernels, parse_kernels

OTHER = Kernels(weight_layout="output-major", attention="varlen", norm="fused")


@pytest.mark.parametrize("kernels", [STANDARD_KERNELS, OTHER])
def test_a_label_is_parsed_to_its_kernels(kernels: Kernels) -> None:
    assert parse_kernels(kernels.label) == kernels


@pytest.mark.parametrize("label", ["", "fused", "varlen,output-major,fused", "output-major,varlen,fused,fused", "a,b,c"])
def test_other_labels_are_refused_with_the_valid_names(label: str) -> None:
    expected = "three names joined by commas: input-major or output-major, products or varlen, two-step or fused"
    with pytest.raises(ValueError, match=expected):
        parse_kernels(label)


def test_the_shortest_round_counts_drafting_and_verification_by_their_layers() -> None:
    drafts_fast = KernelTrial(kernels=OTHER, draft_layer_s=1e-5, draft_head_s=3e-6, target_layer_s=4e-5, target_head_s=0.0)
    verifies_fast = KernelTrial(
        kernels=STANDARD_KERNELS, draft_layer_s=2e-5, draft_head_s=3e-6, target_layer_s=2e-5, target_head_s=0.0
    )
    trials = (verifies_fast, drafts_fast)
    # A round drafts through 4 x 12 layers: 0.48 ms less for the first trial. Its verification costs 2e-5 s a layer more.
    assert TRIAL_ROWS == 5
    assert fastest_kernels(trials, draft_layers=12, target_layers=23) == OTHER
    assert fastest_kernels(trials, draft_layers=12, target_layers=25) == STANDARD_KERNELS
    assert fastest_kernels(trials, draft_layers=12, target_layers=24) == STANDARD_KERNELS  # the first of equal trials
    slow_head = replace(drafts_fast, draft_head_s=drafts_fast.draft_head_s + 1e-5)  # at each of 4 drafted tokens
    assert fastest_kernels((verifies_fast, slow_head), draft_layers=12, target_layers=23) == STANDARD_KERNELS
