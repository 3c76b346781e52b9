"""Servers of engines are started on 127.0.0.1, asked for token ids, and their counters become those of a call."""

import json
import sys
import time
from pathlib import Path

import pytest

from perfmodel.core.errors import EngineFailure, UserInputError
from s2d.engines.servers import SERVERS, Server
from s2d.engines.session import EngineSession
from s2d.engines.session_request import LLAMA_SERVER_VARIABLE, SessionRequest
from tests.s2d.engines.test_child_process import has_ended

FAKE = Path(__file__).with_name("fake_server.py")
PROGRAMS = {"vllm": "python", "sglang": "python", "tensorrt-llm": "trtllm-serve", "llama.cpp": "llama-server"}


def request_for(engine: str, folder: Path, **changes: object) -> SessionRequest:
    fields = {
        "engine": engine,
        "target": Path("/models/a target"),
        "draft": Path("/models/draft"),
        "weights": "bf16",
        "num_threads": 1,
        "context_tokens": 512,
        "draft_tokens": 3,
        "floor": None,
        "log": folder / "server.log",
        "interface": "server",
    }
    return SessionRequest(**fields | changes)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Environments whose programs run the fake server. Returns the file with its arguments."""
    monkeypatch.delenv(LLAMA_SERVER_VARIABLE, raising=False)
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("FAKE_SERVER_ARGUMENTS", str(tmp_path / "arguments.json"))
    (tmp_path / "engines").mkdir()
    for engine, program in PROGRAMS.items():
        path = tmp_path / "own" / engine / "bin" / program
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
        path.chmod(0o755)
        (tmp_path / "engines" / engine).symlink_to(tmp_path / "own" / engine)
    return tmp_path / "arguments.json"


def server_for(engine: str, folder: Path, **changes: object) -> Server:
    return SERVERS[engine](request_for(engine, folder, **changes), 4321, folder)


def words_after(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


@pytest.mark.parametrize("engine", PROGRAMS)
def test_a_server_listens_on_this_machine_alone(installed: Path, tmp_path: Path, engine: str) -> None:
    command = list(server_for(engine, tmp_path).command())
    assert words_after(command, "--host") == "127.0.0.1"
    assert words_after(command, "--port") == "4321"


def test_options_of_speculation_are_those_of_each_engine(installed: Path, tmp_path: Path) -> None:
    vllm, sglang, tensorrt, llama = (list(server_for(name, tmp_path).command()) for name in PROGRAMS)
    draft = {"method": "draft_model", "model": "/models/draft", "num_speculative_tokens": 3}
    assert json.loads(words_after(vllm, "--speculative-config")) == draft
    assert words_after(sglang, "--speculative-num-steps") == "3"
    assert words_after(sglang, "--speculative-num-draft-tokens") == "4"
    config = json.loads(Path(words_after(tensorrt, "--config")).read_text())
    assert config["speculative_config"]["max_draft_len"] == 3
    assert words_after(llama, "--spec-type") == "draft-simple"
    assert words_after(llama, "--spec-draft-n-max") == "3"


def test_plain_decoding_has_no_options_of_speculation(installed: Path, tmp_path: Path) -> None:
    for engine in PROGRAMS:
        command = server_for(engine, tmp_path, draft=None, draft_tokens=0).command()
        assert not [word for word in command if "spec" in word]


def test_a_gpu_needs_a_server_that_was_built_for_it(installed: Path, tmp_path: Path) -> None:
    assert words_after(list(server_for("llama.cpp", tmp_path, num_threads=None).command()), "--device") == "CUDA0"
    (tmp_path / "own" / "llama.cpp" / "bin" / "llama-server").rename(tmp_path / "own" / "llama.cpp" / "bin" / "python")
    assert "xllamacpp_server.py" in " ".join(server_for("llama.cpp", tmp_path).command())
    with pytest.raises(UserInputError, match=r"xllamacpp runs on a CPU.*Set \$S2D_LLAMA_SERVER"):
        server_for("llama.cpp", tmp_path, num_threads=None).command()


def test_what_llama_cpp_is_given_beside_the_request_is_recorded(installed: Path, tmp_path: Path) -> None:
    server = server_for("llama.cpp", tmp_path)
    assert server.options == ("flash-attn=auto", "cache-type-k=f16", "cache-type-v=f16")
    for option in server.options:
        name, _, value = option.partition("=")
        assert words_after(list(server.command()), f"--{name}") == value


def test_a_program_that_is_nowhere_names_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserInputError, match=r"expected it on the search path or in .*link its environment there"):
        server_for("tensorrt-llm", tmp_path).command()


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("engine", "version", "num_rounds", "num_drafted"),
    [("vllm", "1.2.3", 3, 3), ("sglang", "1.2.3", 3, None), ("tensorrt-llm", "1.2.3", 3, None), ("llama.cpp", "b99", 3, 4)],
)
def test_a_server_answers_with_tokens_seconds_and_counts(
    installed: Path, tmp_path: Path, engine: str, version: str, num_rounds: int, num_drafted: int | None
) -> None:
    with EngineSession(request_for(engine, tmp_path)) as session:
        result = session.call([5, 6, 7], 7)
        again = session.call([5, 6, 7], 7)
        pid = session.pid
    assert has_ended(pid)
    assert result.tokens == again.tokens == (0, 1, 2, 3, 4, 5, 6)
    assert (result.num_rounds, again.num_rounds) == (num_rounds, num_rounds)
    assert result.num_drafted == num_drafted
    assert result.untimed_tokens == 1
    assert result.decode_s > 0
    assert not list(tmp_path.glob("*.files"))


@pytest.mark.e2e
def test_an_error_of_a_server_is_told_with_its_text(installed: Path, tmp_path: Path) -> None:
    with EngineSession(request_for("vllm", tmp_path)) as session, pytest.raises(EngineFailure, match="status 500, thirteen"):
        session.call([1], 13)


@pytest.mark.e2e
def test_an_answer_of_another_form_is_an_error_of_the_engine(installed: Path, tmp_path: Path) -> None:
    for engine, count in (("llama.cpp", 14), ("llama.cpp", 15), ("vllm", 15)):
        with (
            EngineSession(request_for(engine, tmp_path)) as session,
            pytest.raises(EngineFailure, match="its answer is not understood"),
        ):
            session.call([1], count)


@pytest.mark.e2e
def test_a_server_that_has_ended_is_not_asked_again(installed: Path, tmp_path: Path) -> None:
    with EngineSession(request_for("vllm", tmp_path)) as session:
        with pytest.raises(EngineFailure):
            session.call([1], 16)
        deadline_s = time.perf_counter() + 15
        while not has_ended(session.pid) and time.perf_counter() < deadline_s:
            time.sleep(0.05)
        with pytest.raises(EngineFailure, match="its server ended"):
            session.call([1], 7)


@pytest.mark.e2e
def test_a_server_that_ends_early_shows_the_end_of_its_log(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SERVER_MODE", "broken")
    with (
        pytest.raises(EngineFailure, match=r"(?s)ended before it was ready.*server\.log.*no such model"),
        EngineSession(request_for("sglang", tmp_path)),
    ):
        pass
