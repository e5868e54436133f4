"""The stand-ins for a GPU and for CuPy catch what they are there to catch."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from emulator import environment, launcher

pytestmark = pytest.mark.skipif(
    launcher.compiler() is None, reason="the emulator needs a C++ compiler (g++)"
)

SUM = """
// The sum of each row: one block a row, through shared memory.
template <typename T, int THREADS>
__global__ void __launch_bounds__(THREADS) row_sums(const T* x, T* sums, int length, T scale) {
  __shared__ T parts[THREADS];
  T sum = 0;
  for (int i = threadIdx.x; i < length; i += THREADS)
    sum += x[(long long)blockIdx.x * length + i];
  parts[threadIdx.x] = sum;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = scale * parts[0];
}
"""


@pytest.fixture
def order(request: pytest.FixtureRequest) -> Any:
    before = launcher.setting.order
    launcher.configure(order=request.param)
    yield request.param
    launcher.configure(order=before)


@pytest.fixture
def cupy() -> ModuleType:
    module = pytest.importorskip("cupy")
    if not getattr(module, "is_emulator", False):
        pytest.skip("the real CuPy is in use here, not the stand-in")
    return module


def run(
    source: str, name: str, block: Any, *arguments: Any, grid: Any = (1,), shared_mem: int = 0
) -> None:
    names = None if 'extern "C"' in source else [name]
    kernel = launcher.Module(source, names).kernel(name)
    kernel(grid, block, arguments, shared_mem=shared_mem)


def row_sums(source: str = SUM) -> bool:
    x = np.random.default_rng(0).integers(0, 100, (5, 100)).astype(np.float32)
    sums = np.full(5, -1, np.float32)
    run(source, "row_sums<float, 64>", (64,), x, sums, np.int32(100), np.float32(2), grid=(5,))
    return np.array_equal(sums, 2 * x.sum(axis=1))


# ---- Kernels ----


@pytest.mark.parametrize("order", launcher.ORDERS, indirect=True)
def test_a_kernel_gives_the_same_in_every_order(order: int) -> None:
    assert row_sums()


@pytest.mark.parametrize("barrier", [0, 1])
def test_a_missing_barrier_is_caught(barrier: int) -> None:
    parts = SUM.split("__syncthreads();")
    ends = ["__syncthreads();"] * (len(parts) - 1) + [""]
    ends[barrier] = ""
    broken = "".join(part + end for part, end in zip(parts, ends, strict=True))
    right = []
    for order in launcher.ORDERS:
        launcher.configure(order=order)
        right.append(row_sums(broken))
    launcher.configure(order=0)
    assert not right[0]
    assert not right[2]  # reversed, each thread happens to come after those that it reads from


def test_threads_switch_by_swapcontext_too() -> None:
    launcher.configure(ucontext=True)
    try:
        assert row_sums()
    finally:
        launcher.configure(ucontext=False)


def test_blocks_run_in_any_order() -> None:
    source = 'extern "C" __global__ void f(int* x) { x[blockIdx.x] = blockIdx.x ? x[0] : 7; }'
    results = []
    for order in (0, 1):
        x = np.zeros(3, np.int32)
        launcher.configure(order=order)
        run(source, "f", (1,), x, grid=(3,))
        results.append(x.tolist())
    launcher.configure(order=0)
    assert results == [[7, 7, 7], [7, 0, 0]]  # a block that relies on another one shows


def test_shared_memory_starts_as_garbage_in_every_block() -> None:
    source = """
    extern "C" __global__ void f(float* x) {
      __shared__ float a; extern __shared__ float b[];
      x[2 * blockIdx.x] = a; x[2 * blockIdx.x + 1] = b[1];
      a = b[1] = 1;
    }"""
    x = np.zeros(6, np.float32)
    run(source, "f", (1,), x, grid=(3,), shared_mem=8)
    assert np.isnan(x).all()


def test_warps_shuffle_and_vote() -> None:
    source = """
    extern "C" __global__ void f(int* x) {
      const int i = threadIdx.x;
      int sum = i;
      for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
      x[i] = sum;
      x[64 + i] = __shfl_down_sync(0xffffffffu, i, 1);
      x[128 + i] = __shfl_up_sync(0xffffffffu, i, 1, 8);
      x[192 + i] = __shfl_sync(0xffffffffu, i, 3, 8);
      x[256 + i] = __popc(__ballot_sync(0xffffffffu, i % 2));
    }"""
    x = np.zeros((5, 64), np.int32)
    run(source, "f", (64,), x)
    i = np.arange(64)
    assert x[0].tolist() == [496] * 32 + [1520] * 32
    assert x[1].tolist() == np.where(i % 32 == 31, i, i + 1).tolist()
    assert x[2].tolist() == np.where(i % 8 == 0, i, i - 1).tolist()
    assert x[3].tolist() == (i // 8 * 8 + 3).tolist()
    assert (x[4] == 16).all()


def test_structures_and_halves_are_passed() -> None:
    source = """
    struct Half { unsigned short bits; };
    struct Size { int n; double scale; };
    extern "C" __global__ void f(Half* x, Size size, Half last, float scale) {
      if (threadIdx.x < size.n) x[threadIdx.x] = last;
      if (size.scale != scale) x[0].bits = 0;
    }"""
    x = np.zeros(6, np.float16)
    size = np.array([(4, 2.5)], np.dtype([("n", "i4"), ("scale", "f8")], align=True))
    run(source, "f", (8,), x, size[0], np.float16(1.5), np.float32(2.5))
    assert x.tolist() == [1.5] * 4 + [0] * 2


def test_tensor_core_fragments_multiply() -> None:
    source = """
    extern "C" __global__ void f(const float* a, const float* b, float* c) {
      const int g = threadIdx.x / 4, t = threadIdx.x % 4;
      const unsigned fa[4] = {__float_as_uint(a[g * 8 + t]), __float_as_uint(a[(g + 8) * 8 + t]),
                              __float_as_uint(a[g * 8 + t + 4]),
                              __float_as_uint(a[(g + 8) * 8 + t + 4])};
      const unsigned fb[2] = {__float_as_uint(b[t * 8 + g]), __float_as_uint(b[(t + 4) * 8 + g])};
      float d[4] = {0, 0, 0, 0};
      emu::mma_m16n8k8_tf32(d, fa, fb);
      c[g * 8 + 2 * t] = d[0]; c[g * 8 + 2 * t + 1] = d[1];
      c[(g + 8) * 8 + 2 * t] = d[2]; c[(g + 8) * 8 + 2 * t + 1] = d[3];
    }"""
    rng = np.random.default_rng(0)
    a = rng.integers(-8, 8, (16, 8)).astype(np.float32)  # exact in TF32
    b = rng.integers(-8, 8, (8, 8)).astype(np.float32)
    c = np.zeros((16, 8), np.float32)
    run(source, "f", (32,), a, b, c)
    np.testing.assert_array_equal(c, a @ b)
    tiny = np.full((16, 8), 1 + 2.0**-12, np.float32)  # below TF32's 10 bits of mantissa
    run(source, "f", (32,), tiny, np.eye(8, dtype=np.float32), c)
    assert (c == 1).all()


DIVERGENT = {
    "some return before it": "if (threadIdx.x < 8) return; __syncthreads();",
    "some return while others wait": "if (threadIdx.x < 8) __syncthreads();",
    "two of them": "if (threadIdx.x < 8)\n __syncthreads();\n else\n __syncthreads();",
    "a barrier and a shuffle": "if (threadIdx.x < 32) __syncthreads();\n"
    "else __shfl_sync(0xffffffffu, 1, 0); if (threadIdx.x >= 32) __syncthreads();",
    "half a warp": "if (threadIdx.x % 2) __shfl_sync(0xffffffffu, 1, 0);",
    "a lane outside of its mask": "__shfl_sync(0xffffu, 1, 0);",
}


@pytest.mark.parametrize("order", launcher.ORDERS, indirect=True)
@pytest.mark.parametrize("case", DIVERGENT)
def test_divergence_at_a_barrier_is_an_error(case: str, order: int) -> None:
    source = "".join(
        f'extern "C" __global__ void f{i}(int* x) {{ {body} x[threadIdx.x] = 1; }}\n'
        for i, body in enumerate(DIVERGENT.values())
    )
    kernel = f"f{list(DIVERGENT).index(case)}"
    with pytest.raises(launcher.LaunchError, match=r"divergence|deadlock"):
        run(source, kernel, (64,), np.zeros(64, np.int32))
    assert row_sums()  # the emulator is in order afterwards


@pytest.mark.parametrize(
    ("body", "message"),
    [("x[0] = 7 / x[1];", "divided by zero"), ("((int*)nullptr)[x[1]] = 1;", "address is invalid")],
)
def test_a_fault_of_the_processor_is_an_error(body: str, message: str) -> None:
    with pytest.raises(launcher.LaunchError, match=message):
        run(f'extern "C" __global__ void f(int* x) {{ {body} }}', "f", (2,), np.zeros(2, np.int32))
    assert row_sums()


ARGUMENTS = (np.zeros((5, 100), np.float32), np.zeros(5, np.float32), np.int32(100), np.float32(1))


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (2, 100, "argument 2 is an integer of 8 bytes, the parameter an integer of 4"),
        (2, np.float32(100), "argument 2 is a float of 4 bytes, the parameter an integer of 4"),
        (3, 1.0, "argument 3 is a float of 8 bytes, the parameter a float of 4 bytes"),
        (0, ARGUMENTS[0].astype(np.float64), "elements of 8 bytes, the parameter a pointer to"),
        (0, np.int64(0), "argument 0 is an integer"),
        (1, None, None),
        (3, "1", "Unsupported type"),
    ],
)
def test_a_wrong_argument_is_an_error(position: int, wrong: Any, message: str | None) -> None:
    kernel = launcher.Module(SUM, ["row_sums<float, 64>"]).kernel("row_sums<float, 64>")
    arguments = list(ARGUMENTS)
    arguments[position] = wrong
    if message is None:  # a null pointer is an argument like any other
        kernel._values(arguments)
        return
    with pytest.raises(launcher.LaunchError, match=message):
        kernel((5,), (64,), arguments)


def test_a_wrong_number_of_arguments_is_an_error() -> None:
    for arguments in (ARGUMENTS[:3], (*ARGUMENTS, np.int32(0))):
        with pytest.raises(launcher.LaunchError, match="arguments for 4 parameters"):
            run(SUM, "row_sums<float, 64>", (64,), *arguments)


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((1,), (1025,), 0),
        ((1,), (1, 1, 65), 0),
        ((1, 65536), (64,), 0),
        ((1,), (64,), 49153),
        ((1,), (64,), 49152),  # with the kernel's own 256 bytes
    ],
)
def test_a_launch_beyond_the_limits_is_an_error(grid: Any, block: Any, shared: int) -> None:
    with pytest.raises(launcher.LaunchError, match=r"INVALID_VALUE|shared memory"):
        run(SUM, "row_sums<float, 64>", block, *ARGUMENTS, grid=grid, shared_mem=shared)


def test_text_that_does_not_compile_is_shown_with_its_line() -> None:
    with pytest.raises(launcher.CompileError, match=r"broken\.cu:2:"):
        launcher.Module("\nnonsense", [], file="broken.cu").compile()
    with pytest.raises(launcher.CompileError, match="one __shared__ variable per statement"):
        launcher.Module("__shared__ float a[2], b[2];", []).compile()
    with pytest.raises(launcher.CompileError, match="atomicAdd"):  # we do without
        launcher.Module('extern "C" __global__ void f(int* x) { atomicAdd(x, 1); }').compile()


BEYOND = {
    "read of a device array": ("y[0] = x[16];", "heap-buffer-overflow"),
    "write to a device array": ("y[16] = 1;", "heap-buffer-overflow"),
    "shared array": ("__shared__ float s[4]; s[4] = 1;", "out of bounds"),
    "dynamic shared array": ("extern __shared__ float s[]; s[4] = 1;", "heap-buffer-overflow"),
    "local array": ("float s[4]; s[blockDim.x] = 1; y[0] = s[0];", "out of bounds"),
    "signed overflow": ("y[0] = 0x7fffffff + (int)blockDim.x;", "signed integer overflow"),
    "misaligned vector": ("*(float4*)(y + 1) = make_float4(0, 0, 0, 0);", "misaligned"),
    "nothing": ("y[15] = x[15];", None),
}
SANITIZED = """
import sys
import cupy as cp
x, y = cp.zeros(16, cp.float32), cp.zeros(16, cp.float32)
kernel = cp.RawModule(code=sys.argv[1]).get_function(sys.argv[2])
kernel((1,), (4,), (x, y), shared_mem=16)
print("done")
"""


@pytest.mark.parametrize("case", BEYOND)
def test_sanitizers_find_what_is_out_of_bounds(case: str) -> None:
    sanitizers = launcher.sanitizer_environment()
    if sanitizers is None:
        pytest.skip("g++ has no address sanitizer here")
    source = "".join(
        f'extern "C" __global__ void f{i}(const float* x, float* y) {{ {body} }}\n'
        for i, (body, _) in enumerate(BEYOND.values())
    )
    kernel = f"f{list(BEYOND).index(case)}"
    result = subprocess.run(
        [sys.executable, "-c", SANITIZED, source, kernel],
        env=environment() | sanitizers,
        capture_output=True,
        text=True,
    )
    message = BEYOND[case][1]
    if message is None:
        assert result.stdout == "done\n", result.stderr
    else:
        assert message in result.stderr
        assert "kernels.cu" in result.stderr
        assert result.returncode != 0


# ---- The stand-in for CuPy ----


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, a: x + a,
        lambda x, a: a + x,
        lambda x, a: np.add(x, a),
        lambda x, a: x.__iadd__(a),
        lambda x, a: a.__iadd__(x),
        lambda x, a: x @ a.T,
        lambda x, a: np.matmul(a, x),
        lambda x, a: np.asarray(x),
        lambda x, a: np.concatenate([x, a]),
        lambda x, a: a.__setitem__(0, x),
        lambda x, a: x.clip(a, 1),
    ],
)
def test_numpy_arrays_do_not_mix_with_it(cupy: Any, operation: Any) -> None:
    a = np.ones((2, 3), np.float32)
    x = cupy.asarray(a)
    with pytest.raises(
        (TypeError, ValueError), match=r"Unsupported type|Implicit|no implementation"
    ):
        operation(x, a)
    assert (x.get() == 1).all()


def test_numpy_arrays_are_not_assigned(cupy: Any) -> None:
    x = cupy.zeros((2, 3))
    with pytest.raises(ValueError, match=r"non-scalar numpy.ndarray cannot be used for fill"):
        x[...] = np.ones((2, 3))
    x[...] = np.float32(2)
    x[:, np.array([0, 2])] = 1  # as in CuPy an index may be NumPy's
    assert x.get().tolist() == [[1, 2, 1], [1, 2, 1]]


@pytest.mark.parametrize("name", ["ElementwiseKernel", "ReductionKernel", "fuse", "busday_count"])
def test_what_cupy_lacks_or_we_do_without_is_absent(cupy: Any, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(cupy, name)


def test_keywords_that_cupy_lacks_are_refused(cupy: Any) -> None:
    x = cupy.ones(3)
    for call in (
        lambda: cupy.sum(x, where=x > 0),
        lambda: cupy.add(x, x, where=x > 0),
        lambda: cupy.mean(x, 0, None, None, False, 1),
        lambda: cupy.add([1, 2], 3),
    ):
        with pytest.raises(TypeError):
            call()


def test_results_are_arrays_in_c_order(cupy: Any) -> None:
    x = cupy.ones((3, 4), cupy.float32)
    for scalar in (x.sum(), cupy.max(x), x[0, 0], cupy.allclose(x, x), x.mean()):
        assert isinstance(scalar, cupy.ndarray)
        assert scalar.shape == ()
    assert (x.T + 1).flags.c_contiguous  # NumPy keeps the operands' order, CuPy does not
    assert x.T.copy(order="K").flags.f_contiguous
    assert x.T.astype(cupy.float64).flags.f_contiguous
    assert cupy.empty_like(x.T).flags.f_contiguous
    assert float(x.sum()) == 12
    assert (np.float32(2) * x).dtype == cupy.float32


def test_views_share_memory_and_results_do_not(cupy: Any) -> None:
    x = cupy.zeros((2, 3, 4))
    for view in (x[0], x.T, x.reshape(6, 4), x.swapaxes(0, 1), x[..., ::-1], x.ravel()):
        assert view._memory is x._memory
    for new in (x + 0, x.copy(), x.T.reshape(24), x[[0, 1]], cupy.where(x > 0, x, x)):
        assert new._memory is not x._memory
    x.T[0] = 5
    assert x.get()[..., 0].tolist() == [[5] * 3] * 2


def test_fresh_memory_is_garbage_and_errors_are_silent(cupy: Any) -> None:
    assert np.isnan(cupy.empty(4, cupy.float32).get()).all()
    assert np.isnan(cupy.empty((2, 3), cupy.float16).get()).all()
    x = cupy.zeros(2) / 0  # CuPy never warns
    assert np.isnan(x.get()).all()


def test_as_strided_stays_in_the_memory(cupy: Any) -> None:
    x = cupy.arange(6)
    view = cupy.lib.stride_tricks.as_strided(x, (5, 2), (8, 8))
    assert view.get()[:, 1].tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="leaves the array's memory"):
        cupy.lib.stride_tricks.as_strided(x, (6, 2), (8, 8))


def test_a_kernel_that_writes_around_an_array_is_noticed(cupy: Any) -> None:
    module = cupy.RawModule(code='extern "C" __global__ void f(int* x, int i) { x[i] = 1; }')
    f = module.get_function("f")
    x = cupy.zeros(5, cupy.int32)
    f((1,), (1,), (x, np.int32(4)))
    for i in (-1, 5):
        with pytest.raises(AssertionError, match=r"written (before|behind) an array of 20 bytes"):
            f((1,), (1,), (x, np.int32(i)))
    with pytest.raises(TypeError, match="pointer to __global__ memory"):
        f((1,), (1,), (np.zeros(5, np.int32), np.int32(0)))
    with pytest.raises(RuntimeError, match="CUDA_ERROR_NOT_FOUND"):
        module.get_function("g")


def test_memory_is_counted_and_limited(cupy: Any) -> None:
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    x = cupy.empty(1000, cupy.float32)
    view = x[10:]
    assert pool.used_bytes() == before + 4096
    del x
    assert pool.used_bytes() == before + 4096
    del view
    assert pool.used_bytes() == before
    pool.set_limit(size=pool.total_bytes() + 1024)
    try:
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="Out of memory allocating"):
            cupy.empty(1 << 20)
    finally:
        pool.set_limit(size=0)
    assert pool.used_bytes() == before


def test_foreign_device_arrays_enter_without_a_copy(cupy: Any) -> None:
    x = cupy.arange(6, dtype=cupy.float32).reshape(2, 3)

    class Tensor:
        __dlpack__ = x.__dlpack__
        __dlpack_device__ = x.__dlpack_device__

    class Interface:
        __cuda_array_interface__ = x.__cuda_array_interface__

    for entered in (cupy.from_dlpack(Tensor()), cupy.asarray(Interface())):
        entered[0, 0] = 7
        assert x.get()[0, 0] == 7
        x[0, 0] = 0
    with pytest.raises(TypeError, match="CPU arrays cannot be directly imported"):
        cupy.from_dlpack(np.zeros(3))


def test_arrays_of_another_device_are_refused(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATOR_DEVICES", "2")
    with cupy.cuda.Device(1):
        x = cupy.zeros(3)
    assert x.device.id == 1
    with pytest.raises(ValueError, match="array device = 1 while current = 0"):
        x + 1
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        cupy.cuda.Device(2).use()


# ---- Streams and graphs ----


def captured(cupy: Any, work: Any) -> Any:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            work()
        finally:
            graph = stream.end_capture()
    return graph


def test_a_graph_does_nothing_until_it_is_launched(cupy: Any) -> None:
    f = cupy.RawModule(
        code='extern "C" __global__ void f(float* x, float by) { x[threadIdx.x] += by; }'
    ).get_function("f")
    x, total = cupy.zeros(4, cupy.float32), cupy.zeros((), cupy.float32)
    keep = []

    def work() -> None:
        f((1,), (4,), (x, np.float32(2)))
        keep.append(x * 3)
        cupy.sum(keep[0], out=total)

    graph = captured(cupy, work)
    assert (x.get() == 0).all()
    graph.upload()
    for step in (1, 2):
        graph.launch()
        assert (x.get() == 2 * step).all()
        assert float(total) == 24 * step


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda cupy, x: x @ x, "cuBLAS"),
        (lambda cupy, x: cupy.dot(x, x), "cuBLAS"),
        (lambda cupy, x: x.get(), "capturing"),
        (lambda cupy, x: float(x[0, 0]), "capturing"),
        (lambda cupy, x: x[x > 0], "capturing"),
        (lambda cupy, x: cupy.asarray(np.zeros(3)), "capturing"),
        (lambda cupy, x: cupy.cuda.get_current_stream().synchronize(), "capturing"),
    ],
)
def test_a_capturing_stream_refuses(cupy: Any, work: Any, error: str) -> None:
    x = cupy.ones((2, 2))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises((RuntimeError, NotImplementedError), match=error):
            work(cupy, x)
        if error == "capturing":
            with pytest.raises(RuntimeError, match="Invalidated"):
                stream.end_capture()
        else:
            stream.end_capture()
    assert not stream.is_capturing()
    with pytest.raises(RuntimeError, match="legacy"):
        cupy.cuda.Stream.null.begin_capture()


def test_a_graph_on_memory_that_was_given_back_is_an_error(cupy: Any) -> None:
    x = cupy.ones(4)
    graph = captured(cupy, lambda: x.__iadd__(x * 2))  # the product goes back to the pool
    with pytest.raises(AssertionError, match="given back after the capture"):
        graph.launch()
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        graph = captured(cupy, lambda: x.__iadd__(x * 2))
    graph.launch()
    assert (x.get() == 3).all()
    del pool
    with pytest.raises(AssertionError, match="given back after the capture"):
        graph.launch()
