"""The JSONL file of finished outputs. An interrupted run continues after them.

Each line names its run: outputs of two plans, or of two ways to decode, never share a file. If a run was killed, the last line
may be incomplete: it is dropped, and its prompt is decoded again. A file with any other content is left unchanged.
docs/guide/run-a-plan.md lists the fields of a line.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from perfmodel.core.disk import check_writable, read_bytes, translate_write_errors
from perfmodel.core.errors import BadFile, Mismatch
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Generation
from s2d.prompts.text import continuation_text

_FIX = "Give a file that s2d-run --outputs wrote, or a new name"
_TEXT_KEYS = ("name", "run", "prompt_sha256", "text")

_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_CUT_JSON_STRING = re.compile(rb'(?:"(?:[^"\\]|\\.)*\\?)?')

OutputKey = tuple[str, str]
"""The name of a prompt, and the hash of its token ids."""

NextTurn = Callable[[EncodedPrompt, str], EncodedPrompt | None]
"""Returns the turn of a conversation that follows an answer; None at its end."""


class Outputs:
    """A JSONL file of finished outputs.

    Args:
        path: the file, created with the first output.
        run: identifies the plan, the models and the way of decoding.
        tokenizer: the tokenizer of target and draft.
        exit_layers: all exits of the draft.

    Raises:
        BadFile: the file has other content, or cannot be read or written.
        OutOfSpace: the disk is full.
        Mismatch: the file holds outputs of another run.
    """

    def __init__(self, path: Path, run: str, tokenizer: PreTrainedTokenizerFast, exit_layers: Sequence[int]) -> None:
        check_writable(path)
        self._path = path
        self._run = run
        self._tokenizer = tokenizer
        self._exit_layers = tuple(exit_layers)
        self._texts = self._read_texts()

    def missing(self, prompts: Sequence[EncodedPrompt], next_turn: NextTurn) -> tuple[tuple[EncodedPrompt, ...], int]:
        """The prompts without an output. Prompts with the same name but other tokens are different prompts.

        Args:
            prompts: the prompts to decode.
            next_turn: continues a conversation after a kept answer.

        Returns:
            for each unfinished prompt the first turn without an output, and the number of kept outputs.
        """
        missing, num_kept = [], 0
        for prompt in prompts:
            turn: EncodedPrompt | None = prompt
            while turn is not None and (text := self._texts.get(_key(turn))) is not None:
                turn, num_kept = next_turn(turn, text), num_kept + 1
            if turn is not None:
                missing.append(turn)
        return tuple(missing), num_kept

    def add(self, prompt: EncodedPrompt, generation: Generation, ending: str) -> None:
        """Append an output and flush it to the disk.

        Args:
            prompt: the prompt.
            generation: its new tokens and their figures.
            ending: `end of text`, `stop string` or `length`.

        Raises:
            OutOfSpace: the disk is full. Earlier outputs are kept.
        """
        record = self._record(prompt, generation, ending)
        line = json.dumps(record, ensure_ascii=False)
        with translate_write_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._texts[_key(prompt)] = record["text"]

    def _record(self, prompt: EncodedPrompt, generation: Generation, ending: str) -> dict[str, Any]:
        (name, sha256), rounds = _key(prompt), generation.rounds
        return {
            "name": name,
            "category": prompt.category,
            "run": self._run,
            "prompt_sha256": sha256,
            "text": continuation_text(self._tokenizer, prompt.token_ids, generation.tokens),
            "token_ids": generation.tokens,
            "ending": ending,
            "prompt_tokens": len(prompt.token_ids),
            "num_tokens": len(generation.tokens),
            "num_rounds": rounds.num_rounds,
            "tokens_per_round": rounds.tokens_per_round,
            "accepted_per_round": rounds.accepted_per_round,
            "accepted_by_position": [count / rounds.num_rounds for count in rounds.accepted_by_position],
            "exits_taken": {str(layer): taken for layer, taken in zip(self._exit_layers, rounds.exits_taken, strict=True)},
            "prefill_s": generation.prefill_s,
            "decode_s": generation.decode_s,
            "tokens_per_s": len(generation.tokens) / generation.decode_s,
        }

    def _read_texts(self) -> dict[OutputKey, str]:
        """The texts in the file. Truncates an incomplete last line."""
        if not self._path.exists():
            return {}
        *lines, rest = read_bytes(self._path).split(b"\n")
        texts = dict(self._read_line(number, line) for number, line in enumerate(lines, start=1))
        if rest:
            if not _is_cut_line(rest, self._run):
                problem = f"line {len(lines) + 1} is incomplete, and not the beginning of an output of this run"
                raise BadFile(self._path, problem, _FIX)
            with translate_write_errors(self._path):
                os.truncate(self._path, sum(len(line) + 1 for line in lines))
        return texts

    def _read_line(self, number: int, line: bytes) -> tuple[OutputKey, str]:
        try:
            record = json.loads(line)
            name, run, sha256, text = (record[key] for key in _TEXT_KEYS)
            is_output = "token_ids" in record and all(isinstance(value, str) for value in (name, run, sha256, text))
        except (ValueError, KeyError, TypeError, RecursionError):
            is_output = False
        if not is_output:
            raise BadFile(self._path, f"line {number} is not an output of s2d-run", _FIX)
        if run != self._run:
            raise Mismatch(
                f"{str(self._path)!r}, line {number},",
                made_for=f"run {run}",
                given=f"run {self._run} (another plan, model, length, --stop, --chat, --special-tokens or --adapt)",
                fix="Give another --outputs, or repeat the command that started this file",
            )
        return (name, sha256), text


def _is_cut_line(line: bytes, run: str) -> bool:
    """Whether a line is the beginning of a line that `Outputs` writes for the run, cut at any byte."""
    parts: tuple[bytes | None, ...] = (b'{"name": ', None, b', "category": ', None, f', "run": {json.dumps(run)}, '.encode())
    for part in parts:
        if part is None:
            string = _JSON_STRING.match(line)
            if string is None:
                return _CUT_JSON_STRING.fullmatch(line) is not None
            line = line[string.end() :]
        elif not line.startswith(part):
            return part.startswith(line)
        else:
            line = line[len(part) :]
    return True


def _key(prompt: EncodedPrompt) -> OutputKey:
    return prompt.name, hashlib.sha256(repr(prompt.token_ids).encode()).hexdigest()
