"""How fast is the plan, beside the lean plain loop and beside what transformers would do?

For each target, a plan is made from calibration prompts (or read from a file); then every arm writes after the same
evaluation prompts, greedily, in fp32, on one thread, in one process: the lean plain loop, the plan, transformers'
`generate`, and its assisted generation with every exit as the assistant (an exported checkpoint), at constant lengths 3, 5
and 8 with threshold 0, with its defaults, and with its heuristic. Arms take turns forwards and backwards on every prompt
(A B … B A). Seconds are of whole calls, the prompt's pass included; speeds are total tokens over total seconds; outputs
must be equal. `noise_frac` is the plain loop against itself, its forward against its backward turns. Where there are
several targets, each ratio of the last line is the smallest.

    python benchmarks/speed.py [--quick] [--plan FILE]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import torch
from arms import job_of, models_of, record
from transformers import GenerationConfig, LlamaForCausalLM

from calibrate.search import MAX_DRAFT_TOKENS, search
from perfmodel.artifact import read_record
from perfmodel.console import add_verbose_flag, print_err, print_out, run_command, table
from perfmodel.halves import Half
from perfmodel.plan import PLAN_SCHEMA, PLAN_VERSION, Plan
from perfmodel.policy import ExitPolicy
from perfmodel.sampling import GREEDY
from perfmodel.units import Seconds, format_number, format_speedup
from profiler.job import fill_log
from profiler.measure_latency import Budget
from profiler.pass_log import PassLog
from profiler.prompts import chosen_prompts
from s2d.generate import Settings
from s2d.load import export_exit, find_model
from s2d.pair import EncodedPrompt, Pair, encode_prompts, load_pair
from s2d.prompts import FAMILY_PROMPTS, read_prompts
from s2d.run import check_made_for
from s2d.train import load_trainable

NAME = "speed"
SEED = 20260811
CONSTANT_LENGTHS = (3, 5, 8)
HEURISTIC_START = 5
PLAIN, PLAN, HF_GENERATE, HF_ASSISTED = "plain", "plan", "hf generate", "hf assisted"

Write = Callable[[EncodedPrompt], list[int]]
"""One arm: the new tokens after a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much to measure."""

    targets: tuple[str, ...]
    num_prompts: int
    num_repeats: int
    max_new_tokens: int
    budget_s: Seconds
    """For the pass times the plan rests on."""


CALIBRATION_PROMPTS = 60
"""The whole calibration half: prompts of few documents would make a plan for those documents."""

FULL = Size(targets=("ref-target-16", "ref-target-32"), num_prompts=8, num_repeats=1, max_new_tokens=96, budget_s=60.0)
QUICK = Size(targets=("ref-target-16",), num_prompts=2, num_repeats=1, max_new_tokens=48, budget_s=8.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistedSetting:
    """What an assistant's generation_config is given; None leaves transformers' default."""

    name: str
    num_assistant_tokens: int | None
    schedule: str | None
    threshold: float | None


ASSISTED_SETTINGS = (
    *(
        AssistedSetting(name=f"constant {length}", num_assistant_tokens=length, schedule="constant", threshold=0.0)
        for length in CONSTANT_LENGTHS
    ),
    AssistedSetting(name="defaults", num_assistant_tokens=None, schedule=None, threshold=None),
    AssistedSetting(name="heuristic", num_assistant_tokens=HEURISTIC_START, schedule="heuristic", threshold=0.0),
)


@dataclass(slots=True, kw_only=True)
class Tally:
    """Tokens and seconds of one arm, by turn: forwards and backwards."""

    num_tokens: int
    seconds: list[Seconds]

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / sum(self.seconds)


def lean_arms(pair: Pair, policy: ExitPolicy | None, prompts: Sequence[EncodedPrompt], max_new_tokens: int) -> dict[str, Write]:
    """Our own loop, plain and under the plan."""
    session = pair.session(max(len(prompt.token_ids) for prompt in prompts) + max_new_tokens)

    def arm(one: ExitPolicy | None) -> Write:
        settings = Settings(policy=one, sampling=GREEDY, max_new_tokens=max_new_tokens, eos_token_id=pair.eos_token_id)
        return lambda prompt: list(session.generate(prompt.token_ids, settings).tokens)

    return {PLAIN: arm(None), PLAN: arm(policy)}


def transformers_arms(pair: Pair, exits_folder: Path, max_new_tokens: int) -> dict[str, Write]:
    """`generate`, and assisted generation over the grid of exits and settings."""
    target = load_trainable(pair.target.folder)
    arms = {HF_GENERATE: transformers_arm(target, pair, max_new_tokens)}
    for layer in pair.geometry.exit_layers:
        folder = exits_folder / f"{pair.target.geometry.name}-{layer}"
        export_exit(pair.draft.folder, layer, folder)
        assistant = load_trainable(str(folder))
        for setting in ASSISTED_SETTINGS:
            write = transformers_arm(target, pair, max_new_tokens, assistant=assistant, setting=setting)
            arms[f"{HF_ASSISTED}, exit {layer}, {setting.name}"] = write
    return arms


def transformers_arm(
    target: LlamaForCausalLM,
    pair: Pair,
    max_new_tokens: int,
    *,
    assistant: LlamaForCausalLM | None = None,
    setting: AssistedSetting | None = None,
) -> Write:
    """One way to call `generate`. An assistant's settings are read from its own generation_config, and some are changed
    by a call, so they are set anew before each."""
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": pair.eos_token_id}
    options |= {"eos_token_id": pair.eos_token_id} | ({"assistant_model": assistant} if assistant is not None else {})

    def write(prompt: EncodedPrompt) -> list[int]:
        if assistant is not None and setting is not None:
            assistant.generation_config = assistant_config(pair, setting)
        ids = torch.tensor([prompt.token_ids])
        written = target.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return written[0, len(prompt.token_ids) :].tolist()

    return write


def assistant_config(pair: Pair, setting: AssistedSetting) -> GenerationConfig:
    given = {
        "num_assistant_tokens": setting.num_assistant_tokens,
        "num_assistant_tokens_schedule": setting.schedule,
        "assistant_confidence_threshold": setting.threshold,
    }
    special = {"eos_token_id": pair.eos_token_id, "pad_token_id": pair.eos_token_id}
    return GenerationConfig(**special, **{name: value for name, value in given.items() if value is not None})


def measure(arms: dict[str, Write], prompts: Sequence[EncodedPrompt], num_repeats: int) -> dict[str, Tally]:
    """Time every arm on every prompt, forwards and backwards.

    Raises:
        RuntimeError: an arm writes something else than the plain loop.
    """
    tallies = {name: Tally(num_tokens=0, seconds=[0.0, 0.0]) for name in arms}
    expected = [arms[PLAIN](prompt) for prompt in prompts]
    for name, write in arms.items():
        if write(prompts[0]) != expected[0]:
            raise RuntimeError(f"{name}: wrote something else than the plain loop")
    for _ in range(num_repeats):
        for prompt, tokens in zip(prompts, expected, strict=True):
            for turn, names in enumerate((list(arms), list(reversed(arms)))):
                for name in names:
                    start_s = time.perf_counter()
                    written = arms[name](prompt)
                    tallies[name].seconds[turn] += time.perf_counter() - start_s
                    tallies[name].num_tokens += len(written)
                    if written != tokens:
                        raise RuntimeError(f"{name}, {prompt.name}: wrote something else than the plain loop")
    return tallies


def plan_policy(pair: Pair, size: Size, prompts_path: Path) -> ExitPolicy | None:
    """The policy that profiling and searching on the calibration prompts choose."""
    job = job_of(
        pair,
        GREEDY,
        "calibration",
        prompts_path,
        num_prompts=CALIBRATION_PROMPTS,
        max_new_tokens=size.max_new_tokens,
        draft_cap=MAX_DRAFT_TOKENS,
        seed=SEED,
    )
    log = PassLog()
    fill_log(job, log, Budget(seconds=size.budget_s))
    return search(record(job, job.session()), *models_of(log, job))


def encoded(pair: Pair, half: Half, number: int, max_new_tokens: int, path: Path) -> tuple[EncodedPrompt, ...]:
    return encode_prompts(pair, chosen_prompts(read_prompts(path), half, number), max_new_tokens=max_new_tokens)


def best_assisted(tallies: dict[str, Tally]) -> str:
    """The fastest setting of transformers' assisted generation."""
    return max((name for name in tallies if name.startswith(HF_ASSISTED)), key=lambda name: tallies[name].tokens_per_s)


def ratios(tallies: dict[str, Tally]) -> dict[str, float]:
    """The figures of DESIGN §9 for one target."""
    speed = {name: tally.tokens_per_s for name, tally in tallies.items()}
    forwards, backwards = tallies[PLAIN].seconds
    return {
        "plan_over_plain": speed[PLAN] / speed[PLAIN],
        "plan_over_hf_generate": speed[PLAN] / speed[HF_GENERATE],
        "plan_over_best_hf_assisted": speed[PLAN] / speed[best_assisted(tallies)],
        "plain_over_hf_generate": speed[PLAIN] / speed[HF_GENERATE],
        "noise_frac": abs(forwards / backwards - 1),
    }


def speed_table(tallies: dict[str, Tally]) -> str:
    """A line per arm, fastest first."""
    base = tallies[HF_GENERATE].tokens_per_s
    rows = [
        [name, format_number(tally.tokens_per_s), format_speedup(tally.tokens_per_s / base)]
        for name, tally in sorted(tallies.items(), key=lambda item: -item[1].tokens_per_s)
    ]
    return table(rows, headers=["arm", "tokens/s", f"over {HF_GENERATE}"])


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    common.one_thread()
    size = QUICK if args.quick else FULL
    path = args.prompts or FAMILY_PROMPTS
    plan = read_record(args.plan, Plan, schema=PLAN_SCHEMA, version=PLAN_VERSION).record if args.plan else None
    targets = (plan.target.name,) if plan else tuple(args.target or size.targets)
    found: dict[str, dict[str, Tally]] = {}
    policies: dict[str, str] = {}
    for name in targets:
        pair = load_pair(find_model(name).as_posix(), find_model(args.draft).as_posix(), "fp32", "cpu")
        if plan is not None:
            check_made_for(args.plan, plan, pair)
        policy = plan.chosen.policy if plan is not None else plan_policy(pair, size, path)
        policies[name] = policy.label if policy else "do not speculate"
        print_err(f"{pair.label}: {policies[name]}")
        prompts = encoded(pair, "evaluation", size.num_prompts, size.max_new_tokens, path)
        with tempfile.TemporaryDirectory() as folder:
            arms = lean_arms(pair, policy, prompts, size.max_new_tokens)
            arms |= transformers_arms(pair, Path(folder), size.max_new_tokens)
            found[name] = measure(arms, prompts, size.num_repeats)
        print_out(f"{pair.label}\nplan: {policies[name]}\n\n{speed_table(found[name])}\n")
    common.finish(NAME, result_of(found, policies), libraries=("torch", "transformers"), seed=SEED)
    return 0


def result_of(found: dict[str, dict[str, Tally]], policies: dict[str, str]) -> dict[str, object]:
    """Over all targets: speeds by arm, the smallest of each ratio, the largest noise."""
    each = [ratios(tallies) for tallies in found.values()]
    worst = {key: (max if key == "noise_frac" else min)(one[key] for one in each) for key in each[0]}
    speeds = {
        f"{target}, {name}": tally.tokens_per_s
        for target, tallies in found.items()
        for name, tally in tallies.items()
        if name in (PLAIN, PLAN, HF_GENERATE, best_assisted(tallies))
    }
    return {"tokens_per_s": speeds, "policies": policies, **worst}


def _parser() -> argparse.ArgumentParser:
    parser = common.make_parser(__doc__ or "")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="run this plan (default: one made here)")
    parser.add_argument("--target", action="append", metavar="NAME", help="may be given again (default: the family's)")
    parser.add_argument("--draft", default="ref-draft", metavar="NAME", help="default: ref-draft")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL (default: the family's)")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
