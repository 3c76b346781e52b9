import torch

from s2d.corpus import HELD_OUT_ONE_IN, held_out_files, held_out_prompts, standard_library, training_texts
from s2d.reference import new_model, resized


def test_about_a_tenth_of_the_files_is_held_out_and_never_trained_on():
    held_out = held_out_files()
    assert 0.5 / HELD_OUT_ONE_IN < len(held_out) / len(standard_library()) < 1.5 / HELD_OUT_ONE_IN
    assert not {file.text for file in held_out if file.text} & set(training_texts())


def test_prompts_are_cut_from_held_out_files_and_the_categories_take_turns():
    prompts = held_out_prompts(6)
    texts = {file.path: file.text for file in held_out_files()}
    assert [prompt.category for prompt in prompts[:5]] == ["module", "class", "function", "docstring", "body"]
    assert len(prompts) == 30
    for prompt in prompts:
        assert prompt.text in texts[prompt.name.rpartition(":")[0]]


def test_a_model_grown_by_layers_still_computes_the_same():
    torch.manual_seed(1)
    model = new_model(2).eval()
    token_ids = torch.randint(0, 2048, (1, 12))
    with torch.inference_mode():
        torch.testing.assert_close(resized(model, 5).eval()(token_ids).logits, model(token_ids).logits)
