"""The exits of a draft: their sources, their checks, and the command that writes them."""

import json
from pathlib import Path

import pytest

from perfmodel.core.blocks import as_text
from perfmodel.core.errors import BadFile, BadPolicy, UserInputError
from perfmodel.policies.policy import CalibrationCurve
from profiler.commands.profile_cli import main_profile
from s2d.commands.train_cli import main_train
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.exits import DraftExits, RequestedExits, find_exits, write_exits
from s2d.loading.sidecar import Calibration, Sidecar, read_sidecar, write_sidecar
from s2d.training.calibrate_draft import calibration_blocks
from tests.s2d.loading.test_load_model import byte_tokenizer
from tests.stubs import TinySpec, tiny_llama

DEPTH = 6
SELF_WITHOUT_EXITS = "draft 'self': .* has no s2d.json with exits, .* Give them with --exits, or .* s2d-train exits --draft '"


def requested(*layers: int) -> RequestedExits:
    return RequestedExits(layers=layers, source="--exits")


def calibrated(*layers: int) -> Sidecar:
    """A sidecar in which the curve of exit N begins at N percent."""
    curves = tuple(CalibrationCurve(confidence=(0.1, 0.9), agreement=(layer / 100, 0.8)) for layer in layers)
    calibration = Calibration(confidence="max-prob", curves=curves, targets=("any",), num_positions=64)
    return Sidecar(exit_layers=layers, norm="shared-final-norm", calibration=calibration)


def curve_starts(exits: DraftExits) -> list[float | None]:
    curves = exits.calibration.curves if exits.calibration else (None,) * len(exits.layers)
    return [curve.agreement[0] if curve else None for curve in curves]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An ordinary model without a sidecar."""
    tokenizer = byte_tokenizer()
    tiny_llama(TinySpec(vocab_size=len(tokenizer), num_layers=DEPTH)).save_pretrained(tmp_path / "my model")
    tokenizer.save_pretrained(tmp_path / "my model")
    return tmp_path / "my model"


@pytest.mark.parametrize(
    ("sidecar", "exits", "layers", "label", "starts"),
    [
        (None, None, (6,), "exits 6 (full depth: no s2d.json)", [None]),
        (None, requested(2, 4), (2, 4), "exits 2/4 (--exits)", [None, None]),
        (calibrated(1, 4), None, (1, 4), "exits 1/4 (s2d.json)", [0.01, 0.04]),
        (calibrated(1, 4), requested(4, 6), (4, 6), "exits 4/6 (--exits)", [0.04, None]),
        (calibrated(1, 4), requested(1, 2, 4), (1, 2, 4), "exits 1/2/4 (--exits)", [0.01, None, 0.04]),
        (calibrated(1, 4), requested(2, 3), (2, 3), "exits 2/3 (--exits)", [None, None]),
    ],
)
def test_a_flag_overrides_the_sidecar_and_the_sidecar_the_full_depth(
    tmp_path: Path, sidecar, exits, layers, label, starts
) -> None:
    if sidecar:
        write_sidecar(tmp_path, sidecar)
    actual = find_exits(tmp_path, DEPTH, exits, is_self=False)
    assert (actual.layers, actual.label, curve_starts(actual)) == (layers, label, starts)


def test_dropped_curves_are_named_in_one_line(tmp_path: Path) -> None:
    write_sidecar(tmp_path, calibrated(1, 2, 4))
    assert find_exits(tmp_path, DEPTH, None, is_self=False).note is None
    assert find_exits(tmp_path, DEPTH, requested(1, 2, 4, 5), is_self=False).note is None
    note = find_exits(tmp_path, DEPTH, requested(2, 6), is_self=False).note
    assert note == "--exits 2/6: the curves of s2d.json for exits 1/4 are dropped"


@pytest.mark.parametrize(
    ("exits", "is_self", "message"),
    [
        (requested(2, 7), False, r"exit 7 \(--exits\) of a draft of 6 layers: expected exits from 1 to 6"),
        (requested(2, 6), True, r"exit 6 \(--exits\) of a self-draft of 6 layers: expected exits from 1 to 5"),
        (RequestedExits(layers=(9,), source="the plan"), False, r"exit 9 \(the plan\) of a draft of 6 layers"),
        (None, True, SELF_WITHOUT_EXITS),
    ],
)
def test_exits_deeper_than_the_model_are_refused(tmp_path: Path, exits, is_self: bool, message: str) -> None:
    place = tmp_path / "my model"
    place.mkdir()
    with pytest.raises(UserInputError, match=message):
        find_exits(place, DEPTH, exits, is_self=is_self)


@pytest.mark.parametrize("layers", [(), (2, 2), (4, 2), (0, 2)])
def test_exits_that_do_not_rise_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(BadPolicy, match="rising layer counts, the first at least 1"):
        requested(*layers)


def test_a_pair_has_the_requested_exits(folder: Path) -> None:
    pair = load_pair(PairRequest(target=str(folder), draft=str(folder), dtype="fp32", device="cpu"))
    assert (pair.geometry.exit_layers, pair.draft.exit_layers) == ((6,), (6,))
    assert pair.label == "my model with my model, exits 6 (full depth: no s2d.json)"
    own = load_pair(PairRequest(target=str(folder), draft="self", dtype="fp32", device="cpu", exits=requested(2, 4)))
    assert (own.geometry.exit_layers, own.target.exit_layers, own.draft is own.target) == ((2, 4), (2, 4), True)


def exits_command(folder: Path, *flags: str) -> int:
    return main_train(["exits", "--draft", str(folder), *flags])


def test_the_command_writes_a_sidecar_and_keeps_its_reduced_head(folder: Path, capsys) -> None:
    assert exits_command(folder, "--exits", "2,4") == 0
    assert "s2d.json, exits 2/4 (--exits); next: s2d-profile --target" in capsys.readouterr().out
    assert read_sidecar(folder) == Sidecar(exit_layers=(2, 4), norm="shared-final-norm", calibration=None)
    reduced = Sidecar(exit_layers=(2, 4), norm="shared-final-norm", calibration=None, head_token_ids=(1, 5))
    write_sidecar(folder, reduced)
    assert exits_command(folder, "--exits", "3") == 0
    assert read_sidecar(folder) == Sidecar(exit_layers=(3,), norm="shared-final-norm", calibration=None, head_token_ids=(1, 5))


def test_curves_are_dropped_only_with_overwrite(folder: Path, capsys) -> None:
    write_sidecar(folder, calibrated(1, 4))
    for same_curves in ("1,4", "1,4,6"):
        assert exits_command(folder, "--exits", same_curves) == 0
        assert curve_starts(find_exits(folder, DEPTH, requested(1, 4), is_self=False)) == [0.01, 0.04]
    sidecar = read_sidecar(folder)
    text = as_text(calibration_blocks(sidecar.exit_layers, sidecar.calibration))
    assert [line.split() for line in text.splitlines() if line.startswith("exit 6")] == [["exit", "6", *"-----"]]
    capsys.readouterr()
    before = (folder / "s2d.json").read_bytes()
    assert exits_command(folder, "--exits", "4,6") == 2
    err = capsys.readouterr().err
    assert "holds confidence curves of exits 1/4/6, and --exits 4/6 would drop some of them: expected the same exits." in err
    assert "Give --overwrite to drop them, then fit new ones with s2d-train calibrate." in err
    assert (folder / "s2d.json").read_bytes() == before
    assert exits_command(folder, "--exits", "4,6", "--overwrite") == 0
    assert "note: --exits 4/6: the curves of s2d.json for exits 1 are dropped" in capsys.readouterr().err
    assert curve_starts(find_exits(folder, DEPTH, None, is_self=False)) == [0.04, None]


@pytest.mark.parametrize("text", ['{"exit_layers": [5]}', "{", "[5]", '{"schema": "s2d/plan", "version": 1}'])
def test_the_error_about_an_unreadable_sidecar_names_the_command_that_writes_a_valid_one(
    folder: Path, capsys, text: str
) -> None:
    path = folder / "s2d.json"
    path.write_text(text)
    argv = ["--target", str(folder), "--draft", str(folder), "--prompts", "unused", "-o", str(folder.parent / "out")]
    (folder.parent / "unused").touch()
    with pytest.raises(BadFile):
        read_sidecar(folder)
    assert exits_command(folder, "--exits", "5") == 2
    message = capsys.readouterr().err
    assert f"{str(path)!r}: " in message
    assert "s2d-train exits --draft FOLDER --exits LAYERS --overwrite" in message
    assert path.read_text() == text
    assert exits_command(folder, "--exits", "5", "--overwrite") == 0
    assert read_sidecar(folder).exit_layers == (5,)
    assert main_profile(argv) == 2  # because of the prompts, not of the sidecar
    assert "s2d.json" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ("", "'' is not a rising list of layer counts"),
        ("4,2", "'4,2' is not a rising list of layer counts"),
        ("2,x", "'2,x' is not a rising list of layer counts"),
        ("7", "exit 7 (--exits) of a draft of 6 layers: expected exits from 1 to 6"),
    ],
)
@pytest.mark.parametrize("command", ["profile", "calibrate", "exits", "trim"])
def test_every_command_refuses_invalid_exits(folder: Path, tmp_path: Path, capsys, command, exits, message) -> None:
    prompts, text = tmp_path / "prompts.jsonl", tmp_path / "text.txt"
    prompts.write_text(json.dumps({"name": "a", "category": "c", "text": "the cat"}) + "\n")
    text.write_text("the cat")
    common = ["--draft", str(folder), "--exits", exits]
    on_prompts = [*common, "--target", str(folder), "--prompts", str(prompts)]
    codes = {
        "profile": lambda: main_profile([*on_prompts, "--split", "all", "-o", str(tmp_path / "out")]),
        "calibrate": lambda: main_train(["calibrate", *on_prompts]),
        "exits": lambda: main_train(["exits", *common]),
        "trim": lambda: main_train(["trim", *common, "--tokens", "9", "--text", str(text), "-o", str(tmp_path / "out")]),
    }
    assert codes[command]() == 2
    assert message in capsys.readouterr().err
    assert not (folder / "s2d.json").exists()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_writing_from_python_checks_the_depth_and_returns_the_exits(folder: Path) -> None:
    with pytest.raises(BadPolicy, match="exits from 1 to 6"):
        write_exits(folder, (7,), overwrite=True)
    assert not (folder / "s2d.json").exists()
    assert write_exits(folder, [2, 4]).layers == read_sidecar(folder).exit_layers == (2, 4)
