"""A text that overflows in fp16 does not affect later texts.

Captured attention over a padded context reads positions beyond the text with weight 0, and 0 times infinity is NaN.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perfmodel.models.geometry import DraftGeometry
from perfmodel.policies.sampling import GREEDY
from profiler.commands.profile_cli import main_profile
from profiler.profiling import profile_pair
from s2d.decoding.generate import Session
from s2d.decoding.pair import ModelPair, Pair, load_pair
from s2d.loading.load_model import LoadedModel
from s2d.model.cache import Cache
from s2d.model.decoder import Decoder
from s2d.model.finite import NotFinite
from s2d.running.compare_outputs import logit_gaps
from tests.gpu.conftest import profile_argv
from tests.gpu.sessions import GATED, MAX_TOKENS, draft_on, settings_of, target_on
from tests.profiler.conftest import Folders

pytestmark = pytest.mark.e2e

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
BAD = 7
"""A token with an infinite hidden state, as in a text that overflows."""
TEXT, BAD_TEXT = (1, 2, 3, 4, 5), (1, BAD, BAD, 2, 3, BAD, 9)


def overflowing(model: LoadedModel) -> LoadedModel:
    with torch.inference_mode():
        model.decoder.weights.embedding[BAD] = torch.inf
    return model


@torch.inference_mode()
def logits_after(decoder: Decoder, cache: Cache, token_ids: list[int]) -> Tensor:
    states = decoder.forward_segment(decoder.embed(token_ids), cache.segments[0], cache)
    return decoder.exit_logits(states).clone().cpu()


def after_a_removed_text(decoder: Decoder, cache: Cache) -> list[Tensor]:
    """Logits after the cache was reset from a text that overflowed."""
    logits_after(decoder, cache, list(BAD_TEXT))
    cache.reset()
    return [logits_after(decoder, cache, [1, 2, 3]), logits_after(decoder, cache, [4])]


def after_a_rejected_block(decoder: Decoder, cache: Cache) -> list[Tensor]:
    """Logits around a rejected block that overflowed."""
    before = logits_after(decoder, cache, [1, 2, 3])
    logits_after(decoder, cache, [BAD, BAD, BAD])
    cache.crop(3)
    return [before, logits_after(decoder, cache, [4])]


def after_nothing(decoder: Decoder, cache: Cache) -> list[Tensor]:
    return [logits_after(decoder, cache, [1, 2, 3]), logits_after(decoder, cache, [4])]


def logits_with(device: str, steps: Callable[[Decoder, Cache], list[Tensor]], *, zeroing: bool = True) -> Tensor:
    decoder = overflowing(target_on(device, "fp16")).decoder
    cache = decoder.new_cache((decoder.geometry.num_layers,), MAX_TOKENS)
    with torch.inference_mode():
        decoder.prepare(cache, 1, MAX_TOKENS, widths=(1, 4, 8))
    if not zeroing:
        cache._num_padding_rows = 0
    return torch.cat(steps(decoder, cache))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", [after_a_removed_text, after_a_rejected_block])
def test_removed_tokens_do_not_change_later_logits(device: str, steps: Callable[..., list[Tensor]]) -> None:
    expected = logits_with(device, after_nothing)
    assert expected.isfinite().all()
    assert torch.equal(logits_with(device, steps), expected)
    assert logits_with(device, steps, zeroing=False)[-1].isnan().all()  # the reason for overwriting with 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", [None, GATED], ids=["plain", "drafting"])
def test_a_session_generates_the_same_text_after_an_overflow(device: str, policy) -> None:
    session = Session(overflowing(target_on(device, "fp16")), overflowing(draft_on(device, "fp16")), MAX_TOKENS)
    before = session.generate(TEXT, settings_of(policy)).tokens
    role = "target" if policy is None else "draft"
    with pytest.raises(NotFinite, match=f"the logits of {role} .* are NaN or infinite in fp16, .* with --dtype bf16 or fp32"):
        session.generate(BAD_TEXT, settings_of(policy))
    assert session.generate(TEXT, settings_of(policy)).tokens == before
    assert len(set(before)) > 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_message_names_the_model_that_overflows(device: str, role: str) -> None:
    models = {"target": target_on(device, "fp16"), "draft": draft_on(device, "fp16")}
    overflowing(models[role])
    session = Session(models["target"], models["draft"], MAX_TOKENS)
    with pytest.raises(NotFinite, match=f"the logits of {role} "):
        session.generate(BAD_TEXT, settings_of(GATED))


@pytest.mark.parametrize("device", DEVICES)
def test_without_zeroing_the_next_text_would_differ(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(overflowing(target_on(device, "fp16")), None, MAX_TOKENS)
    expected = session.generate(TEXT, settings_of(None)).tokens
    monkeypatch.setattr("s2d.decoding.generate.check_states", lambda *_: None)
    monkeypatch.setattr("s2d.decoding.generate.check_logits", lambda *_: None)

    def reset_without_zeroing(cache: Cache) -> None:
        cache.lengths = [0] * len(cache.segments)

    monkeypatch.setattr(Cache, "reset", reset_without_zeroing)
    session.generate(BAD_TEXT, settings_of(None))
    assert session.generate(TEXT, settings_of(None)).tokens != expected


def test_texts_with_overflowing_logits_are_not_compared() -> None:
    target = overflowing(target_on("cpu", "fp16"))
    geometry = DraftGeometry(kind="self", model=target.geometry, exit_layers=target.exit_layers)
    pair = ModelPair(target=target, draft=target, geometry=geometry, device=torch.device("cpu"))
    assert max(logit_gaps(pair, TEXT, [1, 2], GREEDY)) < 100
    with pytest.raises(NotFinite, match="the logits of target"):
        logit_gaps(pair, BAD_TEXT, [1, 2], GREEDY)


def test_a_trace_of_a_draft_that_overflows_is_refused(
    models: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        profile_pair, "load_pair", lambda *args, **options: _with_overflowing_draft(load_pair(*args, **options))
    )
    argv = ["acceptance", *profile_argv(models, tmp_path / "out", "fp16"), "--device", "cpu"]
    assert main_profile(argv) == 2
    assert "the logits of draft 'draft' are NaN or infinite in fp16 on prompt 'p0.txt:1'" in capsys.readouterr().err


def _with_overflowing_draft(pair: Pair) -> Pair:
    overflowing(pair.draft)
    return pair
