"""A session decodes given token ids greedily in a process of its own, with and without a draft, and to the same text."""

import ast
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

import s2d
from perfmodel.core.errors import EngineFailure, UnknownName, UserInputError
from perfmodel.engines.known_engines import ENGINES
from s2d.engines.environments import is_installed
from s2d.engines.servers import SERVERS
from s2d.engines.session import EngineSession, check_installed
from s2d.engines.session_request import API_ENGINES, SERVER_ENGINES, SessionRequest, can_change_length
from s2d.engines.worker_driver import WORKERS, find_worker
from s2d.loading.load_model import export_exit, load_tokenizer
from tests.s2d.engines.test_child_process import has_ended

FAMILY = Path(s2d.__file__).with_name("family")
PROMPT = tuple(range(300, 348))
INSTALLABLE = ("onnxruntime", "openvino", "llama.cpp", "vllm", "transformers", "mlx-lm")


def request_for(engine: str, folder: Path, **changes: object) -> SessionRequest:
    fields = {
        "engine": engine,
        "target": FAMILY / "target-16",
        "draft": None,
        "weights": "f32",
        "num_threads": 1,
        "context_tokens": 256,
        "draft_tokens": 0,
        "floor": None,
        "log": folder / f"{engine}.log",
    }
    return SessionRequest(**fields | changes)


def test_workers_import_nothing_of_ours_but_that_of_our_runtime() -> None:
    ours = {"perfmodel", "calibrate", "s2d", "profiler"}
    importing = set()
    for path in WORKERS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            importing |= {path.name for name in names if name.partition(".")[0] in ours}
    assert importing == {"s2d_worker.py"}


def test_a_draft_and_its_length_come_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected both or neither"):
        request_for("s2d", tmp_path, draft_tokens=5)


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown engine 'vlm'"), EngineSession(request_for("vlm", tmp_path)):
        pass


def test_an_engine_without_the_interface_is_refused(tmp_path: Path) -> None:
    request = request_for("onnxruntime", tmp_path, interface="server")
    with (
        pytest.raises(UserInputError, match="--interface server: this project drives onnxruntime through its Python API only"),
        EngineSession(request),
    ):
        pass


def test_an_engine_that_is_not_installed_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path))
    with pytest.raises(UserInputError, match="s2d-engines install openvino"), EngineSession(request_for("openvino", tmp_path)):
        pass
    assert not list(tmp_path.iterdir())


def test_every_engine_of_the_table_is_driven_by_a_worker_or_a_server() -> None:
    assert {name for name in ENGINES if find_worker(name) is not None} == set(API_ENGINES)
    assert set(SERVERS) == set(SERVER_ENGINES)
    assert {*API_ENGINES, *SERVER_ENGINES} == set(ENGINES)


def test_an_engine_is_found_by_its_alias_and_models_by_absolute_paths(tmp_path: Path) -> None:
    request = EngineSession(request_for("ort", tmp_path, target=Path("a model"))).request
    assert (request.engine, request.target) == ("onnxruntime", Path.cwd() / "a model")


def test_what_is_not_installed_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("S2D_LLAMA_SERVER", raising=False)
    check_installed("s2d", None)
    for engine in ("onnxruntime", "llama.cpp", "vllm", "mlx-lm"):
        with pytest.raises(UserInputError, match=f"run s2d-engines install {engine}"):
            check_installed(engine, None)
    with pytest.raises(UserInputError, match="there is no program 'trtllm-serve'"):
        check_installed("tensorrt-llm", None)
    monkeypatch.setenv("S2D_LLAMA_SERVER", "/no/such/server")
    with pytest.raises(UserInputError, match=r"\$S2D_LLAMA_SERVER is '/no/such/server': expected a program"):
        check_installed("llama.cpp", None)


def test_a_session_runs_inside_its_block_only(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside its `with` block only"):
        EngineSession(request_for("s2d", tmp_path)).call(PROMPT, 4)


def test_servers_keep_their_draft_length(tmp_path: Path) -> None:
    assert can_change_length("onnxruntime")
    assert not can_change_length("vllm")
    assert not can_change_length("llama.cpp", "server")


@pytest.mark.e2e
def test_the_bundled_runtime_writes_the_same_text_with_any_length(tmp_path: Path) -> None:
    export_exit(FAMILY / "draft", 4, tmp_path / "exit-4")
    with EngineSession(request_for("s2d", tmp_path)) as session:
        plain = session.call(PROMPT, 24)
    with EngineSession(request_for("s2d", tmp_path, draft=tmp_path / "exit-4", draft_tokens=6)) as session:
        results = [session.call(PROMPT, 24, length) for length in (1, 3, 6)]
        pid = session.pid
    assert has_ended(pid)
    assert plain.num_rounds is None
    assert [result.tokens for result in results] == [plain.tokens] * 3
    rounds = [result.num_rounds or 0 for result in results]
    assert rounds == sorted(rounds, reverse=True)
    assert rounds[0] < 24
    for result in results:
        assert result.num_accepted == 24 - (result.num_rounds or 0) or result.num_accepted == 25 - (result.num_rounds or 0)
        assert result.draft_s is not None
        assert result.verify_s is not None
        assert 0 < result.draft_s + result.verify_s < result.decode_s < result.call_s


@pytest.mark.e2e
def test_a_worker_that_cannot_load_is_an_error_with_its_log(tmp_path: Path) -> None:
    request = request_for("s2d", tmp_path, target=tmp_path / "nothing")
    with (
        pytest.raises(EngineFailure, match=r"(?s)engine 's2d': BadFile:.*nothing.*Read its log '.*s2d\.log'"),
        EngineSession(request),
    ):
        pass
    assert not list(tmp_path.glob("*.files"))


@pytest.mark.e2e
def test_a_failed_call_leaves_the_session_usable(tmp_path: Path) -> None:
    with EngineSession(request_for("s2d", tmp_path)) as session:
        with pytest.raises(EngineFailure, match="a prompt of 300 tokens"):
            session.call(range(300), 4)
        assert len(session.call(PROMPT, 4).tokens) == 4


@pytest.mark.e2e
def test_an_interrupted_call_ends_the_engine_because_its_answer_would_be_that_of_the_next(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with EngineSession(request_for("s2d", tmp_path)) as session:
        old = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                session.call(PROMPT, 200)
        finally:
            signal.signal(signal.SIGALRM, old)
        assert has_ended(session.pid)
        with pytest.raises(EngineFailure, match="it ended"):
            session.call(PROMPT, 4)


@pytest.mark.e2e
@pytest.mark.parametrize("engine", INSTALLABLE)
def test_an_installed_engine_writes_its_plain_text_with_a_draft(tmp_path: Path, engine: str) -> None:
    if not is_installed(engine):
        pytest.skip(f"{engine} is not in $S2D_ENGINES: s2d-engines install {engine}")
    from s2d.engines.checkpoints import make_checkpoint

    export_exit(FAMILY / "draft", 4, tmp_path / "exit-4")
    suffix = ".gguf" if engine == "llama.cpp" else ""
    target, draft = (
        make_checkpoint(source, engine, "f32", tmp_path / f"{source.name}-made{suffix}")
        for source in (FAMILY / "target-16", tmp_path / "exit-4")
    )
    with EngineSession(request_for(engine, tmp_path, target=target)) as session:
        plain = session.call(PROMPT, 24)
        assert session.facts.version
    with EngineSession(request_for(engine, tmp_path, target=target, draft=draft, draft_tokens=5)) as session:
        result = session.call(PROMPT, 24)
    assert result.tokens == plain.tokens
    assert len(plain.tokens) == 24
    assert result.num_rounds is not None
    assert 24 / 6 - 2 <= result.num_rounds < 24
    assert 0 < result.decode_s < result.call_s
    assert plain.num_rounds is None


@pytest.mark.e2e
def test_a_floor_in_openvino_drafts_more_than_one_token(tmp_path: Path) -> None:
    if not is_installed("openvino"):
        pytest.skip("openvino is not in $S2D_ENGINES: s2d-engines install openvino")
    from s2d.engines.checkpoints import make_checkpoint

    export_exit(FAMILY / "draft", 4, tmp_path / "exit-4")
    target = make_checkpoint(FAMILY / "target-16", "openvino", "f32", tmp_path / "target")
    draft = make_checkpoint(tmp_path / "exit-4", "openvino", "f32", tmp_path / "draft")
    request = request_for("openvino", tmp_path, target=target, draft=draft, draft_tokens=5, floor=0.3)
    with EngineSession(request) as session:
        result = session.call(PROMPT, 32)
    assert (result.num_accepted or 0) > (result.num_rounds or 0)


@pytest.mark.e2e
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "llama.cpp", "transformers", "mlx-lm"])
def test_an_end_token_is_emitted_and_does_not_end_the_text_but_in_llama_cpp(tmp_path: Path, engine: str) -> None:
    if not is_installed(engine):
        pytest.skip(f"{engine} is not in $S2D_ENGINES: s2d-engines install {engine}")
    from s2d.engines.checkpoints import make_checkpoint

    with EngineSession(request_for("s2d", tmp_path, weights="fp32")) as session:
        ours = session.call(PROMPT, 16).tokens
    shutil.copytree(FAMILY / "target-16", tmp_path / "model")
    export_exit(FAMILY / "draft", 4, tmp_path / "exit")
    for name in ("model", "exit"):
        set_end_token(tmp_path / name, ours[7])
    suffix = ".gguf" if engine == "llama.cpp" else ""
    target, draft = (
        make_checkpoint(tmp_path / name, engine, "f32", tmp_path / f"{name}-made{suffix}") for name in ("model", "exit")
    )
    with EngineSession(request_for(engine, tmp_path, target=target, draft=draft, draft_tokens=4)) as session:
        tokens = session.call(PROMPT, 16).tokens
    assert tokens[:7] == ours[:7]
    if engine == "llama.cpp":  # its option ignore_eos forbids the token
        assert ours[7] not in tokens
    else:
        assert tokens == ours


def set_end_token(folder: Path, token_id: int) -> None:
    """Make another token the end token of a model."""
    token = load_tokenizer(folder).convert_ids_to_tokens(token_id)
    for name, settings in {
        "config.json": {"eos_token_id": token_id},
        "generation_config.json": {"eos_token_id": token_id},
        "tokenizer_config.json": {"eos_token": token},
    }.items():
        path = folder / name
        kept = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(kept | settings))


def test_variables_of_this_interpreter_do_not_reach_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    from s2d.engines.processes.process_variables import engine_variables

    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    variables = engine_variables("vllm", 2)
    assert "PYTHONPATH" not in variables
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["PATH"] == os.environ["PATH"]
    assert Path(engine_variables("s2d", None)["PYTHONPATH"]) == Path(s2d.__file__).parents[1]
