"""The table of a network: its numbers against those counted by hand."""

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import models
from arraycnn.backends.cpu import CpuBackend


def test_lenet5_by_hand() -> None:
    table = ac.summary(models.lenet5(), (2, 1, 28, 28))
    assert table.input_shape == (2, 1, 28, 28)
    assert [row.name for row in table.rows] == [str(index) for index in range(12)]
    assert [row.output_shape for row in table.rows] == [
        (2, 6, 28, 28), (2, 6, 28, 28), (2, 6, 14, 14), (2, 16, 10, 10), (2, 16, 10, 10),
        (2, 16, 5, 5), (2, 400), (2, 120), (2, 120), (2, 84), (2, 84), (2, 10),
    ]  # fmt: skip
    assert [row.parameters for row in table.rows if row.parameters] == [
        156, 2_416, 48_120, 10_164, 850,
    ]  # fmt: skip
    assert table.parameters == 61_706
    assert [row.multiply_adds for row in table.rows if row.multiply_adds] == [
        2 * 6 * 28 * 28 * 25,
        2 * 16 * 10 * 10 * 6 * 25,
        2 * 400 * 120,
        2 * 120 * 84,
        2 * 84 * 10,
    ]
    assert table.multiply_adds == sum(row.multiply_adds for row in table.rows)
    outputs = sum(int(np.prod(row.output_shape)) for row in table.rows)
    assert table.activation_bytes == 4 * outputs


def test_resnet20_by_hand() -> None:
    stages = [(16, 16, 32), (16, 32, 16), (32, 64, 8)]
    first = 16 * 27 * 32**2
    blocks = sum((below * maps + 5 * maps * maps) * 9 * size**2 for below, maps, size in stages)
    shortcuts = 16 * 32 * 16**2 + 32 * 64 * 8**2
    table = ac.summary(models.resnet(20), (1, 3, 32, 32))
    assert table.multiply_adds == first + blocks + shortcuts + 640


@pytest.mark.parametrize(
    ("layer", "shape", "multiply_adds"),
    [
        (lambda: ac.Conv1d(2, 4, 3, groups=2), (5, 2, 9), 5 * 4 * 7 * 3),
        (lambda: ac.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), 3 * 8 * 2 * 8),
        (lambda: ac.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 4, 4), 2 * 16 * 3 * 4),
        (lambda: ac.Dense(7, 3), (5, 7), 5 * 21),
        (lambda: ac.MaxPool2d(2), (1, 2, 4, 4), 0),
        (lambda: ac.BatchNorm(2), (1, 2, 4, 4), 0),
        (lambda: ac.PartialConv2d(3, 2, connections=[[0, 1], [1, 2]]), (1, 3, 3, 3), 2 * 4 * 8),
    ],
)
def test_multiply_adds(layer, shape: tuple[int, ...], multiply_adds: int) -> None:
    table = ac.summary(layer(), shape)
    assert table.multiply_adds == multiply_adds
    assert [row.name for row in table.rows] == [""]


def test_a_container_costs_what_its_layers_cost() -> None:
    network = models.resnet(8)
    shape = (3, 3, 16, 16)
    assert network.multiply_adds(shape) == ac.summary(network, shape).multiply_adds


def test_names_are_those_of_the_state_dict() -> None:
    network = models.resnet(8)
    table = ac.summary(network, (1, 3, 16, 16))
    sizes: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        layer = name.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + parameter.size
    assert {row.name: row.parameters for row in table.rows if row.parameters} == sizes
    assert {"5.body.0", "5.shortcut.0"} <= {row.name for row in table.rows}


def test_shared_layers_are_counted_once() -> None:
    shared = ac.Dense(4, 4)
    table = ac.summary(ac.Sequential(shared, ac.ReLU(), shared), (1, 4))
    assert [row.parameters for row in table.rows] == [20, 0, 20]
    assert table.parameters == 20
    assert table.multiply_adds == 32


def test_bytes_follow_the_dtype() -> None:
    network = ac.Sequential(ac.Conv2d(1, 2, 3), ac.ReLU())
    single = ac.summary(network, (4, 1, 6, 6))
    double = ac.summary(network.to(dtype="float64"), (4, 1, 6, 6))
    assert single.activation_bytes == 2 * 4 * 2 * 4 * 4 * 4
    assert double.activation_bytes == 2 * single.activation_bytes


def test_workspace_is_that_of_the_largest_column_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CpuBackend()  # compiled kernels need no columns
    layers = ac.Conv2d(3, 4, 3), ac.Conv2d(4, 2, 1), ac.Conv2d(2, 2, 2)
    network = ac.Sequential(*layers, backend=backend)
    table = ac.summary(network, (2, 3, 6, 6))
    columns = [4 * 27 * 16 * 2, 0, 4 * 8 * 9 * 2]
    assert [row.workspace_bytes for row in table.rows] == columns
    assert table.workspace_bytes == max(columns)
    monkeypatch.setattr(backend, "workspace_limit", 4 * 27 * 5)
    assert ac.summary(network, (2, 3, 6, 6)).workspace_bytes <= 4 * 27 * 5


def test_prints_as_a_table() -> None:
    text = str(ac.summary(models.lenet5(), (256, 1, 28, 28)))
    lines = text.splitlines()
    assert lines[0] == "input (256, 1, 28, 28)"
    assert len(lines) == 1 + 1 + 1 + 12 + 1 + 1
    assert "Conv2d(1, 6, 5, padding=2)" in lines[3]
    assert "(256, 6, 28, 28)" in lines[3]
    assert "61,706" in lines[-1]
    assert "MiB" in lines[-1]
    assert all(line == line.rstrip() for line in lines)
    starts = {line.index("(256") for line in lines[3:-2]}
    assert len(starts) == 1


def test_does_not_run_the_network() -> None:
    network = ac.Sequential(ac.BatchNorm(3), ac.Dropout(seed=0))
    ac.summary(network, (10**6, 3, 1000, 1000))
    assert int(network[0].num_batches_tracked.data) == 0
    assert network.random_state()["1"]["counter"] == 0


@pytest.mark.parametrize(
    ("model", "shape", "error", "message"),
    [
        (5, (1, 2), TypeError, "model must be a layer, got 5"),
        (ac.ReLU, (1, 2), TypeError, "model must be a layer"),
        (ac.ReLU(), 28, TypeError, r"input_shape must be \(N, C, \*S\).* got 28"),
        (ac.ReLU(), "ab", TypeError, "input_shape must be"),
        (ac.ReLU(), (1, 2.5), TypeError, "input_shape must be an int, got 2.5"),
        (ac.ReLU(), (1, -2), ValueError, "input_shape must be at least 0, got -2"),
        (ac.Sequential(ac.Flatten(), ac.Dense(5, 2)), (1, 2, 2), ValueError, r"\(N, 5\).*\(1, 4\)"),
    ],
)
def test_mistakes(model, shape, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ac.summary(model, shape)
