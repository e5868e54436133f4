"""Training steps on a GPU: how many a second, and how much memory, beside PyTorch's."""

import time
from collections.abc import Callable
from typing import Any

from gpu_timing import torch_milliseconds
from workloads import WORKLOADS, Workload, torch_network

TARGETS = ("lenet5-64", "lenet5-256", "two-layer-cnn-128", "resnet20-128")


def run_steps(backend: Any, quick: bool) -> dict[str, Any]:
    """Steps per second of a whole update, batch already on the device, nothing read back."""
    rows = []
    for workload in chosen(quick):
        ours = {
            "eager": rate(backend, our_step(workload, False), quick),
            "graph": rate(backend, our_step(workload, True), quick),
        }
        theirs = torch_rates(workload, quick)
        fastest = max(ours.values())
        row = {
            "network": workload.name,
            **{f"{name}/s": value for name, value in ours.items()},
            **{f"torch {name}/s": value for name, value in theirs.items()},
        }
        eager = theirs["eager"]
        row["of torch eager"] = None if eager is None else fastest / eager
        rows.append(row)
    return {"rows": rows}


def run_memory(backend: Any, quick: bool) -> dict[str, Any]:
    """Peak bytes of the memory pool during five steps."""
    rows = []
    pool = backend.xp.get_default_memory_pool()
    for workload in chosen(quick):
        pool.free_all_blocks()
        before = pool.total_bytes()
        step = our_step(workload, False)
        for _ in range(5):
            step()
        backend.synchronize()
        rows.append(
            {
                "network": workload.name,
                "peak MB": (pool.total_bytes() - before) / 1e6,
                "torch peak MB": torch_peak(workload),
            }
        )
    return {"rows": rows}


def chosen(quick: bool) -> list[Workload]:
    if quick:
        return [Workload("tiny", "lenet5", 4, (1, 28, 28))]
    return [workload for workload in WORKLOADS if workload.name in TARGETS]


def our_step(workload: Workload, graph: bool) -> Callable[[], Any]:
    import arraycnn as ac
    from arraycnn import functional as F
    from arraycnn.training.captured import CapturedStep

    build = {"lenet5": ac.models.lenet5, "two_layer_cnn": ac.models.two_layer_cnn,
             "resnet": ac.models.resnet}[workload.model]  # fmt: skip
    model = build(seed=0, backend="cuda")
    optimizer = ac.SGD(model.parameters(), lr=0.01, momentum=0.9)
    backend = ac.get_backend("cuda")
    images, labels = map(backend.asarray, workload.data())
    captured = CapturedStep(model, F.softmax_cross_entropy) if graph else None

    def step() -> Any:
        if captured is not None:
            loss, _ = captured(images, labels)
        else:
            logits, backward = model.forward(images)
            # What F.softmax_cross_entropy calls once it has looked at the labels.
            loss, grad = backend.softmax_cross_entropy(logits, labels, None, 0.0, None, "mean")
            backward(grad, input_grad=False)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def rate(backend: Any, step: Callable[[], Any], quick: bool) -> float:
    """Steps per second by the host's clock: launching is part of it."""
    for _ in range(5):
        step()
    backend.synchronize()
    count = 5 if quick else 300
    start = time.perf_counter()
    for _ in range(count):
        step()
    backend.synchronize()
    return count / (time.perf_counter() - start)


def torch_rates(workload: Workload, quick: bool) -> dict[str, float | None]:
    from gpu_check import cuda_torch

    torch = cuda_torch()
    if torch is None:
        return {"eager": None, "compiled": None, "graph": None}
    torch.backends.cudnn.benchmark = True
    return {
        "eager": torch_rate(torch, torch_step(torch, workload, compiled=False), quick),
        "compiled": torch_rate(torch, torch_step(torch, workload, compiled=True), quick),
        "graph": torch_rate(torch, torch_graph(torch, workload), quick),
    }


def torch_rate(torch: Any, step: Callable[[], Any], quick: bool) -> float:
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    count = 5 if quick else 300
    start = time.perf_counter()
    for _ in range(count):
        step()
    torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def torch_step(torch: Any, workload: Workload, compiled: bool) -> Callable[[], Any]:
    network = torch_network(workload).cuda()
    images, labels = (torch.from_numpy(array).cuda() for array in workload.data())
    run = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    loss_function = torch.nn.CrossEntropyLoss()

    def step() -> Any:
        optimizer.zero_grad()
        loss = loss_function(run(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def torch_graph(torch: Any, workload: Workload) -> Callable[[], Any]:
    """The step captured as PyTorch's documentation does it, the update included."""
    step = torch_step(torch, workload, compiled=False)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def torch_peak(workload: Workload) -> float | None:
    from gpu_check import cuda_torch

    torch = cuda_torch()
    if torch is None:
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = torch_step(torch, workload, compiled=False)
    torch_milliseconds(torch, step, 5)
    return torch.cuda.max_memory_allocated() / 1e6
