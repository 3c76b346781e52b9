"""`s2d-train`: train a nested draft, calibrate it, name its exits, reduce its head; rebuild the reference family."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from perfmodel.core.console import (
    EXIT_ANSWERED,
    Progress,
    add_subcommand,
    add_verbose_flag,
    keep_progress,
    make_parser,
    print_err,
    print_out,
    run_command,
)
from perfmodel.core.disk import check_new_folder, translate_write_errors
from perfmodel.core.errors import UserInputError
from perfmodel.core.overwriting import OutputFolder
from perfmodel.core.units import format_frac
from s2d.commands.arguments import EXITS_HELP, add_special_tokens_flag, frac, layers, positive, rate, seed
from s2d.loading.model_folder import FAMILY_PROMPTS, check_model_names, find_model, is_of_family
from s2d.prompt_files.choose import calibration_half
from s2d.prompt_files.given import given_prompts, given_texts
from s2d.prompt_files.read_as import add_read_flags, read_as
from s2d.prompts.conversation import check_texts

TRAIN = "s2d-train"


def main_train(argv: Sequence[str] | None = None) -> int:
    """`s2d-train`: train a nested draft, calibrate one, or make the reference family again."""
    parser = make_parser(
        TRAIN,
        "Sorted fine-tuning: train a draft whose every exit can answer, or make the reference family again.",
        "s2d-train draft --target path/to/llama --exits 6,9,12 --text chats.jsonl --teacher path/to/llama -o my-draft",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for verb, (purpose, example, add_flags) in _VERBS.items():
        add_flags(add_subcommand(commands, verb, purpose, example))
    run = {
        "draft": _train_draft,
        "calibrate": _calibrate,
        "exits": _write_exits,
        "trim": _trim,
        "reference": _train_reference,
    }
    return run_command(parser, argv, lambda args: run[args.command](args))


def _add_draft_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, metavar="DIR", help="Hugging Face folder of a Llama, Mistral or Qwen2/3")
    parser.add_argument(
        "--exits", type=layers, required=True, metavar="LAYERS", help="rising layer counts, e.g. 6,9,12; the last is the depth"
    )
    text_help = "text to train on, in any format of docs/prompt-files.md; a twentieth is left out to calibrate on"
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help=text_help)
    add_read_flags(parser, "text")
    parser.add_argument(
        "--teacher", action="append", default=[], metavar="DIR", help="distil from this target; may be repeated"
    )
    parser.add_argument("--distill-frac", type=frac, default=0.9, metavar="FRAC", help="share of distillation (default 0.9)")
    parser.add_argument("--steps", type=positive, default=1000, metavar="STEPS", help="optimizer steps (default 1000)")
    parser.add_argument("--batch-sequences", type=positive, default=8, metavar="SEQUENCES", help="per step (default 8)")
    parser.add_argument("--sequence-tokens", type=positive, default=512, metavar="TOKENS", help="per sequence (default 512)")
    parser.add_argument("--matrix-lr", type=rate, default=0.01, metavar="RATE", help="Muon's, for matrices (default 0.01)")
    parser.add_argument("--vector-lr", type=rate, default=1e-3, metavar="RATE", help="AdamW's, for the rest (default 0.001)")
    parser.add_argument("--seed", type=seed, default=0, metavar="SEED", help="of batches (default 0)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    unfinished = OutputFolder(("checkpoint.safetensors", "loss.jsonl"), ".partial")
    parser.add_argument(
        "-o", "--output", type=unfinished, required=True, metavar="DIR", help="where the draft goes; must not exist"
    )
    add_verbose_flag(parser)


def _add_calibrate_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draft", required=True, metavar="DIR", help="the draft whose sidecar is written")
    parser.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    parser.add_argument(
        "--target", action="append", required=True, metavar="DIR", help="a target it drafts for; may be repeated"
    )
    prompts_help = (
        "prompts in any format of docs/prompt-files.md, none that the draft was trained on; the calibration half is taken "
        "(default, for the reference family: its held-out prompts)"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=prompts_help)
    add_read_flags(parser, "prompt")
    add_special_tokens_flag(parser)
    new_help = "written by each target after each prompt (default 128)"
    parser.add_argument("--max-new-tokens", type=positive, default=128, metavar="TOKENS", help=new_help)
    parser.add_argument("--device", default="cpu", metavar="NAME", help="torch's name: cpu, cuda, cuda:1 (default: cpu)")
    add_verbose_flag(parser)


def _add_exits_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draft", required=True, metavar="DIR", help="the draft whose sidecar is written")
    parser.add_argument(
        "--exits",
        type=layers,
        required=True,
        metavar="LAYERS",
        help="rising layer counts, e.g. 6,9,12, up to the draft's depth",
    )
    overwrite_help = "replace a sidecar that cannot be read, and drop the confidence curves of exits that are not named"
    parser.add_argument("--overwrite", action="store_true", help=overwrite_help)
    add_verbose_flag(parser)


def _add_trim_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draft", required=True, metavar="DIR", help="the draft to copy")
    parser.add_argument("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    parser.add_argument("--tokens", type=positive, required=True, metavar="TOKENS", help="that its LM head is to say")
    text_help = "text to count tokens in, like what its targets will write, in any format of docs/prompt-files.md"
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help=text_help)
    add_read_flags(parser, "text")
    parser.add_argument(
        "-o", "--output", type=OutputFolder(), required=True, metavar="DIR", help="where it goes; must not exist"
    )
    add_verbose_flag(parser)


def _add_reference_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=OutputFolder(), required=True, metavar="DIR", help="where the family goes; must not exist"
    )
    parser.add_argument("--work", type=OutputFolder(), metavar="DIR", help="stages so far (default: the output's name + .work)")
    parser.add_argument("--stage", metavar="NAME", help="train this stage alone, e.g. in two processes at once")
    parser.add_argument("--max-steps", type=positive, metavar="STEPS", help="cut every stage short, to try the recipe out")
    add_verbose_flag(parser)


_VERBS = {
    "draft": (
        "from a target's first layers to a nested draft",
        "s2d-train draft --target my-target --exits 6,9,12 --text chats.jsonl -o my-draft",
        _add_draft_command,
    ),
    "calibrate": (
        "fit what the confidence of a draft's exits is worth, into its sidecar",
        "s2d-train calibrate --draft my-draft --target my-target --prompts prompts.jsonl",
        _add_calibrate_command,
    ),
    "exits": (
        "name the layers after which a draft may answer, in its sidecar s2d.json",
        "s2d-train exits --draft my-draft --exits 6,9,12",
        _add_exits_command,
    ),
    "trim": (
        "a copy of a draft whose LM head says only the most frequent tokens",
        "s2d-train trim --draft my-draft --tokens 8192 --text chats.jsonl -o my-draft-8192",
        _add_trim_command,
    ),
    "reference": ("the recipe of the shipped family", "s2d-train reference -o family --max-steps 10", _add_reference_command),
}
"""Of every verb its purpose, an example, and what adds its flags."""


def _train_reference(args: argparse.Namespace) -> int:
    work = args.work or args.output.with_name(args.output.name + ".work")
    if not args.stage:
        check_new_folder(args.output)
    if work.resolve() == args.output.resolve():
        raise UserInputError(f"--work and --output are both {str(work)!r}: give two folders")
    with translate_write_errors(work):
        work.mkdir(exist_ok=True)
    from s2d.training.package_family import install_family
    from s2d.training.train_reference import run_stage, run_stages

    with keep_progress(work, patterns=("*/checkpoint.safetensors", "*/training.json")):
        if args.stage:
            run_stage(work, args.stage, max_steps=args.max_steps, progress=_progress)
        else:
            run_stages(work, max_steps=args.max_steps, progress=_progress)
            install_family(work, args.output)
    print_out(f"finished: {args.output if not args.stage else work / args.stage}")
    return EXIT_ANSWERED


def _train_draft(args: argparse.Namespace) -> int:
    check_new_folder(args.output)
    check_model_names(args.target, *args.teacher)
    texts = given_texts(args.text, read_as(args, "text"))
    from s2d.training.train_draft import train_draft
    from s2d.training.training import TrainSettings

    settings = TrainSettings(
        steps=args.steps,
        warmup_steps=max(1, args.steps // 50),
        cooldown_steps=args.steps // 2,
        batch_sequences=args.batch_sequences,
        sequence_tokens=args.sequence_tokens,
        matrix_lr=args.matrix_lr,
        vector_lr=args.vector_lr,
        distill_frac=args.distill_frac,
        all_exits=True,
        seed=args.seed,
    )
    unfinished = args.output.with_name(args.output.name + ".partial")
    with keep_progress(unfinished, patterns=("checkpoint.safetensors",)), _progress("draft", args.steps) as on_step:
        train_draft(
            args.target,
            args.exits,
            texts,
            settings,
            args.output,
            teacher_names=args.teacher,
            device=args.device,
            on_step=on_step,
        )
    exits = "/".join(map(str, args.exits))
    command = ["s2d-profile", "--target", args.target, "--draft", str(args.output)]
    command += [] if is_of_family(args.target) else ["--prompts", "path/to/prompts.jsonl"]
    print_out(f"wrote {args.output}, exits {exits}; next: {shlex.join(command)}")
    return EXIT_ANSWERED


def _calibrate(args: argparse.Namespace) -> int:
    check_model_names(args.draft)
    strangers = [name for name in args.target if not is_of_family(name)]
    if args.prompts is None and strangers:
        raise UserInputError(f"target {strangers[0]!r} is not of the reference family: give its prompts with --prompts FILE")
    given = given_prompts(args.prompts, read_as(args, "prompt"), FAMILY_PROMPTS, first_turns=True)
    prompts = calibration_half(given)
    check_texts(prompts)
    from perfmodel.models.config_file import SIDECAR_NAME
    from s2d.decoding.pair import encode_prompts
    from s2d.loading.exits import find_exits, named_exits
    from s2d.loading.load_model import load_tokenizer
    from s2d.loading.read_config import read_geometry
    from s2d.model.torch_device import use_device
    from s2d.prompts.special_tokens import special_tokens_note
    from s2d.running.run_text import calibration_text
    from s2d.training.calibrate_draft import calibrate_draft

    use_device(args.device)
    folder, named = find_model(args.draft), named_exits(args.exits)
    exits = find_exits(folder, read_geometry(folder).num_layers, named, is_self=False)
    if exits.note is not None:
        print_err(f"note: {exits.note}")
    if (note := special_tokens_note(load_tokenizer(folder), prompts, args.special_tokens)) is not None:
        print_err(note)
    encoded = partial(encode_prompts, prompts=prompts, max_new_tokens=args.max_new_tokens, special_tokens=args.special_tokens)
    with Progress("calibrate", len(prompts) * len(args.target)) as progress:
        sidecar = calibrate_draft(
            folder,
            args.target,
            encoded,
            max_new_tokens=args.max_new_tokens,
            device=args.device,
            named_exits=named,
            on_prompt=lambda prompt: progress.step(prompt.name),
        )
    print_out(calibration_text(sidecar))
    print_out(f"wrote {folder / SIDECAR_NAME}, {exits.label}")
    return EXIT_ANSWERED


def _write_exits(args: argparse.Namespace) -> int:
    from perfmodel.models.config_file import SIDECAR_NAME
    from s2d.loading.exits import NamedExits, write_exits
    from s2d.loading.read_config import read_geometry

    folder, named = find_model(args.draft), NamedExits(layers=args.exits, source="--exits")
    exits = write_exits(folder, read_geometry(folder).num_layers, named, overwrite=args.overwrite)
    if exits.note is not None:
        print_err(f"note: {exits.note}")
    command = shlex.join(["s2d-profile", "--target", "path/to/target", "--draft", args.draft])
    print_out(f"wrote {folder / SIDECAR_NAME}, {exits.label}; next: {command}")
    return EXIT_ANSWERED


def _trim(args: argparse.Namespace) -> int:
    check_new_folder(args.output)
    check_model_names(args.draft)
    texts = given_texts(args.text, read_as(args, "text"))
    from s2d.loading.exits import named_exits
    from s2d.training.reduce_vocab import reduce_vocab

    said_frac = reduce_vocab(find_model(args.draft), texts, args.tokens, args.output, named_exits(args.exits))
    print_out(f"wrote {args.output}, whose head says {args.tokens} tokens: {format_frac(said_frac)} of the text's")
    command = shlex.join(["s2d-profile", "--target", "path/to/target", "--draft", str(args.output)])
    print_out(f"no curves are fitted to its confidence yet (s2d-train calibrate); next: {command}")
    return EXIT_ANSWERED


@contextlib.contextmanager
def _progress(label: str, num_steps: int) -> Iterator[Callable[[int, float], None]]:
    """A progress line fed with the loss of every step."""
    with Progress(label, num_steps) as progress:
        yield lambda step, loss: progress.step(f"loss {loss:.3f}")
