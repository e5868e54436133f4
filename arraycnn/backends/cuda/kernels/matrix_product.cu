// A tiled matrix product C = A B whose operands are fetched by objects that know where they are.
//
// A block computes a tile of C, M × N. It walks along the summed dimension in slices of K, fetching
// the next slices of A and B into registers while it multiplies those that it has put into shared
// memory. When C has too few tiles to fill the device, the sum is split into parts; each block
// writes its part into a workspace and `sum_parts` adds them, always in the same order.
//
// An operand has two methods: fetch() reads its next slice into registers, put(slice) writes them
// into shared memory.

#include "common.cu"

template <int M_, int N_, int K_, int TM_, int TN_, bool TF32_ = false>
struct Tile {
  static constexpr int M = M_, N = N_, K = K_;  // of a block
  static constexpr int TM = TM_, TN = TN_;      // of a thread
  static constexpr int THREADS = (M / TM) * (N / TN);
  static constexpr bool TF32 = TF32_;
  // Padding the rows keeps threads that write or read a column of a slice on different banks.
  static constexpr int PAD = 8;
};
typedef Tile<128, 128, 8, 8, 8> Wide;   // most arithmetic for each load: large layers
typedef Tile<64, 64, 16, 4, 4> Square;  // layers with few tiles
typedef Tile<16, 64, 16, 2, 4> Flat;    // few output channels, small products
typedef Tile<128, 128, 16, 8, 8, true> WideTf32;
typedef Tile<64, 64, 16, 4, 4, true> SquareTf32;

template <typename T, int SIZE>
struct alignas(sizeof(T) * SIZE < 16 ? sizeof(T) * SIZE : 16) Vector {
  T value[SIZE];
};

// Zero in every element.
template <typename T, int SIZE>
__device__ inline Vector<T, SIZE> zeros() {
  Vector<T, SIZE> v;
#pragma unroll
  for (int i = 0; i < SIZE; ++i) v.value[i] = T(0.f);
  return v;
}

template <typename T, int SIZE>
__device__ inline Vector<T, SIZE> load(const T* from) {
  return *reinterpret_cast<const Vector<T, SIZE>*>(from);
}

// Where a thread stands in a slice whose memory is contiguous ACROSS threads · VEC elements.
template <typename TILE, int LENGTH, int WIDTH, int VEC>
struct Share {
  static constexpr int ACROSS = LENGTH / VEC;                // threads side by side
  static constexpr int DOWN = TILE::THREADS / ACROSS;        // lines that are fetched at once
  static constexpr int LOADS = (WIDTH + DOWN - 1) / DOWN;    // lines for each thread
  __device__ static int along() { return (int)threadIdx.x % ACROSS * VEC; }
  __device__ static int line() { return (int)threadIdx.x / ACROSS; }
};

// Slices of a matrix that lies in memory row by row, contiguous in the summed dimension k: element
// (m, k) is at m·row_stride + (k / run)·run_stride + k % run.
template <typename T, typename TILE, int VEC>
struct MatrixRows {
  typedef Share<TILE, TILE::K, TILE::M, VEC> My;
  const T* matrix;
  Index row_stride, run, run_stride, inner, outer, k, depth;
  int row, rows;
  Vector<T, VEC> held[My::LOADS];

  __device__ MatrixRows(const T* matrix_, Index row_stride_, Index run_, Index run_stride_,
                        int first_row, int rows_, Index begin, Index depth_)
      : matrix(matrix_), row_stride(row_stride_), run(run_), run_stride(run_stride_),
        k(begin + My::along()), depth(depth_), row(first_row + My::line()), rows(rows_) {
    outer = k / run;
    inner = k - outer * run;
  }

  __device__ void fetch() {
    const T* column = matrix + outer * run_stride + inner;
#pragma unroll
    for (int i = 0; i < My::LOADS; ++i) {
      const int m = row + i * My::DOWN;
      held[i] = m < rows && k < depth ? load<T, VEC>(column + m * row_stride) : zeros<T, VEC>();
    }
    k += TILE::K;
    inner += TILE::K;
    if (inner >= run) {
      const Index whole = inner / run;
      outer += whole;
      inner -= whole * run;
    }
  }

  template <typename A>
  __device__ void put(A (&slice)[TILE::K][TILE::M + TILE::PAD]) const {
#pragma unroll
    for (int i = 0; i < My::LOADS; ++i)
#pragma unroll
      for (int v = 0; v < VEC; ++v)
        if (My::line() + i * My::DOWN < TILE::M)
          slice[My::along() + v][My::line() + i * My::DOWN] = A(held[i].value[v]);
  }
};

// The product of two slices in plain arithmetic: a thread has TM rows and TN columns, the columns in
// runs of four so that neighbouring threads read neighbouring banks.
template <typename A, typename TILE, bool TF32>
struct Product {
  static constexpr int RUN = 4, RUNS = TILE::TN / RUN;
  static constexpr int ACROSS = TILE::N / TILE::TN;
  A sums[TILE::TM][TILE::TN];
  int row, column;

  __device__ Product()
      : sums{}, row((int)threadIdx.x / ACROSS * TILE::TM), column((int)threadIdx.x % ACROSS * RUN) {}

  __device__ static int run_of(int j) { return j / RUN * (TILE::N / RUNS) + j % RUN; }

  __device__ void add(const A (&a)[TILE::K][TILE::M + TILE::PAD],
                      const A (&b)[TILE::K][TILE::N + TILE::PAD]) {
#pragma unroll
    for (int k = 0; k < TILE::K; ++k) {
      A left[TILE::TM], right[TILE::TN];
#pragma unroll
      for (int i = 0; i < TILE::TM; ++i) left[i] = a[k][row + i];
#pragma unroll
      for (int j = 0; j < TILE::TN; ++j) right[j] = b[k][column + run_of(j)];
#pragma unroll
      for (int i = 0; i < TILE::TM; ++i)
#pragma unroll
        for (int j = 0; j < TILE::TN; ++j) sums[i][j] += left[i] * right[j];
    }
  }

  // Calls visit(row, column, values) for each run of consecutive columns.
  template <typename Visit>
  __device__ void for_each_run(Visit visit) const {
#pragma unroll
    for (int i = 0; i < TILE::TM; ++i)
#pragma unroll
      for (int r = 0; r < RUNS; ++r) {
        Vector<A, RUN> values;
#pragma unroll
        for (int v = 0; v < RUN; ++v) values.value[v] = sums[i][r * RUN + v];
        visit(row + i, column + run_of(r * RUN), values);
      }
  }
};

// Rounds to the 10 bits of mantissa that the tensor cores read.
__device__ inline unsigned to_tf32(float value) {
#ifdef __CUDACC_EMU__  // tests/emulator runs this text on a CPU
  return (__float_as_uint(value) + 0x1000u) & ~0x1fffu;
#elif __CUDA_ARCH__ >= 800
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#else
  return __float_as_uint(value);
#endif
}

// d (16×8) += a (16×8) b (8×8), spread over a warp as PTX's mma.m16n8k8 prescribes.
__device__ inline void multiply_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC_EMU__  // tests/emulator runs this text on a CPU
  emu::mma_m16n8k8_tf32(d, a, b);
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The product of two slices by tensor cores in TF32: 2 rows of warps, each with ROWS × COLUMNS
// fragments of 16 × 8. Needs compute capability 8.0, which the backend checks.
template <typename TILE>
struct Product<float, TILE, true> {
  static constexpr int RUN = 2;
  static constexpr int WARPS_ACROSS = TILE::THREADS / 32 / 2;
  static constexpr int ROWS = TILE::M / 2 / 16, COLUMNS = TILE::N / WARPS_ACROSS / 8;
  float sums[ROWS][COLUMNS][4];
  int row, column, group, member;

  __device__ Product() : sums{} {
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    row = warp / WARPS_ACROSS * (TILE::M / 2);
    column = warp % WARPS_ACROSS * (TILE::N / WARPS_ACROSS);
    group = lane / 4;
    member = lane % 4;
  }

  __device__ void add(const float (&a)[TILE::K][TILE::M + TILE::PAD],
                      const float (&b)[TILE::K][TILE::N + TILE::PAD]) {
#pragma unroll
    for (int k = 0; k < TILE::K; k += 8) {
      unsigned left[ROWS][4], right[COLUMNS][2];
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          left[i][e] = to_tf32(a[k + member + e / 2 * 4][row + i * 16 + group + e % 2 * 8]);
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          right[j][e] = to_tf32(b[k + member + e * 4][column + j * 8 + group]);
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) multiply_tf32(sums[i][j], left[i], right[j]);
    }
  }

  template <typename Visit>
  __device__ void for_each_run(Visit visit) const {
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Vector<float, RUN> values;
          values.value[0] = sums[i][j][half * 2];
          values.value[1] = sums[i][j][half * 2 + 1];
          visit(row + i * 16 + group + half * 8, column + j * 8 + member * 2, values);
        }
  }
};

// The slices of the summed dimension that one part of a split sum takes.
struct Slices {
  Index first, count;
};

template <typename TILE>
__device__ inline Slices slices_of(Index depth, int part, int parts) {
  const Index all = (depth + TILE::K - 1) / TILE::K, each = (all + parts - 1) / parts;
  Slices slices;
  slices.first = part * each;
  slices.count = all - slices.first < each ? all - slices.first : each;
  return slices;
}

template <typename A, typename TILE, typename Left, typename Right>
__device__ inline void multiply(Left& a, Right& b, Index slices,
                                Product<A, TILE, TILE::TF32>& product) {
  __shared__ alignas(16) A a_slices[2][TILE::K][TILE::M + TILE::PAD];
  __shared__ alignas(16) A b_slices[2][TILE::K][TILE::N + TILE::PAD];
  if (slices <= 0) return;
  a.fetch();
  b.fetch();
  a.put(a_slices[0]);
  b.put(b_slices[0]);
  __syncthreads();
  for (Index slice = 0; slice < slices; ++slice) {
    const int now = (int)(slice % 2);
    const bool more = slice + 1 < slices;
    if (more) {
      a.fetch();
      b.fetch();
    }
    product.add(a_slices[now], b_slices[now]);
    if (more) {  // the other pair: nobody has read it since the last barrier
      a.put(a_slices[1 - now]);
      b.put(b_slices[1 - now]);
    }
    __syncthreads();
  }
}

// What becomes of a tile of C, of `rows` × `columns`: the result, or one part of it.
template <typename T>
struct Target {
  T* result;
  Acc<T>* part;   // null unless the sum is split
  const T* bias;  // null for none
  int relu, rows;
  Index columns;

  template <int VEC, typename P>
  __device__ void store(const P& product, int first_row, Index first_column) const {
    product.for_each_run([&](int i, int j, const Vector<Acc<T>, P::RUN>& sums) {
      const int m = first_row + i;
      const Index p = first_column + j;
      if (m >= rows || p >= columns) return;
      const Index at = m * columns + p;
      if (part) {
        for (int v = 0; v < P::RUN; ++v)
          if (p + v < columns) part[at + v] = sums.value[v];
        return;
      }
      const Acc<T> shift = bias ? Acc<T>(bias[m]) : Acc<T>(0);
      Vector<T, P::RUN> values;
#pragma unroll
      for (int v = 0; v < P::RUN; ++v) {
        const Acc<T> h = sums.value[v] + shift;
        values.value[v] = T(relu && h < Acc<T>(0) ? Acc<T>(0) : h);
      }
      if (VEC % P::RUN == 0) {  // then the columns are a multiple of VEC, and aligned
        *reinterpret_cast<Vector<T, P::RUN>*>(result + at) = values;
      } else {
#pragma unroll
        for (int v = 0; v < P::RUN; ++v)
          if (p + v < columns) result[at + v] = values.value[v];
      }
    });
  }
};

// The second pass of a split sum: result = Σ parts + bias, in the order of the parts.
// instances: sum_parts<float> sum_parts<double> sum_parts<Half>
template <typename T>
__global__ void sum_parts(const Acc<T>* __restrict__ workspace, const T* __restrict__ bias,
                          T* __restrict__ result, Index size, Index columns, int parts, int relu) {
  for (Index i = first_index(); i < size; i += index_step()) {
    Acc<T> sum = 0;
    for (int part = 0; part < parts; ++part) sum += workspace[part * size + i];
    if (bias) sum += Acc<T>(bias[i / columns]);
    result[i] = T(relu && sum < Acc<T>(0) ? Acc<T>(0) : sum);
  }
}
