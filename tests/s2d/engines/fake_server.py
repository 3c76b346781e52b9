"""Stands in for the servers of engines: answers /health, /metrics and completions on 127.0.0.1. Standard library only.

`python fake_server.py … --port PORT …` writes its arguments to the file that `FAKE_SERVER_ARGUMENTS` names. Every answer has
the tokens 0, 1, 2 …: the first alone, then pairs, as rounds with one accepted token would emit them. A request for 13 to 16
tokens is answered wrongly, or not.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COUNTS = {"drafts": 0, "decodes": 0}
METRICS = """# HELP counters of all engines
vllm:spec_decode_num_drafts_total{{engine="0"}} {drafts}.0
vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {drafts}.0
vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {drafts}.0
llamacpp:n_decode_total {decodes}
"""


def rounds(num_tokens: int) -> list[list[int]]:
    """Tokens by event."""
    tokens = list(range(num_tokens))
    return [tokens[:1], *(tokens[start : start + 2] for start in range(1, num_tokens, 2))]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        texts = {
            "/health": "",
            "/version": json.dumps({"version": "1.2.3"}),
            "/get_server_info": json.dumps({"version": "1.2.3"}),
            "/props": json.dumps({"build_info": "b99"}),
            "/metrics": METRICS.format(**COUNTS),
        }
        self.answer(texts[self.path].encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = body.get("max_tokens") or body.get("n_predict")
        if number == 13:
            self.answer(b"thirteen", status=500)
        elif number == 14:
            self.answer(b"{}")
        elif number == 15:
            self.answer(b"data: \xff no JSON\n\n")
        elif number == 16:
            os._exit(3)
        elif self.path == "/v1/completions":
            count(body["max_tokens"])
            events = [{"choices": [{"token_ids": ids}]} for ids in rounds(body["max_tokens"])]
            self.stream([*events, {"choices": [], "usage": {}}])
        elif self.path == "/generate":
            self.stream(generate_events(body["sampling_params"]["max_new_tokens"]))
        elif self.path == "/completion":
            count(body["n_predict"])
            timings = {"predicted_ms": 500.0, "draft_n": 4, "draft_n_accepted": 2}
            self.answer(json.dumps({"tokens": list(range(body["n_predict"])), "timings": timings}).encode())

    def stream(self, events: list[dict[str, Any]]) -> None:
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.answer("".join([*lines, "data: [DONE]\n\n"]).encode())

    def answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def generate_events(num_tokens: int) -> list[dict[str, Any]]:
    """Events as SGLang sends them: all tokens so far, or the new ones with --incremental-streaming-output."""
    events, done = [], 0
    for ids in rounds(num_tokens):
        done += len(ids)
        shown = ids if "--incremental-streaming-output" in sys.argv else list(range(done))
        meta = {"completion_tokens": done, "spec_verify_ct": len(rounds(done)) - 1}
        events.append({"output_ids": shown, "meta_info": meta})
    return events


def count(num_tokens: int) -> None:
    COUNTS["drafts"] += len(rounds(num_tokens)) - 1
    COUNTS["decodes"] += len(rounds(num_tokens))


if __name__ == "__main__":
    Path(os.environ["FAKE_SERVER_ARGUMENTS"]).write_text(json.dumps(sys.argv[1:]))
    if "broken" in os.environ.get("FAKE_SERVER_MODE", ""):
        sys.exit("no such model")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
