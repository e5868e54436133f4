"""Changed bytes in the structure of a checkpoint never crash, hang or cost memory."""

import checkpoint_mutants
import numpy as np
import pytest

import arraycnn as ac


@pytest.mark.parametrize("kind", checkpoint_mutants.KINDS)
def test_mutants_are_refused_or_read(kind, tmp_path):
    outcomes, slowest = checkpoint_mutants.run(kind, tmp_path, range(340))
    assert set(outcomes) == {"read", "refused"}, outcomes
    assert outcomes["refused"] > outcomes["read"] > 0
    assert slowest < checkpoint_mutants.SECONDS


def test_the_first_round_s_file_loads():
    """A file that arraycnn 0.1 wrote, with its logits."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 1, 8, 8)).astype(np.float32)
    info = ac.read_checkpoint_info(checkpoint_mutants.OLD)
    assert (info.epoch, info.step) == (3, 12)
    logits = ac.load_model(checkpoint_mutants.OLD)(images)
    np.testing.assert_allclose(logits, info.extra["logits"], rtol=1e-5, atol=1e-6)
