"""A tiny target and draft on disk, in the form of user input."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from s2d.loading.sidecar import Sidecar, write_sidecar
from tests.stubs import EOS, VOCAB_SIZE, TinySpec, tiny_llama

TARGET = TinySpec(num_layers=6)
EXITS = (1, 2, 4)
WORDS = [f"w{number}" for number in range(VOCAB_SIZE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where the pair and its prompts are."""

    target: Path
    draft: Path
    prompts: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_pair(tmp_path_factory.mktemp("pair"), TARGET)


def write_pair(root: Path, target: TinySpec) -> Folders:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=WORDS[EOS])
    for name, spec in (("target", target), ("draft", replace(target, num_layers=EXITS[-1]))):
        tiny_llama(spec).save_pretrained(root / name)
        wrapped.save_pretrained(root / name)
    for name, exit_layers in (("draft", EXITS), ("target", (1, 3))):
        write_sidecar(root / name, Sidecar(exit_layers=exit_layers, norm="shared-final-norm", calibration=None))
    prompts = [
        {"name": f"p{number}.txt:1", "category": "ab"[number % 2], "text": " ".join(WORDS[6 + number : 12 + number])}
        for number in range(10)
    ]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)) + "\n", encoding="utf-8")
    return Folders(target=root / "target", draft=root / "draft", prompts=root / "prompts.jsonl")
