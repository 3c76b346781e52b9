"""Would torch.compile make the decoder's passes faster than the lean decoder is as it stands?

For both targets of the reference family, fp32, on one thread, one pass of all layers is timed for one row and for five, at
several context lengths: the lean decoder (twice, which tells the noise), torch.compile of it as it is, the same layers in
plain operations (eager, and compiled with symbolic lengths and with static shapes, inductor's C++ backend), and transformers'
own module, eager and compiled. Arms take turns in random order; the first passes of a turn find the caches full of another
arm's weights and are dropped. Compiling is not counted and told apart (`compile_s`; kernels are kept in one temporary folder,
so that an arm finds those of the arms before it). Then whole texts are written by the plain loop with each arm's passes in
place of the lean decoder's. Every pass's logits must equal the lean decoder's to fp32's accuracy, every text token by token.

A ratio is the arm's seconds over the lean decoder's of the same turn, the median over turns; below 1 is faster.
`clearly_faster` lists settings at least 10 % faster on every pass of one row and in the loop, at every target.

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
from details.compiled_result import Found, Timing, found_table, result_of
from perfmodel.core.console import add_verbose_flag, print_err, print_out, run_command
from perfmodel.core.errors import UserInputError
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
"""Of every turn."""
MAX_ERROR_FRAC = 1e-4
"""RMS of what logits differ by, over their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much to measure."""

    targets: tuple[str, ...]
    num_layers: int | None
    """The target's first ones; all of them when None."""
    settings: tuple[Setting, ...]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    num_turns: int
    passes_per_turn: int
    loop_turns: int
    new_tokens: int

    @property
    def shapes(self) -> list[Shape]:
        """Every pass that is timed."""
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
    """Refuse to measure without what torch.compile needs on a CPU.

    Raises:
        UserInputError: there is no C++ compiler.
    """
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise UserInputError(
            f"no C++ compiler {name!r} here: torch.compile writes C++ for a CPU and expects one to build it with. Install g++, "
            "or name another in CXX."
        )


@contextmanager
def kernels_in_a_temporary_folder() -> Iterator[None]:
    """Kernels are gone afterwards; headers compiled once stay in inductor's shared folder. One g++ runs at a time."""
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
    """Tokens of the family's prompts, one after another."""
    tokenizer = load_tokenizer(find_model(target))
    pieces = (tokenizer(prompt.text, add_special_tokens=False)["input_ids"] for prompt in read_prompts(FAMILY_PROMPTS))
    return list(chain.from_iterable(pieces))[:TEXT_TOKENS]


def first_layers(model: LoadedModel, num_layers: int | None) -> LoadedModel:
    """A model of fewer layers, or the whole of it."""
    if num_layers is None:
        return model
    geometry = replace(model.geometry, num_layers=num_layers)
    weights = replace(model.decoder.weights, layers=model.decoder.weights.layers[:num_layers])
    return replace(model, geometry=geometry, decoder=Decoder(geometry, weights), exit_layers=())


def in_turns(runs: Mapping[str, Callable[[], list[Seconds]]], num_turns: int, rng: random.Random) -> list[Timing]:
    """Seconds of every arm, the lean decoder among them, in a new random order every turn."""
    turns: dict[str, list[list[Seconds]]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(num_turns):
        rng.shuffle(order)
        for name in order:
            turns[name].append(runs[name]())
    return [Timing(setting=name, turns_s=turns[name], lean_turns_s=turns[LEAN.name]) for name in runs]


@torch.inference_mode()
def time_passes(arms: Sequence[Arm], shape: Shape, size: Size, rng: random.Random) -> list[Timing]:
    """One shape by every arm that runs it, once each is known to say what the lean decoder says.

    Raises:
        RuntimeError: one does not.
    """
    rows, context = shape
    able = {arm.setting.name: arm.passes for arm in arms if arm.passes and arm.runs(rows)}
    for passes in able.values():
        passes.begin(rows, context)
    said = {name: passes.logits(passes.run()) for name, passes in able.items()}
    expected = said[LEAN.name]
    for name, logits in said.items():
        error_frac = float((logits - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        if not error_frac <= MAX_ERROR_FRAC:
            raise RuntimeError(f"{name}, {rows} rows after {context} tokens: logits off by {error_frac:.1e} of their size")
    runs = {name: partial(seconds_of, passes, shape, size.passes_per_turn) for name, passes in able.items()}
    return in_turns(runs, size.num_turns, rng)


def seconds_of(passes: Passes, shape: Shape, num_passes: int) -> list[Seconds]:
    """One turn of an arm."""
    seconds = []
    passes.begin(*shape)
    for _ in range(DROPPED_PASSES + num_passes):
        start_s = time.perf_counter()
        passes.run()
        seconds.append(time.perf_counter() - start_s)
        passes.rewind()
    return seconds[DROPPED_PASSES:]


def time_loops(model: LoadedModel, arms: Sequence[Arm], text: Sequence[int], size: Size, rng: random.Random) -> list[Timing]:
    """Plain decoding with every arm's passes.

    Raises:
        RuntimeError: one writes something else than the lean decoder.
    """
    settings = Settings(policy=None, sampling=GREEDY, max_new_tokens=size.new_tokens, eos_token_id=None)
    able = {arm.setting.name: arm.decoder for arm in arms if arm.decoder and arm.runs(1)}
    sessions = {name: Session(replace(model, decoder=decoder), None, TEXT_TOKENS) for name, decoder in able.items()}
    written = {name: session.generate(text[:PROMPT_TOKENS], settings).tokens for name, session in sessions.items()}
    other = [name for name, tokens in written.items() if tokens != written[LEAN.name]]
    if other:
        raise RuntimeError(f"{', '.join(other)}: the plain loop wrote another text than with the lean decoder")

    def turn_of(session: Session) -> list[Seconds]:
        return [session.generate(text[:PROMPT_TOKENS], settings).decode_s]

    return in_turns({name: partial(turn_of, session) for name, session in sessions.items()}, size.loop_turns, rng)


def found_of(target: str, size: Size) -> Found:
    """Compile everything for one target, then time it."""
    model, text = first_layers(load_model(find_model(target), "fp32"), size.num_layers), text_of(target)
    arms, rng = [arm_of(model.decoder, setting) for setting in size.settings], random.Random(SEED)
    for arm in arms:
        arm.warm_up(target, text, size.shapes)
        told = arm.failure or (f"compiled in {format_seconds(arm.compile_s)}" if arm.setting.is_compiled else "ready")
        print_err(f"{target}, {arm.setting.name}: {told}")
    num_graphs = counters["stats"]["unique_graphs"]
    passes = {shape: time_passes(arms, shape, size, rng) for shape in size.shapes}
    loops = time_loops(model, arms, text, size, rng)
    return Found(
        target=target,
        arms=arms,
        passes=passes,
        loops=loops,
        loop_tokens=size.new_tokens,
        num_late_graphs=counters["stats"]["unique_graphs"] - num_graphs,
    )


def run(args: argparse.Namespace) -> int:
    """The benchmark, its arguments parsed."""
    check_compiler()
    common.use_one_thread()
    size, facts = asked_size(args), device_facts(torch.device("cpu"))
    print_out(f"{facts.label}; seconds, and those over the lean decoder's")
    found = []
    with kernels_in_a_temporary_folder():
        for target in size.targets:
            found.append(found_of(target, size))
            print_out(f"\n{found_table(found[-1])}")
    common.finish(
        NAME,
        result=result_of(found),
        quick=args.quick,
        libraries=("torch", "transformers"),
        device=facts.label,
        seed=SEED,
        details={"measured": [one.as_json for one in found]},
    )
    return 0


def asked_size(args: argparse.Namespace) -> Size:
    """A quick or full run, cut to the targets, settings and widths that are asked for."""
    size = QUICK if args.quick else FULL
    chosen = [one for one in SETTINGS if one.name in (args.setting or ())]
    return replace(
        size,
        targets=tuple(args.target or size.targets),
        settings=(LEAN, LEAN_AGAIN, *chosen) if chosen else size.settings,
        rows=tuple(args.rows or size.rows),
    )


def _parser() -> argparse.ArgumentParser:
    parser = common.make_parser(__doc__ or "")
    names = [one.name for one in SETTINGS if one not in (LEAN, LEAN_AGAIN)]
    parser.add_argument("--target", action="append", choices=FULL.targets, help="may be given again (default: both)")
    told = f"besides the lean decoder; may be given again (default: all): {'; '.join(names)}"
    parser.add_argument("--setting", action="append", choices=names, metavar="NAME", help=told)
    parser.add_argument("--rows", action="append", type=int, choices=FULL.rows, help="may be given again (default: both)")
    add_verbose_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(_parser(), None, run))
