// Pooling and its gradients. One thread works on one position and sample of some of the channels.

#include "common.cu"

// Whether v is the maximum y of its window; a NaN is, wherever it stands.
template <typename A>
__device__ inline bool wins(A v, A y) {
  return v == y || v != v;
}

// instances: max_pool<float> max_pool<double> max_pool<Half>
template <typename T>
__global__ void max_pool(const T* __restrict__ x, T* __restrict__ y, Window w, int channels,
                         Index batch) {
  const Index plane = volume(w.input) * batch, out = volume(w.output) * batch;
  const Index p = first_index();
  if (p >= out) return;
  const Place place = place_of(p, w.output, batch);
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    const T* seen = x + c * plane + place.sample;
    Acc<T> best = 0;
    bool found = false;
    for_each_tap(w, place, [&](int, Index position) {
      if (position < 0) return;
      const Acc<T> v = seen[position * batch];
      if (!found || v > best || v != v) best = v;  // once NaN, no comparison replaces it
      found = true;
    });
    y[c * out + p] = T(best);
  }
}

// Where the first maximum of each window stands in the flat input plane.
// instances: max_pool_indices<float> max_pool_indices<double> max_pool_indices<Half>
template <typename T>
__global__ void max_pool_indices(const T* __restrict__ x, const T* __restrict__ y,
                                 Index* __restrict__ indices, Window w, int channels, Index batch) {
  const Index plane = volume(w.input) * batch, out = volume(w.output) * batch;
  const Index p = first_index();
  if (p >= out) return;
  const Place place = place_of(p, w.output, batch);
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    const T* seen = x + c * plane + place.sample;
    const Acc<T> maximum = y[c * out + p];
    Index winner = -1;
    for_each_tap(w, place, [&](int, Index position) {
      if (winner < 0 && position >= 0 && wins(Acc<T>(seen[position * batch]), maximum))
        winner = position;
    });
    indices[c * out + p] = winner;
  }
}

// Each input element collects the gradients of the windows whose first maximum it is.
// instances: max_pool_grad<float> max_pool_grad<double> max_pool_grad<Half>
template <typename T>
__global__ void max_pool_grad(const T* __restrict__ x, const T* __restrict__ y,
                              const T* __restrict__ grad_y, T* __restrict__ grad_x, Window w,
                              int channels, Index batch) {
  const Index plane = volume(w.input) * batch, out = volume(w.output) * batch;
  const Index q = first_index();
  if (q >= plane) return;
  const Place place = place_of(q, w.input, batch);
  const Index here = q / batch;
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    const T* seen = x + c * plane + place.sample;
    const Acc<T> value = seen[here * batch];
    Acc<T> sum = 0;
    for_each_window(w, place, [&](int tap, Index position) {
      const Index p = position * batch + place.sample;
      const Acc<T> maximum = y[c * out + p];
      if (!wins(value, maximum)) return;
      // Only a winner, and there are few, looks whether an earlier tap of its window wins too.
      const Place window_place = place_of(p, w.output, batch);
      bool first = true;
      for_each_tap(w, window_place, [&](int other, Index earlier) {
        if (other < tap && earlier >= 0 && wins(Acc<T>(seen[earlier * batch]), maximum))
          first = false;
      });
      if (first) sum += Acc<T>(grad_y[c * out + p]);
    });
    grad_x[c * plane + q] = T(sum);
  }
}

// instances: sum_pool<float> sum_pool<double> sum_pool<Half>
template <typename T>
__global__ void sum_pool(const T* __restrict__ x, T* __restrict__ y, Window w, int channels,
                         Index batch) {
  const Index plane = volume(w.input) * batch, out = volume(w.output) * batch;
  const Index p = first_index();
  if (p >= out) return;
  const Place place = place_of(p, w.output, batch);
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    const T* seen = x + c * plane + place.sample;
    Acc<T> sum = 0;
    for_each_tap(w, place, [&](int, Index position) {
      if (position >= 0) sum += Acc<T>(seen[position * batch]);
    });
    y[c * out + p] = T(sum);
  }
}

// instances: sum_pool_grad<float> sum_pool_grad<double> sum_pool_grad<Half>
template <typename T>
__global__ void sum_pool_grad(const T* __restrict__ grad_y, T* __restrict__ grad_x, Window w,
                              int channels, Index batch) {
  const Index plane = volume(w.input) * batch, out = volume(w.output) * batch;
  const Index q = first_index();
  if (q >= plane) return;
  const Place place = place_of(q, w.input, batch);
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    Acc<T> sum = 0;
    for_each_window(w, place, [&](int, Index position) {
      sum += Acc<T>(grad_y[c * out + position * batch + place.sample]);
    });
    grad_x[c * plane + q] = T(sum);
  }
}

// The sum of each plane: x (channels, positions, batch) → sums (channels, batch).
// instances: plane_sum<float> plane_sum<double> plane_sum<Half>
template <typename T>
__global__ void plane_sum(const T* __restrict__ x, T* __restrict__ sums, Index channels,
                          Index positions, Index batch) {
  for (Index i = first_index(); i < channels * batch; i += index_step()) {
    const Index c = i / batch, n = i - c * batch;
    Acc<T> sum = 0;
    for (Index position = 0; position < positions; ++position)
      sum += Acc<T>(x[(c * positions + position) * batch + n]);
    sums[i] = T(sum);
  }
}
