"""Latency profiles of earlier versions."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from perfmodel.passes import PassSamples
from perfmodel.profile import read_latency_profile, write_latency_profile
from tests.calibrate.evidence import draft_profile, provenance

EARLIER = PassSamples(
    kind=("prefill", "prefill", "segment", "exit"),
    stage=(0, 1, 0, 0),
    rows=(9, 9, 1, 1),
    cached_tokens=(0, 0, 9, 0),
    place=(1, 1, 1, 1),
    seconds=(2e-3, 1e-3, 1e-4, 5e-5),
)


def test_a_draft_whose_prompt_was_one_pass_is_read_without_it(tmp_path: Path) -> None:
    path = tmp_path / "draft.latency.json"
    write_latency_profile(path, replace(draft_profile(), samples=EARLIER), provenance())
    assert read_latency_profile(path).record.samples == EARLIER  # today's: the prompt's pass of the first segment
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"version": 5}), encoding="utf-8")
    kept = {name: (column[0], *column[2:]) for name, column in asdict(EARLIER).items()}
    assert read_latency_profile(path).record.samples == PassSamples(**kept)
