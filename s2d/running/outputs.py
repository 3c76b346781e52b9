"""Texts as they are finished, an object a line: a run that was interrupted goes on with the prompts that are missing.

Every line names the run it is of, so that texts of two plans, or of two ways to decode, never end up in one file. A line that
a killed run left unfinished is dropped, and its prompt decoded again. A file that ends in anything else is refused and left
as it is. The README lists what a line holds.
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
from s2d.decoding.generate import Generation
from s2d.decoding.pair import EncodedPrompt
from s2d.prompts.text import continuation_text

_FIX = "Give a file that s2d-run --outputs wrote, or a new name"

_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_CUT_OFF_STRING = re.compile(rb'(?:"(?:[^"\\]|\\.)*\\?)?')

Key = tuple[str, str]
"""Of a text: its prompt's name, and the hash of the prompt's token ids."""

After = Callable[[EncodedPrompt, str], EncodedPrompt | None]
"""From a prompt and the text that follows it to the next turn of its conversation, if there is one."""


class Outputs:
    """A JSONL file of finished texts.

    Args:
        path: of the file, made when the first text is finished.
        run: names what is run and how.
        tokenizer: of target and draft.
        exit_layers: all of the draft's exits.

    Raises:
        BadFile: the file holds something else, or cannot be read or written.
        OutOfSpace: the disk is full.
        Mismatch: it holds texts of another run.
    """

    def __init__(self, path: Path, run: str, tokenizer: PreTrainedTokenizerFast, exit_layers: Sequence[int]) -> None:
        check_writable(path)
        self._path = path
        self._run = run
        self._tokenizer = tokenizer
        self._exit_layers = tuple(exit_layers)
        self._texts = self._finished()

    def missing(self, prompts: Sequence[EncodedPrompt], after: After) -> tuple[tuple[EncodedPrompt, ...], int]:
        """The prompts that the file has no text of: another prompt of the same name is another prompt.

        Args:
            prompts: to be decoded.
            after: with it a conversation goes on from the answers that are kept.

        Returns:
            of every prompt its first turn without a text, where there is one, and how many texts were kept.
        """
        missing, num_kept = [], 0
        for prompt in prompts:
            turn: EncodedPrompt | None = prompt
            while turn is not None and (text := self._texts.get(_key(turn))) is not None:
                turn, num_kept = after(turn, text), num_kept + 1
            if turn is not None:
                missing.append(turn)
        return tuple(missing), num_kept

    def add(self, prompt: EncodedPrompt, generation: Generation, ending: str) -> None:
        """Keep a finished text, on the disk before anything else is decoded.

        Args:
            prompt: what it follows.
            generation: how it came about.
            ending: `end of text`, `stop string` or `length`.

        Raises:
            OutOfSpace: the disk is full; the texts before are kept.
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

    def _finished(self) -> dict[Key, str]:
        """The texts that are there, by prompt."""
        if not self._path.exists():
            return {}
        *whole, cut_off = read_bytes(self._path).split(b"\n")
        texts = dict(self._text_of(number, line) for number, line in enumerate(whole, start=1))
        if cut_off:
            if not _is_beginning(cut_off, self._run):
                problem = f"line {len(whole) + 1} has no end, and it is not one that this run would write"
                raise BadFile(self._path, problem, _FIX)
            with translate_write_errors(self._path):
                os.truncate(self._path, sum(len(line) + 1 for line in whole))
        return texts

    def _text_of(self, number: int, line: bytes) -> tuple[Key, str]:
        try:
            found = json.loads(line)
            name, run, sha256, text = (found[key] for key in ("name", "run", "prompt_sha256", "text"))
            is_text = all(isinstance(one, str) for one in (name, run, sha256, text))
        except (ValueError, KeyError, TypeError, RecursionError):
            is_text = False
        if not is_text:
            raise BadFile(self._path, f"line {number} is not the text of a run", _FIX)
        if "token_ids" not in found:
            problem = f"line {number} has no token_ids: an earlier version of s2d-run wrote it"
            raise BadFile(self._path, problem, "Give a new name with --outputs")
        if run != self._run:
            what = f"{str(self._path)!r}, line {number},"
            fix = "Give another --outputs, or repeat the command that began this one"
            raise Mismatch(
                what,
                made_for=f"run {run}",
                given=f"run {self._run} (another plan, model, length, --stop, --chat, --special-tokens or --adapt)",
                fix=fix,
            )
        return (name, sha256), text


def _is_beginning(line: bytes, run: str) -> bool:
    """Whether a line could be one of the run's that was cut off anywhere, as `Outputs` writes them."""
    parts: tuple[bytes | None, ...] = (b'{"name": ', None, b', "category": ', None, f', "run": {json.dumps(run)}, '.encode())
    for part in parts:
        if part is None:
            found = _JSON_STRING.match(line)
            if found is None:
                return _CUT_OFF_STRING.fullmatch(line) is not None
            line = line[found.end() :]
        elif not line.startswith(part):
            return part.startswith(line)
        else:
            line = line[len(part) :]
    return True


def _key(prompt: EncodedPrompt) -> Key:
    return prompt.name, hashlib.sha256(repr(prompt.token_ids).encode()).hexdigest()
