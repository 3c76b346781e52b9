"""Prompts as the models see them, and what is said of those that do not fit."""

import pytest
import transformers.tokenization_utils_base as tokenization

from perfmodel.core.errors import UserInputError
from perfmodel.models.geometry import SELF_DRAFT
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.loading.sidecar import Sidecar, write_sidecar
from s2d.prompts.conversation import Prompt
from tests.s2d.loading.test_load_model import byte_tokenizer
from tests.stubs import TinySpec, tiny_llama


@pytest.fixture
def pair(tmp_path) -> Pair:
    tokenizer = byte_tokenizer()
    tiny_llama(TinySpec(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_sidecar(tmp_path, Sidecar(exit_layers=(2, 4), norm="shared-final-norm", calibration=None))
    return load_pair(PairRequest(target=str(tmp_path), draft=SELF_DRAFT, dtype="fp32", device="cpu"))


def prompt(text: str) -> list[Prompt]:
    return [Prompt(name="p", category="c", text=text)]


def test_a_prompt_that_does_not_fit_is_refused_in_our_own_words_alone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(tokenization.logger, "warning", lambda text, *_: said.append(text))
    pair.tokenizer.model_max_length = 160
    with pytest.raises(UserInputError, match=r"prompt 'p' has \d+ tokens: expected 1 to 150, which with 10 new ones fill the"):
        encode_prompts(pair, prompt("xyz" * 200), max_new_tokens=10)
    assert said == []


@pytest.mark.parametrize("max_new_tokens", [160, 5000])
def test_new_tokens_that_leave_no_room_for_any_prompt_are_refused_as_such(pair: Pair, max_new_tokens: int) -> None:
    with pytest.raises(UserInputError) as caught:
        encode_prompts(pair, prompt("x"), max_new_tokens=max_new_tokens)
    expected = "expected at most 159, as the context of these models is 160 tokens including the prompt. Give fewer."
    assert str(caught.value) == f"--max-new-tokens {max_new_tokens}: {expected}"
    assert len(encode_prompts(pair, prompt("x"), max_new_tokens=159)) == 1
