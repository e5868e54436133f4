// What all kernels share.
//
// Arrays lie batch last: the element (n, c, z, y, x) of an (N, C, D, H, W) array is at
// (((c·D + z)·H + y)·W + x)·N + n, so that neighbouring threads, which take neighbouring samples n,
// read neighbouring addresses whatever the window does. Arrays of one and two spatial dimensions
// have D = 1, or D = H = 1: that costs a few integer operations and saves two thirds of the kernels.
//
// No kernel communicates between its blocks, and every sum is taken in an order that does not
// depend on timing: the same input gives the same bits.

typedef long long Index;  // of an element; sizes may exceed 2³¹

using Byte = unsigned char;

// Half precision as storage. CUDA's own __half needs a header that NVRTC does not bring along.
struct Half {
  unsigned short bits;

  Half() = default;

  __device__ inline Half(float value) {
#ifdef __CUDACC_EMU__  // tests/emulator runs this text on a CPU
    const _Float16 half = (_Float16)value;
    __builtin_memcpy(&bits, &half, sizeof bits);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
  }

  __device__ inline operator float() const {
#ifdef __CUDACC_EMU__
    _Float16 half;
    __builtin_memcpy(&half, &bits, sizeof bits);
    return (float)half;
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#endif
  }
};

// The type in which values of type T are computed and summed: halves are only stored.
template <typename T>
struct Arithmetic {
  typedef T type;
};
template <>
struct Arithmetic<Half> {
  typedef float type;
};
template <typename T>
using Acc = typename Arithmetic<T>::type;

// A kernel's positions over an input, see geometry.Window; the sizes of z, y and x.
struct Window {
  int input[3], kernel[3], stride[3], before[3], dilation[3], output[3];
};

// A position in a plane and a sample.
struct Place {
  int at[3];
  Index sample;
};

// Element p of a (positions, N) block.
__device__ inline Place place_of(Index p, const int (&size)[3], Index batch) {
  Place place;
  Index position = p / batch;
  place.sample = p - position * batch;
  Index row = position / size[2];
  place.at[2] = (int)(position - row * size[2]);
  place.at[0] = (int)(row / size[1]);
  place.at[1] = (int)(row - (Index)place.at[0] * size[1]);
  return place;
}

// Calls visit(tap, position) for what the output position `place` sees, in row-major order of the
// taps; position is the flat one in the input plane, or −1 in the padding.
template <typename Visit>
__device__ inline void for_each_tap(const Window& w, const Place& place, Visit visit) {
  const int z0 = place.at[0] * w.stride[0] - w.before[0];
  const int y0 = place.at[1] * w.stride[1] - w.before[1];
  const int x0 = place.at[2] * w.stride[2] - w.before[2];
  int tap = 0;
  for (int i = 0; i < w.kernel[0]; ++i) {
    const int z = z0 + i * w.dilation[0];
    const bool z_inside = z >= 0 && z < w.input[0];
    for (int j = 0; j < w.kernel[1]; ++j) {
      const int y = y0 + j * w.dilation[1];
      const bool y_inside = z_inside && y >= 0 && y < w.input[1];
      const Index row = ((Index)z * w.input[1] + y) * w.input[2];
      for (int k = 0; k < w.kernel[2]; ++k, ++tap) {
        const int x = x0 + k * w.dilation[2];
        visit(tap, y_inside && x >= 0 && x < w.input[2] ? row + x : (Index)-1);
      }
    }
  }
}

// The output position that sees input position `at` through tap `tap`, or −1: the inverse of
// at = o·stride − before + tap·dilation.
__device__ inline int seen_from(int at, int tap, const Window& w, int axis) {
  const int distance = at + w.before[axis] - tap * w.dilation[axis];
  if (distance < 0) return -1;
  const int o = w.stride[axis] == 1 ? distance : distance / w.stride[axis];
  return o * w.stride[axis] == distance && o < w.output[axis] ? o : -1;
}

// Calls visit(tap, position) for every output position that sees the input position `place`, in
// the order of the taps through which it does.
template <typename Visit>
__device__ inline void for_each_window(const Window& w, const Place& place, Visit visit) {
  int tap = 0;
  for (int i = 0; i < w.kernel[0]; ++i) {
    const int z = seen_from(place.at[0], i, w, 0);
    for (int j = 0; j < w.kernel[1]; ++j) {
      const int y = z < 0 ? -1 : seen_from(place.at[1], j, w, 1);
      for (int k = 0; k < w.kernel[2]; ++k, ++tap) {
        const int x = y < 0 ? -1 : seen_from(place.at[2], k, w, 2);
        if (x >= 0) visit(tap, ((Index)z * w.output[1] + y) * w.output[2] + x);
      }
    }
  }
}

__device__ inline Index volume(const int (&size)[3]) { return (Index)size[0] * size[1] * size[2]; }

__device__ inline int volume32(const int (&size)[3]) { return size[0] * size[1] * size[2]; }

// The first element of this thread and how many elements all threads together advance.
__device__ inline Index first_index() { return blockIdx.x * (Index)blockDim.x + threadIdx.x; }

__device__ inline Index index_step() { return gridDim.x * (Index)blockDim.x; }

// The sum over the threads of a block (a multiple of 32), given to all of them; always added in the
// same order: within warps by halving distances, then warp after warp.
template <typename A>
__device__ inline A block_sum(A value) {
  __shared__ A parts[32];
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  __syncthreads();  // a sum before this one may still be reading its parts
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  A total = parts[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) total += parts[warp];
  return total;
}
