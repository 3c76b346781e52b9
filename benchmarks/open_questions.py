"""What the paper leaves open, answered on the reference family: docs/open-questions.md quotes this script.

How many exits are worth looking at, and which? How much do thresholds matter? What changes with a deeper target? Is a policy
for each target worth having? Should deeper layers catch up at once, or when they are asked? Every workload is profiled and
traced here; policies are searched on one half of the documents and scored by exact replay on the other, both ways (geometric
means), so that no answer is fitted to the prompts it is told of.
Predicted, not run: `prediction.py` and `regret.py` say how far such predictions are from runs.

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
from perfmodel.core.units import Seconds, Tokens, format_frac, format_speedup
from perfmodel.policies.policy import Policy
from perfmodel.results.portfolio import CHOICES, HeldOut
from profiler.machine.machine_facts import device_facts
from s2d.commands.arguments import EXITS_HELP, layers
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.exits import requested_exits
from s2d.loading.model_folder import FAMILY_PROMPTS
from shared.common import finish, make_parser, quantile, use_one_thread
from shared.interleaved import SAMPLINGS, make_job, measure_evidence, workload_name

NAME = "open_questions"
FAMILY_DRAFT = "ref-draft"
SEED = 20260721
NEAR_FRAC = 0.01
"""Settings this near to the best are as good as it."""
TOGETHER_QUANTILE = 0.95
"""Of pairs of passes: the rarest are measured seldom, and noise is largest where one looks for the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is traced."""

    targets: tuple[str, ...]
    num_prompts: int
    max_new_tokens: Tokens
    budget_s: Seconds


FULL = Size(targets=("ref-target-16", "ref-target-32"), num_prompts=60, max_new_tokens=128, budget_s=60.0)
QUICK = Size(targets=("ref-target-16", "ref-target-32"), num_prompts=10, max_new_tokens=32, budget_s=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Of one target and one sampling."""

    workload: str
    depth: int
    """Layers of the target."""
    by_number: tuple[float | None, ...]
    """Held-out speedup where at most 1, 2, ... exits may be looked at."""
    alone: dict[int, float | None]
    """Of each exit alone, by its layer count, with the best length rule met; None where that has no price on unseen prompts."""
    best_exits: tuple[int, ...]
    """Of the best policy met, on all prompts."""
    near_frac: float | None
    """Share of a threshold's grid within NEAR_FRAC of the best threshold; None where no two exits have a price."""
    together_frac: float
    """Two passes of a segment as one; see `together_frac`."""

    @property
    def label(self) -> str:
        """The key of a result."""
        return f"{self.workload}, {self.depth} layers"


def answers_of(case: Scenario, workload: str) -> Answers:
    """The questions about one case."""
    header = case.trace.header
    halves = split_halves([case])
    assert halves is not None, "the prompts of the family are of both halves"
    numbers = range(1, len(header.exit_layers) + 1)
    logs: dict[int, list[float]] = {number: [] for number in numbers}
    alone: dict[int, list[float]] = {layer: [] for layer in header.exit_layers}
    for (seen,), (unseen,) in (halves, halves[::-1]):
        found = search([seen])
        for number in numbers:
            logs[number] += log_speedups(unseen, [best_of(found, number)])
        for layer in alone:
            alone[layer] += log_speedups(unseen, [best_at(found, (layer,))])
    best = search([case]).by_exits[0].policy
    assert best is not None
    return Answers(
        workload=workload,
        depth=header.target.num_layers,
        by_number=tuple(mean_speedup(logs[number]) for number in numbers),
        alone={layer: mean_speedup(found) for layer, found in alone.items()},
        best_exits=best.exits,
        near_frac=near_frac(case),
        together_frac=together_frac(case),
    )


def mean_speedup(logs: Sequence[float]) -> float | None:
    """Geometric mean; None where one has no price."""
    return math.exp(math.fsum(logs) / len(logs)) if all(map(math.isfinite, logs)) else None


def best_of(found: SearchResult, most_exits: int) -> Policy | None:
    """The best that was met with so few exits."""
    return next((one.policy for one in found.by_exits if one.policy and len(one.policy.exits) <= most_exits), None)


def best_at(found: SearchResult, layers: tuple[int, ...]) -> Policy | None:
    """The best that was met with these exits."""
    return next((one.policy for one in found.by_exits if one.policy and one.policy.exits == layers), None)


def near_frac(case: Scenario) -> float | None:
    """How flat the best policy of two exits is in its threshold."""
    found = search([case])
    best = next((one.policy for one in found.by_exits if one.policy and len(one.policy.exits) == 2), None)
    if best is None:
        return None
    column = case.trace.header.exit_layers.index(best.exits[0])
    cuts = threshold_grid(case.trace.confidence[:, column])
    rates = rates_by_scenario([case], [replace(best, thresholds=(cut,)) for cut in cuts])[:, 0]
    return float((rates >= (1 - NEAR_FRAC) * rates.max()).mean())


def together_frac(case: Scenario) -> float:
    """Seconds of two passes of a segment run as one, over those of both, in nineteen of twenty pairs at most.

    Below 1, catching up when a deeper layer is asked is never dearer than catching up at once.
    """
    found = []
    for stage in range(len(case.trace.header.exit_layers)):
        by_rows = {rows: case.pass_s("segment", stage, rows) for rows in range(1, MAX_DRAFT_TOKENS + 2)}
        pass_s = {rows: seconds for rows, seconds in by_rows.items() if math.isfinite(seconds)}
        pairs = ((a, b) for a, b in product(pass_s, repeat=2) if a + b in pass_s)
        found += [pass_s[a + b] / (pass_s[a] + pass_s[b]) for a, b in pairs]
    return quantile(found, TOGETHER_QUANTILE)


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    use_one_thread()
    size = QUICK if args.quick else FULL
    pairs = [
        load_pair(PairRequest(target=target, draft=args.draft, dtype="fp32", device="cpu", exits=requested_exits(args.exits)))
        for target in size.targets
    ]
    cases: dict[str, list[Scenario]] = {}
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
            case = Scenario(trace, *models)
            cases.setdefault(workload_name(sampling), []).append(case)
            answers.append(answers_of(case, workload_name(sampling)))
    shared = {workload: held_out_choices(of_targets) for workload, of_targets in cases.items()}
    print_out(answers_table(answers))
    print_out("\n" + choices_table(shared))
    result = {
        "held_out_speedup_by_number_of_exits": {one.label: list(one.by_number) for one in answers},
        "held_out_speedup_of_exits_alone": {
            one.label: {str(n): speedup for n, speedup in one.alone.items()} for one in answers
        },
        "best_exits": {one.label: list(one.best_exits) for one in answers},
        "thresholds_near_best_frac": {one.label: one.near_frac for one in answers},
        "two_passes_as_one_frac": {one.label: one.together_frac for one in answers},
        "held_out_speedup_by_choice": {workload: one and asdict(one) for workload, one in shared.items()},
    }
    finish(
        NAME if args.draft == FAMILY_DRAFT else f"{NAME}_{Path(args.draft).name}",
        quick=args.quick,
        result=result,
        libraries=("torch", "numpy"),
        device=device_facts(pairs[0].device).label,
        seed=SEED,
    )
    return 0


def answers_table(answers: Sequence[Answers]) -> str:
    """A line per workload."""
    numbers = range(1, len(answers[0].by_number) + 1)
    layers = list(answers[0].alone)
    rows = [
        [
            one.workload,
            str(one.depth),
            *("" if speedup is None else format_speedup(speedup) for speedup in (*one.alone.values(), *one.by_number)),
            "/".join(map(str, one.best_exits)),
            "" if one.near_frac is None else format_frac(one.near_frac),
            format_frac(one.together_frac),
        ]
        for one in answers
    ]
    headers = ["text", "layers", *(f"exit {layer} alone" for layer in layers), *(f"at most {n}" for n in numbers)]
    headers += ["best exits", f"cuts within {NEAR_FRAC:.0%}", "two passes as one"]
    return table(rows, headers=headers, align="l" + "r" * (len(headers) - 1))


def choices_table(shared: Mapping[str, HeldOut | None]) -> str:
    """One draft at all targets: geometric means over them."""
    rows = [
        [workload, *(format_speedup(getattr(one, choice)) for choice in CHOICES)] for workload, one in shared.items() if one
    ]
    headers = ["all targets", "a policy for each", "one exit for each", "one policy for all", "the best worst case"]
    return table(rows, headers=headers, align="lrrrr")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    draft_help = f"whose exits are asked about; the results of another have its name in theirs (default: {FAMILY_DRAFT})"
    parser.add_argument("--draft", default=FAMILY_DRAFT, metavar="NAME", help=draft_help)
    parser.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
