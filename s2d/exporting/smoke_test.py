"""Runs ten prompts in the engine, and compares acceptance with the plan and speculative text with plain text.

    PYTHON smoke_test.py                               with the engine's own Python: starts and stops the engine
    python3 smoke_test.py --start-server               starts and stops ./serve.sh, then ./serve-plain.sh
    python3 smoke_test.py --url http://127.0.0.1:8000  asks a server that runs ./serve.sh already

Exit code 0: everything is as planned. 1: something is not, or could not be checked. Needs the standard library alone.
The prompts and what is expected of them are in prompts.json.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

FOLDER = Path(__file__).resolve().parent
HEALTHY_FRAC = 0.2
"""An engine that accepts less than this share of the expected tokens drafts for another model."""
REQUEST_TIMEOUT_S = 600.0
START_TIMEOUT_S = 1800.0
"""A large target takes minutes to load."""
POLL_S = 0.5
LLAMA_CPP_BATCH = 2048
"""Tokens of a prompt that llama.cpp reads in one pass, its default."""
LOG = "smoke_test.log"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks the server itself, also where a proxy is set for other addresses."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Nothing is downloaded, and no usage is reported."""


@dataclass(frozen=True)
class Answer:
    """Tokens of one call. None: the engine does not report it."""

    tokens: list[int]
    num_rounds: int | None = None
    num_tokens_outside: int = 0
    """Tokens that come from the prompt's pass, before the first counted round."""


class Caller(Protocol):
    """Asks an engine."""

    label: str

    def call(self, prompt: dict[str, Any]) -> Answer:
        """Continue one prompt."""


class SmokeTestFailed(Exception):
    """The test cannot go on. The message states why."""


def main() -> int:
    """Run the test and print its result; returns the exit code."""
    args = _arguments()
    test = json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))["body"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with _caller(test, args, has_draft=True) as speculative:
            _print(f"{speculative.label}: {test['draft_tokens']} tokens per round, {test['weights']} weights")
            answers = [_report(prompt, speculative.call(prompt)) for prompt in test["prompts"]]
        problems = acceptance_problems(test, answers)
        if args.url is None or args.plain_url is not None:
            with _caller(test, args, has_draft=False) as plain:
                problems += text_problems(test, answers, plain)
        else:
            problems += recorded_text_problems(test, answers)
    except SmokeTestFailed as err:
        problems = [str(err)]
    for problem in problems:
        _print(f"FAILED: {problem}")
    _print("PASSED: the engine executes the plan." if not problems else "The engine does not execute the plan.")
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="address of a server that runs serve.sh (default: start the engine here)")
    start_help = "start serve.sh and serve-plain.sh, instead of the engine's Python API (default if it has none)"
    parser.add_argument("--start-server", action="store_true", help=start_help)
    parser.add_argument("--plain-url", help="address of a server that runs serve-plain.sh, to compare texts")
    parser.add_argument("--target", help="another place of the target")
    args = parser.parse_args()
    if args.plain_url is not None and args.url is None:
        parser.error("--plain-url without --url: give both, or neither to start the engine here")
    return args


def acceptance_problems(test: dict[str, Any], answers: list[Answer]) -> list[str]:
    """What is wrong with the acceptance, and a line about it."""
    expected = test["acceptance_length"]
    measured = acceptance_length(answers)
    if measured is None:
        return ["this engine reports no acceptance here. Run the test without --url, or read the engine's own metrics."]
    lowest = 1 + (expected - 1) * (1 - test["tolerance_frac"])
    _print(
        f"acceptance length {measured:.2f}; expected {expected:.2f} from {test['expected_from']}, at least {lowest:.2f}"
        + ("" if measured <= 2 * expected - lowest else ". It is higher than planned: a longer draft may pay")
    )
    if measured - 1 < HEALTHY_FRAC * (expected - 1):
        return [
            f"the engine rejects almost every drafted token: {measured - 1:.2f} accepted per round, expected {expected - 1:.2f}"
            ". Draft and target do not fit: look for another tokenizer, another target, or a draft that the engine quantises."
        ]
    if measured < lowest:
        return [f"acceptance length {measured:.2f} is below {lowest:.2f}: the speedup will be lower than planned."]
    return []


def acceptance_length(answers: list[Answer]) -> float | None:
    """Tokens per round; None if the engine does not report its rounds."""
    rounds = [answer.num_rounds for answer in answers if answer.num_rounds is not None]
    if len(rounds) < len(answers):
        return None
    num_tokens = sum(len(answer.tokens) - answer.num_tokens_outside for answer in answers)
    return num_tokens / sum(rounds) if sum(rounds) else 1.0


def text_problems(test: dict[str, Any], answers: list[Answer], plain: Caller) -> list[str]:
    """Texts that differ from those of the same engine without a draft."""
    differing, excused, recorded = [], 0, 0
    for prompt, answer in zip(test["prompts"], answers, strict=True):
        tokens = plain.call(prompt).tokens
        recorded += tokens == prompt["expected_tokens"]
        if tokens == answer.tokens:
            continue
        if _is_near_tie(prompt, answer.tokens, tokens, plain):
            excused += 1
        else:
            differing.append(f"{prompt['name']!r} at token {_first_difference(answer.tokens, tokens)}")
    num_prompts = len(answers)
    _print(f"text equals plain decoding in {num_prompts - excused - len(differing)} of {num_prompts} prompts", end="")
    _print(f", {excused} more differ at a near-tie" if excused else "")
    if any(prompt["expected_tokens"] is not None for prompt in test["prompts"]):
        _print(f"plain text equals the recorded one in {recorded} of {num_prompts} prompts")
    allowed = 0 if test["has_exact_text"] else num_prompts // 2
    if len(differing) > allowed:
        return [f"speculative text differs from plain text in {len(differing)} prompts: {', '.join(differing[:3])}"]
    return []


def recorded_text_problems(test: dict[str, Any], answers: list[Answer]) -> list[str]:
    """Compare with the recorded text of the target, where there is no plain server. Only a total mismatch is a problem."""
    pairs = [(prompt["expected_tokens"], answer.tokens) for prompt, answer in zip(test["prompts"], answers, strict=True)]
    pairs = [(expected, tokens) for expected, tokens in pairs if expected is not None]
    num_equal = sum(expected == tokens for expected, tokens in pairs)
    if not pairs:
        _print("text not compared: give --plain-url, with a server that runs serve-plain.sh")
        return []
    _print(f"text equals the recorded one of the target in {num_equal} of {len(pairs)} prompts")
    return [] if num_equal else ["no text equals the recorded one: the server runs another target. Compare with --plain-url."]


def _is_near_tie(prompt: dict[str, Any], speculative: list[int], plain_tokens: list[int], plain: Caller) -> bool:
    """Whether the engine without a draft also writes the speculative token after the common text."""
    first = _first_difference(speculative, plain_tokens)
    if first >= min(len(speculative), len(plain_tokens)):
        return False
    longer = {"token_ids": [*prompt["token_ids"], *speculative[:first]], "max_new_tokens": 2, "text": prompt["text"]}
    return plain.call(longer).tokens[0] == speculative[first]


def _first_difference(one: list[int], other: list[int]) -> int:
    """Index of the first token that differs; the shorter length if none does."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))


def _report(prompt: dict[str, Any], answer: Answer) -> Answer:
    rounds = "" if answer.num_rounds is None else f" in {answer.num_rounds} rounds"
    expected = "" if prompt["num_rounds"] is None else f", expected {prompt['num_rounds']}"
    _print(f"  {prompt['name']}: {len(answer.tokens)} tokens{rounds}{expected}")
    return answer


def _caller(test: dict[str, Any], args: argparse.Namespace, *, has_draft: bool) -> AbstractContextManager[Caller]:
    """The engine, started here or asked at an address."""
    url = args.url if has_draft else args.plain_url
    worker = FOLDER / "smoke" / f"{test['engine'].replace('.', '_').replace('-', '_')}_worker.py"
    if url is None and worker.is_file() and not args.start_server:
        return _worker(test, worker, args.target or test["target"], has_draft=has_draft)
    if test["engine"] not in SERVERS:
        raise SmokeTestFailed(
            f"{test['engine']} has no server whose rounds this test reads"
            + (". Run the test without --url and --start-server" if worker.is_file() else "")
            + ". What the engine reports is compared by s2d-compare --engine-metrics."
        )
    if url is None:
        return _started_server(test, args.target, has_draft=has_draft)
    return contextlib.nullcontext(Server(test["engine"], url, has_draft=has_draft))


@contextlib.contextmanager
def _child(command: list[str], environment: dict[str, str], *, has_pipes: bool) -> "Iterator[subprocess.Popen[str]]":
    """A process that ends with this one, whatever ends it: guard.py watches a pipe between them."""
    read_end, write_end = os.pipe()
    guard = [sys.executable, "-I", "-S", str(FOLDER / "smoke" / "guard.py"), str(read_end)]
    with (FOLDER / LOG).open("ab") as log:
        process = subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.PIPE if has_pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if has_pipes else log,
            stderr=log,
            env=os.environ | environment,
            pass_fds=(read_end,),
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
    os.close(read_end)
    try:
        yield process
    finally:
        os.close(write_end)
        process.communicate()


class Worker:
    """A process with the engine, which answers JSON lines."""

    def __init__(self, process: "subprocess.Popen[str]", test: dict[str, Any]) -> None:
        self._process = process
        self._call = {"draft_tokens": test["draft_tokens"], "floor": test["floor"]}
        self.label = f"{test['engine']} {self._answer()['version']}"

    def call(self, prompt: dict[str, Any]) -> Answer:
        """Continue one prompt."""
        request = {"prompt": prompt["token_ids"], "max_new_tokens": prompt["max_new_tokens"], **self._call}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        return Answer(found["tokens"], found.get("num_rounds"), found.get("untimed_tokens", 0))

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the engine ended"}
        if "error" in answer:
            raise SmokeTestFailed(f"{answer['error']}. {LOG} has the engine's messages.")
        return answer


@contextlib.contextmanager
def _worker(test: dict[str, Any], worker: Path, target: str, *, has_draft: bool) -> Iterator[Worker]:
    """The engine's Python API in a process of its own."""
    with tempfile.TemporaryDirectory(prefix=".smoke-", dir=FOLDER) as scratch:
        settings = {name: test[name] for name in ("weights", "num_threads", "context_tokens", "draft_tokens", "floor")}
        settings |= {"target": _place(target), "draft": _place(test["draft"]) if has_draft else None, "scratch": scratch}
        command = [sys.executable, str(FOLDER / "smoke" / "serve.py"), str(worker), json.dumps(settings)]
        with _child(command, OFFLINE, has_pipes=True) as process:
            yield Worker(process, test)


def _place(path: str) -> str:
    """A path inside this folder as an absolute one; a name that is no path unchanged."""
    inside = FOLDER / path
    return str(inside) if inside.exists() else path


@contextlib.contextmanager
def _started_server(test: dict[str, Any], target: str | None, *, has_draft: bool) -> "Iterator[Server]":
    """The server of serve.sh or serve-plain.sh on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(FOLDER / ("serve.sh" if has_draft else "serve-plain.sh"))]
    if test["engine"] == "llama.cpp" and shutil.which(os.environ.get("LLAMA_SERVER") or "llama-server") is None:
        command = _xllamacpp_command(test, target or test["target"], port, has_draft=has_draft)
    environment = OFFLINE | {"PORT": str(port)} | ({} if target is None else {"TARGET": target})
    with _child(command, environment, has_pipes=False) as process:
        server = Server(test["engine"], f"http://127.0.0.1:{port}", has_draft=has_draft)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not server.is_ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise SmokeTestFailed(f"the server does not start. {LOG} has its messages.")
            time.sleep(POLL_S)
        yield server


def _xllamacpp_command(test: dict[str, Any], target: str, port: int, *, has_draft: bool) -> list[str]:
    """The server inside the Python package xllamacpp, with the settings of serve.sh: for machines without `llama-server`."""
    settings = {name: test[name] for name in ("draft_tokens", "floor", "context_tokens", "num_threads")}
    settings |= {"target": _place(target), "draft": _place(test["draft"]) if has_draft else None, "port": port}
    settings["version_file"] = os.devnull
    return [sys.executable, str(FOLDER / "smoke" / "xllamacpp_server.py"), json.dumps(settings)]


class Server:
    """An engine behind HTTP."""

    def __init__(self, engine: str, url: str, *, has_draft: bool) -> None:
        self._url = url.rstrip("/")
        self._ask_server = SERVERS[engine]
        self._has_draft = has_draft
        self.label = f"{engine} at {self._url}"

    def call(self, prompt: dict[str, Any]) -> Answer:
        """Continue one prompt."""
        return self._ask_server(self, prompt, self._has_draft)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request; returns the answer."""
        request = urllib.request.Request(
            self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        answer: dict[str, Any] = json.loads(_read(request))
        return answer

    def get(self, path: str) -> str:
        """The text at a path."""
        return _read(urllib.request.Request(self._url + path))

    def is_ready(self) -> bool:
        """Whether the models are loaded."""
        try:
            with _DIRECT.open(self._url + "/health", timeout=POLL_S * 20):
                return True
        except OSError:
            return False

    def num_rounds(self, counter: str) -> float:
        """Rounds so far, by a counter of the server. 0 before the first."""
        total = 0.0
        for line in self.get("/metrics").splitlines():
            name, _, value = line.rpartition(" ")
            total += float(value) if name.partition("{")[0] == counter else 0.0
        return total


def _read(request: urllib.request.Request) -> str:
    try:
        with _DIRECT.open(request, timeout=REQUEST_TIMEOUT_S) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as err:
        raise SmokeTestFailed(f"{request.full_url}: {err.code} {err.read()[:200].decode(errors='replace')}") from err
    except OSError as err:
        raise SmokeTestFailed(f"{request.full_url}: {err}. Start ./serve.sh first.") from err


def _counted(server: Server, counter: str, has_draft: bool, ask: Callable[[], list[int]]) -> Answer:
    """An answer with the increase of the server's counter of rounds, which nobody else may use meanwhile."""
    if not has_draft:
        return Answer(ask())
    before = server.num_rounds(counter)
    tokens = ask()
    return Answer(tokens, round(server.num_rounds(counter) - before), 1)


def _ask_vllm(server: Server, prompt: dict[str, Any], has_draft: bool) -> Answer:
    def ask() -> list[int]:
        model = json.loads(server.get("/v1/models"))["data"][0]["id"]
        body = {"model": model, "prompt": prompt["token_ids"], "max_tokens": prompt["max_new_tokens"], "temperature": 0}
        found = server.post("/v1/completions", body | {"ignore_eos": True, "return_token_ids": True})
        return list(found["choices"][0]["token_ids"])

    return _counted(server, "vllm:spec_decode_num_drafts_total", has_draft, ask)


def _ask_llama_cpp(server: Server, prompt: dict[str, Any], has_draft: bool) -> Answer:
    def ask() -> list[int]:
        body = {"prompt": prompt["token_ids"], "n_predict": prompt["max_new_tokens"], "temperature": 0, "top_k": 1}
        body |= {"ignore_eos": True, "cache_prompt": False, "return_tokens": True}
        return list(server.post("/completion", body)["tokens"])

    # Its passes of the target: rounds without a draft count too.
    answer = _counted(server, "llamacpp:n_decode_total", has_draft, ask)
    if answer.num_rounds is None:
        return answer
    num_prompt_passes = -(-len(prompt["token_ids"]) // LLAMA_CPP_BATCH)
    return replace(answer, num_rounds=answer.num_rounds - num_prompt_passes)


def _ask_sglang(server: Server, prompt: dict[str, Any], has_draft: bool) -> Answer:
    sampling = {"temperature": 0, "max_new_tokens": prompt["max_new_tokens"], "ignore_eos": True}
    found = server.post("/generate", {"input_ids": prompt["token_ids"], "sampling_params": sampling})
    tokens = list(found.get("output_ids") or ())
    return Answer(tokens, found["meta_info"].get("spec_verify_ct") if has_draft else None, 1)


SERVERS: dict[str, Callable[[Server, dict[str, Any], bool], Answer]] = {
    "vllm": _ask_vllm,
    "llama.cpp": _ask_llama_cpp,
    "sglang": _ask_sglang,
}


def _print(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
