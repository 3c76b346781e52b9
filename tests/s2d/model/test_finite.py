"""A model whose numbers are not finite, or are not those of its config, ends every command with one message."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perfmodel.core.errors import BadFile
from perfmodel.policies.sampling import GREEDY, Sampling
from profiler.commands.profile_cli import main_profile
from s2d.commands.train_cli import main_train
from s2d.decoding.generate import Settings
from s2d.decoding.pair import EncodedPrompt, load_pair
from s2d.loading.config_numbers import NUMBER_RANGES
from s2d.loading.load_model import export_exit, load_model
from s2d.loading.model_folder import FAMILY_FOLDER
from s2d.model.finite import NotFinite, count_non_finite, is_finite
from s2d.running.run_report import check_equal, run_arms
from tests.s2d.conftest import run
from tests.stubs import ROPES, TinySpec, tiny_llama

NAN, INF = float("nan"), float("inf")
NORM, EMBEDDING, DOWN = "model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"
Tensors = dict[str, Tensor]
PlanFile = Callable[..., Path]


def edit_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def set_number(name: str, value: float) -> Callable[[Path], None]:
    """One number of one tensor."""
    return lambda folder: edit_tensors(folder, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))


def stored_as(name: str, dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))


def further_tensor(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def rope(**settings: object) -> Callable[[Path], None]:
    return config(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, **settings})


NO_NUMBER = "numbers that are not finite (NaN or infinite) among"
UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN in the norm": (set_number(NORM, NAN), f"model.safetensors': tensor '{NORM}' holds 1 {NO_NUMBER} 32."),
    "infinity in the embedding": (set_number(EMBEDDING, INF), f"tensor '{EMBEDDING}' holds 1 {NO_NUMBER}"),
    "-infinity in a layer": (set_number(DOWN, -INF), f"tensor '{DOWN}' holds 1 {NO_NUMBER}"),
    "eps NaN": (config(rms_norm_eps=NAN), "config.json': rms_norm_eps is nan, expected a number from 1e-12 to 0.1"),
    "eps infinite": (config(rms_norm_eps=INF), "rms_norm_eps is inf"),
    "eps negative": (config(rms_norm_eps=-1e-5), "rms_norm_eps is -1e-05"),
    "eps huge": (config(rms_norm_eps=1e30), "rms_norm_eps is 1e+30"),
    "theta NaN": (rope(rope_theta=NAN), "rope_theta is nan"),
    "theta 0": (rope(rope_theta=0), "rope_theta is 0, expected a number from 10 to 1e+12"),
    "theta negative": (rope(rope_theta=-1e4), "rope_theta is -10000.0"),
    "theta a text": (rope(rope_theta="1e4"), "rope_theta is '1e4', expected a number"),
    "factor 0": (rope(factor=0), "factor is 0, expected a number from 1 to 10000"),
    "factor negative": (rope(factor=-1), "factor is -1"),
    "factor a list": (rope(factor=[2]), "factor is [2], expected a number"),
    "int8": (stored_as(DOWN, torch.int8), f"'{DOWN}' is stored as int8, expected one of fp32, bf16, fp16, float64"),
    "bool": (stored_as(NORM, torch.bool), f"'{NORM}' is stored as bool"),
    "complex": (stored_as(DOWN, torch.complex64), f"'{DOWN}' is stored as complex64"),
    "a layer 99": (
        further_tensor("model.layers.99.x"),
        "'model.layers.99.x' has no place in a model of its config.json, which",
    ),
    "a bias": (further_tensor("model.layers.0.mlp.up_proj.bias"), "up_proj.bias' has no place in a model of its config.json."),
}


def profile(folders: Path, *flags: str) -> int:
    models = ["--target", str(folders / "target"), "--draft", str(folders / "draft"), "--prompts", str(prompts(folders))]
    sizes = ["--split", "all", "--max-new-tokens", "8", "--draft-cap", "2", "--budget", "0", "-o", str(folders / "out")]
    return main_profile([*flags, *models, *sizes])


def calibrate(folders: Path) -> int:
    models = ["--target", str(folders / "target"), "--draft", str(folders / "draft"), "--prompts", str(prompts(folders))]
    return main_train(["calibrate", *models, "--max-new-tokens", "8"])


def prompts(folders: Path) -> Path:
    path = folders / "prompts.jsonl"
    lines = [{"name": f"file-{number}:1", "category": "c", "text": "the cat and"} for number in range(8)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def said_in_one_message(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "fault of s2d" not in said
    return said


def test_a_model_that_cannot_be_computed_is_refused_by_every_command(folders: Path, plan_file: PlanFile, capsys) -> None:
    plan, offenders = plan_file(), []
    commands = {
        "profile": lambda: profile(folders),
        "run": lambda: run(folders, plan, "--prompt", "the cat", "--check"),
        "calibrate": lambda: calibrate(folders),
    }
    for (kind, (breaks, message)), role in product(UNUSABLE.items(), ("target", "draft")):
        whole = folders / f"whole {role}"
        shutil.copytree(folders / role, whole)
        breaks(folders / role)
        for name, command in commands.items():
            code, said = command(), said_in_one_message(capsys)
            if code != 2 or message not in said or f"/{role}/" not in said or list((folders / "out").glob("*")):
                offenders.append((kind, role, name, code, said))
        shutil.rmtree(folders / role)
        whole.rename(folders / role)
    assert not offenders
    assert [command() for command in commands.values()] == [0, 0, 0]


def test_a_config_of_fewer_layers_than_its_weights_is_refused_and_exported_exits_are_not(tmp_path: Path) -> None:
    tiny_llama(TinySpec()).save_pretrained(tmp_path / "model")
    export_exit(tmp_path / "model", 3, tmp_path / "exit")
    load_model(tmp_path / "exit", "fp32")
    config(num_hidden_layers=3)(tmp_path / "model")
    with pytest.raises(
        BadFile, match=r"'model.layers.3\..* which says num_hidden_layers 3. .* s2d-run --export-exit 3 then writes"
    ):
        load_model(tmp_path / "model", "fp32")


def overflow(folder: Path, size: float) -> None:
    """Finite weights whose products are not: the MLP of a layer is `size` times as large before and behind its product."""

    def enlarge(tensors: Tensors) -> None:
        tensors[DOWN] *= size
        tensors[DOWN.replace("down", "up")] *= size

    edit_tensors(folder, enlarge)


OVERFLOWS = [("fp16", 5e3, "fp16 ends at 65504: profile with --dtype bf16 or fp32"), ("fp32", 1e30, "are damaged: fetch the")]


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize(
    ("dtype", "size", "fix", "command"),
    [
        (*overflows, command)
        for overflows, command in product(OVERFLOWS, ("latency", "acceptance", "run", "calibrate"))
        if overflows[0] == "fp32" or command != "calibrate"  # which computes in fp32 only
    ],
)
def test_a_model_whose_logits_overflow_is_refused_by_every_command(
    folders: Path, plan_file: PlanFile, capsys, dtype: str, size: float, fix: str, command: str, role: str
) -> None:
    overflow(folders / role, size)
    device = load_pair(str(folders / "target"), str(folders / "draft"), dtype, "cpu").device_key
    plan = plan_file(device=device)
    commands = {
        "latency": lambda: profile(folders, "latency", "--dtype", dtype),
        "acceptance": lambda: profile(folders, "acceptance", "--dtype", dtype),
        "run": lambda: run(folders, plan, "--prompt", "the cat"),
        "calibrate": lambda: calibrate(folders),
    }
    assert commands[command]() == 2
    said = said_in_one_message(capsys)
    prompt = "--prompt" if command == "run" else "file-"
    assert f"the logits of {role} '{role}' are NaN or infinite in {dtype} on prompt '{prompt}" in said
    assert fix in said
    assert not list((folders / "out").glob("*"))


def test_the_prompt_that_overflows_is_named_and_not_the_first(folders: Path) -> None:
    pair = load_pair(str(folders / "target"), str(folders / "draft"), "fp32", "cpu")
    pair.target.decoder.weights.embedding[7] = INF
    texts = [EncodedPrompt(name=name, category="c", token_ids=ids) for name, ids in (("good", (1, 2)), ("bad", (1, 7)))]
    arm = Settings(policy=None, sampling=GREEDY, max_new_tokens=1, eos_token_id=None)
    with pytest.raises(NotFinite, match="the logits of target 'target' are NaN or infinite in fp32 on prompt 'bad'"):
        run_arms(pair, texts, [arm])


def test_distributions_of_the_target_are_looked_at_by_themselves(folders: Path, capsys, monkeypatch) -> None:
    overflow(folders / "target", 1e30)
    monkeypatch.setattr("s2d.decoding.generate.check_states", lambda *_: None)
    monkeypatch.setattr("s2d.decoding.generate.check_logits", lambda *_: None)
    assert profile(folders, "acceptance", "--rule", "ratio", "--temperature", "1") == 2
    assert "the logits of target 'target' are NaN or infinite" in said_in_one_message(capsys)


def test_weights_that_the_cast_to_fp16_makes_infinite_are_refused_by_their_number(folders: Path, capsys) -> None:
    set_number(DOWN, 1e5)(folders / "target")
    set_number(NORM, 7e4)(folders / "draft")
    with pytest.raises(
        BadFile, match=rf"'{DOWN}' holds 1 numbers among \d+ that are too large for fp16. fp16 ends at 65504: prof"
    ):
        load_model(folders / "target", "fp16")
    with pytest.raises(BadFile, match="that are too large for fp16"):
        load_model(folders / "draft", "fp16")
    for name in ("target", "draft"):
        load_model(folders / name, "bf16")


@pytest.mark.parametrize(
    ("family", "settings", "name"),
    [
        ("qwen2", (), "model.layers.1.self_attn.k_proj.bias"),
        ("qwen3", (), "model.layers.1.self_attn.q_norm.weight"),
        ("llama", (("attention_bias", True),), "model.layers.1.self_attn.o_proj.bias"),
        ("llama", (("mlp_bias", True),), "model.layers.1.mlp.up_proj.bias"),
        *(
            ("llama", (), f"model.layers.0.{part}.weight")
            for part in ("self_attn.q_proj", "self_attn.o_proj", "input_layernorm")
        ),
        *(("llama", (), name) for name in ("lm_head.weight", EMBEDDING, NORM)),
    ],
)
def test_every_kind_of_tensor_is_looked_at(tmp_path: Path, family: str, settings, name: str) -> None:
    tiny_llama(TinySpec(family=family, settings=settings, num_layers=2)).save_pretrained(tmp_path)
    load_model(tmp_path, "fp32")
    for value, dtype in product((NAN, INF, -INF), ("fp32", "bf16", "fp16")):
        set_number(name, value)(tmp_path)
        with pytest.raises(BadFile, match=rf"tensor '{name}' holds 1 numbers that are not finite"):
            load_model(tmp_path, dtype)


def test_the_models_in_the_box_are_fit_for_every_dtype() -> None:
    for path, dtype in product(FAMILY_FOLDER.glob("*/config.json"), ("fp32", "bf16", "fp16")):
        load_model(path.parent, dtype)


def test_tensors_of_old_checkpoints_that_follow_from_their_config_are_taken(folders: Path) -> None:
    further_tensor("model.layers.0.self_attn.rotary_emb.inv_freq")(folders / "target")
    load_model(folders / "target", "fp32")


def test_every_number_of_a_config_is_looked_at(tmp_path: Path) -> None:
    tiny_llama(TinySpec(num_layers=2, rope="yarn, mscale")).save_pretrained(tmp_path)
    load_model(tmp_path, "fp32")
    raw = json.loads((tmp_path / "config.json").read_text())
    for key, value in product(NUMBER_RANGES, (NAN, INF, -1, True, "1", [1.0], {}, 10**400)):
        is_rotary = key != "rms_norm_eps"
        edit_config(tmp_path, **({"rope_parameters": raw["rope_parameters"] | {key: value}} if is_rotary else {key: value}))
        with pytest.raises(BadFile, match=rf"config.json': {key} is .*, expected a number from"):
            load_model(tmp_path, "fp32")
        edit_config(tmp_path, **raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": None, "rope_parameters": None}, "rope_theta is null, expected a number"),
        (
            {"rope_parameters": {**ROPES["llama3"], "rope_theta": 1e4, "low_freq_factor": 5}},
            "low_freq_factor is 5 and high_freq",
        ),
        ({"rms_norm_eps": None}, "not a config that transformers accepts"),
        ({"rope_parameters": 3}, "not a config that transformers accepts"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor of the 2 heads"),
        ({"vocab_size": 10**30}, f"vocab_size is {10**30}, expected a count from 1 to 10^9"),
        ({"max_position_embeddings": 2**31}, f"max_position_embeddings is {2**31}, expected a count from 1 to 10^9"),
        ({"architectures": 3}, "architectures is 3, expected a list of class names"),
        ({"architectures": [[]]}, "architectures is [[]], expected a list of class names"),
        ({"model_type": []}, "model_type is [], expected a name"),
        ({"layer_types": 3}, "layer_types is 3, expected a list with one name per layer"),
    ],
)
def test_a_config_of_wrong_types_is_the_users_to_correct(folders: Path, capsys, changes: dict, message: str) -> None:
    edit_config(folders / "target", **changes)
    assert profile(folders) == 2
    assert message in said_in_one_message(capsys)


def test_a_config_of_nothing_but_brackets_is_refused(folders: Path, capsys) -> None:
    (folders / "target" / "config.json").write_text("[" * 100_000)
    assert profile(folders) == 2
    assert "config.json': its brackets are nested too deep for a config" in said_in_one_message(capsys)


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(rule="shared-noise", temperature=0.9, top_k=3, top_p=None, seed=1),
        replace(GREEDY, presence_penalty=0.5),
    ],
    ids=lambda one: one.label,
)
def test_two_texts_of_nan_are_never_called_equal(folders: Path, sampling: Sampling) -> None:
    overflow(folders / "target", 1e30)
    pair = load_pair(str(folders / "target"), str(folders / "draft"), "fp32", "cpu")
    prompt = EncodedPrompt(name="p", category="c", token_ids=(1, 2, 3))
    session = pair.session(12)
    settings = Settings(policy=None, sampling=sampling, max_new_tokens=4, eos_token_id=None)
    with pytest.raises(NotFinite, match="the logits of target 'target'"):
        session.generate(prompt.token_ids, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2d.decoding.generate.check_states", lambda *_: None)
        patch.setattr("s2d.decoding.generate.check_logits", lambda *_: None)
        written = [session.generate(prompt.token_ids, settings) for _ in range(2)]
    assert written[0].tokens == written[1].tokens
    with pytest.raises(NotFinite, match="on prompt 'p'"):
        check_equal(pair, [prompt], sampling, written[:1], written[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_looked_at_one_and_all(dtype: torch.dtype) -> None:
    numbers = torch.full((40, 50), torch.finfo(dtype).max, dtype=dtype)
    assert (is_finite(numbers), count_non_finite(numbers)) == (True, 0)
    for value, place in product((NAN, INF, -INF), (0, 777, 1999)):
        spoilt = numbers.clone()
        spoilt.view(-1)[place] = value
        assert (is_finite(spoilt), count_non_finite(spoilt)) == (False, 1)
