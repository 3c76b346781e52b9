"""The acceptance a plan rests on: the user's own trace, or the evidence in the box."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import perfmodel
from perfmodel.acceptance.splits import Split, half_of
from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.errors import Mismatch, UnknownName, UserInputError
from perfmodel.core.near_names import near_models
from perfmodel.core.units import Tokens
from perfmodel.models.config_file import folder_model_name
from perfmodel.models.find_model import find_draft
from perfmodel.models.geometry import REFERENCE_PREFIX, SELF_DRAFT, ModelGeometry
from perfmodel.results.plan import Evidence, EvidenceLevel

EVIDENCE_FOLDER = Path(perfmodel.__path__[0]) / "evidence"
"""Traces in the box, named DRAFT--TARGET.npz."""

DEFAULT_PROMPT_TOKENS: Tokens = 512
DEFAULT_OUTPUT_TOKENS: Tokens = 256

_SEPARATOR = "--"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Acceptance:
    """A trace, what it is worth, and the prompt and output lengths it stands for."""

    trace: Trace
    evidence: Evidence
    prompt_tokens: Tokens
    """The mean over its prompts."""
    output_tokens: Tokens


def shipped_pairs() -> list[tuple[str, str]]:
    """Draft and target of every trace in the box."""
    stems = sorted(path.stem for path in EVIDENCE_FOLDER.glob(f"*{_SEPARATOR}*.npz"))
    return [(draft, target) for draft, _, target in (stem.partition(_SEPARATOR) for stem in stems)]


def shipped_path(draft: str, target: str) -> Path:
    """Where the trace of a draft and a target is in the box."""
    return EVIDENCE_FOLDER / f"{draft}{_SEPARATOR}{target}.npz"


def find_shipped_path(target: ModelGeometry, draft: str | None) -> Path:
    """The trace in the box for a target.

    Args:
        target: a known model.
        draft: a known draft's name or alias, or any model's name or folder; the first one in the box when None.

    Raises:
        UserInputError: there is none of the target, or none of it with this draft; says how to record one.
    """
    drafts = [shipped for shipped, answered in shipped_pairs() if answered == target.name]
    if not drafts:
        answered = ", ".join(sorted({name for _, name in shipped_pairs()}))
        raise UserInputError(
            f"no acceptance evidence for target {target.name!r}: in the box are {answered}. How often a draft agrees "
            f"depends on the weights and cannot be guessed from shapes. {record_and_plan(target.name, draft)}"
        )
    name = _known_draft(draft) or draft
    if draft is not None and name not in drafts:
        near = near_models(draft, drafts)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UserInputError(
            f"no acceptance evidence for draft {draft!r} with target {target.name!r}: in the box is {', '.join(drafts)}. How "
            f"often the target agrees depends on the weights of both.{hint} {record_and_plan(target.name, draft)}"
        )
    return shipped_path(name or drafts[0], target.name)


def _known_draft(draft: str | None) -> str | None:
    """The name of a known draft, given by name or alias; None for any other."""
    try:
        return find_draft(draft).model.name if draft else None
    except UnknownName:
        return None


def record_and_plan(target: str, draft: str | None) -> str:
    """The two commands that record acceptance and plan with it, as a sentence without its full stop."""
    return f"Record it: {record_command(target, draft)}, then plan: s2d-plan --trace profile/trace.npz"


def record_command(target: str, draft: str | None) -> str:
    """The command that records acceptance on the user's own prompts, for models by name or by folder."""
    words = ["s2d-profile", "acceptance", "--target", model_folder(target), "--draft", model_folder(draft or "your-draft")]
    prompts = [] if target.startswith(REFERENCE_PREFIX) else ["--prompts", "path/to/prompts.jsonl"]
    return shlex.join([*words, *prompts, "-o", "profile"])


def model_folder(name: str) -> str:
    """How a command finds a model: the reference family and a self-draft by name, a folder as it is, others by a folder."""
    is_found = name.startswith(REFERENCE_PREFIX) or name == SELF_DRAFT or "/" in name or Path(name).is_dir()
    return name if is_found else f"path/to/{name}"


def load_acceptance(path: Path, split: Split, category: str | None = None) -> Acceptance:
    """A trace from a file, or some of its prompts: one half, so that the other can test the plan, or one category.

    Raises:
        UnknownName: no prompt is of that category.
        UserInputError: no prompt is in that half.
    """
    stored = TRACE_FILE.read(path)
    trace = stored.record
    prompts = trace.header.prompts
    if category is not None and all(prompt.category != category for prompt in prompts):
        raise UnknownName("category", category, sorted({prompt.category for prompt in prompts}))
    if split != "all" or category is not None:
        kept = [number for number, prompt in enumerate(prompts) if category in (None, prompt.category)]
        kept = [number for number in kept if split in ("all", half_of(prompts[number].name))]
        if not kept:
            of_category = "" if category is None else f" of category {category!r}"
            raise UserInputError(
                f"--prompts-split {split}: none of the {len(prompts)} prompts{of_category} of {path.name!r} is in that half. "
                "Use all of them, or record a trace of more prompts."
            )
        trace = trace.subset(kept)
    lengths = [prompt.prompt_tokens for prompt in trace.header.prompts]
    which = ", ".join([*([f"the {split} half"] if split != "all" else []), *([f"{category} only"] if category else [])])
    return Acceptance(
        trace=trace,
        evidence=_evidence(trace, stored.sha256, which),
        prompt_tokens=round(sum(lengths) / len(lengths)),
        output_tokens=trace.header.max_new_tokens,
    )


def _evidence(trace: Trace, sha256: str, which: str) -> Evidence:
    header = trace.header
    positions, prompts = len(trace.target_token), len(header.prompts)
    of_all = f" ({which})" if which else ""
    level: EvidenceLevel = "traced"
    off_path = f" and {len(trace.off_path)} off the path" if trace.off_path.is_enough else ""
    description = f"{positions} positions of {prompts} prompts{of_all}{off_path}, {header.sampling.label}"
    if header.target_sha256 is None:
        level = "published"
        description = (
            f"mean accepted tokens of arXiv 2407.01955, MT-Bench, {header.sampling.label}, behind {positions} synthetic "
            "positions; confidences assumed (docs/published-acceptance.md)"
        )
    return Evidence(role="acceptance", level=level, description=description, sha256=sha256)


def same_shape(one: ModelGeometry, other: ModelGeometry) -> bool:
    """Equal but for name and source: as far as speed and memory care, the same model."""
    return replace(one, name="", source="") == replace(other, name="", source="")


def check_target(acceptance: Acceptance, target: ModelGeometry) -> None:
    """The trace is of this target, as far as its shapes tell.

    Raises:
        Mismatch: it is of another.
    """
    header = acceptance.trace.header
    traced = header.target
    if not same_shape(traced, target):
        raise Mismatch(
            "the trace",
            made_for=f"target {traced.name} ({_shape_text(traced)})",
            given=f"target {target.name} ({_shape_text(target)})",
            fix=f"Leave --target out, or record a trace of it: {record_command(target.name, header.draft.model.name)}",
        )


def check_draft(acceptance: Acceptance, draft: str | None) -> None:
    """The trace is of the draft asked for, by name, by folder, or as `self`.

    Raises:
        Mismatch: it is of another.
    """
    header = acceptance.trace.header
    traced = SELF_DRAFT if header.draft_kind == "self" else header.draft.model.name
    if draft is None or traced in (draft, _known_draft(draft), folder_model_name(Path(draft))):
        return
    fix = f"Leave --draft out, or record a trace of it: {record_command(header.target.name, draft)}"
    raise Mismatch("the trace", made_for=f"draft {traced}", given=f"draft {draft}", fix=fix)


def _shape_text(model: ModelGeometry) -> str:
    return f"{model.num_layers} layers of {model.hidden_size}, vocabulary {model.vocab_size}"


def at_lengths(acceptance: Acceptance, *, prompt_tokens: Tokens | None, output_tokens: Tokens | None) -> Acceptance:
    """The same agreement at other prompt and output lengths.

    Text is not made up: agreement is that of the traced positions, of a shorter output that of the first ones. (Published
    positions are drawn, and alike.) Every prompt is moved so that the mean number of cached tokens is that of the lengths asked
    for, which prices it exactly, as seconds are linear in cached tokens.
    """
    if prompt_tokens is None and output_tokens is None:
        return acceptance
    prompt = acceptance.prompt_tokens if prompt_tokens is None else prompt_tokens
    output = acceptance.output_tokens if output_tokens is None else output_tokens
    trace, evidence = acceptance.trace, acceptance.evidence
    if evidence.level == "traced" and output != acceptance.output_tokens:
        trace = trace.shortened(output)
        told = f"the first {output} tokens of each"
        if output > acceptance.output_tokens:
            told = f"of texts of at most {acceptance.output_tokens} tokens; longer ones repeat themselves more"
        evidence = replace(evidence, description=f"{evidence.description}, {told}")
    moved = tuple(
        replace(one, prompt_tokens=max(1, round(prompt + (output - one.num_positions) / 2))) for one in trace.header.prompts
    )
    return replace(
        acceptance,
        trace=replace(trace, header=replace(trace.header, prompts=moved)),
        evidence=evidence,
        prompt_tokens=prompt,
        output_tokens=output,
    )
