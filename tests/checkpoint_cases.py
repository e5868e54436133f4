"""A checkpoint for the tests of damaged and hostile files, and every way to load one."""

import numpy as np

import arraycnn as ac
from arraycnn import functional as F


def make_model():
    return ac.Sequential(
        ac.Conv2d(1, 4, 3), ac.BatchNorm(4), ac.ReLU(), ac.Dropout(0.2), ac.Flatten(),
        ac.Dense(144, 20), ac.ReLU(), ac.Dense(20, 3), seed=5,
    )  # fmt: skip


def make_optimizer(model):
    return ac.Adam(model.parameters(), 0.01)


def valid_bytes(path):
    """A checkpoint of a network after a step of training."""
    model = make_model()
    optimizer = make_optimizer(model)
    rng = np.random.default_rng(0)
    logits, backward = model.forward(rng.standard_normal((8, 1, 8, 8)).astype(np.float32))
    backward(F.softmax_cross_entropy(logits, rng.integers(0, 3, 8))[1])
    optimizer.step()
    ac.save_checkpoint(path, model, optimizer, epoch=2, step=9, extra={"note": "valid"})
    return path.read_bytes()
