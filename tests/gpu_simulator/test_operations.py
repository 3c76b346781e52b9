"""CUDA-only operations equal plain formulas, and read their tensors again at every replay."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from tests.gpu_simulator import Simulator, simulated_gpu

varlen = pytest.importorskip("torch.nn.attention.varlen")

HEADS, KV_HEADS, HEAD_DIM, SLOTS = 4, 2, 16, 20


@pytest.fixture(autouse=True)
def simulator() -> Iterator[Simulator]:
    with simulated_gpu() as active, torch.inference_mode():
        torch.manual_seed(0)
        yield active


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape).to(dtype).to("cuda")


def lengths(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def expected(query: Tensor, key: Tensor, value: Tensor, used: int, window: int | None = None) -> Tensor:
    """Attention of T queries at the end of the used keys, row by row: [T, N, H]."""
    q, k, v = (x.cpu().double() for x in (query, key[:used], value[:used]))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    rows = []
    for index, row in enumerate(q):
        end = used - len(q) + index + 1
        begin = 0 if window is None else max(0, end - 1 - window)
        weights = (torch.einsum("nh,snh->ns", row, k[begin:end]) / HEAD_DIM**0.5).softmax(-1)
        rows.append(torch.einsum("ns,snh->nh", weights, v[begin:end]))
    return torch.stack(rows)


def attend(out: Tensor, query: Tensor, key: Tensor, value: Tensor, used: Tensor, **options: object) -> None:
    cu_q, cu_k = lengths(0, len(query)), lengths(0, len(key))
    causal = {"window_size": (-1, 0), "enable_gqa": True, "seqused_k": used}
    varlen.varlen_attn_out(out, query, key, value, cu_q, cu_k, len(query), len(key), **(causal | options))


@pytest.mark.parametrize("rows", [1, 3])
def test_attention_reads_its_length_on_the_device_at_replay_and_no_keys_beyond_it(rows: int) -> None:
    query, key, value = random(rows, HEADS, HEAD_DIM), random(SLOTS, KV_HEADS, HEAD_DIM), random(SLOTS, KV_HEADS, HEAD_DIM)
    used, out = lengths(SLOTS), torch.zeros_like(query)
    cu_q, cu_k = lengths(0, rows), lengths(0, SLOTS)
    options = {"window_size": (-1, 0), "enable_gqa": True, "seqused_k": used}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        varlen.varlen_attn_out(out, query, key, value, cu_q, cu_k, rows, SLOTS, **options)
    for length in (rows, 7, 12):
        used.fill_(length)
        kept = key[length:].clone(), value[length:].clone()
        key[length:], value[length:] = torch.nan, torch.nan
        graph.replay()
        torch.testing.assert_close(out.cpu().double(), expected(query, key, value, length), atol=0.02, rtol=0.02)
        key[length:], value[length:] = kept


def test_attention_of_packed_sequences_with_a_window_and_a_softmax_scale(simulator: Simulator) -> None:
    query, key, value = random(5, HEADS, HEAD_DIM), random(SLOTS, KV_HEADS, HEAD_DIM), random(SLOTS, KV_HEADS, HEAD_DIM)
    out, options = torch.zeros_like(query), {"enable_gqa": True, "window_size": (4, 0), "seqused_k": lengths(6, 9)}
    varlen.varlen_attn_out(out, query, key, value, lengths(0, 2, 5), lengths(0, 8, 20), 3, 12, **options)
    first = expected(query[:2], key, value, 6, window=4)
    second = expected(query[2:], key[8:], value[8:], 9, window=4)
    torch.testing.assert_close(out.cpu().double(), torch.cat((first, second)), atol=0.02, rtol=0.02)
    attend(out, query, key, value, lengths(9), scale=0.0)
    torch.testing.assert_close(
        out[-1, :2].cpu(), value[:9, 0].float().mean(0).to(out).cpu().expand(2, -1), atol=0.02, rtol=0.02
    )


def test_attention_without_an_out_tensor_returns_the_same() -> None:
    query, key = random(3, HEADS, HEAD_DIM), random(SLOTS, HEADS, HEAD_DIM)
    cu_q, cu_k, out = lengths(0, 3), lengths(0, SLOTS), torch.zeros_like(query)
    arguments = (query, key, key, cu_q, cu_k, 3, SLOTS)
    varlen.varlen_attn_out(out, *arguments, window_size=(-1, 0))
    assert torch.equal(varlen.varlen_attn(*arguments, window_size=(-1, 0)), out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": torch.float32}, "only support fp16 and bf16"),
        ({"head_dim": 12}, "multiple of 8"),
        ({"lengths": torch.int64}, "must have dtype int32"),
        ({"max_q": 2}, "at most max_q = 2"),
        ({"used": SLOTS + 1}, "expected 0 to 20"),
    ],
)
def test_attention_has_the_limits_of_the_kernel(changes: dict[str, object], message: str) -> None:
    case = {"dtype": torch.bfloat16, "head_dim": HEAD_DIM, "lengths": torch.int32, "max_q": 3, "used": SLOTS} | changes
    query, key = (random(rows, HEADS, case["head_dim"], dtype=case["dtype"]) for rows in (3, SLOTS))
    cu_q, cu_k, used = (torch.tensor(x, device="cuda", dtype=case["lengths"]) for x in ([0, 3], [0, SLOTS], [case["used"]]))
    with pytest.raises(RuntimeError, match=message):
        varlen.varlen_attn_out(torch.zeros_like(query), query, key, key, cu_q, cu_k, case["max_q"], SLOTS, seqused_k=used)


def test_products_with_a_wider_result_round_once() -> None:
    left, right = random(3, 64), random(64, 5)
    exact = left.cpu().double() @ right.cpu().double()
    product = torch.mm(left, right, out_dtype=torch.float32)
    assert (product.dtype, product.is_cuda) == (torch.float32, True)
    torch.testing.assert_close(product.cpu().double(), exact, atol=1e-4, rtol=1e-5)
    out = torch.zeros(3, 5, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.mm(left, right, out_dtype=torch.float32, out=out)
    left.mul_(2)
    graph.replay()
    torch.testing.assert_close(out.cpu().double(), 2 * exact, atol=1e-4, rtol=1e-5)
    with pytest.raises(RuntimeError, match="expected the same type"):
        torch.mm(left, right, out_dtype=torch.float16)
    with pytest.raises(NotImplementedError):
        torch.mm(left.cpu(), right.cpu(), out_dtype=torch.float32)  # the CPU has no such product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "keys"), [(5, 5), (2, 7)])
def test_fused_attention_supports_causal_masks_and_grouped_heads(rows: int, keys: int, dtype: torch.dtype) -> None:
    query, key, value = (
        random(n, heads, HEAD_DIM, dtype=dtype) for n, heads in ((rows, HEADS), (keys, KV_HEADS), (keys, KV_HEADS))
    )
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    lower_right = scaled_dot_product_attention(q, k, v, causal_lower_right(rows, keys), enable_gqa=True)
    assert lower_right.is_cuda
    torch.testing.assert_close(
        lower_right[0].transpose(0, 1).cpu().double(), expected(query, key, value, keys), atol=0.02, rtol=0.02
    )
    if rows == keys:
        torch.testing.assert_close(scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), lower_right)


def test_a_custom_operation_is_recorded_as_one_operation(simulator: Simulator) -> None:
    @torch.library.custom_op("simulated::double_into", mutates_args={"out"})
    def double_into(x: Tensor, out: Tensor) -> None:
        out.copy_(x + x)

    x, out = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        double_into(x, out)
    x.fill_(4)
    graph.replay()
    assert out.tolist() == [8.0] * 3
    assert simulator.counters["graph_nodes_launched"] == 1
