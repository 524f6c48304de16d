// What runs on the device: the fused mix, and the copy of samples to the device.
//
// Compiled at run time (NVRTC) for the device that is there; and as C++ for the processor, where the tests run the very same source
// (tests/cuda_on_cpu). Shapes come as numbers, so that one compilation serves every feed. No kernel needs shared memory or barriers.
//
// A value is (A·u_own + B·u_partner) + C, each operation rounded by itself: the CPU mixer's formula, and its bits.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef __CUDACC_RTC__
#define HERE static __device__ __forceinline__
#define THERE __device__ __forceinline__

template <class T> HERE T *at(u64 address) { return (T *)address; }
// Through the read-only cache: nothing that a kernel reads changes while it runs (a sample that two batches bring may be written again, as it is).
template <class T> HERE T read(u64 address) { return __ldg(at<const T>(address)); }
HERE u32 swap_bytes(u32 word) { return __byte_perm(word, 0, 0x0123); }

HERE u32 half_bits(float value) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#else
#include "on_cpu.h"
#endif

// One row of a batch, 64 bytes (src/mix/cuda.rs writes it).
struct Row {
  u64 own, partner;                                      // samples, u8 [3, H, W], 16-byte aligned
  float own_factor[3], partner_factor[3], offset[3];     // A, B, C of each channel
  u16 top, bottom, left, right;                          // the box that shows the partner
  u32 flags;
};
enum { MIXED = 1, CUT = 2, FLIP = 4, PARTNER_FLIP = 8 };

struct Batch {
  u64 rows; // Row [B]
  u64 out;  // [B, 3, H, W] or [B, H, W, 3], 16-byte aligned
  u32 height, width, len;
};

// Element types: how many make 16 bytes, and how values become words of 32 bits.
struct F32 {
  enum { COUNT = 4, BYTES = 4 };
  HERE uint4 pack(const float *v) {
    return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
  }
};
struct F16 {
  enum { COUNT = 8, BYTES = 2 };
  HERE u32 pair(float low, float high) { return half_bits(low) | half_bits(high) << 16; }
  HERE uint4 pack(const float *v) { return make_uint4(pair(v[0], v[1]), pair(v[2], v[3]), pair(v[4], v[5]), pair(v[6], v[7])); }
};
struct BF16 {
  enum { COUNT = 8, BYTES = 2 };
  // To nearest, ties to even. The values are finite.
  HERE u32 bits(float value) {
    u32 word = __float_as_uint(value);
    return (word + 0x7FFF + (word >> 16 & 1)) >> 16;
  }
  HERE u32 pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return bits(low) | bits(high) << 16;
#endif
  }
  HERE uint4 pack(const float *v) { return make_uint4(pair(v[0], v[1]), pair(v[2], v[3]), pair(v[4], v[5]), pair(v[6], v[7])); }
};
struct U8 {
  enum { COUNT = 16, BYTES = 1 };
  // Adding 1.5·2²³ rounds a small positive number to an integer, ties to even, in the lowest bits.
  HERE u32 bits(float value) { return __float_as_uint(__fadd_rn(value, 12582912.0f)) & 255; }
  HERE u32 four(const float *v) { return bits(v[0]) | bits(v[1]) << 8 | bits(v[2]) << 16 | bits(v[3]) << 24; }
  HERE uint4 pack(const float *v) { return make_uint4(four(v), four(v + 4), four(v + 8), four(v + 12)); }
};

// COUNT neighbouring bytes of a sample.
template <int COUNT> struct Bytes {
  u32 words[COUNT / 4];
  THERE u32 byte(int i) const { return words[i / 4] >> 8 * (i % 4) & 255; }
  THERE void reverse() {
#pragma unroll
    for (int i = 0; i < (COUNT / 4 + 1) / 2; i++) {
      const u32 word = swap_bytes(words[i]);
      words[i] = swap_bytes(words[COUNT / 4 - 1 - i]);
      words[COUNT / 4 - 1 - i] = word;
    }
  }
};
HERE void load(u64 address, Bytes<4> &to) { to.words[0] = read<u32>(address); }
HERE void load(u64 address, Bytes<8> &to) {
  uint2 words = read<uint2>(address);
  to.words[0] = words.x, to.words[1] = words.y;
}
HERE void load(u64 address, Bytes<16> &to) {
  uint4 words = read<uint4>(address);
  to.words[0] = words.x, to.words[1] = words.y, to.words[2] = words.z, to.words[3] = words.w;
}

HERE float factor(const float *channels, u32 channel) { return channel == 0 ? channels[0] : channel == 1 ? channels[1] : channels[2]; }

// With a box C is added to the own value or the partner's alone: B is 0 then, and `partner` adds an exact 0.
HERE float mixed(float a, float b, float c, u32 own, u32 partner) {
  return __fadd_rn(__fadd_rn(__fmul_rn(a, __uint2float_rn(own)), __fmul_rn(b, __uint2float_rn(partner))), c);
}

HERE bool in_box(const Row &row, u32 y, u32 x) { return y >= row.top && y < row.bottom && x >= row.left && x < row.right; }

// Chunks that a thread has under way at once.
enum { AHEAD = 4 };

// [3, H, W] where whole chunks lie in a line: 4, 8 or 16 bytes of either sample make 16 bytes. PLAIN: neither flipped nor cut.
template <class E, bool PLAIN> HERE void planes(const Batch &batch, const Row &row, u32 at_row) {
  const u32 width = batch.width, pixels = batch.height * width, chunks = 3 * pixels / E::COUNT;
  const u64 out = batch.out + (u64)at_row * 3 * pixels * E::BYTES;
  const bool reads_partner = row.flags & (MIXED | CUT);
  for (u32 first = blockIdx.x * blockDim.x * AHEAD + threadIdx.x; first < chunks; first += gridDim.x * blockDim.x * AHEAD) {
    Bytes<E::COUNT> own[AHEAD], partner[AHEAD];
#pragma unroll
    for (int ahead = 0; ahead < AHEAD; ahead++) {
      const u32 value = (first + ahead * blockDim.x) * E::COUNT;
      if (value >= 3 * pixels) continue;
      const u32 x = PLAIN ? 0 : value % width, flipped = PLAIN ? 0 : value - x + width - E::COUNT - x;
      load(row.own + (!PLAIN && row.flags & FLIP ? flipped : value), own[ahead]);
      if (reads_partner) load(row.partner + (!PLAIN && row.flags & PARTNER_FLIP ? flipped : value), partner[ahead]);
    }
#pragma unroll
    for (int ahead = 0; ahead < AHEAD; ahead++) {
      const u32 value = (first + ahead * blockDim.x) * E::COUNT;
      if (value >= 3 * pixels) continue;
      const u32 channel = (value >= pixels) + (value >= 2 * pixels);
      const float a = factor(row.own_factor, channel), b = factor(row.partner_factor, channel), c = factor(row.offset, channel);
      u32 y = 0, x = 0;
      if (!PLAIN) {
        if (row.flags & FLIP) own[ahead].reverse();
        if (row.flags & PARTNER_FLIP) partner[ahead].reverse();
        y = (value - channel * pixels) / width, x = value % width;
      }
      float values[E::COUNT];
#pragma unroll
      for (int i = 0; i < E::COUNT; i++) {
        u32 u = own[ahead].byte(i), v = reads_partner ? partner[ahead].byte(i) : 0;
        if (!PLAIN && row.flags & CUT) u = in_box(row, y, x + i) ? v : u;
        values[i] = mixed(a, b, c, u, v);
      }
      *at<uint4>(out + (u64)value * E::BYTES) = E::pack(values);
    }
  }
}

// Any shape and order: values are gathered one by one, and stored 16 bytes at a time where they begin aligned.
template <class E, bool TOGETHER> HERE void values_in_turn(const Batch &batch, const Row &row, u32 at_row) {
  const u32 width = batch.width, pixels = batch.height * width, chunks = (3 * pixels + E::COUNT - 1) / E::COUNT;
  const u64 out = batch.out + (u64)at_row * 3 * pixels * E::BYTES;
  for (u32 chunk = blockIdx.x * blockDim.x + threadIdx.x; chunk < chunks; chunk += gridDim.x * blockDim.x) {
    float values[E::COUNT];
#pragma unroll
    for (int i = 0; i < E::COUNT; i++) {
      u32 value = chunk * E::COUNT + i;
      if (value >= 3 * pixels) value = 3 * pixels - 1; // not stored
      u32 channel = TOGETHER ? value % 3 : value / pixels, pixel = TOGETHER ? value / 3 : value - channel * pixels;
      u32 own = pixel, partner = pixel;
      bool shows_partner = false;
      if (row.flags & (CUT | FLIP | PARTNER_FLIP)) {
        u32 y = pixel / width, x = pixel - y * width, flipped = pixel - x + width - 1 - x;
        own = row.flags & FLIP ? flipped : pixel;
        partner = row.flags & PARTNER_FLIP ? flipped : pixel;
        shows_partner = row.flags & CUT && in_box(row, y, x);
      }
      u32 plane = channel * pixels;
      u32 u = read<u8>(shows_partner ? row.partner + plane + partner : row.own + plane + own);
      u32 v = row.flags & MIXED ? read<u8>(row.partner + plane + partner) : 0;
      values[i] = mixed(factor(row.own_factor, channel), factor(row.partner_factor, channel), factor(row.offset, channel), u, v);
    }
    const uint4 packed = E::pack(values);
    const u64 to = out + (u64)chunk * 16;
    if (to % 16 == 0 && (chunk + 1) * E::COUNT <= 3 * pixels) {
      *at<uint4>(to) = packed;
    } else {
      const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
      // Constant indices, so that the words stay in registers.
#pragma unroll
      for (int i = 0; i < E::COUNT; i++) {
        if (chunk * E::COUNT + i >= 3 * pixels) continue;
        u32 word = words[i * E::BYTES / 4];
        if (E::BYTES == 4) *at<u32>(to + 4 * i) = word;
        if (E::BYTES == 2) *at<u16>(to + 2 * i) = word >> 16 * (i % 2);
        if (E::BYTES == 1) *at<u8>(to + i) = word >> 8 * (i % 4);
      }
    }
  }
}

// ELEMENT is F32, F16, BF16 or U8; PIXELS is 1 where a pixel's three values lie together. A row of the grid makes an image, or several.
extern "C" __global__ void mix(Batch batch) {
  for (u32 at_row = blockIdx.y; at_row < batch.len; at_row += gridDim.y) {
    const Row row = *at<const Row>(batch.rows + at_row * sizeof(Row));
    if (PIXELS || batch.width % ELEMENT::COUNT) values_in_turn<ELEMENT, PIXELS>(batch, row, at_row);
    else if (row.flags & (CUT | FLIP | PARTNER_FLIP)) planes<ELEMENT, false>(batch, row, at_row);
    else planes<ELEMENT, true>(batch, row, at_row);
  }
}

// A sample's way to the device.
struct Copy {
  u64 from; // in pinned main memory
  u64 to;   // on the device, 16-byte aligned
};
struct Copies {
  u64 list; // Copy [N]
  u32 len, bytes;
};

// A row of the grid copies a sample, or several: kernels reading pinned memory keep the bus busier than a copy of 50 KB each.
extern "C" __global__ void fetch(Copies copies) {
  for (u32 nth = blockIdx.y; nth < copies.len; nth += gridDim.y) {
    const Copy copy = *at<const Copy>(copies.list + nth * sizeof(Copy));
    const u32 whole = copy.from % 16 == 0 ? copies.bytes / 16 : 0, step = gridDim.x * blockDim.x;
    for (u32 first = blockIdx.x * blockDim.x + threadIdx.x; first < whole; first += step * AHEAD) {
      uint4 words[AHEAD];
#pragma unroll
      for (int ahead = 0; ahead < AHEAD; ahead++)
        if (first + ahead * step < whole) words[ahead] = *at<const uint4>(copy.from + 16ull * (first + ahead * step));
#pragma unroll
      for (int ahead = 0; ahead < AHEAD; ahead++)
        if (first + ahead * step < whole) *at<uint4>(copy.to + 16ull * (first + ahead * step)) = words[ahead];
    }
    for (u32 byte = 16 * whole + blockIdx.x * blockDim.x + threadIdx.x; byte < copies.bytes; byte += step)
      *at<u8>(copy.to + byte) = *at<const u8>(copy.from + byte);
  }
}
