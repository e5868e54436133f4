// Optimizer steps over many parameters in one launch.
//
// A network has tens of parameters, most of them small, and one launch for each would cost more than
// the arithmetic. So a launch gets a table of them by value: block b works on the tensor t with
// first_block[t] <= b < first_block[t + 1], at the chunk b − first_block[t].

#include "common.cu"

#define TABLE_SIZE 48  // 4 pointers, a count and a number for each fit into the 4 KB of arguments
#define UPDATE_CHUNK 4096

struct TensorTable {
  unsigned long long pointers[4][TABLE_SIZE];  // parameter, gradient and two state arrays
  long long count[TABLE_SIZE];
  int first_block[TABLE_SIZE + 1];
  int tensors;
};

// The part of a tensor that this block updates.
struct Part {
  int tensor;
  Index begin, end;
};

__device__ inline Part part_of_block(const TensorTable& table) {
  Part part;
  part.tensor = 0;
  while ((int)blockIdx.x >= table.first_block[part.tensor + 1]) ++part.tensor;
  part.begin = (Index)((int)blockIdx.x - table.first_block[part.tensor]) * UPDATE_CHUNK;
  const Index count = table.count[part.tensor];
  part.end = part.begin + UPDATE_CHUNK < count ? part.begin + UPDATE_CHUNK : count;
  return part;
}

template <typename T>
__device__ inline T* array_of(const TensorTable& table, int which, int tensor) {
  return reinterpret_cast<T*>(table.pointers[which][tensor]);
}

// v = momentum·v + g, then p −= lr·v (Nesterov: p −= lr·(g + momentum·v)).
// instances: sgd_update<float> sgd_update<double> sgd_update<Half>
template <typename T>
__global__ void sgd_update(TensorTable table, Acc<T> lr, Acc<T> momentum, int nesterov,
                           Acc<T> weight_decay) {
  const Part part = part_of_block(table);
  T* p = array_of<T>(table, 0, part.tensor);
  const T* gradient = array_of<T>(table, 1, part.tensor);
  T* velocity = array_of<T>(table, 2, part.tensor);
  for (Index i = part.begin + threadIdx.x; i < part.end; i += blockDim.x) {
    const Acc<T> value = p[i];
    Acc<T> g = Acc<T>(gradient[i]) + weight_decay * value;
    if (momentum != Acc<T>(0)) {
      const Acc<T> v = momentum * Acc<T>(velocity[i]) + g;
      velocity[i] = T(v);
      g = nesterov ? g + momentum * v : v;
    }
    p[i] = T(value - lr * g);
  }
}

// m = β₁·m + (1−β₁)·g, v = β₂·v + (1−β₂)·g², then p −= step_size·m / (√v / v_scale + eps).
// `keep` is what decoupled weight decay leaves of p; rest1 and rest2 are 1−β₁ and 1−β₂, rounded once.
// instances: adam_update<float> adam_update<double> adam_update<Half>
template <typename T>
__global__ void adam_update(TensorTable table, Acc<T> step_size, Acc<T> v_scale, Acc<T> rest1,
                            Acc<T> beta2, Acc<T> rest2, Acc<T> eps, Acc<T> weight_decay,
                            Acc<T> keep) {
  const Part part = part_of_block(table);
  T* p = array_of<T>(table, 0, part.tensor);
  const T* gradient = array_of<T>(table, 1, part.tensor);
  T* first = array_of<T>(table, 2, part.tensor);
  T* second = array_of<T>(table, 3, part.tensor);
  for (Index i = part.begin + threadIdx.x; i < part.end; i += blockDim.x) {
    const Acc<T> value = Acc<T>(p[i]) * keep;
    const Acc<T> g = Acc<T>(gradient[i]) + weight_decay * value;
    const Acc<T> m = Acc<T>(first[i]) + rest1 * (g - Acc<T>(first[i]));
    const Acc<T> v = beta2 * Acc<T>(second[i]) + rest2 * g * g;
    first[i] = T(m);
    second[i] = T(v);
    p[i] = T(value - step_size * m / (sqrt(v) / v_scale + eps));
  }
}
