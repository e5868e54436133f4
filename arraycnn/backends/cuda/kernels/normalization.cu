// Sums and moments of channels: rows (channels, length) of a batch-last buffer.
//
// A row is cut into chunks that blocks reduce independently of each other; a second, small kernel
// combines their results in a fixed order. No atomics: the same input gives the same bits.

#include "common.cu"

#define REDUCE_THREADS 256
#define REDUCE_ITEMS 16
#define REDUCE_CHUNK (REDUCE_THREADS * REDUCE_ITEMS)

// The sum of each chunk: sums[row·chunks + chunk]. With one chunk it is the sum of the row.
// instances: row_sum<float,float> row_sum<double,double>
// instances: row_sum<Half,float> row_sum<float,Half> row_sum<Half,Half>
template <typename T, typename Out>
__global__ void __launch_bounds__(REDUCE_THREADS, 1)
    row_sum(const T* __restrict__ x, Out* __restrict__ sums, Index length, int chunks,
            Index chunk_length) {
  const Index row = blockIdx.x / chunks;
  const Index begin = (Index)(blockIdx.x % chunks) * chunk_length;
  const Index end = begin + chunk_length < length ? begin + chunk_length : length;
  Acc<T> sum = 0;
  for (Index i = begin + threadIdx.x; i < end; i += REDUCE_THREADS)
    sum += Acc<T>(x[row * length + i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = Out(sum);
}

// Mean and sum of squared deviations of each chunk. The chunk is held in registers between the two
// sums, so memory is read once and nothing is lost to cancellation.
// instances: chunk_moments<float> chunk_moments<double> chunk_moments<Half>
template <typename T>
__global__ void __launch_bounds__(REDUCE_THREADS, 1)
    chunk_moments(const T* __restrict__ x, Acc<T>* __restrict__ means, Acc<T>* __restrict__ squares,
                  Index length, int chunks) {
  const Index row = blockIdx.x / chunks;
  const Index begin = (Index)(blockIdx.x % chunks) * REDUCE_CHUNK;
  const Index left = length - begin;
  const int count = left < REDUCE_CHUNK ? (int)left : REDUCE_CHUNK;
  Acc<T> held[REDUCE_ITEMS];
  Acc<T> sum = 0;
#pragma unroll
  for (int k = 0; k < REDUCE_ITEMS; ++k) {
    const int i = k * REDUCE_THREADS + threadIdx.x;
    held[k] = i < count ? Acc<T>(x[row * length + begin + i]) : Acc<T>(0);
    sum += held[k];
  }
  const Acc<T> mean = block_sum(sum) / Acc<T>(count);
  Acc<T> square = 0;
#pragma unroll
  for (int k = 0; k < REDUCE_ITEMS; ++k) {
    const Acc<T> deviation = k * REDUCE_THREADS + (int)threadIdx.x < count ? held[k] - mean : 0;
    square += deviation * deviation;
  }
  square = block_sum(square);
  if (threadIdx.x == 0) {
    means[blockIdx.x] = mean;
    squares[blockIdx.x] = square;
  }
}

// Mean and variance of each row from those of its chunks (Chan, Golub & LeVeque 1983):
// Σ(x − m)² = Σ over chunks of (squares + count·(mean − m)²).
// instances: merge_moments<float> merge_moments<double> merge_moments<Half>
template <typename T>
__global__ void __launch_bounds__(REDUCE_THREADS, 1)
    merge_moments(const Acc<T>* __restrict__ means, const Acc<T>* __restrict__ squares,
                  T* __restrict__ mean_out, T* __restrict__ var_out, Index length, int chunks) {
  const Acc<T>* mean_of = means + (Index)blockIdx.x * chunks;
  const Acc<T>* square_of = squares + (Index)blockIdx.x * chunks;
  const Acc<T> last = Acc<T>(length - (Index)(chunks - 1) * REDUCE_CHUNK);
  Acc<T> sum = 0;
  for (int i = threadIdx.x; i < chunks; i += REDUCE_THREADS)
    sum += mean_of[i] * (i == chunks - 1 ? last : Acc<T>(REDUCE_CHUNK));
  const Acc<T> mean = block_sum(sum) / Acc<T>(length);
  Acc<T> square = 0;
  for (int i = threadIdx.x; i < chunks; i += REDUCE_THREADS) {
    const Acc<T> deviation = mean_of[i] - mean;
    square += square_of[i] + deviation * deviation * (i == chunks - 1 ? last : Acc<T>(REDUCE_CHUNK));
  }
  square = block_sum(square);
  if (threadIdx.x == 0) {
    mean_out[blockIdx.x] = T(mean);
    var_out[blockIdx.x] = T(square / Acc<T>(length));
  }
}

// For each chunk the sums of Δ·x̂ and of Δ, x̂ = (x − mean)·inverse_std: sums (2, rows, chunks).
// instances: batch_norm_sums<float> batch_norm_sums<double> batch_norm_sums<Half>
template <typename T>
__global__ void __launch_bounds__(REDUCE_THREADS, 1)
    batch_norm_sums(const T* __restrict__ x, const T* __restrict__ mean,
                    const T* __restrict__ inverse_std, const T* __restrict__ delta,
                    Acc<T>* __restrict__ sums, Index length, int chunks) {
  const Index row = blockIdx.x / chunks;
  const Index begin = (Index)(blockIdx.x % chunks) * REDUCE_CHUNK;
  const Index end = begin + REDUCE_CHUNK < length ? begin + REDUCE_CHUNK : length;
  const Acc<T> centre = mean[row], factor = inverse_std[row];
  Acc<T> products = 0, plain = 0;
  for (Index i = begin + threadIdx.x; i < end; i += REDUCE_THREADS) {
    const Acc<T> d = delta[row * length + i];
    products += d * ((Acc<T>(x[row * length + i]) - centre) * factor);
    plain += d;
  }
  products = block_sum(products);
  plain = block_sum(plain);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = products;
    sums[gridDim.x + blockIdx.x] = plain;
  }
}

// δx = scale·inverse_std·(Δ − Σ Δ/length − x̂·Σ Δ·x̂/length); sums is (2, rows): Σ Δ·x̂ and Σ Δ.
// instances: batch_norm_apply<float> batch_norm_apply<double> batch_norm_apply<Half>
template <typename T>
__global__ void __launch_bounds__(REDUCE_THREADS, 1)
    batch_norm_apply(const T* __restrict__ x, const T* __restrict__ mean,
                     const T* __restrict__ inverse_std, const T* __restrict__ scale,
                     const T* __restrict__ delta, const Acc<T>* __restrict__ sums,
                     T* __restrict__ grad, Index rows, Index length, int chunks) {
  const Index row = blockIdx.x / chunks;
  const Index begin = (Index)(blockIdx.x % chunks) * REDUCE_CHUNK;
  const Index end = begin + REDUCE_CHUNK < length ? begin + REDUCE_CHUNK : length;
  const Acc<T> centre = mean[row], deviation = inverse_std[row];
  const Acc<T> factor = Acc<T>(scale[row]) * deviation;
  const Acc<T> product_mean = sums[row] / Acc<T>(length);
  const Acc<T> plain_mean = sums[rows + row] / Acc<T>(length);
  for (Index i = begin + threadIdx.x; i < end; i += REDUCE_THREADS) {
    const Acc<T> normalised = (Acc<T>(x[row * length + i]) - centre) * deviation;
    const Acc<T> d = delta[row * length + i];
    grad[row * length + i] = T((d - plain_mean - normalised * product_mean) * factor);
  }
}
