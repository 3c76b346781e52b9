"""How well is the speedup of a draft predicted in the engines that people serve with?

For every engine and storage of its weights, the benchmark profiles the engine on calibration prompts: plain decoding, two exits
of the draft at two or three lengths, and both exits alone. `s2d-plan --engine NAME` plans with this profile and a trace of the
calibration prompts. Other exits and lengths, which no profile has, are measured on evaluation prompts and compared with their
predictions. Profile and evaluation take turns over the whole time: plain decoding of a target that barely fits into a cache
shared with neighbours drifts by 10 to 30 % within minutes, so the error is that of the model, not that of a machine that
changed meanwhile. With --profile-first, the profile is complete before the evaluation begins. Afterwards, the plan's own
configuration and the engine's default draft length are measured beside the best held-out configuration.

    error         predicted over measured speedup, minus one: seconds from the profile on calibration prompts, acceptance
                  from a trace of the measured prompts, recorded by the bundled runtime in fp32
    as planned    the same with the trace of the calibration prompts, as a plan predicts: the scatter between prompts is in it
    acceptance    tokens per round, replayed over the engine's, minus one
    latency       the error if the rounds are known
    Leviathan     Leviathan's formula with the engine's mean acceptance and the cost ratio of exit and target decoded alone
    engine's own  the estimate of ONNX Runtime GenAI: its formula, acceptance and timers, from the measured runs
    noise         plain decoding against itself, first against second repeat
    over default  measured speed of the plan over the engine's default draft length with the same exit. vLLM and s2d have none.
    other texts   speculative texts that differ from the engine's plain text; unexplained: plain decoding after the same prefix
                  does not emit that token either

Decisions and plans are those of `as planned`. Leviathan's formula and the engine's estimate know the acceptance that the engine
counted in the measured runs, and the estimate its seconds too. Our predictions know neither.
The engines are those that s2d-engines has installed. The others, and weights that an engine does not load, are skipped and
listed. Checkpoints, traces and measurements are kept in a folder, so that an interrupted run continues. --quick measures again.
--pair big takes a target of TinyLlama's shape with random weights that counts upwards, and drafts that agree at 75 % of tokens.

Example: python benchmarks/engines.py --quick
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from calibrate.figures.plots import PredictedPoint, predicted_against_measured
from details.engines.counting_pair import counting_evidence
from details.engines.evidence import PairEvidence, family_evidence
from details.engines.measure import Workplace, measure_setting
from details.engines.result import SettingResult, outcome_table, result_of, setting_result, setting_table
from details.engines.sizes import BIG, FULL, QUICK, EngineSize, Setting, chosen_settings, unsupported
from details.engines.texts import text_differences
from details.engines.time_left import TimeLeft
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command
from perfmodel.core.errors import EngineFailure, UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import format_frac
from profiler.machine.machine_facts import device_facts
from s2d.engines.environments import engines_folder, is_installed
from shared.common import finish, make_parser, median, use_one_thread

NAME = "engines"
DEFAULT_TARGET = "ref-target-32"


def measured_settings(size: EngineSize, evidence: PairEvidence, place: Workplace) -> tuple[list[SettingResult], dict[str, str]]:
    """Results by setting, and the reasons for those that were skipped."""
    results: list[SettingResult] = []
    skipped: dict[str, str] = {}
    time_left = TimeLeft([setting for setting in size.settings if skip_reason(setting) is None])
    for setting in size.settings:
        reason = skip_reason(setting)
        if reason is None:
            print_err(time_left.begin(setting))
            try:
                measured = measure_setting(setting, size, evidence, place)
                results.append(setting_result(measured, text_differences(measured)))
            except (EngineFailure, UserInputError) as err:
                reason = str(err)
        if reason is not None:
            print_err(f"{setting.label} is skipped: {reason}")
            skipped[setting.label] = reason
    return results, skipped


def skip_reason(setting: Setting) -> str | None:
    """Why a setting cannot run here; None if it can."""
    if not is_installed(setting.engine):
        return f"not installed in {str(engines_folder())!r}: s2d-engines install {setting.engine}"
    return unsupported(setting)


def draw(results: Sequence[SettingResult], path: Path) -> None:
    """Draw measured over predicted speedups, one colour per engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    outcomes = [(result.engine, outcome) for result in results for outcome in result.outcomes]
    points = [
        PredictedPoint(
            pair=engine,
            predicted=outcome.predicted.here.speedup.speedup.value,
            measured=outcome.measured,
            measured_noise_frac=abs(outcome.half_frac) / 2,
        )
        for engine, outcome in outcomes
    ]
    error = median(abs(outcome.error_frac) for _, outcome in outcomes)
    speedups = [outcome.measured for _, outcome in outcomes]
    figure, axis = pyplot.subplots(figsize=(6.5, 5.5), layout="constrained")
    predicted_against_measured(points, axis, median_error_frac=error)
    engines = len({engine for engine, _ in outcomes})
    axis.set_title(
        f"{len(points)} held-out configurations in {engines} engines, {min(speedups):.2f}x to {max(speedups):.2f}x:\n"
        f"predicted with a median error of {format_frac(error)}"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    use_one_thread()
    is_big = args.pair == "big"
    size = chosen_settings(QUICK if args.quick else BIG if is_big else FULL, args.engines, args.weights)
    folder = args.folder or engines_folder() / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    place = Workplace(folder=folder, threads=args.threads, is_fresh=args.quick or args.fresh, profile_first=args.profile_first)
    evidence = counting_evidence(size, folder) if is_big else family_evidence(args.target, size, folder)
    results, skipped = measured_settings(size, evidence, place)
    if not results:
        raise UserInputError(f"no engine ran: {'; '.join(f'{name}: {reason}' for name, reason in skipped.items())}.")
    print_out(outcome_table(results))
    print_out()
    print_out(setting_table(results))
    details = {
        "target": Path(evidence.target).name,
        "num_threads": args.threads,
        "profile_first": args.profile_first,
        "settings": [result.as_json for result in results],
        "configs": [outcome.as_json for result in results for outcome in result.outcomes],
        "skipped": skipped,
    }
    finish(
        f"{NAME}_big" if is_big else NAME,
        quick=args.quick,
        result=result_of(results),
        provenance=make_provenance(libraries=("torch", "numpy"), device=device_facts(torch.device("cpu")).label),
        details=details,
    )
    if args.figure is not None:  # last, because a changed figure makes the checkout dirty
        draw(results, args.figure)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--pair", choices=("family", "big"), default="family", help="models: the reference family, or 1.1B (default: family)")
    add("--target", default=DEFAULT_TARGET, metavar="NAME", help=f"of the reference family (default: {DEFAULT_TARGET})")
    add("--engines", type=_words, metavar="NAMES", help="engines to run, separated by commas (default: all)")
    add("--weights", type=_words, metavar="WORDS", help="weights to run, separated by commas (default: all)")
    add("--threads", type=int, default=1, metavar="NUM", help="threads of each engine (default: 1)")
    add("--folder", type=Path, metavar="FOLDER", help="keeps checkpoints and measurements (default: beside the engines)")
    add("--fresh", action="store_true", help="measure again what the folder has")
    add("--profile-first", action="store_true", help="complete every profile before its evaluation begins")
    add("--figure", type=Path, metavar="FILE", help="draw measured over predicted speedups to this file")
    add_verbose_flag(parser)
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
