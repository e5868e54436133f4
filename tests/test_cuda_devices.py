"""Two devices, foreign tensors, launches that are too large: a result or an explanation."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import arraycnn as ac
from arraycnn import functional as F
from arraycnn.backends import Backend, available_backends, get_backend
from arraycnn.backends.reference.updates import adagrad

pytestmark = pytest.mark.skipif(
    "cuda" not in available_backends(), reason="needs a CUDA device, or the emulator"
)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Backend, Backend]]:
    """Two devices, the first one current."""
    monkeypatch.setenv("EMULATOR_DEVICES", "2")
    cupy = get_backend("cuda:0").xp
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    second = get_backend("cuda:1")
    yield get_backend("cuda:0"), second
    get_backend("cuda:0")


def ones(backend: Backend, *shape: int) -> Any:
    with backend.device:
        return backend.asarray(np.ones(shape, np.float32))


def test_naming_a_device_makes_it_current(two: tuple[Backend, Backend]) -> None:
    first, second = two
    assert get_backend("cuda:1") is second
    assert get_backend("cuda") is second
    assert get_backend("cuda:0") is get_backend("cuda") is first


def test_arrays_of_two_devices_are_refused_by_name(two: tuple[Backend, Backend]) -> None:
    first, second = two
    with pytest.raises(ValueError, match="cuda:0 and cuda:1"):
        F.conv2d(ones(first, 2, 3, 5, 5), ones(second, 4, 3, 3, 3))
    with pytest.raises(ValueError, match="on cuda:1, but this works on cuda:0; move it first"):
        first.asarray(ones(second, 3))
    model = ac.Sequential(ac.Conv2d(3, 4, 3), backend=first)
    with pytest.raises(ValueError, match=r"x is on cuda:1.*model\.to\('cuda:1'\)"):
        model(ones(second, 2, 3, 5, 5))


def test_another_current_device_is_an_explained_error(two: tuple[Backend, Backend]) -> None:
    _, second = two
    x, weight = ones(second, 2, 3, 5, 5), ones(second, 4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"current device is cuda:0; work inside `with cupy\.cuda"):
        F.conv2d(x, weight)
    with second.device:
        assert F.conv2d(x, weight).device.id == 1


def test_a_model_moves_between_devices(two: tuple[Backend, Backend]) -> None:
    model = ac.models.lenet5(seed=0, backend="cuda:0")
    images = np.random.default_rng(0).standard_normal((2, 1, 28, 28), np.float32)
    expected = two[0].to_numpy(model(images))
    model.to("cuda:1")
    np.testing.assert_array_equal(two[1].to_numpy(model(images)), expected)


def test_devices_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="'cuda:99' does not exist: this machine has"):
        get_backend("cuda:99")
    with pytest.raises(ValueError, match="'cuda:<device>' with a number, got 'cuda:first'"):
        get_backend("cuda:first")


class Tensor:
    """An array of another library."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_tensors_on_the_device_enter_without_a_copy() -> None:
    cuda = get_backend("cuda")
    x = cuda.asarray(np.arange(6, dtype=np.float32))
    assert cuda.asarray(x) is x
    assert cuda.xp.shares_memory(cuda.asarray(Tensor(x)), x)
    host = cuda.asarray(Tensor(np.arange(3.0)))
    assert cuda.owns(host)
    np.testing.assert_array_equal(cuda.to_numpy(host), np.arange(3.0))


def test_launches_beyond_the_limits_of_cuda_are_refused() -> None:
    cuda: Any = get_backend("cuda")
    x = cuda.asarray(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="too large for one launch of relu_grad<float>"):
        cuda.kernels.launch("relu_grad<float>", (2**31,), (256,), x, x, x, x.size)
    with pytest.raises(ValueError, match=r"relu_grad<float>: size must be between .* got"):
        cuda.kernels.launch("relu_grad<float>", (1,), (256,), x, x, x, 2**63)
    with pytest.raises(TypeError, match="y must be float32, got float64"):
        cuda.kernels.launch("relu_grad<float>", (1,), (256,), x.astype("f8"), x, x, x.size)
    with pytest.raises(TypeError, match="must be a C-contiguous CuPy array"):
        cuda.kernels.launch("relu_grad<float>", (1,), (256,), x[::2], x, x, 2)


def test_tf32_is_off_and_needs_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda: Any = get_backend("cuda")
    assert cuda.tf32 is False
    monkeypatch.setattr(type(cuda.device), "compute_capability", "75", raising=False)
    with pytest.raises(ac.BackendUnavailableError, match=r"compute capability 8\.0.* has 7\.5"):
        cuda.tf32 = True
    assert cuda.tf32 is False


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda b, x: b.update_parameters(adagrad, [(x, x, x)], step=1, lr=0.1, lr_decay=0.0,
                                          eps=1e-8, weight_decay=0.1),
         r"update_parameters of float32 \(300, 7\) needs"),
        (lambda b, x: b.erf(x=x), r"erf of float32 \(300, 7\) needs"),
        (lambda b, x: b.add(x, x[:, :1]), r"add of float32 \(300, 7\) and float32 \(300, 1\)"),
        (lambda b, x: b.zeros((1 << 20, 3), "float32"), "needs [0-9,]+ bytes more"),
    ],
)  # fmt: skip
def test_lack_of_memory_is_told_by_shapes_not_values(call: Any, shown: str) -> None:
    cuda: Any = get_backend("cuda")
    x = cuda.asarray(np.full((300, 7), 0.25, np.float32))
    pool = cuda.xp.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(size=pool.used_bytes() + 1024)
    try:
        with pytest.raises(ac.DeviceMemoryError, match=shown) as caught:
            call(cuda, x)
    finally:
        pool.set_limit(size=0)
    assert "0.25" not in str(caught.value)
