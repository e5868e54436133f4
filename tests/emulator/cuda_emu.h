// CUDA C++ on a CPU: enough of the language for g++ to compile our kernels and run them.
//
// One launch runs on one OS thread, block after block. The threads of a block run one after the
// other until one of them waits at a barrier; only then is it given a stack of its own (a fiber).
// So a thread runs alone from barrier to barrier, and whoever relies on anything but a barrier for
// order reads what another thread has not yet written. The order of blocks and threads can be
// forward, reversed or shuffled. Shared memory and uninitialised variables start as garbage (NaN
// for shared floats), and what CUDA leaves undefined at barriers is an error with a line number.
#pragma once
#include <float.h>
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <deque>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if !(defined(__x86_64__) && defined(__linux__))
#define EMU_UCONTEXT 1
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __CUDACC_EMU__ 1

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emu {

constexpr unsigned WARP = 32;
constexpr size_t SHARED_LIMIT = 48 * 1024;  // what a launch gets without asking for more
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK_BYTES = 512 * 1024;
#else
constexpr size_t STACK_BYTES = 128 * 1024;
#endif

// ---- Fibers: a stack each, and a switch from one to another ----

#ifdef EMU_UCONTEXT
using Context = ucontext_t;
static void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
static void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK_BYTES;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#else
using Context = void*;  // the stack pointer; the callee-saved registers lie on the stack
extern "C" void emu_switch(void** from, void* to);
asm(R"(
.text
.type emu_switch,@function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch, .-emu_switch
)");
static void switch_context(Context& from, Context& to) { emu_switch(&from, to); }
static void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
}
#endif

struct Fiber {
  Context context;
  char* stack;
  uint3 thread;
  unsigned rank;
  Fiber() : stack(static_cast<char*>(aligned_alloc(64, STACK_BYTES))) {}
  ~Fiber() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack, STACK_BYTES);  // frames that were left, not returned from
#endif
    free(stack);
  }
};

// ---- The running launch ----

struct Shared {  // one __shared__ variable
  unsigned char* bytes;
  size_t size;
  unsigned launch = 0;
  explicit Shared(size_t size) : bytes(static_cast<unsigned char*>(malloc(size))), size(size) {}
};

struct Warp {  // lanes that wait at a warp intrinsic, and what they brought (two generations)
  unsigned arrived = 0, generation = 0, mask = 0;
  int line = 0;
  alignas(16) unsigned char slot[2][WARP][WARP];
  std::vector<Fiber*> waiting;
};

struct Launch {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  unsigned rank;                        // of the running thread in its block
  unsigned threads, next, returned;     // of the block: in all, not yet started, done
  unsigned arrived;                     // at the barrier of `line`
  int line;
  unsigned number = 0;                  // of this launch
  void (*body)(void*);
  void* arguments;
  size_t dynamic_size;
  unsigned char* dynamic = nullptr;
  std::vector<unsigned> thread_order;
  std::vector<Shared*> shared;          // variables that this launch has touched
  std::vector<Warp> warps;
  Context scheduler;
  Fiber* running;
  std::deque<Fiber*> ready;
  std::vector<Fiber*> idle, at_barrier, all;
  std::string error;
};
static Launch now;

static void switch_to_scheduler(Fiber* fiber) {
#ifdef __SANITIZE_ADDRESS__
  void* fake;
  __sanitizer_start_switch_fiber(&fake, nullptr, 0);
#endif
  switch_context(fiber->context, now.scheduler);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

static void switch_to_fiber(Fiber* fiber) {
  now.running = fiber;
#ifdef __SANITIZE_ADDRESS__
  void* fake;
  __sanitizer_start_switch_fiber(&fake, fiber->stack, STACK_BYTES);
#endif
  switch_context(now.scheduler, fiber->context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

[[noreturn]] static void fail(std::string error) {
  char where[96];
  snprintf(where, sizeof where, " [thread (%u, %u, %u) of block (%u, %u, %u)]", now.thread.x,
           now.thread.y, now.thread.z, now.block.x, now.block.y, now.block.z);
  now.error = error + where;
  switch_to_scheduler(now.running);
  abort();  // the scheduler drops this fiber
}

static void wait_here() {
  Fiber* fiber = now.running;
  fiber->thread = now.thread;
  fiber->rank = now.rank;
  switch_to_scheduler(fiber);
  now.thread = fiber->thread;
  now.rank = fiber->rank;
}

// Waits for the others; the last to come wakes all, in the order in which they came. They are the
// next to run, so that one warp goes as far as it can before another one follows.
static void meet_others(std::vector<Fiber*>& waiting, bool is_last) {
  waiting.push_back(now.running);
  if (is_last) {
    now.ready.insert(now.ready.begin(), waiting.begin(), waiting.end());
    waiting.clear();
  }
  wait_here();
}

static void fiber_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  for (;;) {
    while (now.next < now.threads) {
      unsigned rank = now.rank = now.thread_order[now.next++];
      unsigned row = rank / now.block_dim.x;
      now.thread = {rank % now.block_dim.x, row % now.block_dim.y, row / now.block_dim.y};
      now.body(now.arguments);
      if (now.arrived)
        fail("barrier divergence: a thread returned while others wait at __syncthreads() of line " +
             std::to_string(now.line));
      ++now.returned;
    }
    now.idle.push_back(now.running);
    switch_to_scheduler(now.running);
  }
}

static void syncthreads(int line) {
  if (now.returned)
    fail("barrier divergence: a thread waits at __syncthreads() of line " + std::to_string(line) +
         " after others have returned");
  if (now.arrived && line != now.line)
    fail("barrier divergence: a thread waits at __syncthreads() of line " + std::to_string(line) +
         ", others at that of line " + std::to_string(now.line));
  now.line = line;
  bool is_last = ++now.arrived == now.threads;
  if (is_last) now.arrived = 0;
  meet_others(now.at_barrier, is_last);
}

// All lanes of `mask` meet; returns the generation whose slots hold what they brought.
static unsigned meet(unsigned mask, int line, const void* value = nullptr, size_t size = 0) {
  unsigned first = now.rank / WARP * WARP, lane = now.rank % WARP;
  unsigned lanes = std::min(WARP, now.threads - first);
  unsigned existing = lanes == WARP ? ~0u : (1u << lanes) - 1;
  Warp& warp = now.warps[now.rank / WARP];
  if (!(mask >> lane & 1)) fail("warp divergence: a lane is not in the mask that it passes");
  if (warp.arrived && (warp.line != line || warp.mask != mask))
    fail("warp divergence: lanes wait at line " + std::to_string(line) + " and at line " +
         std::to_string(warp.line) + " or with different masks");
  warp.line = line;
  warp.mask = mask;
  unsigned generation = warp.generation & 1;
  if (value) memcpy(warp.slot[generation][lane], value, size);
  bool is_last = ++warp.arrived == static_cast<unsigned>(__builtin_popcount(mask & existing));
  if (is_last) {
    warp.arrived = 0;
    ++warp.generation;
  }
  meet_others(warp.waiting, is_last);
  return generation;
}

template <class T>
static T from_lane(unsigned generation, unsigned lane) {
  T value;
  memcpy(&value, now.warps[now.rank / WARP].slot[generation][lane % WARP], sizeof value);
  return value;
}

template <class T>
static T shuffle(unsigned mask, T value, int source, int line) {
  static_assert(sizeof(T) <= WARP, "a shuffle moves at most 32 bytes here");
  return from_lane<T>(meet(mask, line, &value, sizeof value), source);
}

static unsigned lane() { return now.rank % WARP; }

static unsigned ballot(unsigned mask, bool predicate, int line) {
  unsigned generation = meet(mask, line, &predicate, sizeof predicate), result = 0;
  for (unsigned i = 0; i < WARP; ++i)
    if (mask >> i & 1 && now.rank / WARP * WARP + i < now.threads && from_lane<bool>(generation, i))
      result |= 1u << i;
  return result;
}

// ---- Shared memory ----

static size_t shared_bytes() {
  size_t total = now.dynamic_size;
  for (Shared* variable : now.shared) total += variable->size;
  return total;
}

template <class T, int Line>
static T& shared() {
  static Shared variable(sizeof(T));
  if (variable.launch != now.number) {
    variable.launch = now.number;
    now.shared.push_back(&variable);
    memset(variable.bytes, 0xff, variable.size);
  }
  return *reinterpret_cast<T*>(variable.bytes);
}

// ---- Launching ----

static void run_block() {
  now.next = now.returned = now.arrived = 0;
  for (Warp& warp : now.warps) warp.arrived = 0;
  for (Shared* variable : now.shared) memset(variable->bytes, 0xff, variable->size);
  if (now.dynamic_size) memset(now.dynamic, 0xff, now.dynamic_size);
  while (now.returned < now.threads) {
    Fiber* fiber;
    if (!now.ready.empty()) {
      fiber = now.ready.front();
      now.ready.pop_front();
    } else if (now.next < now.threads) {
      if (now.idle.empty()) {
        fiber = new Fiber;
        prepare(fiber->context, fiber->stack, fiber_main);
        now.all.push_back(fiber);
      } else {
        fiber = now.idle.back();
        now.idle.pop_back();
      }
    } else {
      now.error = "deadlock: threads of a block wait for each other at different barriers";
      return;
    }
    switch_to_fiber(fiber);
    if (!now.error.empty()) return;
  }
}

// ---- Faults of the processor, where a GPU would compute garbage or stop the context ----

#ifdef __SANITIZE_ADDRESS__
struct Faults {};  // the sanitizer says more about them
#else
static sigjmp_buf fault_return;
static void on_fault(int signal) { siglongjmp(fault_return, signal); }

struct Faults {
  struct sigaction before[3];
  static constexpr int signals[3] = {SIGFPE, SIGSEGV, SIGBUS};
  Faults() {
    struct sigaction action = {};
    action.sa_handler = on_fault;
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &action, &before[i]);
  }
  ~Faults() {
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &before[i], nullptr);
  }
};
#endif

static std::vector<unsigned> permutation(unsigned size, unsigned order) {
  std::vector<unsigned> p(size);
  for (unsigned i = 0; i < size; ++i) p[i] = order == 1 ? size - 1 - i : i;
  uint64_t state = order;
  for (unsigned i = size; order > 1 && i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(p[i - 1], p[(state >> 33) % i]);
  }
  return p;
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

template <class... A>
struct Bound {
  void (*kernel)(A...);
  void** arguments;
  static void run(void* self) {
    auto* bound = static_cast<Bound*>(self);
    call(bound->kernel, bound->arguments, std::index_sequence_for<A...>{});
  }
};

// Runs a kernel; the error, or null. order: 0 forward, 1 reversed, else the seed of a shuffle.
template <class... A>
static const char* launch(void (*kernel)(A...), const unsigned* grid, const unsigned* block,
                          size_t dynamic_size, size_t shared_limit, unsigned order,
                          void** arguments) {
  now.error.clear();
  now.grid_dim = {grid[0], grid[1], grid[2]};
  now.block_dim = {block[0], block[1], block[2]};
  now.threads = block[0] * block[1] * block[2];
  now.dynamic_size = dynamic_size;
  now.dynamic = static_cast<unsigned char*>(malloc(dynamic_size));
  now.shared.clear();
  now.warps.resize((now.threads + WARP - 1) / WARP);
  now.thread_order = permutation(now.threads, order);
  ++now.number;
  Bound<A...> bound{kernel, arguments};
  now.body = &Bound<A...>::run;
  now.arguments = &bound;
  Faults faults;
#ifndef __SANITIZE_ADDRESS__
  if (int signal = sigsetjmp(fault_return, 1))
    now.error = signal == SIGFPE ? "an integer is divided by zero" : "an address is invalid";
#endif
  unsigned blocks = grid[0] * grid[1] * grid[2];
  std::vector<unsigned> block_order;
  if (order) block_order = permutation(blocks, order);
  for (unsigned i = 0; i < blocks && now.error.empty(); ++i) {
    unsigned rank = order ? block_order[i] : i, row = rank / grid[0];
    now.block = {rank % grid[0], row % grid[1], row / grid[1]};
    run_block();
    if (now.error.empty() && shared_bytes() > shared_limit)
      now.error = "a block takes " + std::to_string(shared_bytes()) +
                  " bytes of shared memory and may take " + std::to_string(shared_limit);
  }
  if (!now.error.empty()) {  // fibers of the failed block stand where they waited
    for (Fiber* fiber : now.all) delete fiber;
    now.all.clear();
    now.idle.clear();
    now.ready.clear();
    now.at_barrier.clear();
    for (Warp& warp : now.warps) warp.waiting.clear();
  }
  free(now.dynamic);
  return now.error.empty() ? nullptr : now.error.c_str();
}

// ---- The parameters of a kernel, for the launcher to check: "p4 i8 f4" ----

template <class T>
static std::string parameter() {
  if constexpr (std::is_pointer_v<T>) {
    using Element = std::remove_cv_t<std::remove_pointer_t<T>>;
    if constexpr (std::is_void_v<Element> || sizeof(Element) == 1 ||
                  (std::is_class_v<Element> && sizeof(Element) != 2))
      return "p0";  // bytes and structures: arrays of any element
    else
      return "p" + std::to_string(sizeof(Element));
  } else {
    const char* kind = std::is_floating_point_v<T> ? "f" : std::is_integral_v<T> ? "i" : "s";
    return kind + std::to_string(sizeof(T));
  }
}

template <class... A>
static const char* parameters(void (*)(A...)) {
  static std::string text;
  text.clear();
  ((text += parameter<std::remove_cv_t<A>>() + " "), ...);
  return text.c_str();
}

}  // namespace emu

// ---- The language ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#define threadIdx (emu::now.thread)
#define blockIdx (emu::now.block)
#define blockDim (emu::now.block_dim)
#define gridDim (emu::now.grid_dim)
#define warpSize 32

#define __syncthreads() emu::syncthreads(__LINE__)
#define __syncwarp(...) ((void)emu::meet(emu::mask_of(__VA_ARGS__), __LINE__))
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)
#define __ballot_sync(mask, predicate) emu::ballot(mask, predicate, __LINE__)
#define __any_sync(mask, predicate) (emu::ballot(mask, predicate, __LINE__) != 0)
#define __all_sync(mask, predicate) (emu::ballot(mask, !(predicate), __LINE__) == 0)

namespace emu {
static unsigned mask_of(unsigned mask = ~0u) { return mask; }

// The lane to read from, or the own one where it lies outside of the segment of `width` lanes.
static int segment_lane(int source, int width) {
  int own = lane(), start = own / width * width;
  return source >= start && source < start + width ? source : own;
}
}  // namespace emu

#define EMU_SHUFFLE(name, source)                                                  \
  template <class T>                                                               \
  static T name(int line, unsigned mask, T value, int by, int width = warpSize) {  \
    int own = emu::lane(), start = own / width * width;                            \
    (void)start;                                                                   \
    return emu::shuffle(mask, value, source, line);                                \
  }
namespace emu {
EMU_SHUFFLE(shuffle_index, start + (by & (width - 1)))
EMU_SHUFFLE(shuffle_up, segment_lane(own - by, width))
EMU_SHUFFLE(shuffle_down, segment_lane(own + by, width))
EMU_SHUFFLE(shuffle_xor, own ^ by)
}  // namespace emu
#define __shfl_sync(...) emu::shuffle_index(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) emu::shuffle_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) emu::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) emu::shuffle_xor(__LINE__, __VA_ARGS__)

struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(16) double2 {
  double x, y;
};
struct __align__(8) int2 {
  int x, y;
};
struct __align__(16) int4 {
  int x, y, z, w;
};
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

template <class T>
static inline T __ldg(const T* address) {
  return *address;
}
template <class A, class B>
static inline std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
static inline std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t{a} * b) >> 32; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (static_cast<unsigned __int128>(a) * b) >> 64;
}
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf(x) expf(x)  // names that the C library has for itself
#define __logf(x) logf(x)

namespace emu {
template <class To, class From>
static inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
}  // namespace emu
static inline unsigned __float_as_uint(float x) { return emu::bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return emu::bits<float>(x); }
static inline int __float_as_int(float x) { return emu::bits<int>(x); }
static inline float __int_as_float(int x) { return emu::bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu::bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu::bits<double>(x); }

// ---- Tensor cores: what PTX does, for device functions to call where __CUDACC_EMU__ is set ----

namespace emu {
// cvt.rna.tf32.f32: round to 10 bits of mantissa, ties away from zero.
static inline float to_tf32(unsigned x) {
  bool finite = (x & 0x7f800000u) != 0x7f800000u;
  return bits<float>(finite ? (x + 0x1000u) & ~0x1fffu : x);
}

// mma.sync.m16n8k8.row.col.f32.tf32.tf32.f32: d += a b, in fragments of one warp.
static inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct Fragments {
    unsigned a[4], b[2];
  } mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  unsigned generation = meet(~0u, __LINE__, &mine, sizeof mine);
  Fragments all[WARP];
  for (unsigned i = 0; i < WARP; ++i) all[i] = from_lane<Fragments>(generation, i);
  unsigned group = lane() / 4, member = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    unsigned row = group + 8 * (i / 2), column = 2 * member + i % 2;
    for (int k = 0; k < 8; ++k)
      d[i] += to_tf32(all[row % 8 * 4 + k % 4].a[row / 8 + 2 * (k / 4)]) *
              to_tf32(all[column * 4 + k % 4].b[k / 4]);
  }
}
}  // namespace emu
