"""Prompts and acceptance traces of a pair: the calibration half for plans, the evaluation half to test them."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from details.engines.sizes import EngineSize
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import print_err
from perfmodel.core.units import Tokens
from perfmodel.policies.sampling import GREEDY
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts
from s2d.prompts.conversation import Prompt
from shared.interleaved import load_cpu_pair, make_job_from_prompts, record

DRAFT = "ref-draft"
_SEED = 20261201
_DRAFT_CAP: Tokens = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairEvidence:
    """A pair, its prompts, and its acceptance on them. All texts have the full length: engines write without an end token."""

    target: str
    draft: str
    exits: tuple[int, ...]
    calibration_prompts: tuple[Prompt, ...]
    calibration: Trace
    evaluation_prompts: tuple[Prompt, ...]
    evaluation: Trace


def family_evidence(target: str, size: EngineSize, folder: Path) -> PairEvidence:
    """The reference draft and one of its targets. Traces are recorded by the bundled runtime in fp32, and kept in a folder."""
    num_evaluated = max(setting.num_prompts for setting in size.settings)
    prompts = read_prompts(FAMILY_PROMPTS)
    halves = (
        choose_prompts(prompts, "calibration", size.traced_prompts),
        choose_prompts(prompts, "evaluation", num_evaluated),
    )
    traces = [
        _recorded(target, half, size.max_new_tokens, folder / f"{target}-{name}-{len(half)}x{size.max_new_tokens}.npz")
        for name, half in zip(("calibration", "evaluation"), halves, strict=True)
    ]
    (seen, calibration), (unseen, evaluation) = map(_of_full_length, halves, traces)
    return PairEvidence(
        target=target,
        draft=DRAFT,
        exits=calibration.header.exit_layers,
        calibration_prompts=seen,
        calibration=calibration,
        evaluation_prompts=unseen,
        evaluation=evaluation,
    )


def on_prompts(evidence: PairEvidence, num_prompts: int) -> PairEvidence:
    """The evidence with the first evaluation prompts only."""
    numbers = list(range(min(num_prompts, len(evidence.evaluation_prompts))))
    kept = tuple(evidence.evaluation_prompts[number] for number in numbers)
    return replace(evidence, evaluation_prompts=kept, evaluation=evidence.evaluation.subset(numbers))


def _recorded(target: str, prompts: list[Prompt], max_new_tokens: Tokens, path: Path) -> Trace:
    if path.exists():
        return Trace.load(path)
    print_err(f"recording {path.stem}")
    job_of = partial(make_job_from_prompts, load_cpu_pair(target, DRAFT), GREEDY)
    job = job_of(prompts, max_new_tokens=max_new_tokens, draft_cap=_DRAFT_CAP, seed=_SEED)
    trace = record(job, job.session())
    trace.save(path)
    return trace


def _of_full_length(prompts: list[Prompt], trace: Trace) -> tuple[tuple[Prompt, ...], Trace]:
    """The prompts that the target continues to the full length, without an end token; and their trace."""
    header = trace.header
    kept = [number for number, prompt in enumerate(header.prompts) if prompt.num_positions == header.max_new_tokens]
    by_name = {prompt.name: prompt for prompt in prompts}
    return tuple(by_name[header.prompts[number].name] for number in kept), trace.subset(kept)
