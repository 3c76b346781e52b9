"""A model with numbers that are not finite, or that do not fit its config, ends every command with a single message."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
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
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Settings
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.load_model import export_exit, load_model
from s2d.loading.model_folder import FAMILY_FOLDER
from s2d.loading.read_config import NUMBER_RANGES
from s2d.model.finite import NotFinite, count_non_finite, is_finite
from s2d.running.compare_outputs import compare_outputs
from s2d.running.run_prompts import run_arms
from tests.s2d.conftest import run
from tests.stubs import ROPES, TinySpec, tiny_llama

pytestmark = pytest.mark.e2e

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
    """Overwrite a single number of a tensor."""
    return lambda folder: edit_tensors(folder, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))


def stored_as(name: str, dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))


def extra_tensor(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


def rope(**settings: object) -> Callable[[Path], None]:
    return config(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0, **settings})


NON_FINITE = "numbers that are not finite (NaN or infinite) among"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN in the norm": (set_number(NORM, NAN), f"model.safetensors': tensor '{NORM}' holds 1 {NON_FINITE} 32."),
    "infinity in the embedding": (set_number(EMBEDDING, INF), f"tensor '{EMBEDDING}' holds 1 {NON_FINITE}"),
    "-infinity in a layer": (set_number(DOWN, -INF), f"tensor '{DOWN}' holds 1 {NON_FINITE}"),
    "eps NaN": (config(rms_norm_eps=NAN), "config.json': rms_norm_eps is nan, expected a number from 1e-12 to 0.1"),
    "eps infinite": (config(rms_norm_eps=INF), "rms_norm_eps is inf"),
    "eps negative": (config(rms_norm_eps=-1e-5), "rms_norm_eps is -1e-05"),
    "eps huge": (config(rms_norm_eps=1e30), "rms_norm_eps is 1e+30"),
    "theta NaN": (rope(rope_theta=NAN), "rope_theta is nan"),
    "theta 0": (rope(rope_theta=0), "rope_theta is 0, expected a number from 10 to 1e+12"),
    "theta negative": (rope(rope_theta=-1e4), "rope_theta is -10000.0"),
    "theta a string": (rope(rope_theta="1e4"), "rope_theta is '1e4', expected a number"),
    "factor 0": (rope(factor=0), "factor is 0, expected a number from 1 to 10000"),
    "factor negative": (rope(factor=-1), "factor is -1"),
    "factor a list": (rope(factor=[2]), "factor is [2], expected a number"),
    "int8": (stored_as(DOWN, torch.int8), f"'{DOWN}' is stored as int8, expected one of fp32, bf16, fp16, float64"),
    "bool": (stored_as(NORM, torch.bool), f"'{NORM}' is stored as bool"),
    "complex": (stored_as(DOWN, torch.complex64), f"'{DOWN}' is stored as complex64"),
    "a layer 99": (
        extra_tensor("model.layers.99.x"),
        "'model.layers.99.x' does not belong to the model in config.json, which",
    ),
    "a bias": (extra_tensor("model.layers.0.mlp.up_proj.bias"), "up_proj.bias' does not belong to the model in config.json."),
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


@contextlib.contextmanager
def damaged(folder: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """Damage a model folder, and restore it afterwards."""
    intact = folder.with_name(f"intact {folder.name}")
    shutil.copytree(folder, intact)
    damage(folder)
    yield
    shutil.rmtree(folder)
    intact.rename(folder)


def user_error(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command printed to stderr, which must not be an internal error."""
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    assert "fault of s2d" not in stderr
    return stderr


def test_a_damaged_model_is_refused_by_every_command(folders: Path, plan_file: PlanFile, capsys) -> None:
    plan, offenders = plan_file(), []
    commands = {
        "profile": lambda: profile(folders),
        "run": lambda: run(folders, plan, "--prompt", "the cat", "--check"),
        "calibrate": lambda: calibrate(folders),
    }
    for (kind, (damage, message)), role in product(DAMAGES.items(), ("target", "draft")):
        with damaged(folders / role, damage):
            for name, command in commands.items():
                code, stderr = command(), user_error(capsys)
                if code != 2 or message not in stderr or f"/{role}/" not in stderr or list((folders / "out").glob("*")):
                    offenders.append((kind, role, name, code, stderr))
    assert not offenders
    assert [command() for command in commands.values()] == [0, 0, 0]


def test_a_config_with_fewer_layers_than_its_weights_is_refused_and_an_exported_exit_is_not(tmp_path: Path) -> None:
    tiny_llama(TinySpec()).save_pretrained(tmp_path / "model")
    export_exit(tmp_path / "model", 3, tmp_path / "exit")
    load_model(tmp_path / "exit", "fp32")
    config(num_hidden_layers=3)(tmp_path / "model")
    with pytest.raises(
        BadFile, match=r"'model.layers.3\..* which has num_hidden_layers 3. .* s2d-run --export-exit 3 then writes"
    ):
        load_model(tmp_path / "model", "fp32")


def overflow(folder: Path, size: float) -> None:
    """Make products infinite but keep the weights finite: scale both matrices around the MLP's product by `size`."""

    def enlarge(tensors: Tensors) -> None:
        tensors[DOWN] *= size
        tensors[DOWN.replace("down", "up")] *= size

    edit_tensors(folder, enlarge)


OVERFLOWS = [
    ("fp16", 5e3, "The largest number in fp16 is 65504: profile with --dtype bf16 or fp32"),
    ("fp32", 1e30, "are damaged: download the"),
]


def test_a_model_whose_logits_overflow_is_refused_by_every_command(folders: Path, plan_file: PlanFile, capsys) -> None:
    offenders = []
    for (dtype, size, fix), role in product(OVERFLOWS, ("target", "draft")):
        with damaged(folders / role, lambda folder, size=size: overflow(folder, size)):
            device = load_pair(
                PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype=dtype, device="cpu")
            ).device_key
            commands = {
                "latency": partial(profile, folders, "latency", "--dtype", dtype),
                "acceptance": partial(profile, folders, "acceptance", "--dtype", dtype),
                "run": partial(run, folders, plan_file(device=device), "--prompt", "the cat"),
            }
            if dtype == "fp32":  # calibrate computes in fp32 only
                commands["calibrate"] = partial(calibrate, folders)
            for name, command in commands.items():
                code, stderr = command(), user_error(capsys)
                prompt = "--prompt" if name == "run" else "file-"
                message = f"the logits of {role} '{role}' are NaN or infinite in {dtype} on prompt '{prompt}"
                if code != 2 or message not in stderr or fix not in stderr or list((folders / "out").glob("*")):
                    offenders.append((name, dtype, role, code, stderr))
    assert not offenders


def test_the_message_names_the_prompt_that_overflows_not_the_first(folders: Path) -> None:
    pair = load_pair(PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu"))
    pair.target.decoder.weights.embedding[7] = INF
    texts = [EncodedPrompt(name=name, category="c", token_ids=ids) for name, ids in (("good", (1, 2)), ("bad", (1, 7)))]
    arm = Settings(policy=None, sampling=GREEDY, max_new_tokens=1, eos_token_id=None)
    with pytest.raises(NotFinite, match="the logits of target 'target' are NaN or infinite in fp32 on prompt 'bad'"):
        run_arms(pair, texts, [arm])


def test_the_targets_distributions_are_checked_even_without_the_other_checks(folders: Path, capsys, monkeypatch) -> None:
    overflow(folders / "target", 1e30)
    monkeypatch.setattr("s2d.decoding.generate.check_states", lambda *_: None)
    monkeypatch.setattr("s2d.decoding.generate.check_logits", lambda *_: None)
    assert profile(folders, "acceptance", "--rule", "ratio", "--temperature", "1") == 2
    assert "the logits of target 'target' are NaN or infinite" in user_error(capsys)


def test_weights_that_overflow_in_fp16_are_counted_and_refused(folders: Path, capsys) -> None:
    set_number(DOWN, 1e5)(folders / "target")
    set_number(NORM, 7e4)(folders / "draft")
    with pytest.raises(
        BadFile,
        match=rf"'{DOWN}' holds 1 numbers among \d+ that are too large for fp16. The largest number in fp16 is 65504: prof",
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
def test_every_kind_of_tensor_is_checked(tmp_path: Path, family: str, settings, name: str) -> None:
    tiny_llama(TinySpec(family=family, settings=settings, num_layers=2)).save_pretrained(tmp_path)
    load_model(tmp_path, "fp32")
    for value, dtype in product((NAN, INF, -INF), ("fp32", "bf16", "fp16")):
        set_number(name, value)(tmp_path)
        with pytest.raises(BadFile, match=rf"tensor '{name}' holds 1 numbers that are not finite"):
            load_model(tmp_path, dtype)


def test_the_shipped_models_load_in_every_dtype() -> None:
    for path, dtype in product(FAMILY_FOLDER.glob("*/config.json"), ("fp32", "bf16", "fp16")):
        load_model(path.parent, dtype)


def test_tensors_of_old_checkpoints_that_follow_from_their_config_are_accepted(folders: Path) -> None:
    extra_tensor("model.layers.0.self_attn.rotary_emb.inv_freq")(folders / "target")
    load_model(folders / "target", "fp32")


def test_every_number_of_a_config_is_checked(tmp_path: Path) -> None:
    tiny_llama(TinySpec(num_layers=2, rope="yarn, mscale")).save_pretrained(tmp_path)
    load_model(tmp_path, "fp32")
    raw = json.loads((tmp_path / "config.json").read_text())
    for key, value in product(NUMBER_RANGES, (NAN, INF, -1, True, "1", [1.0], {}, 10**400)):
        is_rotary = key != "rms_norm_eps"
        edit_config(tmp_path, **({"rope_parameters": raw["rope_parameters"] | {key: value}} if is_rotary else {key: value}))
        with pytest.raises(BadFile, match=rf"config.json': {key} is .*, expected a number from"):
            load_model(tmp_path, "fp32")
        edit_config(tmp_path, **raw)


WRONG_TYPES: list[tuple[dict, str]] = [
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
]


def test_a_config_with_wrong_types_is_a_user_error(folders: Path, capsys) -> None:
    offenders = []
    for changes, message in WRONG_TYPES:
        with damaged(folders / "target", lambda folder, changes=changes: edit_config(folder, **changes)):
            code, stderr = profile(folders), user_error(capsys)
        if code != 2 or message not in stderr:
            offenders.append((changes, code, stderr))
    assert not offenders


def test_a_config_of_nested_brackets_is_refused(folders: Path, capsys) -> None:
    (folders / "target" / "config.json").write_text("[" * 100_000)
    assert profile(folders) == 2
    assert "config.json': its brackets are nested too deep for a config" in user_error(capsys)


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(rule="shared-noise", temperature=0.9, top_k=3, top_p=None, seed=1),
        replace(GREEDY, presence_penalty=0.5),
    ],
    ids=lambda sampling: sampling.label,
)
def test_two_texts_from_nan_logits_are_not_reported_as_equal(folders: Path, sampling: Sampling) -> None:
    overflow(folders / "target", 1e30)
    pair = load_pair(PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu"))
    prompt = EncodedPrompt(name="p", category="c", token_ids=(1, 2, 3))
    session = pair.session(12)
    settings = Settings(policy=None, sampling=sampling, max_new_tokens=4, eos_token_id=None)
    with pytest.raises(NotFinite, match="the logits of target 'target'"):
        session.generate(prompt.token_ids, settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("s2d.decoding.generate.check_states", lambda *_: None)
        patch.setattr("s2d.decoding.generate.check_logits", lambda *_: None)
        generations = [session.generate(prompt.token_ids, settings) for _ in range(2)]
    assert generations[0].tokens == generations[1].tokens
    with pytest.raises(NotFinite, match="on prompt 'p'"):
        compare_outputs(pair, [prompt], sampling, generations[:1], generations[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_single_bad_number_anywhere_is_found(dtype: torch.dtype) -> None:
    numbers = torch.full((40, 50), torch.finfo(dtype).max, dtype=dtype)
    assert (is_finite(numbers), count_non_finite(numbers)) == (True, 0)
    for value, index in product((NAN, INF, -INF), (0, 777, 1999)):
        damaged = numbers.clone()
        damaged.view(-1)[index] = value
        assert (is_finite(damaged), count_non_finite(damaged)) == (False, 1)
