"""The kernels compile for every GPU that we name, within their registers; needs no GPU."""

import json
import re
from concurrent.futures import Future

import nvrtc
import pytest

from arraycnn.backends.cuda import kernels

Usages = dict[int, "Future[dict[str, nvrtc.Usage]]"]

needs_nvrtc = pytest.mark.skipif(
    nvrtc.library() is None, reason="NVRTC is not installed: pip install 'arraycnn[nvrtc]'"
)


@pytest.fixture(scope="module")
def usages() -> Usages:
    return nvrtc.all_usages()


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_every_kernel_builds_within_its_budget(architecture: int, usages: Usages) -> None:
    budget = json.loads(nvrtc.BUDGET.read_text())
    found = usages[architecture].result()
    assert all(not usage.spilled and not usage.stack for usage in found.values()), found
    assert found.keys() == budget["registers"].keys(), "run python tests/nvrtc.py"
    if nvrtc.version() == budget["nvrtc"]:  # other versions of the compiler count differently
        over = {n: u for n, u in found.items() if u.registers > budget["registers"][n]}
        assert not over, "see why, or accept it with python tests/nvrtc.py"


@needs_nvrtc
def test_the_check_sees_spills_and_errors() -> None:
    source = """
    template <int N> __global__ void __launch_bounds__(1024, 2) sums(const float* x, float* y) {
      float a[N];
    #pragma unroll
      for (int i = 0; i < N; ++i) a[i] = x[i * 1024 + threadIdx.x];
    #pragma unroll
      for (int i = 0; i < N; ++i) y[i * 1024 + threadIdx.x] = a[i] * a[(i * 7) % N];
    }"""
    few, many = nvrtc.compile_kernels(source, ["sums<8>", "sums<128>"], 90).values()
    assert not few.spilled
    assert many.spilled
    with pytest.raises(nvrtc.NvrtcError, match=r"kernels\.cu"):
        nvrtc.compile_kernels("nonsense", [], 90)
    assert set(nvrtc.ARCHITECTURES) <= set(nvrtc.supported())


@pytest.mark.parametrize("file", kernels.SOURCES)
def test_kernels_keep_the_rules(file: str) -> None:
    """What the emulator cannot judge: no atomics, no global state, PTX apart from the kernels."""
    text = kernels.source(file)
    code = re.sub(r"//[^\n]*", "", text)
    assert not re.search(r"\batomic\w+\s*\(|__threadfence|cooperative_groups", code)
    assert not re.search(r"^\s*__device__\s+\w+\s+\w+\s*(=|;|\[)", code, flags=re.MULTILINE)
    assert code.count("asm") == 0 or "__CUDACC_EMU__" in code
    without_bounds = re.sub(r"__launch_bounds__\([^)]*\)", "", code)
    written = set(re.findall(r"__global__\s+void\s+(\w+)\s*\(", without_bounds))
    assert written == {name.partition("<")[0] for name in kernels.instantiations()[file]}
