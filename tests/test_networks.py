"""Whole networks against PyTorch: its state dict loads, and everything that follows agrees."""

from pathlib import Path

import numpy as np
import pytest
from numerics import assert_close, put

import arraycnn as ac
from arraycnn.backends import Backend

NETWORKS = {
    "images": lambda: ac.Sequential(
        ac.Conv2d(2, 4, 3, padding=1),
        ac.BatchNorm(4),
        ac.ReLU(),
        ac.MaxPool2d(2),
        ac.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        ac.BatchNorm(6, eps=1e-3, momentum=0.3),
        ac.ReLU(),
        ac.ConvTranspose2d(6, 3, 3, stride=2, padding=1, output_padding=1),
        ac.LeakyReLU(),
        ac.AvgPool2d(2),
        ac.Flatten(),
        ac.Dense(12, 5),
    ),
    "signals": lambda: ac.Sequential(
        ac.Conv1d(2, 4, 3, dilation=2, padding=2),
        ac.BatchNorm(4),
        ac.ELU(),
        ac.MaxPool1d(3, stride=2, padding=1),
        ac.ConvTranspose1d(4, 3, 2, stride=2),
        ac.Tanh(),
        ac.Conv1d(3, 4, 3),
        ac.SELU(),
        ac.AvgPool1d(2),
        ac.Flatten(),
        ac.Dense(24, 6),
        ac.BatchNorm(6),
        ac.GELU(),
        ac.Dense(6, 3, bias=False),
        ac.Softplus(),
    ),
    "volumes": lambda: ac.Sequential(
        ac.Conv3d(1, 3, 3, padding=(1, 0, 1)),
        ac.BatchNorm(3),
        ac.Sigmoid(),
        ac.MaxPool3d(2, ceil_mode=True),
        ac.ConvTranspose3d(3, 2, 2, stride=2),
        ac.GELU("tanh"),
        ac.AvgPool3d(2),
        ac.Flatten(),
        ac.Dense(36, 4),
        ac.Softmax(),
    ),
    "residual": lambda: ac.Sequential(
        ac.Conv2d(3, 4, 3, padding=1, bias=False),
        ac.BatchNorm(4),
        ac.ReLU(),
        ac.Residual(ac.Sequential(ac.Conv2d(4, 4, 3, padding=1), ac.ReLU(), ac.Conv2d(4, 4, 1))),
        ac.ReLU(),
        ac.Residual(
            ac.Sequential(ac.Conv2d(4, 6, 3, stride=2, padding=1), ac.BatchNorm(6)),
            ac.Sequential(ac.Conv2d(4, 6, 1, stride=2, bias=False), ac.BatchNorm(6)),
        ),
        ac.ReLU(),
        ac.AdaptiveAvgPool2d(3),
        ac.GlobalAvgPool(),
        ac.Dense(6, 3),
    ),
}
TOLERANCES = {"float64": 1e-11, "float32": 1e-4}
STORED = np.load(Path(__file__).parent / "oracle" / "networks.npz")

every_network = pytest.mark.parametrize("name", NETWORKS)
every_precision = pytest.mark.parametrize("dtype", TOLERANCES)


def stored(name: str, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of one network below a prefix, by key."""
    start = f"{name}/{prefix}/"
    return {key.removeprefix(start): STORED[key] for key in STORED.files if key.startswith(start)}


def load(name: str, backend: Backend, dtype: str) -> ac.Sequential:
    network = NETWORKS[name]().to(backend, dtype=dtype)
    network.load_state_dict(stored(name, "state"))
    return network


@every_network
def test_keys_and_shapes_are_those_of_torch(name: str) -> None:
    state = NETWORKS[name]().state_dict()
    assert list(state) == STORED[f"{name}/keys"].tolist()
    shapes = {key: array.shape for key, array in stored(name, "state").items()}
    assert {key: array.shape for key, array in state.items()} == shapes


@every_network
@every_precision
def test_inference(name: str, dtype: str, backend: Backend) -> None:
    network = load(name, backend, dtype)
    y = network(put(backend, STORED[f"{name}/x"].astype(dtype)))
    assert_close(backend.to_numpy(y), STORED[f"{name}/inference"], TOLERANCES[dtype])
    for key, array in stored(name, "state").items():
        found = backend.to_numpy(network.state_dict()[key])
        np.testing.assert_array_equal(found, array.astype(found.dtype), err_msg=key)


@every_network
@every_precision
def test_training_step(name: str, dtype: str, backend: Backend) -> None:
    network, tolerance = load(name, backend, dtype), TOLERANCES[dtype]
    y, backward = network.forward(put(backend, STORED[f"{name}/x"].astype(dtype)))
    assert_close(backend.to_numpy(y), STORED[f"{name}/training"], tolerance)
    grad_x = backward(put(backend, STORED[f"{name}/grad_output"].astype(dtype)))
    assert_close(backend.to_numpy(grad_x), STORED[f"{name}/grad_x"], tolerance, "grad_x")
    expected = stored(name, "grad")
    parameters = dict(network.named_parameters())
    assert list(parameters) == list(expected)
    for key, parameter in parameters.items():
        assert_close(backend.to_numpy(parameter.grad), expected[key], tolerance, key)
    for key, array in stored(name, "after").items():
        assert_close(backend.to_numpy(network.state_dict()[key]), array, tolerance, key)
