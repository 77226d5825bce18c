// Four values at once: NEON, on every 64-bit ARM processor.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace axk1 {

constexpr int64_t kLanes = 4;
constexpr int kRegisters = 32;
constexpr int64_t kAhead = 8192;
constexpr const char* kInstructions = "neon";
typedef float Lanes __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t LanesI32 __attribute__((vector_size(16), aligned(4), may_alias));

inline Lanes load_bfloat16(const uint16_t* p) { return Lanes(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))); }

// 2 * kLanes values of bfloat16: those of even index, those of odd index.
inline void load_bfloat16_pairs(const uint16_t* p, Lanes& even, Lanes& odd) {
    const uint32x4_t words = vreinterpretq_u32_u16(vld1q_u16(p));
    even = Lanes(vreinterpretq_f32_u32(vshlq_n_u32(words, 16)));
    odd = Lanes(vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000))));
}

// The same of float32 values.
inline void split_pairs(const float* x, Lanes& even, Lanes& odd) {
    const float32x4x2_t pairs = vld2q_f32(x);
    even = Lanes(pairs.val[0]);
    odd = Lanes(pairs.val[1]);
}

inline float32x4_t widened(int8x8_t bytes) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes)))); }

inline Lanes load_int8(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return Lanes(widened(vreinterpret_s8_s32(vdup_n_s32(four))));
}

// 2 * kLanes values of four bits, stored plus 8, the first of a byte in its lower half.
inline void load_int4(const uint8_t* p, Lanes& first, Lanes& second) {
    int32_t four;
    std::memcpy(&four, p, 4);
    const uint8x8_t bytes = vreinterpret_u8_s32(vdup_n_s32(four));
    const uint8x8_t pairs = vzip1_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8(bytes, 4));
    const int16x8_t values = vmovl_s8(vsub_s8(vreinterpret_s8_u8(pairs), vdup_n_s8(8)));
    first = Lanes(vcvtq_f32_s32(vmovl_s16(vget_low_s16(values))));
    second = Lanes(vcvtq_f32_s32(vmovl_s16(vget_high_s16(values))));
}

inline void transpose(Lanes* rows) {
    const float32x4_t a = float32x4_t(rows[0]), b = float32x4_t(rows[1]), c = float32x4_t(rows[2]), d = float32x4_t(rows[3]);
    const float64x2_t ab = vreinterpretq_f64_f32(vtrn1q_f32(a, b)), cd = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
    const float64x2_t ab2 = vreinterpretq_f64_f32(vtrn2q_f32(a, b)), cd2 = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
    rows[0] = Lanes(vreinterpretq_f32_f64(vzip1q_f64(ab, cd)));
    rows[1] = Lanes(vreinterpretq_f32_f64(vzip1q_f64(ab2, cd2)));
    rows[2] = Lanes(vreinterpretq_f32_f64(vzip2q_f64(ab, cd)));
    rows[3] = Lanes(vreinterpretq_f32_f64(vzip2q_f64(ab2, cd2)));
}

}  // namespace axk1
