"""`s2d-plan export` hands its flags to `s2d.export` and prints what was written."""

from pathlib import Path

import pytest

import s2d
from calibrate.commands.plan_cli import main_plan


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []

    def export(plan: Path, folder: Path, **options: object) -> s2d.Export:
        made.append({"plan": plan, "folder": folder} | options)
        return s2d.Export(
            folder=str(folder),
            engine="vLLM, bf16",
            policy="exit 4, 3 tokens",
            files=(("serve.sh", "serves the plan"),),
            checks=("same-vocabulary", "context"),
            warnings=("high load: slower. Serve without a draft",),
            next_command="python3 served/smoke_test.py --start-server",
        )

    monkeypatch.setattr(s2d, "export", export)
    return made


def test_flags_are_arguments_of_the_function(calls: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    words = "--plan p.json --target t --draft d --engine vllm --weights bf16 --no-target --trace t.npz --prompts x.jsonl --chat"
    assert main_plan(["export", *words.split(), "-o", "served"]) == 0
    [call] = calls
    assert call == {
        "plan": Path("p.json"),
        "folder": Path("served"),
        "target": "t",
        "draft": "d",
        "engine": "vllm",
        "weights": "bf16",
        "trace": Path("t.npz"),
        "prompts": Path("x.jsonl"),
        "chat": True,
        "converts_target": False,
    }
    printed = capsys.readouterr().out
    assert printed.startswith("exported  served\nengine    vLLM, bf16\npolicy    exit 4, 3 tokens\n\nfile      purpose\n")
    assert printed.endswith(
        "warning: high load: slower. Serve without a draft\n\nnext: python3 served/smoke_test.py --start-server\n"
    )
    assert "same-vocabulary" not in printed


def test_explain_names_the_checks(calls: list[dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["export", "--plan", "p.json", "-o", "served", "--explain"]) == 0
    assert "checked   same-vocabulary, context\n" in capsys.readouterr().out
    assert calls[0]["converts_target"] is True


def test_a_folder_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["export", "--plan", "p.json"]) == 2
    assert "-o/--output" in capsys.readouterr().err


def test_an_existing_folder_is_refused_as_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "served").mkdir()
    assert main_plan(["export", "--plan", str(tmp_path / "none.json"), "-o", str(tmp_path / "served")]) == 2
    message = capsys.readouterr().err
    assert "served" in message
    assert "expected a file" not in message


def test_messages_of_an_export_name_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s2d.plan("llama-70b", engine="vllm").save(tmp_path / "plan.json")
    words = ["--plan", str(tmp_path / "plan.json"), "--target", "org/name", "--draft", "org/draft"]
    assert main_plan(["export", *words, "-o", str(tmp_path / "served")]) == 2
    assert "and give --draft DIR" in capsys.readouterr().err


def test_a_missing_plan_is_an_input_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_plan(["export", "--plan", str(tmp_path / "none.json"), "-o", str(tmp_path / "served")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "served").exists()
