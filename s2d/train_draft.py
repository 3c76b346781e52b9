"""From a target's first layers to a nested draft: `s2d-train draft` for any Llama-format folder.

S2D §3.1: the draft starts as the target's first layers, embedding, norm and head, and every exit is trained by SoFT.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from perfmodel.errors import BadFile, UserInputError
from s2d.checkpoint import layer_of
from s2d.device import check_device
from s2d.load import check_same_vocabulary, find_model, load_tokenizer
from s2d.sidecar import Sidecar, write_sidecar
from s2d.train import Batch, TrainSettings, load_trainable, train_sorted, windows


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Training texts from `.txt` files (one text each) and `.jsonl` files (`text`, `turns` or ShareGPT `conversations`).

    Raises:
        BadFile: a line that is no JSON object or holds none of the known keys.
    """
    texts: list[str] = []
    for path in paths:
        if not path.is_file():
            raise BadFile(path, "no such file", "Give .txt or .jsonl files with --text")
        if path.suffix != ".jsonl":
            texts.append(path.read_text("utf-8"))
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            texts.append(_text_of(path, number, line))
    return texts


def _text_of(path: Path, number: int, line: str) -> str:
    """The text of one JSONL line."""
    expected = 'Expected {"text": …}, {"turns": […]} or {"conversations": [{"value" or "content": …}]} on every line'
    try:
        record = json.loads(line)
    except json.JSONDecodeError as err:
        raise BadFile(path, f"line {number} is not JSON ({err.msg})", expected) from err
    if isinstance(record, dict) and isinstance(record.get("text"), str):
        return str(record["text"])
    if isinstance(record, dict) and isinstance(record.get("turns"), list):
        return "\n".join(map(str, record["turns"]))
    if isinstance(record, dict) and isinstance(record.get("conversations"), list):
        return "\n".join(str(turn.get("content", turn.get("value", ""))) for turn in record["conversations"])
    raise BadFile(path, f"line {number} has no text", expected)


def first_layers(target: LlamaForCausalLM, num_layers: int) -> LlamaForCausalLM:
    """A model of its own that starts as the target's first layers, embedding, norm and head, in float32.

    Raises:
        UserInputError: the target is not that deep.
    """
    depth = target.config.num_hidden_layers
    if not 1 <= num_layers <= depth:
        raise UserInputError(f"a draft of {num_layers} layers from a target of {depth}: give --exits up to {depth}")
    config = LlamaConfig.from_dict({**target.config.to_dict(), "num_hidden_layers": num_layers})
    draft = LlamaForCausalLM(config).float()
    kept = {name: value for name, value in target.state_dict().items() if layer_of(name) < num_layers}
    draft.load_state_dict(kept)
    return draft


def train_draft(
    target_name: str,
    exit_layers: Sequence[int],
    texts: Sequence[str],
    settings: TrainSettings,
    output: Path,
    *,
    teacher_names: Sequence[str],
    device: str,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train a nested draft on texts and save it, with its tokenizer and sidecar, as a Hugging Face folder.

    Args:
        target_name: a folder, or a model of the reference family.
        exit_layers: rising layer counts; the last is the draft's depth.
        texts: what to train on.
        settings: how long and how fast.
        output: the folder to make.
        teacher_names: targets whose distributions the draft is distilled from, in turns; none trains on the text alone.
        device: torch's name for where to train.
        on_step: told every finished step and its loss.

    Raises:
        UserInputError: fewer tokens than one training sequence.
        KeyboardInterrupt: after the state so far was written to `<output>.partial`; run again to go on.
    """
    check_device(device)
    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(find_model(target_name))
    tokens = _joined_tokens(tokenizer, texts)
    if len(tokens) < settings.sequence_tokens + 2:
        raise UserInputError(
            f"the texts hold {len(tokens)} tokens and one training sequence takes {settings.sequence_tokens + 1}: "
            "give more text with --text, or a smaller --sequence-tokens"
        )
    draft = first_layers(load_trainable(target_name), exit_layers[-1]).to(device)
    teachers = [load_trainable(name).to(device) for name in teacher_names]
    for name in teacher_names:
        check_same_vocabulary(tokenizer, load_tokenizer(find_model(name)))
    partial = output.with_name(output.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    batches = _batches(tokens, settings, len(teachers))
    train_sorted(draft, exit_layers, batches, settings, teachers=teachers, folder=partial, on_step=on_step)
    draft.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_sidecar(partial, Sidecar(exit_layers=tuple(exit_layers), norm="shared-final-norm", calibration=None))
    partial.replace(output)


def _joined_tokens(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> np.ndarray:
    """All texts in one sequence, an end-of-text token after each: int32 [num_tokens]."""
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    pieces = [ids + ends for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    return np.asarray([token for piece in pieces for token in piece], dtype=np.int32)


def _batches(tokens: np.ndarray, settings: TrainSettings, num_teachers: int) -> Iterator[Batch]:
    """Random windows of the text, the teachers taking turns."""
    for number, ids in enumerate(windows(tokens, settings, 1)):
        yield Batch(token_ids=ids, teacher=number % num_teachers if num_teachers else None)
