// Softmax cross-entropy and its gradient in one pass over the logits, (classes, samples) in memory.
//
// A block takes 32 neighbouring samples; its 8 rows of threads share the classes of each. With
// one thread for each sample a batch of 64 would use two warps of the whole device.

#include "common.cu"

#define LOSS_COLUMNS 32
#define LOSS_ROWS 8

enum Fold { FOLD_MAX, FOLD_SUM };

// The maximum (a NaN wins) or sum over the rows of threads, for each column, in fixed order.
template <Fold FOLD, typename A>
__device__ inline A fold_rows(A value) {
  __shared__ A parts[LOSS_ROWS][LOSS_COLUMNS];
  __syncthreads();  // an earlier fold may still be reading
  parts[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  A result = parts[0][threadIdx.x];
  for (int row = 1; row < LOSS_ROWS; ++row) {
    const A other = parts[row][threadIdx.x];
    if (FOLD == FOLD_SUM)
      result += other;
    else if (other > result || other != other)
      result = other;
  }
  return result;
}

// What the labels count for: the sum of weight[label] (1 without weights) over those not ignored.
// instances: label_total<float> label_total<double> label_total<Half>
template <typename T>
__global__ void label_total(const long long* __restrict__ labels, const T* __restrict__ weight,
                            Acc<T>* __restrict__ total, int classes, Index samples, Index ignored) {
  Acc<T> sum = 0;
  for (Index p = threadIdx.x; p < samples; p += blockDim.x) {
    const Index label = labels[p];
    if (label != ignored && label >= 0 && label < classes)
      sum += weight ? Acc<T>(weight[label]) : Acc<T>(1);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}

// For target t = w·((1 − ε)·one-hot + ε/classes): losses −Σ t·log softmax(x) and gradients
// softmax(x)·Σ t − t, both multiplied by `scale`, or divided by *total where that is given. A label
// that is no class and not `ignored` reads nothing out of bounds and makes its loss NaN.
// instances: softmax_cross_entropy<float> softmax_cross_entropy<double>
// instances: softmax_cross_entropy<Half>
template <typename T>
__global__ void __launch_bounds__(LOSS_COLUMNS * LOSS_ROWS, 1)
    softmax_cross_entropy(const T* __restrict__ logits, const long long* __restrict__ labels,
                          const T* __restrict__ weight, const Acc<T>* __restrict__ total,
                          Acc<T>* __restrict__ losses, T* __restrict__ grad, int classes,
                          Index samples, Index ignored, Acc<T> smoothing, Acc<T> scale) {
  const Index p = blockIdx.x * (Index)LOSS_COLUMNS + threadIdx.x;
  const bool inside = p < samples;  // every thread must reach the barriers in fold_rows
  const T* x = logits + (inside ? p : 0);

  Acc<T> maximum = x[(threadIdx.y < classes ? threadIdx.y : 0) * samples];
  for (int j = threadIdx.y; j < classes; j += LOSS_ROWS) {
    const Acc<T> v = x[j * samples];
    if (v > maximum || v != v) maximum = v;
  }
  maximum = fold_rows<FOLD_MAX>(maximum);
  Acc<T> sum = 0;
  for (int j = threadIdx.y; j < classes; j += LOSS_ROWS) sum += exp(Acc<T>(x[j * samples]) - maximum);
  const Acc<T> log_sum = log(fold_rows<FOLD_SUM>(sum));

  const Index label = inside ? labels[p] : 0;
  const bool counts = label != ignored, known = label >= 0 && label < classes;
  const Acc<T> shared_part = smoothing / Acc<T>(classes);
  Acc<T> loss = 0, target_sum = 0;
  for (int j = threadIdx.y; j < classes; j += LOSS_ROWS) {
    Acc<T> target = (j == label ? 1 - smoothing : Acc<T>(0)) + shared_part;
    if (weight) target *= Acc<T>(weight[j]);
    target_sum += target;
    // A class that does not count may be impossible: 0·log 0 is 0 here.
    if (target != Acc<T>(0)) loss -= target * (Acc<T>(x[j * samples]) - maximum - log_sum);
  }
  loss = fold_rows<FOLD_SUM>(loss);
  target_sum = fold_rows<FOLD_SUM>(target_sum);
  if (!inside) return;

  const bool none_counts = total && *total == Acc<T>(0);  // the mean over nothing is NaN
  const bool unknown = counts && !known;
  const Acc<T> factor = unknown ? Acc<T>(nan("")) : total && !none_counts ? 1 / *total : scale;
  if (threadIdx.y == 0) losses[p] = none_counts ? Acc<T>(nan("")) : (counts ? loss : 0) * factor;
  for (int j = threadIdx.y; j < classes; j += LOSS_ROWS) {
    Acc<T> target = (j == label ? 1 - smoothing : Acc<T>(0)) + shared_part;
    if (weight) target *= Acc<T>(weight[j]);
    const Acc<T> probability = exp(Acc<T>(x[j * samples]) - maximum - log_sum);
    grad[p + j * samples] = T(counts ? (probability * target_sum - target) * factor : Acc<T>(0));
  }
}
