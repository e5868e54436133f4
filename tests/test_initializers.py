"""Initial weights: the variance each initialiser promises, and where fan_in comes from."""

import math

import numpy as np
import pytest

import arraycnn as ac
from arraycnn.initializers import INITIALIZERS, VARIANCES, initial_weight

PROMISED = {
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
    "lenet1": lambda fan_in, fan_out: (2.4 / fan_in) ** 2 / 3,
}


def test_the_initialisers_are_these() -> None:
    assert set(VARIANCES) == set(PROMISED)
    assert sorted(INITIALIZERS) == sorted(
        f"{name}_{kind}" for name in PROMISED for kind in ("normal", "uniform")
    )


@pytest.mark.parametrize("init", INITIALIZERS)
@pytest.mark.parametrize(("fan_in", "fan_out"), [(400, 300), (25, 100)])
def test_mean_and_variance(init: str, fan_in: int, fan_out: int) -> None:
    weight = initial_weight(init, (fan_out, fan_in), fan_in, fan_out, seed=0)
    variance = PROMISED[init.split("_")[0]](fan_in, fan_out)
    count = weight.size
    assert weight.dtype == np.float64
    assert abs(weight.mean()) < 4 * math.sqrt(variance / count)
    # The variance of a sample variance is (kurtosis − 1)·σ⁴ / n: kurtosis 3 or 9/5.
    spread = math.sqrt((2 if init.endswith("normal") else 0.8) / count)
    assert abs(weight.var() / variance - 1) < 4 * spread


@pytest.mark.parametrize("init", [init for init in INITIALIZERS if init.endswith("uniform")])
def test_uniform_weights_fill_their_interval(init: str) -> None:
    weight = initial_weight(init, (100, 100), 100, 100, seed=0)
    limit = math.sqrt(3 * PROMISED[init.split("_")[0]](100, 100))
    assert 0.999 * limit < np.abs(weight).max() <= limit
    counts, _ = np.histogram(weight, bins=10, range=(-limit, limit))
    assert abs(counts - 1000).max() < 150


@pytest.mark.parametrize("init", [init for init in INITIALIZERS if init.endswith("normal")])
def test_normal_weights_have_normal_tails(init: str) -> None:
    weight = initial_weight(init, (200, 200), 200, 200, seed=0)
    beyond = (np.abs(weight) > 2 * weight.std()).mean()
    assert abs(beyond - 0.0455) < 0.005


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"),
    [
        (lambda **o: ac.Conv2d(8, 32, 5, **o), 200, 800),
        (lambda **o: ac.Conv2d(16, 64, 5, groups=4, **o), 100, 400),
        (lambda **o: ac.Conv1d(64, 32, 7, **o), 448, 224),
        (lambda **o: ac.Conv3d(8, 16, 3, **o), 216, 432),
        (lambda **o: ac.ConvTranspose2d(32, 8, 5, **o), 800, 200),
        (lambda **o: ac.Dense(300, 100, **o), 300, 100),
        (
            lambda **o: ac.PartialConv2d(32, 5, connections=[list(range(16))] * 32, **o),
            400,
            800,
        ),
    ],
)
@pytest.mark.parametrize("init", ["he_normal", "glorot_uniform"])
def test_layers_count_their_fans(layer, init: str, fan_in: int, fan_out: int) -> None:
    weight = layer(init=init, seed=0, dtype="float64").weight.data
    variance = PROMISED[init.split("_")[0]](fan_in, fan_out)
    assert abs(weight.var() / variance - 1) < 6 * math.sqrt(2 / weight.size)


def test_he_keeps_the_scale_through_rectified_layers() -> None:
    network = ac.Sequential(
        *(part for _ in range(10) for part in (ac.Dense(256, 256), ac.ReLU())), seed=0
    )
    x = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    ratio = float(np.square(network(x)).mean() / np.square(np.maximum(x, 0)).mean())
    assert 0.3 < ratio < 3


def test_the_same_seed_draws_the_same() -> None:
    one, two, other = (initial_weight("he_normal", (3, 4), 4, 3, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.isin(one, other).any()


@pytest.mark.parametrize("init", ["he", "xavier_normal", "", None, 3])
def test_an_unknown_name_lists_the_known(init: object) -> None:
    with pytest.raises(ValueError, match=r"init must be one of he_normal, he_uniform, .*, got"):
        initial_weight(init, (1, 1), 1, 1, seed=0)
