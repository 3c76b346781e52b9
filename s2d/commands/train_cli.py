"""`s2d-train`: train, calibrate or reduce a nested draft; train the reference family."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from perfmodel.core.console import (
    EXIT_ANSWERED,
    Progress,
    add_subcommand,
    add_verbose_flag,
    keep_progress,
    make_parser,
    print_out,
    run_command,
)
from perfmodel.core.overwriting import OutputFolder
from s2d.commands.arguments import EXITS_HELP, add_special_tokens_flag, frac, layers, positive, rate, seed
from s2d.prompt_files.read_as import add_read_flags
from s2d.training.requests import CalibrateDraftRequest, ReduceVocabRequest, TrainDraftRequest, TrainReferenceRequest

PROG = "s2d-train"
DEVICE_HELP = "torch's name of the device: cpu, cuda, cuda:1 (default: cpu)"


def main_train(argv: Sequence[str] | None = None) -> int:
    """`s2d-train`: train, calibrate and reduce a nested draft, or train the reference family."""
    parser = make_parser(
        PROG,
        "Train drafts by sorted fine-tuning, so that every exit can predict tokens; train the reference family.",
        "s2d-train draft --target path/to/llama --exits 6,9,12 --text chats.jsonl --teacher path/to/llama -o my-draft",
    )
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="VERB", title="verbs (--help after a verb shows its options)"
    )
    for verb, (purpose, example, add_flags, run) in _VERBS.items():
        verb_parser = add_subcommand(verbs, verb, purpose, example)
        add_flags(verb_parser)
        verb_parser.set_defaults(run=run)

    def command(args: argparse.Namespace) -> int:
        args.run(args)
        return EXIT_ANSWERED

    return run_command(parser, argv, command)


def _add_draft_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", required=True, metavar="DIR", help="Hugging Face folder of a Llama, Mistral, Qwen2 or Qwen3 model")
    add("--exits", type=layers, required=True, metavar="LAYERS", help="rising layer counts, e.g. 6,9,12; the last is the depth")
    text_help = "training text, in any format of docs/prompt-files.md; a twentieth is held out for the calibration"
    add("--text", type=Path, nargs="+", required=True, metavar="FILE", help=text_help)
    add_read_flags(parser, "text")
    add("--teacher", action="append", default=[], metavar="DIR", help="distil from this target; may be repeated")
    add("--distill-frac", type=frac, default=0.9, metavar="FRAC", help="weight of the distillation in the loss (default 0.9)")
    add("--steps", type=positive, default=1000, metavar="STEPS", help="optimizer steps (default 1000)")
    add("--batch-sequences", type=positive, default=8, metavar="SEQUENCES", help="sequences per step (default 8)")
    add("--sequence-tokens", type=positive, default=512, metavar="TOKENS", help="tokens per sequence (default 512)")
    add("--matrix-lr", type=rate, default=0.01, metavar="RATE", help="learning rate of Muon, for matrices (default 0.01)")
    add("--vector-lr", type=rate, default=1e-3, metavar="RATE", help="learning rate of AdamW, for the rest (default 0.001)")
    add("--seed", type=seed, default=0, metavar="SEED", help="seed of the batches (default 0)")
    add("--device", default="cpu", metavar="NAME", help=DEVICE_HELP)
    unfinished = OutputFolder(("checkpoint.safetensors", "loss.jsonl"), ".partial")
    add("-o", "--output", type=unfinished, required=True, metavar="DIR", help="folder of the draft to make; must not exist")
    add_verbose_flag(parser)


def _add_calibrate_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--draft", required=True, metavar="DIR", help="the draft, whose sidecar gets the curves")
    add("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    add("--target", action="append", required=True, metavar="DIR", help="a target of the draft; may be repeated")
    prompts_help = (
        "prompts that the draft was not trained on, in any format of docs/prompt-files.md; the calibration half is used "
        "(default, for the reference family: its held-out prompts)"
    )
    add("--prompts", type=Path, metavar="FILE", help=prompts_help)
    add_read_flags(parser, "prompt")
    add_special_tokens_flag(parser)
    new_help = "tokens that each target writes after each prompt (default 128)"
    add("--max-new-tokens", type=positive, default=128, metavar="TOKENS", help=new_help)
    add("--device", default="cpu", metavar="NAME", help=DEVICE_HELP)
    add_verbose_flag(parser)


def _add_exits_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--draft", required=True, metavar="DIR", help="the draft, whose sidecar gets the exits")
    exits_help = "rising layer counts, e.g. 6,9,12, up to the draft's depth"
    add("--exits", type=layers, required=True, metavar="LAYERS", help=exits_help)
    overwrite_help = "replace an unreadable sidecar, and drop the confidence curves of other exits"
    add("--overwrite", action="store_true", help=overwrite_help)
    add_verbose_flag(parser)


def _add_trim_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--draft", required=True, metavar="DIR", help="the draft to copy")
    add("--exits", type=layers, metavar="LAYERS", help=EXITS_HELP)
    add("--tokens", type=positive, required=True, metavar="TOKENS", help="vocabulary size to keep in the LM head")
    text_help = "text like the targets' output, to count tokens in, in any format of docs/prompt-files.md"
    add("--text", type=Path, nargs="+", required=True, metavar="FILE", help=text_help)
    add_read_flags(parser, "text")
    add("-o", "--output", type=OutputFolder(), required=True, metavar="DIR", help="folder of the copy; must not exist")
    add_verbose_flag(parser)


def _add_reference_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", type=OutputFolder(), required=True, metavar="DIR", help="folder of the family; must not exist")
    add("--work", type=OutputFolder(), metavar="DIR", help="folder of the stages (default: the output's name + .work)")
    add("--stage", metavar="NAME", help="train this stage alone, e.g. to run two processes at once")
    add("--max-steps", type=positive, metavar="STEPS", help="upper limit of the steps of every stage, to try the recipe")
    add_verbose_flag(parser)


def _train_draft(args: argparse.Namespace) -> None:
    request = TrainDraftRequest(
        target=args.target,
        exits=args.exits,
        text=tuple(args.text),
        output=args.output,
        teachers=tuple(args.teacher),
        distill_frac=args.distill_frac,
        steps=args.steps,
        batch_sequences=args.batch_sequences,
        sequence_tokens=args.sequence_tokens,
        matrix_lr=args.matrix_lr,
        vector_lr=args.vector_lr,
        seed=args.seed,
        device=args.device,
        text_format=args.text_format,
        text_column=args.text_column,
    )
    texts = request.read_texts()
    from s2d.training.train_draft import train

    kept = keep_progress(request.unfinished, patterns=("checkpoint.safetensors",))
    with kept, _progress("draft", request.steps) as on_step:
        draft = train(request, texts, on_step=on_step)
    print_out(str(draft))


def _calibrate(args: argparse.Namespace) -> None:
    request = CalibrateDraftRequest(
        draft=args.draft,
        targets=tuple(args.target),
        prompts=args.prompts,
        exits=args.exits,
        max_new_tokens=args.max_new_tokens,
        special_tokens=args.special_tokens,
        device=args.device,
        prompt_format=args.prompt_format,
        prompt_column=args.prompt_column,
    )
    prompts = request.read_prompts()
    from s2d.training.calibrate_draft import calibrate

    with Progress("calibrate", len(prompts) * len(request.targets)) as progress:
        draft = calibrate(request, prompts, on_prompt=progress.step)
    print_out(str(draft))


def _write_exits(args: argparse.Namespace) -> None:
    from perfmodel.models.config_file import SIDECAR_NAME
    from s2d.loading.exits import write_exits
    from s2d.loading.model_folder import find_model

    exits = write_exits(args.draft, args.exits, overwrite=args.overwrite)
    command = shlex.join(["s2d-profile", "--target", "path/to/target", "--draft", args.draft])
    print_out(f"wrote {find_model(args.draft) / SIDECAR_NAME}, {exits.label}; next: {command}")


def _trim(args: argparse.Namespace) -> None:
    request = ReduceVocabRequest(
        draft=args.draft,
        num_tokens=args.tokens,
        text=tuple(args.text),
        output=args.output,
        exits=args.exits,
        text_format=args.text_format,
        text_column=args.text_column,
    )
    texts = request.read_texts()
    from s2d.training.reduce_vocab import reduce_head

    print_out(str(reduce_head(request, texts)))


def _train_reference(args: argparse.Namespace) -> None:
    request = TrainReferenceRequest(output=args.output, work=args.work, stage=args.stage, max_steps=args.max_steps)
    from s2d.training.train_reference import train_family

    with keep_progress(request.work_folder, patterns=("*/checkpoint.safetensors", "*/training.json")):
        folder = train_family(request, _progress)
    print_out(f"wrote {folder}")


_VERBS = {
    "draft": (
        "train a nested draft from a target's first layers",
        "s2d-train draft --target my-target --exits 6,9,12 --text chats.jsonl -o my-draft",
        _add_draft_flags,
        _train_draft,
    ),
    "calibrate": (
        "fit how often the target agrees at each confidence, and write the curves into the draft's sidecar",
        "s2d-train calibrate --draft my-draft --target my-target --prompts prompts.jsonl",
        _add_calibrate_flags,
        _calibrate,
    ),
    "exits": (
        "write the exits of a draft into its sidecar s2d.json",
        "s2d-train exits --draft my-draft --exits 6,9,12",
        _add_exits_flags,
        _write_exits,
    ),
    "trim": (
        "copy a draft with an LM head for the most frequent tokens only",
        "s2d-train trim --draft my-draft --tokens 8192 --text chats.jsonl -o my-draft-8192",
        _add_trim_flags,
        _trim,
    ),
    "reference": (
        "train the reference family that is shipped with s2d",
        "s2d-train reference -o family --max-steps 10",
        _add_reference_flags,
        _train_reference,
    ),
}
"""For every verb: its purpose, an example, the function that adds its flags, and the function that runs it."""


@contextlib.contextmanager
def _progress(label: str, num_steps: int) -> Iterator[Callable[[int, float], None]]:
    """Show a progress line. The yielded callback takes the loss of every step."""
    with Progress(label, num_steps) as progress:
        yield lambda step, loss: progress.step(f"loss {loss:.3f}")
