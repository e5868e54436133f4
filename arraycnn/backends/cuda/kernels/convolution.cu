// Implicit-GEMM convolution: the matrix product of im2col, without its column matrix.
//
// Each of the three products of a convolution (see backends/convolution.py) is C = A B with a
// matrix that is never stored; its elements are fetched from where im2col would have copied them:
//
//     forward          h (O, P)     = weight (O, C·taps)  ×  columns of x (C·taps, P)
//     input gradient   δx (C, Q)    = weightᵀ (C, O·taps) ×  columns of Δ (O·taps, Q)
//     weight gradient  δK (O, C·taps) = Δ (O, P)          ×  columns of xᵀ (P, C·taps)
//
// with P = output positions·N and Q = input positions·N, N the batch. Batch-last memory makes each
// row of a slice of the columns a contiguous read.

#include "matrix_product.cu"

// A number of four digits in mixed radix that counts up in equal steps without dividing.
struct Counter {
  int digit[4], step[4], radix[4];  // the last digit is the lowest; the first has no limit

  __device__ Counter(Index start, int by, int radix1, int radix2, int radix3) {
    radix[0] = 0;
    radix[1] = radix1;
    radix[2] = radix2;
    radix[3] = radix3;
    write(digit, start);
    write(step, by);
  }

  __device__ void write(int (&digits)[4], Index number) const {
#pragma unroll
    for (int i = 3; i > 0; --i) {
      digits[i] = (int)(number % radix[i]);
      number /= radix[i];
    }
    digits[0] = (int)number;
  }

  __device__ void advance() {
    int carry = 0;
#pragma unroll
    for (int i = 3; i > 0; --i) {
      digit[i] += step[i] + carry;
      carry = digit[i] >= radix[i];
      if (carry) digit[i] -= radix[i];
    }
    digit[0] += step[0] + carry;
  }
};

// Slices of the columns that im2col would make, row k = (channel, tap), contiguous in the batch.
// With ADJOINT, of the columns of the adjoint: what each input position is seen by.
template <typename T, typename TILE, int VEC, bool ADJOINT>
struct WindowColumns {
  typedef Share<TILE, TILE::N, TILE::K, VEC> My;
  const T* source;
  const Window& w;
  Counter k;  // (channel, tap z, y, x)
  int channels, origin[3];
  Index batch;
  bool inside;
  Vector<T, VEC> held[My::LOADS];

  __device__ WindowColumns(const T* source_, const Window& w_, int channels_, int batch_,
                           Index first_column, Index columns, Index begin)
      : source(source_), w(w_),
        k(begin + My::line(), My::DOWN, w_.kernel[0], w_.kernel[1], w_.kernel[2]),
        channels(channels_), batch(batch_) {
    const Index p = first_column + My::along();
    inside = p < columns;
    const Place place = place_of(inside ? p : 0, ADJOINT ? w.input : w.output, batch);
    source += place.sample;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      origin[axis] =
          ADJOINT ? place.at[axis] : place.at[axis] * w.stride[axis] - w.before[axis];
  }

  // Where the tap's row finds its element along an axis, or −1 where there is none.
  __device__ int at(int axis) const {
    const int tap = k.digit[1 + axis];
    if (ADJOINT) return seen_from(origin[axis], tap, w, axis);
    const int position = origin[axis] + tap * w.dilation[axis];
    return position < w.input[axis] ? position : -1;
  }

  __device__ void fetch() {
    const int height = ADJOINT ? w.output[1] : w.input[1];
    const int width = ADJOINT ? w.output[2] : w.input[2];
    const int depth = ADJOINT ? w.output[0] : w.input[0];
#pragma unroll
    for (int i = 0; i < My::LOADS; ++i) {
      const int z = at(0), y = at(1), x = at(2);
      const bool there = inside && k.digit[0] < channels && z >= 0 && y >= 0 && x >= 0;
      const Index position = (((Index)k.digit[0] * depth + z) * height + y) * width + x;
      held[i] = there ? load<T, VEC>(source + position * batch) : zeros<T, VEC>();
      k.advance();
    }
  }

  template <typename A>
  __device__ void put(A (&slice)[TILE::K][TILE::N + TILE::PAD]) const {
#pragma unroll
    for (int i = 0; i < My::LOADS; ++i)
#pragma unroll
      for (int v = 0; v < VEC; ++v)
        slice[My::line() + i * My::DOWN][My::along() + v] = A(held[i].value[v]);
  }
};

// Slices of the transposed columns: row k is an output position and sample, column j a (channel,
// tap); contiguous in k.
template <typename T, typename TILE, int VEC>
struct WindowRows {
  typedef Share<TILE, TILE::K, TILE::N, VEC> My;
  const Window& w;
  Counter k;  // (z, y, x, sample)
  const T* plane[My::LOADS];
  int shift[My::LOADS][3];
  Index batch;
  Vector<T, VEC> held[My::LOADS];

  __device__ WindowRows(const T* source, const Window& w_, int channels, int batch_,
                        Index first_column, Index begin)
      : w(w_), k(begin + My::along(), TILE::K, w_.output[1], w_.output[2], batch_), batch(batch_) {
    const int taps = volume32(w.kernel);
#pragma unroll
    for (int i = 0; i < My::LOADS; ++i) {
      const Index j = first_column + My::line() + i * My::DOWN;
      const Index channel = j / taps;
      const int tap = (int)(j - channel * taps);
      plane[i] = channel < channels ? source + channel * volume(w.input) * batch : nullptr;
      shift[i][2] = tap % w.kernel[2] * w.dilation[2] - w.before[2];
      shift[i][1] = tap / w.kernel[2] % w.kernel[1] * w.dilation[1] - w.before[1];
      shift[i][0] = tap / w.kernel[2] / w.kernel[1] * w.dilation[0] - w.before[0];
    }
  }

  __device__ void fetch() {
    const bool inside = k.digit[0] < w.output[0];
#pragma unroll
    for (int i = 0; i < My::LOADS; ++i) {
      const int z = k.digit[0] * w.stride[0] + shift[i][0];
      const int y = k.digit[1] * w.stride[1] + shift[i][1];
      const int x = k.digit[2] * w.stride[2] + shift[i][2];
      const bool there = inside && plane[i] && z >= 0 && z < w.input[0] && y >= 0 &&
                         y < w.input[1] && x >= 0 && x < w.input[2];
      const Index position = ((Index)z * w.input[1] + y) * w.input[2] + x;
      held[i] =
          there ? load<T, VEC>(plane[i] + position * batch + k.digit[3]) : zeros<T, VEC>();
    }
    k.advance();
  }

  template <typename A>
  __device__ void put(A (&slice)[TILE::K][TILE::N + TILE::PAD]) const {
#pragma unroll
    for (int i = 0; i < My::LOADS; ++i)
#pragma unroll
      for (int v = 0; v < VEC; ++v)
        if (My::line() + i * My::DOWN < TILE::N)
          slice[My::along() + v][My::line() + i * My::DOWN] = A(held[i].value[v]);
  }
};

// The grid is (tiles of columns, tiles of rows, groups·parts). channels and outputs are a group's.
// instances: convolution<float,Wide,4> convolution<float,Wide,1>
// instances: convolution<float,Square,4> convolution<float,Square,1>
// instances: convolution<float,Flat,4> convolution<float,Flat,1>
// instances: convolution<float,WideTf32,4> convolution<float,WideTf32,1>
// instances: convolution<float,SquareTf32,4> convolution<float,SquareTf32,1>
// instances: convolution<double,Square,1> convolution<double,Flat,1>
// instances: convolution<Half,Square,1> convolution<Half,Flat,1>
template <typename T, typename TILE, int VEC>
__global__ void __launch_bounds__(TILE::THREADS, 1)
    convolution(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                T* __restrict__ h, Acc<T>* __restrict__ workspace, Window w, int channels,
                int outputs, int batch, int parts, int relu) {
  const int group = blockIdx.z / parts, part = blockIdx.z % parts;
  const int groups = gridDim.z / parts, row = blockIdx.y * TILE::M;
  const Index columns = volume(w.output) * batch, column = blockIdx.x * (Index)TILE::N;
  const Index depth = (Index)channels * volume32(w.kernel);
  const Slices slices = slices_of<TILE>(depth, part, parts);
  const Index begin = slices.first * TILE::K;
  MatrixRows<T, TILE, 1> a(weight + group * outputs * depth, depth, depth, 0, row, outputs, begin,
                           depth);
  WindowColumns<T, TILE, VEC, false> b(x + group * channels * volume(w.input) * batch, w, channels,
                                       batch, column, columns, begin);
  Product<Acc<T>, TILE, TILE::TF32> product;
  multiply<Acc<T>, TILE>(a, b, slices.count, product);
  const Index start = (Index)group * outputs * columns;
  Acc<T>* own_part =
      workspace ? workspace + (Index)part * groups * outputs * columns + start : nullptr;
  const Target<T> target = {h + start, own_part, bias ? bias + group * outputs : nullptr, relu,
                            outputs, columns};
  target.template store<VEC>(product, row, column);
}

// The adjoint of `convolution` in x; w is the convolution's own window.
// instances: convolution_input_grad<float,Wide,4> convolution_input_grad<float,Wide,1>
// instances: convolution_input_grad<float,Square,4> convolution_input_grad<float,Square,1>
// instances: convolution_input_grad<float,Flat,4> convolution_input_grad<float,Flat,1>
// instances: convolution_input_grad<float,WideTf32,4> convolution_input_grad<float,WideTf32,1>
// instances: convolution_input_grad<float,SquareTf32,4> convolution_input_grad<float,SquareTf32,1>
// instances: convolution_input_grad<double,Square,1> convolution_input_grad<double,Flat,1>
// instances: convolution_input_grad<Half,Square,1> convolution_input_grad<Half,Flat,1>
template <typename T, typename TILE, int VEC>
__global__ void __launch_bounds__(TILE::THREADS, 1)
    convolution_input_grad(const T* __restrict__ delta, const T* __restrict__ weight,
                           T* __restrict__ grad, Acc<T>* __restrict__ workspace, Window w,
                           int channels, int outputs, int batch, int parts) {
  const int group = blockIdx.z / parts, part = blockIdx.z % parts;
  const int groups = gridDim.z / parts, row = blockIdx.y * TILE::M;
  const int taps = volume32(w.kernel);
  const Index columns = volume(w.input) * batch, column = blockIdx.x * (Index)TILE::N;
  const Index depth = (Index)outputs * taps;
  const Slices slices = slices_of<TILE>(depth, part, parts);
  const Index begin = slices.first * TILE::K;
  MatrixRows<T, TILE, 1> a(weight + group * outputs * ((Index)channels * taps), taps, taps,
                           (Index)channels * taps, row, channels, begin, depth);
  WindowColumns<T, TILE, VEC, true> b(delta + group * outputs * volume(w.output) * batch, w,
                                      outputs, batch, column, columns, begin);
  Product<Acc<T>, TILE, TILE::TF32> product;
  multiply<Acc<T>, TILE>(a, b, slices.count, product);
  const Index start = (Index)group * channels * columns;
  Acc<T>* own_part =
      workspace ? workspace + (Index)part * groups * channels * columns + start : nullptr;
  const Target<T> target = {grad + start, own_part, nullptr, 0, channels, columns};
  target.template store<VEC>(product, row, column);
}

// The adjoint of `convolution` in the weight.
// instances: convolution_weight_grad<float,Wide,4> convolution_weight_grad<float,Wide,1>
// instances: convolution_weight_grad<float,Square,4> convolution_weight_grad<float,Square,1>
// instances: convolution_weight_grad<float,Flat,4> convolution_weight_grad<float,Flat,1>
// instances: convolution_weight_grad<float,WideTf32,4> convolution_weight_grad<float,WideTf32,1>
// instances: convolution_weight_grad<float,SquareTf32,4> convolution_weight_grad<float,SquareTf32,1>
// instances: convolution_weight_grad<double,Square,1> convolution_weight_grad<double,Flat,1>
// instances: convolution_weight_grad<Half,Square,1> convolution_weight_grad<Half,Flat,1>
template <typename T, typename TILE, int VEC>
__global__ void __launch_bounds__(TILE::THREADS, 1)
    convolution_weight_grad(const T* __restrict__ x, const T* __restrict__ delta,
                            T* __restrict__ grad, Acc<T>* __restrict__ workspace, Window w,
                            int channels, int outputs, int batch, int parts) {
  const int group = blockIdx.z / parts, part = blockIdx.z % parts;
  const int groups = gridDim.z / parts, row = blockIdx.y * TILE::M;
  const Index columns = (Index)channels * volume32(w.kernel), column = blockIdx.x * (Index)TILE::N;
  const Index depth = volume(w.output) * batch;
  const Slices slices = slices_of<TILE>(depth, part, parts);
  const Index begin = slices.first * TILE::K;
  MatrixRows<T, TILE, VEC> a(delta + group * outputs * depth, depth, depth, 0, row, outputs, begin,
                             depth);
  WindowRows<T, TILE, VEC> b(x + group * channels * volume(w.input) * batch, w, channels, batch,
                             column, begin);
  Product<Acc<T>, TILE, TILE::TF32> product;
  multiply<Acc<T>, TILE>(a, b, slices.count, product);
  const Index start = (Index)group * outputs * columns;
  Acc<T>* own_part =
      workspace ? workspace + (Index)part * groups * outputs * columns + start : nullptr;
  const Target<T> target = {grad + start, own_part, nullptr, 0, outputs, columns};
  target.template store<1>(product, row, column);
}
