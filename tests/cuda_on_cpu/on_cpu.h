// What the kernels' source needs of CUDA C++, for the processor. `driver.cpp` compiles them with it and runs one thread after the other.
#pragma once
#include <cstddef>
#include <cstring>

#define HERE static inline
#define THERE inline
#define __global__
#define __device__
#define __launch_bounds__(...)

struct dim3 { unsigned x, y, z; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;

// Addresses on the device are not canonical, so that whoever uses one on the processor crashes. Main memory must be pinned.
static thread_local unsigned long long pinned_from, pinned_to;
static bool (*find_pinned)(unsigned long long, unsigned long long *, unsigned long long *);

static inline void *place(unsigned long long address, size_t bytes) {
  if (address >> 47) return (void *)(address - (1ull << 47));
  if (address < pinned_from || address + bytes > pinned_to)
    if (!find_pinned(address, &pinned_from, &pinned_to) || address + bytes > pinned_to) __builtin_trap();
  return (void *)address;
}
template <class T> static inline T *at(unsigned long long address) {
  if (address % alignof(T)) __builtin_trap();
  return (T *)place(address, sizeof(T));
}
template <class T> static inline T read(unsigned long long address) { return *at<const T>(address); }

static inline void store(unsigned long long address, uint4 words) { *at<uint4>(address) = words; }

static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned select) {
  const unsigned long long bytes = (unsigned long long)high << 32 | low;
  unsigned word = 0;
  for (int i = 0; i < 4; i++) word |= (unsigned)(bytes >> 8 * (select >> 4 * i & 7) & 255) << 8 * i;
  return word;
}
static inline unsigned __float_as_uint(float value) {
  unsigned word;
  memcpy(&word, &value, 4);
  return word;
}
static inline float __uint_as_float(unsigned word) {
  float value;
  memcpy(&value, &word, 4);
  return value;
}
static inline unsigned half_bits(float value) {
  _Float16 half = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}
// Compiled without contraction: each is rounded once.
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

extern "C" void on_cpu_launch(void (*kernel)(const void *), const void *parameters, dim3 grid, dim3 block,
                              bool (*find)(unsigned long long, unsigned long long *, unsigned long long *)) {
  find_pinned = find;
  pinned_from = pinned_to = 0;
  gridDim = grid, blockDim = block;
  for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < block.x; threadIdx.x++) kernel(parameters);
}
