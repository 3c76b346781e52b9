"""Two processes on gloo: this process is rank 0, a fork of it is the worker that serves its requests."""

import contextlib
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perfmodel.core.errors import UserInputError
from perfmodel.passes.kernels import STANDARD_KERNELS
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.decoding.generate import Settings
from s2d.decoding.pair import PairRequest, load_pair
from s2d.loading.load_model import load_model
from s2d.loading.sidecar import Sidecar, write_sidecar
from s2d.parallel.parallel_decoder import load_sharded, serve_requests
from s2d.parallel.ranks import TARGET, LoadRequest, Ranks, join_ranks
from s2d.parallel.shard import Shard
from tests.s2d.conftest import POLICY
from tests.s2d.loading.test_load_model import byte_tokenizer
from tests.s2d.model.test_decoder import logits_in_pieces, some_tokens
from tests.stubs import TinySpec, loaded, tiny_llama

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
TOKENIZER = byte_tokenizer()
SPECS = {
    "llama": TinySpec(num_heads=4, num_kv_heads=2, head_dim=24),
    "llama with biases everywhere": TinySpec(num_kv_heads=2, settings=(("attention_bias", True), ("mlp_bias", True))),
    "qwen2": TinySpec(family="qwen2", hidden_size=48, num_heads=8, num_kv_heads=4, head_dim=8, tied=True),
    "qwen3": TinySpec(family="qwen3", num_heads=4, num_kv_heads=2, head_dim=24),
}
SHARED_NOISE = Sampling(rule="shared-noise", temperature=0.9, top_k=None, top_p=None, seed=4)
RATIO = Sampling(rule="ratio", temperature=0.9, top_k=None, top_p=None, seed=4)


@contextlib.contextmanager
def torchrun_environment() -> Iterator[None]:
    """The environment that torchrun sets for rank 0, with a worker process that must end cleanly and print nothing."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryFile() as output:
        for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": "0"}.items():
            patched.setenv(name, value)
        # A fork has already imported torch.
        worker = multiprocessing.get_context("fork").Process(target=_run_worker, args=(output.fileno(),), daemon=True)
        worker.start()
        yield
        worker.join(30)
        assert worker.exitcode == 0
        assert output.read() == b""


def _run_worker(output: int) -> None:
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}
    for stream in (1, 2):
        os.dup2(output, stream)
    with open(2, "w", closefd=False) as sys.stderr, join_ranks("s2d-run") as ranks:
        ranks.run_worker(serve_requests)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with torchrun_environment(), join_ranks("s2d-run") as ranks:
        yield ranks
        ranks.request(None)


@pytest.fixture(scope="module", params=SPECS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target with exits, drafts with a smaller and a larger vocabulary, and a draft with a reduced head.

    Every head has an odd number of columns: two processes cannot split it evenly.
    """
    folder, spec, num_tokens = tmp_path_factory.mktemp("models"), SPECS[request.param], len(TOKENIZER)
    sizes = {"target": num_tokens + 3, "draft": num_tokens, "padded": num_tokens + 7, "reduced": num_tokens}
    for name, vocab_size in sizes.items():
        layers, head_tokens = 5 if name == "target" else 4, tuple(range(0, 150, 2)) if name == "reduced" else None
        tiny_llama(replace(spec, num_layers=layers, vocab_size=vocab_size | 1)).save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
        sidecar = Sidecar(exit_layers=(2, 4), norm="shared-final-norm", calibration=None, head_token_ids=head_tokens)
        write_sidecar(folder / name, sidecar)
    return folder


def test_two_processes_generate_the_text_of_a_single_one(ranks: Ranks, models: Path) -> None:
    exits_taken = torch.zeros(2)
    for draft, num_devices in (("draft", 1), ("draft", 2), ("padded", 2), ("reduced", 2), ("self", 2)):
        name, shares = draft if draft == "self" else str(models / draft), draft != "self" and num_devices == 2
        single, sharded = (
            load_pair(
                PairRequest(target=str(models / "target"), draft=name, dtype="fp32", device="cpu", shares_draft=shares), among
            )
            for among in (None, ranks)
        )
        assert sharded.device_key == replace(single.device_key, num_devices=2)
        assert sharded.draft_device_key == replace(single.device_key, num_devices=num_devices)
        assert sharded.draft.geometry == single.draft.geometry
        assert sharded.target.geometry == single.target.geometry
        sessions = single.session(40), sharded.session(40)
        for sampling, threshold in ((GREEDY, 0.3), (SHARED_NOISE, 0.99), (RATIO, 0.7), (GREEDY, None)):
            policy = None if threshold is None else replace(POLICY, thresholds=(threshold,))
            settings = Settings(policy=policy, sampling=sampling, max_new_tokens=16, eos_token_id=None)
            expected, actual = (session.generate(some_tokens(20), settings) for session in sessions)
            assert actual.tokens == expected.tokens
            assert actual.blocks == expected.blocks
            assert actual.rounds == expected.rounds
            exits_taken += torch.tensor(actual.rounds.exits_taken)
    assert (exits_taken > 9).all()


def test_logits_of_two_processes_are_those_of_a_single_one_in_any_split_of_the_text(ranks: Ranks, models: Path) -> None:
    request = LoadRequest(
        model_id=TARGET, folder=str(models / "target"), dtype="fp32", device="cpu", kernels=STANDARD_KERNELS.label
    )
    single, sharded = load_model(models / "target", "fp32"), load_sharded(request, ranks)
    tokens = some_tokens(110)
    expected, logits = (logits_in_pieces(model, (70, 1, 5, 3, 1, 30), tokens, (2, 5)) for model in (single, sharded))
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)
    half = load_sharded(replace(request, dtype="bf16"), ranks)
    logits = logits_in_pieces(half, (70, 1, 5, 34), tokens, (2, 5))
    assert float((logits.float() - expected).abs().max() / expected.abs().max()) < 0.03
    with pytest.raises(AssertionError, match="rows that a pass left in a cache"):
        half.decoder.exit_logits(half.decoder.embed(tokens))


def test_a_draft_that_cannot_be_shared_is_refused_before_other_ranks_load_it(ranks: Ranks, folders: Path) -> None:
    tiny_llama(TinySpec(num_kv_heads=2, vocab_size=len(TOKENIZER))).save_pretrained(folders / "target")
    request = PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu")
    message = r"2 processes cannot share evenly: expected 1. .* or profile without --share-draft and plan again"
    with pytest.raises(UserInputError, match=message):
        load_pair(replace(request, shares_draft=True), ranks)
    assert load_pair(request, ranks).draft_device_key.num_devices == 1


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_shards_contain_every_weight_exactly_once(num_ranks: int) -> None:
    model = loaded(tiny_llama(SPECS["qwen2"]))
    whole, geometry = model.decoder.weights.layers[0], model.geometry
    shards = [Shard(rank=rank, num_ranks=num_ranks).layer(whole, geometry) for rank in range(num_ranks)]
    for name in ("qkv", "qkv_bias", "gate_up"):
        columns = torch.cat([getattr(shard, name).reshape(-1, getattr(shard, name).shape[-1]) for shard in shards], 1)
        expected = getattr(whole, name).reshape(-1, getattr(whole, name).shape[-1])
        assert sorted(columns.t().tolist()) == sorted(expected.t().tolist())
    for name in ("attn_out", "down"):
        rows = torch.cat([getattr(shard, name) for shard in shards])
        torch.testing.assert_close(rows[:, : geometry.hidden_size], getattr(whole, name), atol=0, rtol=0)
        assert not rows[:, geometry.hidden_size :].any()


@pytest.mark.parametrize(("num_columns", "num_ranks"), [(24, 2), (23, 2), (23, 4), (5, 4), (1, 3)])
def test_shards_of_a_head_are_its_columns_in_order_followed_by_zeros(num_columns: int, num_ranks: int) -> None:
    whole = torch.arange(1.0, 1 + 8 * num_columns).view(8, num_columns)
    shards = [Shard(rank=rank, num_ranks=num_ranks).head(whole) for rank in range(num_ranks)]
    assert len({shard.shape for shard in shards}) == 1
    together = torch.cat(shards, 1)
    assert torch.equal(together[:, :num_columns], whole)
    assert not together[:, num_columns:].any()


@pytest.mark.parametrize(("num_kv_heads", "intermediate_size"), [(1, 48), (2, 47)])
def test_a_model_that_cannot_be_split_evenly_is_refused(num_kv_heads: int, intermediate_size: int) -> None:
    spec = TinySpec(num_kv_heads=num_kv_heads, intermediate_size=intermediate_size)
    with pytest.raises(UserInputError, match=r"which 2 processes cannot share evenly: expected 1[.] Take fewer[.]"):
        Shard(rank=0, num_ranks=2).check(loaded(tiny_llama(spec)).geometry, fix="Take fewer")
