// Pooling and its gradients. One thread works on one position and sample of some of the channels.

#include "common.cu"

// The largest element of each window, and if asked for, which tap it stands at: the first of equals.
// With relu, the larger of that and 0, and no tap unless the element is above 0.
// instances: max_pool<float,Byte> max_pool<double,Byte> max_pool<Half,Byte>
// instances: max_pool<float,int> max_pool<double,int> max_pool<Half,int>
template <typename T, typename Tap>
__global__ void max_pool(const T* __restrict__ x, T* __restrict__ y, Tap* __restrict__ argmax,
                         Window w, int channels, Index batch, int relu) {
  const Index plane = volume(w.input) * batch, out = volume(w.output) * batch;
  const Index p = first_index();
  if (p >= out) return;
  const Place place = place_of(p, w.output, batch);
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    const T* seen = x + c * plane + place.sample;
    Acc<T> best = 0;
    int best_tap = -1;
    for_each_tap(w, place, [&](int tap, Index position) {
      if (position < 0) return;
      const Acc<T> v = seen[position * batch];
      const bool first_nan = v != v && best == best;  // once NaN, nothing replaces it
      if (best_tap >= 0 && !(v > best) && !first_nan) return;
      best = v;
      best_tap = tap;
    });
    if (relu && !(best > 0)) {
      if (best < 0) best = 0;  // a NaN stays
      best_tap = volume32(w.kernel);
    }
    y[c * out + p] = T(best);
    if (argmax) argmax[c * out + p] = Tap(best_tap);
  }
}

// Each input element collects the gradients of the windows whose best_tap it is.
// instances: max_pool_grad<float,Byte> max_pool_grad<double,Byte> max_pool_grad<Half,Byte>
// instances: max_pool_grad<float,int> max_pool_grad<double,int> max_pool_grad<Half,int>
template <typename T, typename Tap>
__global__ void max_pool_grad(const T* __restrict__ grad_y, const Tap* __restrict__ argmax,
                              T* __restrict__ grad_x, Window w, int channels, Index batch) {
  const Index plane = volume(w.input) * batch, out = volume(w.output) * batch;
  const Index q = first_index();
  if (q >= plane) return;
  const Place place = place_of(q, w.input, batch);
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    Acc<T> sum = 0;
    for_each_window(w, place, [&](int tap, Index position) {
      const Index p = c * out + position * batch + place.sample;
      if (int(argmax[p]) == tap) sum += Acc<T>(grad_y[p]);
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
// instances: global_sum_pool<float> global_sum_pool<double> global_sum_pool<Half>
template <typename T>
__global__ void global_sum_pool(const T* __restrict__ x, T* __restrict__ sums, Index channels,
                          Index positions, Index batch) {
  for (Index i = first_index(); i < channels * batch; i += index_step()) {
    const Index c = i / batch, n = i - c * batch;
    Acc<T> sum = 0;
    for (Index position = 0; position < positions; ++position)
      sum += Acc<T>(x[(c * positions + position) * batch + n]);
    sums[i] = T(sum);
  }
}
