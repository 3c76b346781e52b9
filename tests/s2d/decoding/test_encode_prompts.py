"""Prompts as token ids: texts, chats, and those that are refused."""

import pytest
import transformers.tokenization_utils_base as tokenization

from perfmodel.core.errors import UserInputError
from perfmodel.models.geometry import SELF_DRAFT
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.loading.load_model import load_tokenizer
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


TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


def prompt(text: str) -> list[Prompt]:
    return [Prompt(name="p", category="c", text=text)]


def test_a_prompt_that_does_not_fit_is_refused_without_a_warning_from_transformers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(tokenization.logger, "warning", lambda text, *_: warnings.append(text))
    pair.tokenizer.model_max_length = 160
    with pytest.raises(UserInputError, match=r"prompt 'p' has \d+ tokens: expected 1 to 150, which with 10 new ones fill the"):
        encode_prompts(pair, prompt("xyz" * 200), max_new_tokens=10)
    assert warnings == []


@pytest.mark.parametrize("max_new_tokens", [160, 5000])
def test_a_length_that_fills_the_context_alone_is_refused(pair: Pair, max_new_tokens: int) -> None:
    with pytest.raises(UserInputError) as caught:
        encode_prompts(pair, prompt("x"), max_new_tokens=max_new_tokens)
    expected = "expected at most 159, as the context of these models is 160 tokens including the prompt. Give fewer."
    assert str(caught.value) == f"--max-new-tokens {max_new_tokens}: {expected}"
    assert len(encode_prompts(pair, prompt("x"), max_new_tokens=159)) == 1


def test_a_chat_prompt_is_put_into_the_tokenizers_template(pair: Pair) -> None:
    prompt = Prompt(name="a", category="c", text="the cat")
    with pytest.raises(UserInputError, match=r"--chat: the tokenizer of .* has no chat template"):
        encode_prompts(pair, [prompt], max_new_tokens=4, is_chat=True)
    pair.tokenizer.chat_template = TEMPLATE
    [chat] = encode_prompts(pair, [prompt], max_new_tokens=4, is_chat=True)
    [plain] = encode_prompts(pair, [Prompt(name="a", category="c", text="<user>the cat<assistant>")], max_new_tokens=4)
    assert chat.token_ids == plain.token_ids


def test_the_tokenizer_adds_its_first_token_to_a_text_and_the_template_to_a_chat(pair: Pair) -> None:
    from tokenizers.processors import TemplateProcessing

    prompt = Prompt(name="a", category="c", text="the cat")
    [bare] = encode_prompts(pair, [prompt], max_new_tokens=4)
    backend = pair.tokenizer.backend_tokenizer
    first = backend.id_to_token(7)
    backend.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 7)])
    [with_first_token] = encode_prompts(pair, [prompt], max_new_tokens=4)
    assert with_first_token.token_ids == (7, *bare.token_ids)
    pair.tokenizer.chat_template = "{{ messages[0].content }}"
    [chat] = encode_prompts(pair, [prompt], max_new_tokens=4, is_chat=True)
    assert chat.token_ids == bare.token_ids


def test_a_saved_chat_template_is_loaded(pair: Pair, tmp_path) -> None:
    pair.tokenizer.chat_template = TEMPLATE
    pair.tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == TEMPLATE
