"""The smoke test passes where the engine keeps the plan, and says what is wrong where it does not."""

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s2d.exporting import smoke_test
from s2d.exporting.smoke_test import Answer, acceptance_length, acceptance_problems, main, recorded_text_problems, text_problems

TEXT = [5, 6, 7, 8, 9, 10, 11, 12]


def prompt(name: str, *, expected: list[int] | None = TEXT) -> dict[str, Any]:
    return {"name": name, "token_ids": [1, 2], "text": "a", "max_new_tokens": 8, "expected_tokens": expected, "num_rounds": 2}


def smoke(**changes: Any) -> dict[str, Any]:
    made = {
        "engine": "llama.cpp",
        "weights": "f32",
        "draft_tokens": 3,
        "acceptance_length": 4.0,
        "tolerance_frac": 0.1,
        "expected_from": "the replay of these prompts",
        "has_exact_text": True,
        "prompts": [prompt(f"p{number}") for number in range(2)],
    }
    return made | changes


class Plain:
    """An engine without a draft, which writes one text; after a longer prompt, one token."""

    label = "plain"

    def __init__(self, tokens: list[int], after: int = 0) -> None:
        self.tokens, self.after = tokens, after

    def call(self, request: dict[str, Any]) -> Answer:
        return Answer([self.after, 0] if request["max_new_tokens"] == 2 else self.tokens)


def test_the_acceptance_length_leaves_out_what_the_prompt_emitted() -> None:
    assert acceptance_length([Answer(TEXT, 2), Answer(TEXT, 2)]) == 4.0
    assert acceptance_length([Answer(TEXT, 2, 1), Answer(TEXT, 2, 1)]) == 3.5
    assert acceptance_length([Answer(TEXT, 2), Answer(TEXT)]) is None


def test_planned_acceptance_passes_and_lower_acceptance_fails() -> None:
    assert acceptance_problems(smoke(), [Answer(TEXT, 2), Answer(TEXT, 2)]) == []
    [problem] = acceptance_problems(smoke(), [Answer(TEXT, 3), Answer(TEXT, 3)])
    assert problem == "acceptance length 2.67 is below 3.70: the speedup will be lower than planned."


def test_a_draft_that_is_silently_rejected_is_named() -> None:
    [problem] = acceptance_problems(smoke(), [Answer(TEXT, 8), Answer(TEXT, 8)])
    assert problem.startswith("the engine rejects almost every drafted token: 0.00 accepted per round, expected 3.00")


def test_an_engine_without_counts_does_not_pass() -> None:
    [problem] = acceptance_problems(smoke(), [Answer(TEXT), Answer(TEXT)])
    assert problem.startswith("this engine reports no acceptance")


def test_equal_texts_pass_and_another_text_fails(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [Answer(TEXT, 2), Answer(TEXT, 2)]
    assert text_problems(smoke(), answers, Plain(TEXT)) == []
    assert "text equals plain decoding in 2 of 2 prompts\n" in capsys.readouterr().out
    [problem] = text_problems(smoke(), answers, Plain([*TEXT[:4], 1, 2, 3, 4]))
    assert problem == "speculative text differs from plain text in 2 prompts: 'p0' at token 4, 'p1' at token 4"


def test_a_difference_is_excused_if_the_engine_alone_also_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Plain([*TEXT[:4], 1, 2, 3, 4], after=TEXT[4])
    assert text_problems(smoke(), [Answer(TEXT, 2), Answer(TEXT, 2)], plain) == []
    assert "in 0 of 2 prompts, 2 more differ at a near-tie\n" in capsys.readouterr().out


def test_rounded_weights_may_differ_in_some_prompts_only() -> None:
    test = smoke(has_exact_text=False)
    other = Answer([*TEXT[:4], 1, 2, 3, 4], 2)
    assert text_problems(test, [Answer(TEXT, 2), other], Plain(TEXT)) == []
    assert len(text_problems(test, [other, other], Plain(TEXT))) == 1


def test_the_recorded_text_stands_in_for_a_plain_server() -> None:
    assert recorded_text_problems(smoke(), [Answer(TEXT), Answer([0])]) == []
    [problem] = recorded_text_problems(smoke(), [Answer([0]), Answer([0])])
    assert problem.startswith("no text equals the recorded one")
    unknown = smoke(prompts=[prompt("p0", expected=None)])
    assert recorded_text_problems(unknown, [Answer([0])]) == []


class Handler(http.server.BaseHTTPRequestHandler):
    """llama-server, as far as the smoke test asks it: every answer takes two rounds."""

    num_rounds = 0

    def do_GET(self) -> None:
        self._answer(f"# HELP x\nllamacpp:n_decode_total {type(self).num_rounds}\nother 1\n")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).num_rounds += 3  # one for the prompt
        self._answer(json.dumps({"tokens": [*TEXT, 13][: request["n_predict"]]}))

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run_main(monkeypatch: pytest.MonkeyPatch, folder: Path, test: dict[str, Any], *words: str) -> int:
    (folder / "prompts.json").write_text(json.dumps({"body": test}), encoding="utf-8")
    monkeypatch.setattr(smoke_test, "FOLDER", folder)
    monkeypatch.setattr(sys, "argv", ["smoke_test.py", *words])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return main()


def test_a_running_server_is_asked_at_its_address(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, tmp_path, smoke(acceptance_length=3.5), "--url", url, "--plain-url", url) == 0
    printed = capsys.readouterr().out
    assert "  p0: 8 tokens in 2 rounds, expected 2\n" in printed
    assert "acceptance length 3.50; expected 3.50 from the replay of these prompts, at least 3.25\n" in printed
    assert printed.endswith("PASSED: the engine executes the plan.\n")


def test_a_proxy_for_other_addresses_is_not_asked(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert run_main(monkeypatch, tmp_path, smoke(acceptance_length=3.5), "--url", url, "--plain-url", url) == 0


def test_an_engine_that_cannot_be_asked_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, tmp_path, smoke(), "--url", "http://127.0.0.1:9") == 1
    assert "Start ./serve.sh first." in capsys.readouterr().out
    assert run_main(monkeypatch, tmp_path, smoke(engine="openvino"), "--url", "http://127.0.0.1:9") == 1
    assert "openvino has no server whose rounds this test reads" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_main(monkeypatch, tmp_path, smoke(), "--plain-url", "http://127.0.0.1:9")
