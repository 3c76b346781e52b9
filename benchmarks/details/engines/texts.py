"""Speculative texts against the engine's own plain texts.

A difference is excused only if the same engine, decoding plainly after the text before it, emits that token. Passes of
different widths use different kernels, so near-ties can fall either way in either kind of decoding. The text before it can be
read in one pass, or its last tokens one by one: up to NUM_CUTS ways are tried.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from details.engines.measure import Measured
from perfmodel.core.units import Tokens
from perfmodel.engines.engine_profile import EngineRun
from profiler.engines.engine_models import EngineModels, EnginePrompt, engine_models
from profiler.engines.engine_request import PLAIN, Arm
from profiler.engines.measure_engine import log_folder
from s2d.engines.session import EngineSession
from s2d.engines.session_request import SessionRequest

NUM_CUTS: Tokens = 16
"""Places from which plain decoding is tried: at the token itself, and at the 15 before it."""
Decode = Callable[[Sequence[int], Tokens], tuple[int, ...]]
"""Plain decoding: a prompt and a number of tokens to the tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDifference:
    """A speculative text that is not the plain text of the same engine."""

    setting: str
    arm: str
    prompt: str
    position: Tokens
    """0-based, of the first token that plain decoding does not explain; else of the first different token."""
    is_excused: bool
    """Whether plain decoding emits every token of the text after the tokens before it. False also if the text, decoded again,
    is the plain text: then the engine does not repeat itself."""


def text_differences(measured: Measured) -> list[TextDifference]:
    """Examine every speculative text that differs from the plain text, by decoding both again."""
    plain = _hashes(measured.evaluation.plain)
    differing = {
        Arm.of(run): [name for name, hashes in _hashes(run).items() if hashes != plain[name]] for run in drafting_runs(measured)
    }
    if not any(differing.values()):
        return []
    models = engine_models(measured.evaluation_request, measured.evidence.evaluation_prompts)
    prompts = {prompt.name: prompt for prompt in models.prompts}
    differences = []
    with ExitStack() as stack:
        target = stack.enter_context(EngineSession(_session_request(measured, models, PLAIN)))
        for arm, names in differing.items():
            if not names:
                continue
            with EngineSession(_session_request(measured, models, arm)) as session:
                for name in names:
                    differences.append(_examined(measured, arm, prompts[name], session, target))
    return differences


def drafting_runs(measured: Measured) -> list[EngineRun]:
    """The speculative runs on evaluation prompts, each configuration once."""
    runs = {Arm.of(run): run for profile in (measured.decision, measured.evaluation) for run in profile.runs}
    return [run for run in runs.values() if run.draft_tokens]


def first_unexplained(prompt: Sequence[int], text: Sequence[int], decode: Decode) -> tuple[Tokens | None, Tokens | None]:
    """The first position where a text differs from plain decoding, and the first that plain decoding does not explain.

    Args:
        prompt: token ids before the text.
        text: token ids.
        decode: plain decoding in the same engine.

    Returns:
        None in place of a position that does not exist.
    """
    start, first = 0, None
    while start < len(text):
        rest = decode([*prompt, *text[:start]], len(text) - start)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(rest, text[start:], strict=True))))
        if start + same == len(text):
            break
        first = start + same if first is None else first
        if same == 0 and not _emits(prompt, text, start, decode):
            return first, start
        start += max(1, same)
    return first, None


def _emits(prompt: Sequence[int], text: Sequence[int], position: Tokens, decode: Decode) -> bool:
    """Whether plain decoding from one of the last tokens before a position writes the text through that position."""
    for cut in range(max(0, position - NUM_CUTS + 1), position):
        if decode([*prompt, *text[:cut]], position + 1 - cut) == tuple(text[cut : position + 1]):
            return True
    return False


def _examined(
    measured: Measured, arm: Arm, prompt: EnginePrompt, session: EngineSession, target: EngineSession
) -> TextDifference:
    text = session.call(prompt.token_ids, measured.evaluation.max_new_tokens, arm.draft_tokens, arm.floor).tokens

    def decode(ids: Sequence[int], count: Tokens) -> tuple[int, ...]:
        return target.call(ids, max(2, count)).tokens[:count]

    first, unexplained = first_unexplained(prompt.token_ids, text, decode)
    position = first if unexplained is None else unexplained
    return TextDifference(
        setting=measured.setting.label,
        arm=arm.label,
        prompt=prompt.name,
        position=0 if position is None else position,
        is_excused=first is not None and unexplained is None,
    )


def _hashes(run: EngineRun) -> dict[str, set[str]]:
    """Hashes of the texts by prompt."""
    hashes: dict[str, set[str]] = {}
    for call in run.calls:
        hashes.setdefault(call.prompt, set()).add(call.output_sha256)
    return hashes


def _session_request(measured: Measured, models: EngineModels, arm: Arm) -> SessionRequest:
    request = measured.evaluation_request
    target, draft = models.paths(arm)
    return SessionRequest(
        engine=measured.engine.name,
        target=target,
        draft=draft,
        weights=request.stored_weights,
        num_threads=request.threads,
        context_tokens=models.context_tokens,
        draft_tokens=arm.draft_tokens,
        floor=arm.floor,
        log=Path(log_folder(request)) / f"{request.row.name}-texts-{'plain' if arm.is_plain else 'draft'}.log",
        interface=request.interface,
    )
