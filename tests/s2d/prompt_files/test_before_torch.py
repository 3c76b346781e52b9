"""Commands refuse unusable files and names before they import torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from profiler.commands.profile_cli import main_profile
from s2d.commands.run_cli import main_run
from s2d.commands.train_cli import main_train

pytestmark = pytest.mark.e2e

HEAVY = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
SCRIPT = """
import sys, time
from {module} import {main}
code = {main}(sys.argv[1:])
print(sorted(set(sys.modules) & set({heavy})), code, time.process_time())
"""
PROFILE = ("s2d-profile", "profiler.commands.profile_cli", main_profile)
RUN = ("s2d-run", "s2d.commands.run_cli", main_run)
TRAIN = ("s2d-train", "s2d.commands.train_cli", main_train)
PAIR = ["--target", "ref-target-16", "--draft", "ref-draft"]
DRAFT = ["draft", "--target", "ref-target-16", "--exits", "1,2", "-o", "new"]
CALIBRATE = ["calibrate", "--target", "ref-target-16", "--draft", "ref-draft"]
TRIM = ["trim", "--draft", "ref-draft", "--tokens", "9", "-o", "new"]
LATIN1 = "line 1, byte offset 11: byte 0xe9 is not UTF-8; the file is probably latin1. Convert it (iconv -f latin1 -t utf-8"

REFUSED = [
    (PROFILE, [*PAIR, "--prompts", "latin1"], LATIN1),
    (PROFILE, [*PAIR, "--prompts", "none"], "no such file"),
    (PROFILE, [*PAIR, "--prompts", "two", "--prompt-column", "body"], "there is no 'body'; its keys are text"),
    (PROFILE, [*PAIR, "--prompts", "one"], "none of the 1 prompts is in the calibration half"),
    (PROFILE, ["--target", "ref-target-99", "--draft", "ref-draft"], "unknown model 'ref-target-99'"),
    (PROFILE, ["--target", "ref-target-16", "--draft", "nothing"], "unknown model 'nothing'"),
    (PROFILE, ["--target", "org/model", "--draft", "self"], "is not of the reference family, so its prompts must be given"),
    (PROFILE, [*PAIR, "--budget", "-1"], "--budget -1: expected 0 seconds or more"),
    (
        PROFILE,
        [*PAIR, "--prompts", "chat", "--split", "all"],
        "prompt '1' is a conversation: expected a text to continue. Give --chat",
    ),
    (TRAIN, [*CALIBRATE, "--prompts", "chat"], "is a conversation"),
    (TRAIN, [*CALIBRATE, "--prompts", "one"], "half, which is decided by prompt name: give more prompts.\n"),
    (RUN, ["--plan", "none"], "'none': no such file"),
    (RUN, [], "nothing to run: give a plan with --plan FILE"),
    (RUN, ["--plan", "two"], "'two': "),
    (TRAIN, [*DRAFT, "--text", "two", "latin1"], LATIN1),
    (TRAIN, [*DRAFT, "--text", "two", "--teacher", "nothing"], "unknown model 'nothing'"),
    (TRAIN, [*CALIBRATE, "--prompts", "latin1"], LATIN1),
    (TRAIN, [*CALIBRATE, "--target", "org/model"], "target 'org/model' is not of the reference family"),
    (TRAIN, [*TRIM, "--text", "latin1"], LATIN1),
    (
        TRAIN,
        [*TRIM, "--text", "two", "--text-column", "a", "--text-format", "file"],
        "expected one of them, as plain text has no",
    ),
]


def check_refused(folder: Path, program: tuple, argv: list[str], message: str) -> None:
    """Run the command in a process of its own, and look at what it imported, printed and took."""
    name, module, main = program
    code = SCRIPT.format(module=module, main=main.__name__, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=folder, check=True)
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"{name}: ")
    imported_and_code, _, spent_s = done.stdout.rpartition(" ")
    assert imported_and_code == "[] 2"
    assert float(spent_s) < 1  # of a processor; with torch it takes several


@pytest.mark.parametrize(("program", "argv", "message"), REFUSED, ids=[" ".join([one[0][0], *one[1]]) for one in REFUSED])
def test_a_bad_file_or_name_is_refused_before_torch_is_imported(
    tmp_path: Path, program: tuple, argv: list[str], message: str
) -> None:
    files = {"latin1": '{"text": "né"}\n'.encode("latin1"), "one": b"a\n", "two": b'{"text": "a"}\n{"text": "b"}\n'}
    files["chat"] = b'{"messages": [{"role": "user", "content": "so"}]}\n' * 4
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    check_refused(tmp_path, program, argv, message)
    assert {path.name for path in tmp_path.iterdir()} == set(files)


def test_a_run_refuses_bad_prompts_before_torch_is_imported(folders: Path, plan_file: Callable[..., Path]) -> None:
    plan = str(plan_file())
    (folders / "latin1").write_bytes('{"text": "né"}\n'.encode("latin1"))
    check_refused(folders, RUN, ["--plan", plan, "--prompts", "latin1"], LATIN1)
    for place, message in ((".", "this is a folder or a device"), ("no/x.jsonl", "its folder does not exist")):
        check_refused(folders, RUN, ["--plan", plan, "--prompt", "a", "--outputs", place], message)
    check_refused(folders, RUN, ["--plan", plan, "--draft", "nothing", "--prompt", "a"], "unknown model 'nothing'")
    check_refused(
        folders, RUN, ["--plan", plan, "--prompts", "latin1", "--prompt-column", "a", "--prompt-format", "lines"], "one of them"
    )
