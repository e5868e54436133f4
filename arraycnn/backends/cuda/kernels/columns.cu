// im2col and col2im: what each output position sees, written into a column, and back.

#include "common.cu"

// Columns first … first + count of the column matrix, (channels·taps, count). It is a copy, so the
// elements are counted in the largest Word that divides a row of the batch: four floats at a time,
// and any dtype.
// instances: im2col<unsigned short> im2col<unsigned int> im2col<uint2> im2col<uint4>
template <typename Word>
__global__ void im2col(const Word* __restrict__ x, Word* __restrict__ columns, Window w,
                       int channels, Index batch, Index first, Index count) {
  const Index j = first_index();  // one thread makes a column, for some of the channels
  if (j >= count) return;
  const Place place = place_of(first + j, w.output, batch);
  const Index plane = volume(w.input) * batch, rows = volume(w.kernel);
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    const Word* seen = x + c * plane + place.sample;
    Word* column = columns + c * rows * count + j;
    for_each_tap(w, place, [&](int tap, Index position) {
      column[tap * count] = position < 0 ? Word() : seen[position * batch];
    });
  }
}

// The adjoint: each input element collects from the columns first … first + count that saw it and
// adds the sum to what is there, or replaces it. No two threads write to the same place.
// instances: col2im<float> col2im<double> col2im<Half>
template <typename T>
__global__ void col2im(const T* __restrict__ columns, T* __restrict__ x, Window w, int channels,
                       Index batch, Index first, Index count, int add) {
  const Index plane = volume(w.input) * batch, rows = volume(w.kernel);
  const Index q = first_index();
  if (q >= plane) return;
  const Place place = place_of(q, w.input, batch);
  for (int c = blockIdx.y; c < channels; c += gridDim.y) {
    const T* column = columns + c * rows * count;
    Acc<T> sum = add ? Acc<T>(x[c * plane + q]) : Acc<T>(0);
    for_each_window(w, place, [&](int tap, Index position) {
      const Index j = position * batch + place.sample - first;
      if (j >= 0 && j < count) sum += Acc<T>(column[tap * count + j]);
    });
    x[c * plane + q] = T(sum);
  }
}
