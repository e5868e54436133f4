"""Initial weights: zero-mean, with the variance that keeps a signal's scale through the layers.

| name   | variance               | for                    | source                    |
|--------|------------------------|------------------------|---------------------------|
| he     | 2 / fan_in             | ReLU and its relatives | He et al., 2015           |
| glorot | 2 / (fan_in + fan_out) | tanh, sigmoid          | Glorot & Bengio, 2010     |
| lecun  | 1 / fan_in             | SELU, scaled tanh      | LeCun et al., 1998        |
| lenet1 | (2.4 / fan_in)² / 3    | `models.lenet1`        | LeCun et al., 1989        |

each as ``"<name>_normal"`` or ``"<name>_uniform"``. fan_in counts the inputs that one output sums.
"""

import math

import numpy as np

from arraycnn.arrays import Array, Shape

VARIANCES = {
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
    "lenet1": lambda fan_in, fan_out: (2.4 / fan_in) ** 2 / 3,  # uniform: between ±2.4 / fan_in
}
INITIALIZERS = tuple(f"{name}_{kind}" for name in VARIANCES for kind in ("normal", "uniform"))


def initial_weight(init: str, shape: Shape, fan_in: int, fan_out: int, seed: int) -> Array:
    """Weights of ``shape`` in float64 on the host, drawn from ``default_rng(seed)``."""
    check_init(init)
    name, kind = init.split("_")
    deviation = math.sqrt(VARIANCES[name](fan_in, fan_out))
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(0, deviation, shape)
    limit = math.sqrt(3) * deviation  # a uniform variable on [−a, a] has variance a² / 3
    return rng.uniform(-limit, limit, shape)


def check_init(init: str) -> None:
    """Refuse an unknown initialiser."""
    if init not in INITIALIZERS:
        raise ValueError(f"init must be one of {', '.join(INITIALIZERS)}, got {init!r}")
