"""Would torch.compile make the passes of the decoder faster?

For both targets of the reference family, in fp32, on one thread, one pass of all layers is timed for one row and for five
rows, at several context lengths. The arms are the lean decoder (twice, which shows the noise), torch.compile of the lean
decoder, the same layers in plain operations (eager, and compiled with dynamic and with static shapes, inductor's C++ backend),
and the module of transformers, eager and compiled. Arms alternate in random order. The first passes of an arm find the caches
full of another arm's weights and are dropped. The compile time is reported separately (`compile_s`). Compiled kernels are kept
in one temporary folder, so later arms reuse those of earlier arms. Then the plain loop writes whole texts with each arm's
passes instead of the lean decoder's. All logits must equal the lean decoder's within fp32 accuracy, and all texts must be
identical.

A ratio is the arm's seconds over the lean decoder's of the same run, the median over runs; below 1 is faster. `clearly_faster`
lists the settings that are at least 10 % faster on every pass of one row and in the loop, at every target.

Example: python benchmarks/compiled.py --quick
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product

import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config

from details.compiled_arms import LEAN, LEAN_AGAIN, SETTINGS, STATIC, TEXT_TOKENS, Arm, Passes, Setting, Shape, arm_of
from details.compiled_result import CompiledResult, Timing, compiled_table, result_of
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Seconds, format_seconds
from perfmodel.policies.sampling import GREEDY
from profiler.machine.machine_facts import device_facts
from s2d.decoding.generate import Session, Settings
from s2d.loading.load_model import LoadedModel, load_model, load_tokenizer
from s2d.loading.model_folder import FAMILY_PROMPTS, find_model
from s2d.model.decoder import Decoder
from s2d.prompt_files.read import read_prompts
from shared import common

NAME = "compiled"
SEED = 20261121
PROMPT_TOKENS = 48
DROPPED_PASSES = 4
"""Per run of an arm."""
MAX_ERROR_FRAC = 1e-4
"""RMS of the difference of logits, over their own RMS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Amount of measurement."""

    targets: tuple[str, ...]
    num_layers: int | None
    """First layers of the target to keep; None keeps all."""
    settings: tuple[Setting, ...]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    num_turns: int
    passes_per_turn: int
    loop_turns: int
    new_tokens: int

    @property
    def shapes(self) -> list[Shape]:
        """Every timed pass."""
        return list(product(self.rows, self.contexts))


FULL = Size(
    targets=("ref-target-16", "ref-target-32"),
    num_layers=None,
    settings=SETTINGS,
    rows=(1, 5),
    contexts=(60, 120, 240),
    num_turns=12,
    passes_per_turn=16,
    loop_turns=8,
    new_tokens=128,
)
QUICK = Size(
    targets=("ref-target-16",),
    num_layers=2,
    settings=(LEAN, LEAN_AGAIN, STATIC),
    rows=(1,),
    contexts=(60,),
    num_turns=6,
    passes_per_turn=16,
    loop_turns=4,
    new_tokens=32,
)


def check_compiler() -> None:
    """Check that the compiler that torch.compile needs on a CPU exists.

    Raises:
        UserInputError: there is no C++ compiler.
    """
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise UserInputError(
            f"no C++ compiler {name!r}: torch.compile needs one on a CPU. Install g++, or name another in CXX."
        )


@contextmanager
def kernels_in_a_temporary_folder() -> Iterator[None]:
    """Keep compiled kernels in a temporary folder; precompiled headers stay in inductor's own. One g++ runs at a time."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, inductor_config.patch(compile_threads=1):
        os.environ[variable] = folder
        try:
            yield
        finally:
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before


def text_of(target: str) -> list[int]:
    """Tokens of the reference family's prompts, concatenated."""
    tokenizer = load_tokenizer(find_model(target))
    pieces = (tokenizer(prompt.text, add_special_tokens=False)["input_ids"] for prompt in read_prompts(FAMILY_PROMPTS))
    return list(chain.from_iterable(pieces))[:TEXT_TOKENS]


def first_layers(model: LoadedModel, num_layers: int | None) -> LoadedModel:
    """The model with its first layers only; None keeps all."""
    if num_layers is None:
        return model
    geometry = replace(model.geometry, num_layers=num_layers)
    weights = replace(model.decoder.weights, layers=model.decoder.weights.layers[:num_layers])
    return replace(model, geometry=geometry, decoder=Decoder(geometry, weights), exit_layers=())


def in_turns(runs: Mapping[str, Callable[[], list[Seconds]]], num_turns: int, rng: random.Random) -> list[Timing]:
    """Seconds of every arm, including the lean decoder, in a new random order each time."""
    turns: dict[str, list[list[Seconds]]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(num_turns):
        rng.shuffle(order)
        for name in order:
            turns[name].append(runs[name]())
    return [Timing(setting=name, turns_s=turns[name], lean_turns_s=turns[LEAN.name]) for name in runs]


@torch.inference_mode()
def time_passes(arms: Sequence[Arm], shape: Shape, size: Size, rng: random.Random) -> list[Timing]:
    """Time one shape with every arm that supports it, after a check against the lean decoder's logits.

    Raises:
        RuntimeError: an arm's logits differ.
    """
    rows, context = shape
    passes_by_arm = {arm.setting.name: arm.passes for arm in arms if arm.passes and arm.runs(rows)}
    for passes in passes_by_arm.values():
        passes.begin(rows, context)
    logits_by_arm = {name: passes.logits(passes.run()) for name, passes in passes_by_arm.items()}
    expected = logits_by_arm[LEAN.name]
    for name, logits in logits_by_arm.items():
        error_frac = float((logits - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        if not error_frac <= MAX_ERROR_FRAC:
            raise RuntimeError(f"{name}, {rows} rows after {context} tokens: logits off by {error_frac:.1e} of their size")
    runs = {name: partial(run_s, passes, shape, size.passes_per_turn) for name, passes in passes_by_arm.items()}
    return in_turns(runs, size.num_turns, rng)


def run_s(passes: Passes, shape: Shape, num_passes: int) -> list[Seconds]:
    """Time one run of an arm."""
    seconds = []
    passes.begin(*shape)
    for _ in range(DROPPED_PASSES + num_passes):
        start_s = time.perf_counter()
        passes.run()
        seconds.append(time.perf_counter() - start_s)
        passes.rewind()
    return seconds[DROPPED_PASSES:]


def time_loops(model: LoadedModel, arms: Sequence[Arm], text: Sequence[int], size: Size, rng: random.Random) -> list[Timing]:
    """Time plain decoding with every arm's passes.

    Raises:
        RuntimeError: an arm writes a different text than the lean decoder.
    """
    settings = Settings(policy=None, sampling=GREEDY, max_new_tokens=size.new_tokens, eos_token_id=None)
    decoders = {arm.setting.name: arm.decoder for arm in arms if arm.decoder and arm.runs(1)}
    sessions = {name: Session(replace(model, decoder=decoder), None, TEXT_TOKENS) for name, decoder in decoders.items()}
    written = {name: session.generate(text[:PROMPT_TOKENS], settings).tokens for name, session in sessions.items()}
    different = [name for name, tokens in written.items() if tokens != written[LEAN.name]]
    if different:
        raise RuntimeError(f"{', '.join(different)}: the plain loop wrote a different text than with the lean decoder")

    def decode_once(session: Session) -> list[Seconds]:
        return [session.generate(text[:PROMPT_TOKENS], settings).decode_s]

    return in_turns({name: partial(decode_once, session) for name, session in sessions.items()}, size.loop_turns, rng)


def measure_target(target: str, size: Size) -> CompiledResult:
    """Compile everything for one target, then time it."""
    model, text = first_layers(load_model(find_model(target), "fp32"), size.num_layers), text_of(target)
    arms, rng = [arm_of(model.decoder, setting) for setting in size.settings], random.Random(SEED)
    for arm in arms:
        arm.warm_up(target, text, size.shapes)
        state = arm.failure or (f"compiled in {format_seconds(arm.compile_s)}" if arm.setting.is_compiled else "ready")
        print_err(f"{target}, {arm.setting.name}: {state}")
    num_graphs = counters["stats"]["unique_graphs"]
    passes = {shape: time_passes(arms, shape, size, rng) for shape in size.shapes}
    loops = time_loops(model, arms, text, size, rng)
    return CompiledResult(
        target=target,
        arms=arms,
        passes=passes,
        loops=loops,
        loop_tokens=size.new_tokens,
        num_late_graphs=counters["stats"]["unique_graphs"] - num_graphs,
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with parsed arguments."""
    check_compiler()
    common.use_one_thread()
    size, facts = requested_size(args), device_facts(torch.device("cpu"))
    print_out(f"{facts.label}; seconds, and their ratio to the lean decoder's")
    results = []
    with kernels_in_a_temporary_folder():
        for target in size.targets:
            results.append(measure_target(target, size))
            print_out(f"\n{compiled_table(results[-1])}")
    common.finish(
        NAME,
        quick=args.quick,
        result=result_of(results),
        provenance=make_provenance(libraries=("torch", "transformers"), device=facts.label, seed=SEED),
        details={"measured": [result.as_json for result in results]},
    )
    return 0


def requested_size(args: argparse.Namespace) -> Size:
    """A quick or full run, limited to the requested targets, settings and widths."""
    size = QUICK if args.quick else FULL
    chosen = [setting for setting in SETTINGS if setting.name in (args.setting or ())]
    return replace(
        size,
        targets=tuple(args.target or size.targets),
        settings=(LEAN, LEAN_AGAIN, *chosen) if chosen else size.settings,
        rows=tuple(args.rows or size.rows),
    )


def _parser() -> argparse.ArgumentParser:
    parser = common.make_parser(__doc__ or "")
    names = [setting.name for setting in SETTINGS if setting not in (LEAN, LEAN_AGAIN)]
    parser.add_argument("--target", action="append", choices=FULL.targets, help="may be given again (default: both)")
    setting_help = f"besides the lean decoder; may be given again (default: all): {'; '.join(names)}"
    parser.add_argument("--setting", action="append", choices=names, metavar="NAME", help=setting_help)
    parser.add_argument("--rows", action="append", type=int, choices=FULL.rows, help="may be given again (default: both)")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
