// Element-wise kernels.

#include "common.cu"

// How many consecutive elements of a row one block takes in the kernels over rows.
#define ROW_CHUNK 1024

// h = max(h + bias, 0) in place over rows (channels, length); bias may be null, the ReLU left out.
// instances: bias_relu<float> bias_relu<double> bias_relu<Half>
template <typename T>
__global__ void bias_relu(T* __restrict__ h, const T* __restrict__ bias, Index length, int chunks,
                          int relu) {
  const int row = blockIdx.x / chunks;
  const Index begin = (Index)(blockIdx.x % chunks) * ROW_CHUNK;
  const Index end = begin + ROW_CHUNK < length ? begin + ROW_CHUNK : length;
  const Acc<T> shift = bias ? Acc<T>(bias[row]) : Acc<T>(0);
  for (Index i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const Acc<T> v = Acc<T>(h[row * length + i]) + shift;
    h[row * length + i] = T(relu && v < Acc<T>(0) ? Acc<T>(0) : v);  // a NaN stays
  }
}

// y = scale·x + shift, and max(y, 0) with relu, over rows (channels, length).
// instances: scale_shift<float> scale_shift<double> scale_shift<Half>
template <typename T>
__global__ void scale_shift(const T* __restrict__ x, const T* __restrict__ scale,
                            const T* __restrict__ shift, T* __restrict__ y, Index length,
                            int chunks, int relu) {
  const int row = blockIdx.x / chunks;
  const Index begin = (Index)(blockIdx.x % chunks) * ROW_CHUNK;
  const Index end = begin + ROW_CHUNK < length ? begin + ROW_CHUNK : length;
  const Acc<T> factor = scale[row], offset = shift[row];
  for (Index i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const Acc<T> v = factor * Acc<T>(x[row * length + i]) + offset;
    y[row * length + i] = T(relu && v < Acc<T>(0) ? Acc<T>(0) : v);
  }
}

// The gradient passes where y > 0.
// instances: relu_grad<float> relu_grad<double> relu_grad<Half>
template <typename T>
__global__ void relu_grad(const T* __restrict__ y, const T* __restrict__ grad_y,
                          T* __restrict__ grad_x, Index size) {
  for (Index i = first_index(); i < size; i += index_step())
    grad_x[i] = Acc<T>(y[i]) > Acc<T>(0) ? grad_y[i] : T(0.f);
}

// Element i is kept when the i-th number of the SplitMix64 stream `key` is at least `threshold`,
// see arraycnn/rng.py; the constants are the same, and so are the masks.
// instances: dropout<float> dropout<double> dropout<Half>
template <typename T>
__global__ void dropout(const T* __restrict__ x, T* __restrict__ y, Index size,
                        const unsigned long long* __restrict__ key, unsigned long long fixed_key,
                        unsigned long long threshold, Acc<T> scale) {
  const unsigned long long start = key ? *key : fixed_key;
  for (Index i = first_index(); i < size; i += index_step()) {
    unsigned long long z = start + (unsigned long long)i * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    y[i] = (z >> 32) >= threshold ? T(Acc<T>(x[i]) * scale) : T(0.f);
  }
}
