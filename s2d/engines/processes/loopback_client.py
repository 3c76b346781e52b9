"""An HTTP client for servers on 127.0.0.1: requests, streams of events with their times, and Prometheus counters."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from perfmodel.core.units import Seconds
from perfmodel.engines.prometheus_text import BadSample, read_samples
from s2d.engines.session_request import CALL_TIMEOUT_S

HOST = "127.0.0.1"
_PROBE_TIMEOUT_S = 5.0
_MAX_ERROR_CHARS = 300


class BadAnswer(Exception):
    """An answer of a server that is no success, or no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One answer, or one event of a stream of answers."""

    seconds: Seconds
    """Since the request."""
    data: Any
    """Its JSON."""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class LoopbackClient:
    """Requests to a server on this machine. Proxies are never used.

    Args:
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def is_ready(self, path: str) -> bool:
        """Whether a GET of the path succeeds."""
        try:
            self._read("GET", path, None, _PROBE_TIMEOUT_S)
        except BadAnswer:
            return False
        return True

    def get(self, path: str) -> str:
        """The text at a path.

        Raises:
            BadAnswer: no success.
        """
        return self._read("GET", path, None, CALL_TIMEOUT_S)

    def post(self, path: str, body: Mapping[str, object]) -> Event:
        """The JSON that answers a JSON request, and the seconds it took.

        Raises:
            BadAnswer: no success.
        """
        start_s = time.perf_counter()
        text = self._read("POST", path, body, CALL_TIMEOUT_S)
        return Event(seconds=time.perf_counter() - start_s, data=json.loads(text))

    def stream(self, path: str, body: Mapping[str, object]) -> Iterator[Event]:
        """The server-sent events that answer a JSON request, as they arrive.

        Raises:
            BadAnswer: no success.
        """
        with closing(http.client.HTTPConnection(HOST, self._port, timeout=CALL_TIMEOUT_S)) as connection:
            start_s = time.perf_counter()
            try:
                answer = self._answer(connection, "POST", path, body)
                while line := answer.readline():
                    name, _, data = line.decode(errors="replace").strip().partition(":")
                    if name == "data" and data.strip() != "[DONE]":
                        yield Event(seconds=time.perf_counter() - start_s, data=json.loads(data))
            except (OSError, http.client.HTTPException) as err:
                raise BadAnswer(f"POST {path}: {err or type(err).__name__}") from err

    def counters(self) -> dict[str, float]:
        """The Prometheus metrics at /metrics, each summed over its labels.

        Raises:
            BadAnswer: there are none, or they are no Prometheus text.
        """
        sums: dict[str, float] = {}
        try:
            for sample in read_samples(self.get("/metrics")):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        except BadSample as err:
            raise BadAnswer(f"GET /metrics: {err}") from err
        return sums

    def _read(self, method: str, path: str, body: Mapping[str, object] | None, timeout_s: Seconds) -> str:
        with closing(http.client.HTTPConnection(HOST, self._port, timeout=timeout_s)) as connection:
            try:
                return self._answer(connection, method, path, body).read().decode(errors="replace")
            except (OSError, http.client.HTTPException) as err:
                raise BadAnswer(f"{method} {path}: {err or type(err).__name__}") from err

    @staticmethod
    def _answer(
        connection: http.client.HTTPConnection, method: str, path: str, body: Mapping[str, object] | None
    ) -> http.client.HTTPResponse:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise BadAnswer(
                f"{method} {path}: status {answer.status}, {answer.read().decode(errors='replace')[:_MAX_ERROR_CHARS]}"
            )
        return answer
