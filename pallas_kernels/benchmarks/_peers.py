"""Time FlashInfer's paged decode, and the paper's recipe on it, on one GPU; prints JSON. Needs torch and flashinfer.

The recipe: einsum of queries and page means, mean over the group, `torch.topk`, FlashInfer over the chosen pages, all
replayed as one CUDA graph. FlashInfer sees each (sequence, KV head) as a sequence of one KV head, as in the paper's
benchmark. It runs in a process of its own: torch and JAX would each take the GPU's memory.
"""

import importlib
import json
import sys
from typing import Any

NUM_RUNS, NUM_WARM = 30, 5
WORKSPACE_BYTES = 2**28


def median_s(torch: Any, step: Any) -> float:
    """Return the seconds of one call, by events on the device."""
    events = []
    for run in range(NUM_WARM + NUM_RUNS):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        stop.record()
        if run >= NUM_WARM:
            events.append((start, stop))
    torch.cuda.synchronize()
    return 1e-3 * sorted(start.elapsed_time(stop) for start, stop in events)[NUM_RUNS // 2]


def decoder(torch: Any, rows: int, group: int, head_dim: int, page_len: int, num_pages: int, tensor_cores: bool) -> Any:
    """Return a planned wrapper and the buffer of the page ids that it reads."""
    flashinfer: Any = importlib.import_module("flashinfer")
    ids = torch.zeros(rows * num_pages, dtype=torch.int32, device="cuda")
    starts = num_pages * torch.arange(rows + 1, dtype=torch.int32, device="cuda")
    full = torch.full((rows,), page_len, dtype=torch.int32, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda"),
        use_cuda_graph=True,
        use_tensor_cores=tensor_cores,
        paged_kv_indptr_buffer=starts.clone(),
        paged_kv_indices_buffer=ids,
        paged_kv_last_page_len_buffer=full.clone(),
    )
    types = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
    wrapper.plan(starts, ids.clone(), full, group, 1, head_dim, page_len, **types)
    return wrapper, ids


def measure(shape: dict[str, int]) -> dict[str, float]:
    """Return seconds by name."""
    torch: Any = importlib.import_module("torch")
    rows, page_len = shape["batch_size"] * shape["num_kv_heads"], shape["page_len"]
    max_pages, num_blocks = shape["context_len"] // page_len, shape["budget_len"] // page_len
    random = {"dtype": torch.bfloat16, "device": "cuda"}
    pool = torch.randn(rows * max_pages, 2, page_len, 1, shape["head_dim"], **random)
    q = torch.randn(rows, shape["group"], shape["head_dim"], **random)
    means = torch.randn(rows, max_pages, shape["head_dim"], **random)
    first = (max_pages * torch.arange(rows, device="cuda"))[:, None]
    seconds = {}
    for name, tensor_cores in (("tensor cores", True), ("CUDA cores", False)):
        sizes = (torch, rows, shape["group"], shape["head_dim"], page_len)
        dense, dense_ids = decoder(*sizes, max_pages, tensor_cores)
        order = torch.argsort(torch.rand(rows, max_pages, device="cuda"), dim=1)
        dense_ids.copy_((order + first).flatten())
        seconds[f"FlashInfer dense, {name}"] = median_s(torch, lambda dense=dense: dense.run(q, pool))
        sparse, ids = decoder(*sizes, num_blocks, tensor_cores)

        def recipe(sparse: Any = sparse, ids: Any = ids) -> None:
            scores = torch.einsum("rgh,rmh->rgm", q, means).mean(dim=1)
            ids.copy_((torch.topk(scores, num_blocks, dim=1).indices + first).flatten())
            sparse.run(q, pool)

        recipe()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recipe()
        seconds[f"paper's recipe, {name}"] = median_s(torch, graph.replay)
    return seconds


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
