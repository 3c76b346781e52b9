"""Answers to questions that the paper leaves open, on the reference family.

How many exits are worth checking, and which? How much do thresholds matter? What changes with a deeper target? Is a policy for
each target worth having? Should deeper layers catch up at once, or when they are needed? Every workload is profiled and traced
here. Policies are searched on one half of the documents and scored by exact replay on the other half, both ways (geometric
means), so no answer is fitted to its own prompts. All speedups are predicted; `prediction.py` and `regret.py` measure how far
such predictions are from runs. docs/open-questions.md quotes the results.

Example: python benchmarks/open_questions.py --quick
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from calibrate.planning.make_portfolio import held_out_choices
from calibrate.search.cross_validation import log_speedups, split_halves
from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS, threshold_grid
from calibrate.search.scenario import Scenario, rates_by_scenario
from calibrate.search.search import SearchResult, search
from perfmodel.core.console import add_verbose_flag, print_out, run_command, table
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds, Tokens, format_frac, format_speedup
from perfmodel.policies.policy import Policy
from perfmodel.results.portfolio import CHOICES, HeldOut
from profiler.machine.machine_facts import device_facts
from s2d.commands.arguments import EXITS_HELP, layers
from s2d.loading.model_folder import FAMILY_PROMPTS
from shared.common import finish, make_parser, quantile, use_one_thread
from shared.interleaved import SAMPLINGS, load_cpu_pair, make_job, measure_evidence, workload_name

NAME = "open_questions"
FAMILY_DRAFT = "ref-draft"
SEED = 20260721
NEAR_FRAC = 0.01
"""Settings within this distance of the best count as equally good."""
TOGETHER_QUANTILE = 0.95
"""Quantile over pairs of passes. The maximum would be dominated by the noise of rare passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Amount of tracing."""

    targets: tuple[str, ...]
    num_prompts: int
    max_new_tokens: Tokens
    budget_s: Seconds


FULL = Size(targets=("ref-target-16", "ref-target-32"), num_prompts=60, max_new_tokens=128, budget_s=60.0)
QUICK = Size(targets=("ref-target-16", "ref-target-32"), num_prompts=10, max_new_tokens=32, budget_s=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers for one target and one sampling."""

    workload: str
    depth: int
    """Layers of the target."""
    by_number: tuple[float | None, ...]
    """Held-out speedup with at most 1, 2, ... active exits."""
    by_exit: dict[int, float | None]
    """Held-out speedup of each single exit, by its layer, with its best length rule; None without a price on unseen prompts."""
    best_exits: tuple[int, ...]
    """Exits of the best policy, on all prompts."""
    near_frac: float | None
    """Share of a threshold's grid within NEAR_FRAC of the best threshold; None if no two exits have a price."""
    together_frac: float
    """Cost of two passes of a segment as one; see `together_frac`."""

    @property
    def label(self) -> str:
        """The key in the result."""
        return f"{self.workload}, {self.depth} layers"


def answers_of(scenario: Scenario, workload: str) -> Answers:
    """Answer the questions for one scenario."""
    header = scenario.trace.header
    halves = split_halves([scenario])
    assert halves is not None, "the prompts of the family cover both halves"
    numbers = range(1, len(header.exit_layers) + 1)
    logs: dict[int, list[float]] = {number: [] for number in numbers}
    by_exit: dict[int, list[float]] = {layer: [] for layer in header.exit_layers}
    for (seen,), (unseen,) in (halves, halves[::-1]):
        result = search([seen])
        for number in numbers:
            logs[number] += log_speedups(unseen, [best_with_at_most(result, number)])
        for layer in by_exit:
            by_exit[layer] += log_speedups(unseen, [best_with_exits(result, (layer,))])
    best = search([scenario]).by_exits[0].policy
    assert best is not None
    return Answers(
        workload=workload,
        depth=header.target.num_layers,
        by_number=tuple(mean_speedup(logs[number]) for number in numbers),
        by_exit={layer: mean_speedup(layer_logs) for layer, layer_logs in by_exit.items()},
        best_exits=best.exits,
        near_frac=near_frac(scenario),
        together_frac=together_frac(scenario),
    )


def mean_speedup(logs: Sequence[float]) -> float | None:
    """Geometric mean; None if any speedup has no price."""
    return math.exp(math.fsum(logs) / len(logs)) if all(map(math.isfinite, logs)) else None


def best_with_at_most(result: SearchResult, max_exits: int) -> Policy | None:
    """The best policy with at most `max_exits` exits."""
    return next(
        (candidate.policy for candidate in result.by_exits if candidate.policy and len(candidate.policy.exits) <= max_exits),
        None,
    )


def best_with_exits(result: SearchResult, layers: tuple[int, ...]) -> Policy | None:
    """The best policy with exactly these exits."""
    return next(
        (candidate.policy for candidate in result.by_exits if candidate.policy and candidate.policy.exits == layers), None
    )


def near_frac(scenario: Scenario) -> float | None:
    """Share of thresholds that are nearly as good as the best, for the best policy of two exits."""
    result = search([scenario])
    best = next(
        (candidate.policy for candidate in result.by_exits if candidate.policy and len(candidate.policy.exits) == 2), None
    )
    if best is None:
        return None
    column = scenario.trace.header.exit_layers.index(best.exits[0])
    thresholds = threshold_grid(scenario.trace.confidence[:, column])
    rates = rates_by_scenario([scenario], [replace(best, thresholds=(threshold,)) for threshold in thresholds])[:, 0]
    return float((rates >= (1 - NEAR_FRAC) * rates.max()).mean())


def together_frac(scenario: Scenario) -> float:
    """The time of two passes of a segment run as one, over the time of both: the 95 % quantile over pairs.

    Below 1, catching up when a deeper layer is needed never costs more than catching up at once.
    """
    ratios = []
    for stage in range(len(scenario.trace.header.exit_layers)):
        by_rows = {rows: scenario.pass_s("segment", stage, rows) for rows in range(1, MAX_DRAFT_TOKENS + 2)}
        pass_s = {rows: seconds for rows, seconds in by_rows.items() if math.isfinite(seconds)}
        pairs = ((a, b) for a, b in product(pass_s, repeat=2) if a + b in pass_s)
        ratios += [pass_s[a + b] / (pass_s[a] + pass_s[b]) for a, b in pairs]
    return quantile(ratios, TOGETHER_QUANTILE)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    use_one_thread()
    size = QUICK if args.quick else FULL
    pairs = [load_cpu_pair(target, args.draft, args.exits) for target in size.targets]
    scenarios: dict[str, list[Scenario]] = {}
    answers = []
    for sampling in SAMPLINGS:
        for pair in pairs:
            job = make_job(
                pair,
                sampling,
                "all",
                FAMILY_PROMPTS,
                num_prompts=size.num_prompts,
                max_new_tokens=size.max_new_tokens,
                draft_cap=MAX_DRAFT_TOKENS,
                seed=SEED,
            )
            trace, models = measure_evidence(job, size.budget_s)
            scenario = Scenario(trace, *models)
            scenarios.setdefault(workload_name(sampling), []).append(scenario)
            answers.append(answers_of(scenario, workload_name(sampling)))
    shared = {workload: held_out_choices(target_scenarios) for workload, target_scenarios in scenarios.items()}
    print_out(answers_table(answers))
    print_out("\n" + choices_table(shared))
    result = {
        "held_out_speedup_by_number_of_exits": {answer.label: list(answer.by_number) for answer in answers},
        "held_out_speedup_of_exits_alone": {
            answer.label: {str(n): speedup for n, speedup in answer.by_exit.items()} for answer in answers
        },
        "best_exits": {answer.label: list(answer.best_exits) for answer in answers},
        "thresholds_near_best_frac": {answer.label: answer.near_frac for answer in answers},
        "two_passes_as_one_frac": {answer.label: answer.together_frac for answer in answers},
        "held_out_speedup_by_choice": {workload: answer and asdict(answer) for workload, answer in shared.items()},
    }
    finish(
        NAME if args.draft == FAMILY_DRAFT else f"{NAME}_{Path(args.draft).name}",
        quick=args.quick,
        result=result,
        provenance=make_provenance(libraries=("torch", "numpy"), device=device_facts(pairs[0].device).label, seed=SEED),
    )
    return 0


def answers_table(answers: Sequence[Answers]) -> str:
    """A row per workload."""
    numbers = range(1, len(answers[0].by_number) + 1)
    layers = list(answers[0].by_exit)
    rows = [
        [
            answer.workload,
            str(answer.depth),
            *("" if speedup is None else format_speedup(speedup) for speedup in (*answer.by_exit.values(), *answer.by_number)),
            "/".join(map(str, answer.best_exits)),
            "" if answer.near_frac is None else format_frac(answer.near_frac),
            format_frac(answer.together_frac),
        ]
        for answer in answers
    ]
    headers = ["text", "layers", *(f"exit {layer} alone" for layer in layers), *(f"at most {n}" for n in numbers)]
    headers += ["best exits", f"thresholds within {NEAR_FRAC:.0%}", "two passes as one"]
    return table(rows, headers=headers, align="l" + "r" * (len(headers) - 1))


def choices_table(shared: Mapping[str, HeldOut | None]) -> str:
    """One draft for all targets: geometric means over them."""
    rows = [
        [workload, *(format_speedup(getattr(held_out, choice)) for choice in CHOICES)]
        for workload, held_out in shared.items()
        if held_out
    ]
    headers = ["all targets", "a policy for each", "one exit for each", "one policy for all", "the best worst case"]
    return table(rows, headers=headers, align="lrrrr")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    draft_help = f"draft to study; results of another draft have its name in their file name (default: {FAMILY_DRAFT})"
    parser.add_argument("--draft", default=FAMILY_DRAFT, metavar="NAME", help=draft_help)
    parser.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
