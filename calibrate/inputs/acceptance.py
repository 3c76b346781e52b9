"""Resolve the acceptance evidence of a plan: a recorded or a shipped trace."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from calibrate.inputs.draft import DraftName
from calibrate.inputs.requests import PlanRequest
from calibrate.inputs.target import Target
from perfmodel.acceptance.splits import Split, prompt_half
from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.disk import EVIDENCE_FOLDER
from perfmodel.core.errors import Mismatch, OutOfDomain, UnknownName, UserInputError
from perfmodel.core.near_names import near_models
from perfmodel.core.units import Tokens
from perfmodel.models.find_model import find_draft
from perfmodel.models.geometry import REFERENCE_PREFIX, SELF_DRAFT, ModelGeometry, same_shape, with_reduced_head
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.results.plan import Evidence, EvidenceLevel

DEFAULT_PROMPT_TOKENS: Tokens = 512
DEFAULT_OUTPUT_TOKENS: Tokens = 256

SYNTHETIC_PREFIX = "synthetic-"
"""Prefix of prompt names in traces that were derived from published figures."""
_SEPARATOR = "--"
"""Shipped traces are named DRAFT--TARGET.npz."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Acceptance:
    """A trace, its evidence level, and the prompt and output lengths that it represents."""

    trace: Trace
    evidence: Evidence
    prompt_tokens: Tokens
    """Mean over the prompts."""
    output_tokens: Tokens

    @property
    def context_tokens(self) -> Tokens:
        """Cached tokens at the end of the output."""
        return self.prompt_tokens + self.output_tokens


def resolve_acceptance(request: PlanRequest, target: Target | None, draft: DraftName | None) -> Acceptance:
    """The trace of a request, checked against its target and draft, at the requested lengths and head.

    Args:
        request: names a trace, or a target with a shipped trace; may fix prompts, lengths and head.
        target: the requested target; None takes the trace's.
        draft: the requested draft; None takes the trace's.

    Raises:
        UserInputError: there is no such evidence, no prompt is left, or the trace was recorded with another target or draft.
        OutOfDomain: prompt and output exceed the target's context.
    """
    if request.trace is not None:
        acceptance = load_acceptance(request.trace, request.prompts_split, request.category)
        acceptance = replace(acceptance, trace=with_models(acceptance.trace, target, draft))
        check_draft(acceptance, draft)
        if target is not None:
            check_target(acceptance, target.geometry)
    elif target is not None:
        path = find_shipped_path(target, draft)
        acceptance = load_acceptance(path, request.prompts_split, request.category)
    else:
        how = "" if draft is None else f" No trace yet? {record_and_plan('your-target', draft.text)}"
        raise UserInputError(f"nothing to plan for: give --target NAME, or --trace FILE recorded by s2d-profile.{how}")
    acceptance = at_lengths(acceptance, prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens)
    acceptance = with_draft_vocab(acceptance, request.draft_vocab)
    limit = acceptance.trace.header.target.max_context_tokens
    if acceptance.context_tokens > limit:
        raise OutOfDomain(
            f"prompt and output tokens of {acceptance.trace.header.target.name}",
            acceptance.context_tokens,
            low=1,
            high=limit,
            fix="Give a smaller --prompt-tokens or --output-tokens",
        )
    return acceptance


def load_acceptance(source: Path | Trace, split: Split = "all", category: str | None = None) -> Acceptance:
    """A trace with all of its prompts, or only those in one half or category.

    Args:
        source: a file, or a trace in memory.
        split: the half to keep. The other half can then test the plan.
        category: of the prompts to keep; None keeps all.

    Raises:
        BadFile: the file does not hold a trace.
        UnknownName: no prompt is of that category.
        UserInputError: no prompt is in that half.
    """
    if isinstance(source, Trace):
        trace, sha256, name = source, None, "the trace"
    else:
        stored = TRACE_FILE.read(source)
        trace, sha256, name = stored.record, stored.sha256, repr(source.name)
    prompts = trace.header.prompts
    if category is not None and all(prompt.category != category for prompt in prompts):
        categories = sorted({prompt.category for prompt in prompts})
        raise UnknownName("category", category, categories, listed_in="s2d-plan --by-category")
    if split != "all" or category is not None:
        kept = [
            number
            for number, prompt in enumerate(prompts)
            if category in (None, prompt.category) and split in ("all", prompt_half(prompt.name))
        ]
        if not kept:
            in_category = "" if category is None else f" of category {category!r}"
            raise UserInputError(
                f"--prompts-split {split}: none of the {len(prompts)} prompts{in_category} of {name} is in that half. "
                "Use all of them, or record a trace of more prompts."
            )
        trace = trace.subset(kept)
    lengths = [prompt.prompt_tokens for prompt in trace.header.prompts]
    selection = ", ".join([*([f"the {split} half"] if split != "all" else []), *([f"{category} only"] if category else [])])
    return Acceptance(
        trace=trace,
        evidence=_evidence(trace, sha256, selection),
        prompt_tokens=round(sum(lengths) / len(lengths)),
        output_tokens=trace.header.max_new_tokens,
    )


def _evidence(trace: Trace, sha256: str | None, selection: str) -> Evidence:
    header = trace.header
    positions, prompts = len(trace.target_token), len(header.prompts)
    selected = f" ({selection})" if selection else ""
    off_path = f" and {len(trace.off_path)} off the path" if trace.off_path.is_enough else ""
    level: EvidenceLevel = "traced"
    description = f"{positions} positions of {prompts} prompts{selected}{off_path}, {header.sampling.label}"
    if header.target_sha256 is None and header.prompts[0].name.startswith(SYNTHETIC_PREFIX):
        level = "published"
        description = (
            f"mean accepted tokens of arXiv 2407.01955, MT-Bench, {header.sampling.label}, behind {positions} synthetic "
            "positions; confidences assumed (docs/published-acceptance.md)"
        )
    return Evidence(role="acceptance", level=level, description=description, sha256=sha256)


def with_models(trace: Trace, target: Target | None, draft: DraftName | None) -> Trace:
    """The trace; geometries that a trace from arrays lacks come from the request."""
    header = trace.header
    if header.target_model is None and target is not None:
        header = replace(header, target_model=target.geometry)
    if header.draft_model is None and header.draft_kind == "self":
        header = replace(header, draft_model=header.target_model)
    if header.draft_model is None and draft is not None and draft.known_name is not None:
        header = replace(header, draft_model=find_draft(draft.known_name).model)
    return replace(trace, header=header)


def at_lengths(acceptance: Acceptance, *, prompt_tokens: Tokens | None, output_tokens: Tokens | None) -> Acceptance:
    """The same agreement at other prompt and output lengths; None keeps a length.

    No text is invented. A shorter output uses the first traced positions of each prompt; a longer one uses all of them.
    Published positions are drawn from one distribution, so all of them are used at any length. The prompts are shifted until
    the mean number of cached tokens is that of the requested lengths. This prices them exactly, because seconds are linear in
    cached tokens.
    """
    if prompt_tokens is None and output_tokens is None:
        return acceptance
    prompt_length = acceptance.prompt_tokens if prompt_tokens is None else prompt_tokens
    output_length = acceptance.output_tokens if output_tokens is None else output_tokens
    trace, evidence = acceptance.trace, acceptance.evidence
    if evidence.level == "traced" and output_length != acceptance.output_tokens:
        trace = trace.shortened(output_length)
        note = f"the first {output_length} tokens of each"
        if output_length > acceptance.output_tokens:
            note = f"of texts of at most {acceptance.output_tokens} tokens; longer ones repeat themselves more"
        evidence = replace(evidence, description=f"{evidence.description}, {note}")
    shifted = tuple(
        replace(prompt, prompt_tokens=max(1, round(prompt_length + (output_length - prompt.num_positions) / 2)))
        for prompt in trace.header.prompts
    )
    return replace(
        acceptance,
        trace=replace(trace, header=replace(trace.header, prompts=shifted)),
        evidence=evidence,
        prompt_tokens=prompt_length,
        output_tokens=output_length,
    )


def with_draft_vocab(acceptance: Acceptance, draft_vocab: Tokens | None) -> Acceptance:
    """The same agreement for a draft whose LM head covers only its most frequent tokens; None keeps the head.

    The evidence states the assumption. Such a draft has no known weights, so it has no hash.

    Raises:
        UserInputError: the vocabulary has fewer tokens, or the draft uses the target's head.
    """
    header = acceptance.trace.header
    if draft_vocab is None:
        return acceptance
    if header.draft_kind == "self":
        raise UserInputError(
            f"--draft-vocab {draft_vocab}: a self-draft uses the head of its target, which must cover the whole vocabulary. "
            "Leave --draft-vocab out, or plan for a draft with weights of its own."
        )
    model = with_reduced_head(header.draft.model, draft_vocab)
    if not model.has_reduced_head:
        return acceptance
    assumption = (
        f"; assumed equal to that of the whole vocabulary, although a head of {model.num_head_tokens} tokens cannot draft the "
        "others"
    )
    reduced = replace(header, draft_model=model, draft_sha256=None)
    return replace(
        acceptance,
        trace=replace(acceptance.trace, header=reduced),
        evidence=replace(acceptance.evidence, description=acceptance.evidence.description + assumption),
    )


def check_target(acceptance: Acceptance, target: ModelGeometry) -> None:
    """Refuse a trace of a target with other shapes than the requested one.

    Raises:
        Mismatch: the shapes differ.
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


def check_draft(acceptance: Acceptance, draft: DraftName | None) -> None:
    """Refuse a trace that was not recorded with the requested draft.

    Raises:
        Mismatch: it was recorded with another draft.
    """
    header = acceptance.trace.header
    traced = SELF_DRAFT if header.draft_kind == "self" else header.draft.model.name
    if draft is None or traced in draft.names:
        return
    fix = f"Leave --draft out, or record a trace of it: {record_command(header.target.name, draft.text)}"
    raise Mismatch("the trace", made_for=f"draft {traced}", given=f"draft {draft.text}", fix=fix)


def _shape_text(model: ModelGeometry) -> str:
    return f"{model.num_layers} layers of {model.hidden_size}, vocabulary {model.vocab_size}"


def shipped_pairs() -> list[tuple[str, str]]:
    """Draft and target of every shipped trace."""
    stems = sorted(path.stem for path in EVIDENCE_FOLDER.glob(f"*{_SEPARATOR}*.npz"))
    return [(draft, target) for draft, _, target in (stem.partition(_SEPARATOR) for stem in stems)]


def shipped_path(draft: str, target: str) -> Path:
    """File of the shipped trace of a draft and a target."""
    return EVIDENCE_FOLDER / f"{draft}{_SEPARATOR}{target}.npz"


def find_shipped_path(target: Target, draft: DraftName | None) -> Path:
    """The shipped trace of a target that is known by name.

    Args:
        target: the target. Shapes from a config do not identify weights, so such a target has no shipped trace.
        draft: the requested draft; None takes the first that has a trace for this target.

    Raises:
        UserInputError: there is no such trace. The message contains the command that records one.
    """
    name, draft_text = target.geometry.name, None if draft is None else draft.text
    if target.geometry not in KNOWN_MODELS:
        raise UserInputError(_no_evidence_for_config(target, draft_text))
    drafts = [shipped_draft for shipped_draft, shipped_target in shipped_pairs() if shipped_target == name]
    if not drafts:
        covered = ", ".join(sorted({shipped_target for _, shipped_target in shipped_pairs()}))
        raise UserInputError(
            f"no acceptance evidence for target {name!r}: traces ship for {covered}. How often a draft agrees depends on the "
            f"weights and cannot be guessed from shapes. {record_and_plan(name, draft_text)}"
        )
    if draft is None:
        return shipped_path(drafts[0], name)
    draft_name = draft.known_name or draft.text
    if draft_name not in drafts:
        near = near_models(draft.text, drafts)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UserInputError(
            f"no acceptance evidence for draft {draft.text!r} with target {name!r}: a trace ships for {', '.join(drafts)}. How "
            f"often the target agrees depends on the weights of both.{hint} {record_and_plan(name, draft_text)}"
        )
    return shipped_path(draft_name, name)


def _no_evidence_for_config(target: Target, draft: str | None) -> str:
    """Why a config has no shipped trace, which known names have its shapes, and how to record a trace."""
    folder = "path/to/its-original" if target.stored is not None else _folder_text(target.text)
    covered = {shipped_target for _, shipped_target in shipped_pairs()}
    similar = [known.name for known in KNOWN_MODELS if known.name in covered and same_shape(known, target.geometry)]
    hint = f"If its weights are those of {similar[0]}, give --target {similar[0]}. Or record it" if similar else "Record it"
    original = " with the model it was quantised from, as s2d-profile runs plain weights only" if target.stored else ""
    return (
        f"no acceptance evidence for target {target.text!r}: a config gives shapes, and how often a draft agrees depends on "
        f"the weights. {hint}{original}: {record_command(folder, draft)}, then s2d-plan --target {shlex.quote(target.text)} "
        "--trace profile/trace.npz"
    )


def _folder_text(config: str) -> str:
    """Folder of a local config.json; the last part of the name for any other target."""
    folder = Path(config).parent if config.endswith(".json") else Path(config)
    if not folder.is_dir():
        return folder.name
    return str(folder) if folder.is_absolute() else f"./{folder}"


def record_and_plan(target: str, draft: str | None) -> str:
    """The two commands that record acceptance and plan with it, as a sentence without a full stop."""
    return f"Record it: {record_command(target, draft)}, then plan: s2d-plan --trace profile/trace.npz"


def record_command(target: str, draft: str | None) -> str:
    """The command that records acceptance on the user's own prompts."""
    words = ["s2d-profile", "acceptance", "--target", model_folder(target), "--draft", model_folder(draft or "your-draft")]
    return shlex.join([*words, *prompts_flags(target), "-o", "profile"])


def model_folder(name: str) -> str:
    """The argument that names a model in a command.

    The reference family, a self-draft and a folder stay as they are; any other name becomes a folder to fill in.
    """
    is_complete = name.startswith(REFERENCE_PREFIX) or name == SELF_DRAFT or "/" in name or Path(name).is_dir()
    return name if is_complete else f"path/to/{name}"


def prompts_flags(target: str) -> list[str]:
    """Flags that give prompts to a command. The shipped prompts are for the reference family only."""
    return [] if target.startswith(REFERENCE_PREFIX) else ["--prompts", "path/to/prompts.jsonl"]
