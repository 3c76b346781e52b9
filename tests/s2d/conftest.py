"""Tiny models in folders, plans for them, and the command that runs these."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from perfmodel.core.provenance import make_provenance
from perfmodel.core.stats import Interval
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.replay.estimate import RoundCost, Speedup
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan import PLAN_FILE, Candidate, Memory, Plan, Workload
from s2d.commands.run_cli import main_run
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.load_model import export_exit
from s2d.loading.sidecar import Sidecar, write_sidecar
from tests.s2d.loading.test_load_model import byte_tokenizer
from tests.stubs import TinySpec, tiny_llama

POLICY = Policy(exits=(2, 4), thresholds=(0.3,), tokens=4)
ROUNDS = RoundStats(
    num_prompts=1,
    num_rounds=10,
    num_tokens=20,
    num_drafted=40,
    num_accepted=10.0,
    drafted_by_position=(10, 10, 10, 10),
    accepted_by_position=(6.0, 3.0, 1.0, 0.0),
    exits_taken=(30, 10),
    passes=(),
    cold_passes=(),
)
SPEEDUP = Speedup(
    tokens_per_s=100.0,
    plain_tokens_per_s=80.0,
    speedup=Interval(value=1.25, low=1.1, high=1.4),
    round_cost=RoundCost(segment_s=0.01, exit_s=0.002, ahead_s=0.0, verify_s=0.007, round_s=0.001),
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return folders_with(tmp_path, byte_tokenizer())


def folders_with(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A target and a draft of it, which share a tokenizer."""
    spec = TinySpec(vocab_size=len(tokenizer))
    tiny_llama(spec).save_pretrained(tmp_path / "target")
    shutil.rmtree(tmp_path / "draft", ignore_errors=True)
    export_exit(tmp_path / "target", 4, tmp_path / "draft")
    for name, exits in (("target", (2, 4)), ("draft", (2, 4))):
        tokenizer.save_pretrained(tmp_path / name)
        write_sidecar(tmp_path / name, Sidecar(exit_layers=exits, norm="shared-final-norm", calibration=None))
    return tmp_path


@pytest.fixture
def plan_file(folders: Path) -> Callable[..., Path]:
    def write(kind: str = "separate", sampling: Sampling = GREEDY, policy: Policy | None = POLICY, **changes: object) -> Path:
        draft = "self" if kind == "self" else str(folders / "draft")
        pair = load_pair(PairRequest(target=str(folders / "target"), draft=draft, dtype="fp32", device="cpu"))
        plan = Plan(
            target=pair.target.geometry,
            target_sha256=pair.target.sha256,
            draft=pair.geometry,
            draft_name=draft,
            draft_sha256=pair.draft.sha256,
            tokenizer_sha256=pair.tokenizer_sha256,
            device=pair.device_key,
            target_weights=plain_format("fp32"),
            draft_weights=plain_format("fp32"),
            draft_num_devices=1,
            workload=Workload(batch=1, prompt_tokens=8, output_tokens=24, sampling=sampling),
            chosen=Candidate(name="plan", policy=policy, rounds=ROUNDS, speedup=SPEEDUP),
            runners_up=(),
            frontier=(),
            batch_schedules=(),
            overfitting=None,
            memory=Memory(
                target_weight_bytes=1, draft_weight_bytes=1, target_kv_bytes=1, draft_kv_bytes=1, capacity_bytes=None
            ),
            evidence=(),
            next_command="",
        )
        path = folders / "plan.json"
        provenance = make_provenance(argv=("test",))
        PLAN_FILE.write(path, replace(plan, **changes), provenance)
        return path

    return write


def run(folders: Path, plan: Path, *more: str) -> int:
    common = ["--target", str(folders / "target"), "--plan", str(plan)]
    own_draft = "self" in json.loads(plan.read_text())["body"]["draft"]["kind"]
    return main_run([*common, *([] if own_draft else ["--draft", str(folders / "draft")]), *more])
