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
// To leave the caches first: what is stored is read later, if at all, and samples are to stay there until all rows that show them are made.
HERE void store(u64 address, uint4 words) { __stcs(at<uint4>(address), words); }

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
  u64 own, partner;                                      // samples, u8 [3, H, W], 16-byte aligned; both are read
  float own_factor[3], partner_factor[3], offset[3];     // A, B, C of each channel
  u16 top, bottom, left, right;                          // the box that shows the partner
  u32 flags;
};
enum { CUT = 1, FLIP = 2, PARTNER_FLIP = 4 };

struct Batch {
  u64 rows; // Row [B]
  u64 out;  // [B, 3, H, W] or [B, H, W, 3], 16-byte aligned
  u32 height, width;
  u64 of_line; // the next number above 2⁴⁰ / chunks of a line: multiplying by it divides by them
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
  HERE u32 bits(float value) { return __float_as_uint(__fadd_rn(value, 12582912.0f)); }
  HERE u32 pair(float low, float high) { return __byte_perm(bits(low), bits(high), 0x0040); }
  HERE u32 four(const float *v) { return __byte_perm(pair(v[0], v[1]), pair(v[2], v[3]), 0x5410); }
  HERE uint4 pack(const float *v) { return make_uint4(four(v), four(v + 4), four(v + 8), four(v + 12)); }
};

// The bits of 2²³. Those of 2²³ + u, u a byte, differ in their lowest eight only.
enum : u32 { TWO_23 = 0x4B000000 };

// COUNT neighbouring bytes of a sample.
template <int COUNT> struct Bytes {
  u32 words[COUNT / 4];
  // One of them, in 2²³; the last is the first where they are flipped.
  THERE u32 byte(int i, bool flipped) const {
    const u32 word = words[i / 4], last = words[COUNT / 4 - 1 - i / 4];
    return __byte_perm(flipped ? last : word, TWO_23, 0x7440 + (flipped ? 3 - i % 4 : i % 4));
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

// A factor times a byte, rounded once: what 2²³ adds to the product is exact, and taken away before anything is rounded.
HERE float times(float factor, u32 byte_of_2_23) { return __fmaf_rn(factor, __uint_as_float(byte_of_2_23), -8388608.0f * factor); }

// With a box C is added to the own value or the partner's alone: B is 0 then, and `partner` adds an exact 0.
HERE float mixed(float a, float b, float c, u32 own, u32 partner) { return __fadd_rn(__fadd_rn(times(a, own), times(b, partner)), c); }

HERE bool in_box(const Row &row, u32 y, u32 x) { return y >= row.top && y < row.bottom && x >= row.left && x < row.right; }

// Neighbouring values of one channel that make 16 bytes, of both samples. Lines are whole chunks.
template <class E> struct Chunk {
  u32 channel, y, x;
  Bytes<E::COUNT> own, partner;
  THERE void load(const Batch &batch, const Row &row, u32 of_channel, u32 nth) {
    channel = of_channel, y = nth * batch.of_line >> 40, x = nth * E::COUNT - y * batch.width;
    const u32 line = (channel * batch.height + y) * batch.width, mirrored = batch.width - E::COUNT - x;
    ::load(row.own + line + (row.flags & FLIP ? mirrored : x), own);
    ::load(row.partner + line + (row.flags & PARTNER_FLIP ? mirrored : x), partner);
  }
  // To every STEP-th of `values`.
  template <bool CUTS, int STEP> THERE void mix(const Row &row, float *values) const {
    const float a = factor(row.own_factor, channel), b = factor(row.partner_factor, channel), c = factor(row.offset, channel);
#pragma unroll
    for (int i = 0; i < E::COUNT; i++) {
      u32 u = own.byte(i, row.flags & FLIP), v = partner.byte(i, row.flags & PARTNER_FLIP);
      if (CUTS) u = in_box(row, y, x + i) ? v : u;
      values[STEP * i] = mixed(a, b, c, u, v);
    }
  }
};

// Chunks that a thread has under way at once where they lie in planes.
enum { AHEAD = 4 };

// [3, H, W].
template <class E, bool CUTS> HERE void planes(const Batch &batch, const Row &row, u64 out) {
  const u32 of_channel = batch.height * batch.width / E::COUNT, chunks = 3 * of_channel;
  for (u32 first = blockIdx.y * blockDim.x * AHEAD + threadIdx.x; first < chunks; first += gridDim.y * blockDim.x * AHEAD) {
    Chunk<E> chunk[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const u32 nth = first + i * blockDim.x, channel = (nth >= of_channel) + (nth >= 2 * of_channel);
      if (nth < chunks) chunk[i].load(batch, row, channel, nth - channel * of_channel);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      const u32 nth = first + i * blockDim.x;
      if (nth >= chunks) continue;
      float values[E::COUNT];
      chunk[i].template mix<CUTS, 1>(row, values);
      store(out + 16ull * nth, E::pack(values));
    }
  }
}

// [H, W, 3]: a chunk of each channel makes 48 bytes.
template <class E, bool CUTS> HERE void pixels(const Batch &batch, const Row &row, u64 out) {
  const u32 chunks = batch.height * batch.width / E::COUNT;
  for (u32 nth = blockIdx.y * blockDim.x + threadIdx.x; nth < chunks; nth += gridDim.y * blockDim.x) {
    Chunk<E> chunk[3];
    float values[3 * E::COUNT];
#pragma unroll
    for (int channel = 0; channel < 3; channel++) chunk[channel].load(batch, row, channel, nth);
#pragma unroll
    for (int channel = 0; channel < 3; channel++) chunk[channel].template mix<CUTS, 3>(row, values + channel);
#pragma unroll
    for (int i = 0; i < 3; i++) store(out + 48ull * nth + 16 * i, E::pack(values + i * E::COUNT));
  }
}

// Any shape and order: values are gathered one by one, and stored 16 bytes at a time where they begin aligned.
template <class E, bool TOGETHER> HERE void values_in_turn(const Batch &batch, const Row &row, u64 out) {
  const u32 width = batch.width, pixels = batch.height * width, chunks = (3 * pixels + E::COUNT - 1) / E::COUNT;
  for (u32 chunk = blockIdx.y * blockDim.x + threadIdx.x; chunk < chunks; chunk += gridDim.y * blockDim.x) {
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
      u32 v = read<u8>(row.partner + plane + partner);
      values[i] = mixed(factor(row.own_factor, channel), factor(row.partner_factor, channel), factor(row.offset, channel), TWO_23 + u, TWO_23 + v);
    }
    const uint4 packed = E::pack(values);
    const u64 to = out + (u64)chunk * 16;
    if (to % 16 == 0 && (chunk + 1) * E::COUNT <= 3 * pixels) {
      store(to, packed);
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

// Threads of a block, and how many blocks a multiprocessor is to have at once at least: the most for which the compiler still keeps everything
// in registers. Left to itself it spends more of them, so that fewer loads are under way, or (on pixels) so few that a thread's loads wait for each
// other.
enum { BLOCK = 128, BLOCKS = ELEMENT::COUNT == 16 ? 5 : 7 };

// ELEMENT is F32, F16, BF16 or U8; PIXELS is 1 where a pixel's three values lie together. A column of the grid makes an image. Blocks begin
// line by line of the grid: what is read of samples while one part of every image is made, each of them twice, fits the caches (4 KB an image, of 50 MB on an H100).
extern "C" __launch_bounds__(BLOCK, BLOCKS) __global__ void mix(Batch batch) {
  const Row row = *at<const Row>(batch.rows + blockIdx.x * sizeof(Row));
  const u64 out = batch.out + blockIdx.x * (3ull * ELEMENT::BYTES) * batch.height * batch.width;
  const bool cuts = row.flags & CUT;
  if (batch.width % ELEMENT::COUNT) values_in_turn<ELEMENT, PIXELS>(batch, row, out);
  else if (PIXELS && cuts) pixels<ELEMENT, true>(batch, row, out);
  else if (PIXELS) pixels<ELEMENT, false>(batch, row, out);
  else if (cuts) planes<ELEMENT, true>(batch, row, out);
  else planes<ELEMENT, false>(batch, row, out);
}

// The erased boxes of an image.
struct Boxes {
  u16 top_bottom_left_right[8][4];
  u32 len, mode, key;
};
enum { CONST = 0, RAND = 1, PIXEL = 2 };

// What is erased in a row's image, 260 bytes (src/mix/cuda.rs writes it).
struct Patch {
  u32 row;
  float weight;                                // of the own image
  float without_own[3], without_partner[3];    // C's share of the partner's and of the own image
  Boxes own, partner, whole;                   // of each image before the mix; of the mixed one
};
struct Patches {
  Batch batch;
  u64 list;  // Patch [N]
  u64 noise; // float [3, 4096]
  float constant[3];
};

// The last box that covers a pixel; -1 where none does.
HERE int box_at(const Boxes &boxes, u32 y, u32 x) {
  for (int nth = (int)boxes.len - 1; nth >= 0; nth--) {
    const u16 *box = boxes.top_bottom_left_right[nth];
    if (y >= box[0] && y < box[1] && x >= box[2] && x < box[3]) return nth;
  }
  return -1;
}

// What stands in a box: a number of the table, by a hash of the key and the value's index (src/mix/erase.rs).
HERE float fill(const Patches &patches, const Boxes &boxes, int nth, u32 channel, u32 index) {
  if (boxes.mode == CONST) return factor(patches.constant, channel);
  u32 hash = (boxes.mode == RAND ? 3 * nth + channel : index) * 0x9E3779B1u ^ boxes.key;
  hash = (hash ^ hash >> 16) * 0x85EBCA6Bu;
  hash = (hash ^ hash >> 13) * 0xC2B2AE35u;
  hash ^= hash >> 16;
  return read<float>(patches.noise + (channel * 4096 + (hash >> 20)) * 4);
}

template <class E> HERE void store_one(u64 to, float value) {
  float values[E::COUNT] = {value};
  const u32 word = E::pack(values).x;
  if (E::BYTES == 4) *at<u32>(to) = word;
  if (E::BYTES == 2) *at<u16>(to) = word;
  if (E::BYTES == 1) *at<u8>(to) = word;
}

// Once the images are made: the values in erased boxes, an image's boxes on each column of the grid. An erased image's term is weight · z in place
// of A · u, and its share of C is left out; all else is `mixed`.
extern "C" __global__ void erase(Patches patches) {
  const Patch &patch = *at<const Patch>(patches.list + blockIdx.x * sizeof(Patch));
  const Row row = *at<const Row>(patches.batch.rows + patch.row * sizeof(Row));
  const u32 height = patches.batch.height, width = patches.batch.width, pixels = height * width;
  const u64 out = patches.batch.out + patch.row * (3ull * ELEMENT::BYTES) * pixels;
  for (u32 pixel = blockIdx.y * blockDim.x + threadIdx.x; pixel < pixels; pixel += gridDim.y * blockDim.x) {
    const u32 y = pixel / width, x = pixel - y * width, flipped = pixel - x + width - 1 - x;
    const bool shows_partner = row.flags & CUT && in_box(row, y, x), mixes = !(row.flags & CUT) && patch.weight != 1.0f;
    const Boxes &own = shows_partner ? patch.partner : patch.own;
    const int in_own = box_at(own, y, x), in_partner = mixes ? box_at(patch.partner, y, x) : -1, in_whole = box_at(patch.whole, y, x);
    if (in_own < 0 && in_partner < 0 && in_whole < 0) continue;
    const u64 partner_pixel = row.partner + (row.flags & PARTNER_FLIP ? flipped : pixel);
    const u64 own_pixel = shows_partner ? partner_pixel : row.own + (row.flags & FLIP ? flipped : pixel);
    for (u32 channel = 0; channel < 3; channel++) {
      const u32 plane = channel * pixels, index = plane + pixel;
      float a, b = 0, c = in_own < 0 ? in_partner < 0 ? factor(row.offset, channel) : factor(patch.without_partner, channel)
                                     : in_partner < 0 ? factor(patch.without_own, channel) : 0;
      if (in_own < 0) a = times(factor(row.own_factor, channel), TWO_23 + read<u8>(own_pixel + plane));
      else a = __fmul_rn(patch.weight, fill(patches, own, in_own, channel, index));
      if (in_partner >= 0) b = __fmul_rn(__fadd_rn(1.0f, -patch.weight), fill(patches, patch.partner, in_partner, channel, index));
      else if (mixes) b = times(factor(row.partner_factor, channel), TWO_23 + read<u8>(partner_pixel + plane));
      const float value = in_whole < 0 ? __fadd_rn(__fadd_rn(a, b), c) : fill(patches, patch.whole, in_whole, channel, index);
      store_one<ELEMENT>(out + (PIXELS ? 3 * pixel + channel : index) * (u64)ELEMENT::BYTES, value);
    }
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

// A block copies a sample, then another: kernels reading pinned memory keep the bus busier than a copy of 50 KB each. Samples that begin
// anywhere are put together of the aligned words that they lie in.
extern "C" __global__ void fetch(Copies copies) {
  for (u32 nth = blockIdx.x; nth < copies.len; nth += gridDim.x) {
    const Copy copy = *at<const Copy>(copies.list + nth * sizeof(Copy));
    const u32 size = copy.from % 16 ? 4 : 16, whole = copies.bytes / size, shift = copy.from % 4;
    for (u32 first = threadIdx.x; first < whole; first += blockDim.x * AHEAD) {
      uint4 words[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const u64 from = copy.from + (u64)size * (first + i * blockDim.x) - shift;
        if (first + i * blockDim.x >= whole) continue;
        if (size == 16) words[i] = *at<const uint4>(from);
        else words[i].x = *at<const u32>(from), words[i].y = shift ? *at<const u32>(from + 4) : 0;
      }
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const u64 to = copy.to + (u64)size * (first + i * blockDim.x);
        if (first + i * blockDim.x >= whole) continue;
        if (size == 16) *at<uint4>(to) = words[i];
        else *at<u32>(to) = __byte_perm(words[i].x, words[i].y, 0x3210 + 0x1111 * shift);
      }
    }
    for (u32 byte = size * whole + threadIdx.x; byte < copies.bytes; byte += blockDim.x) *at<u8>(copy.to + byte) = *at<const u8>(copy.from + byte);
  }
}
