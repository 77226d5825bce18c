// Eight values at once: AVX2 with fused multiply-add, what most desktops and laptops have.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace axk1 {

constexpr int64_t kLanes = 8;
constexpr int kRegisters = 16;
constexpr int64_t kAhead = 1024;
constexpr const char* kInstructions = "avx2";
typedef float Lanes __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t LanesI32 __attribute__((vector_size(32), aligned(4), may_alias));

// Keeps a value in its register, where the compiler would read it from memory for each use: there are two reads per cycle.
inline void hold(Lanes& v) { asm("" : "+x"(v)); }

// The sums of four vectors, each as sum() makes it.
#define AXK1_SUM_FOUR
inline void sum_four(const Lanes* v, float* out) {
    const auto halves = [](const Lanes& a, const Lanes& b) {
        return _mm256_add_ps(_mm256_permute2f128_ps(__m256(a), __m256(b), 0x20), _mm256_permute2f128_ps(__m256(a), __m256(b), 0x31));
    };
    const __m256 a = halves(v[0], v[1]), b = halves(v[2], v[3]);
    const __m256 pairs = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    const __m256 all = _mm256_add_ps(_mm256_shuffle_ps(pairs, pairs, 0x88), _mm256_shuffle_ps(pairs, pairs, 0xdd));  // 0 2 . . 1 3 . .
    _mm_storeu_ps(out, _mm_unpacklo_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

inline Lanes load_bfloat16(const uint16_t* p) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return Lanes(_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)));
}

// 2 * kLanes values of bfloat16: those of even index, those of odd index.
inline void load_bfloat16_pairs(const uint16_t* p, Lanes& even, Lanes& odd) {
    __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    asm("" : "+x"(words));
    even = Lanes(_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)));
    odd = Lanes(_mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000)))));
}

// The same of float32 values.
inline void split_pairs(const float* x, Lanes& even, Lanes& odd) {
    const __m256 first = _mm256_loadu_ps(x), second = _mm256_loadu_ps(x + 8);
    const auto ordered = [](__m256 v) { return Lanes(_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8))); };
    even = ordered(_mm256_shuffle_ps(first, second, 0x88));
    odd = ordered(_mm256_shuffle_ps(first, second, 0xdd));
}

inline Lanes load_int8(const int8_t* p) {
    return Lanes(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
}

// 2 * kLanes values of four bits, stored plus 8, the first of a byte in its lower half.
inline void load_int4(const uint8_t* p, Lanes& first, Lanes& second) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), lower = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    const __m128i pairs = _mm_unpacklo_epi8(_mm_and_si128(bytes, lower), _mm_and_si128(_mm_srli_epi16(bytes, 4), lower));
    const __m128i values = _mm_sub_epi8(pairs, eight);
    first = Lanes(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(values)));
    second = Lanes(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(values, 8))));
}

// 32 values of three bits, stored plus 4, as Int3 has them.
inline __m256i bytes_of_int3(const uint8_t* p) {
    int64_t low;
    int32_t high;
    std::memcpy(&low, p, 8), std::memcpy(&high, p + 8, 4);
    const __m256i twos = _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(low), _mm256_set_epi64x(6, 4, 2, 0)), _mm256_set1_epi8(3));
    const __m256i each = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0), bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i fours = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(high), each), bit), bit);
    return _mm256_or_si256(twos, _mm256_andnot_si256(fours, _mm256_set1_epi8(-4)));  // without the four, four less
}
#define AXK1_LOAD_INT3
inline void load_int3(const uint8_t* p, Lanes* out) {
    const __m256i values = bytes_of_int3(p);
    const __m128i halves[2] = {_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1)};
    for (int k = 0; k < 4; ++k)
        out[k] = Lanes(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(k % 2 ? _mm_srli_si128(halves[k / 2], 8) : halves[k / 2])));
}

inline void transpose(Lanes* rows) {
    __m256 pairs[8], fours[8];
    #pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(__m256(rows[i]), __m256(rows[i + 1]));
        pairs[i + 1] = _mm256_unpackhi_ps(__m256(rows[i]), __m256(rows[i + 1]));
    }
    #pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4)
        #pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
            fours[i + 2 * k] = _mm256_shuffle_ps(pairs[i + k], pairs[i + 2 + k], 0x44);
            fours[i + 2 * k + 1] = _mm256_shuffle_ps(pairs[i + k], pairs[i + 2 + k], 0xee);
        }
    #pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        rows[k] = Lanes(_mm256_permute2f128_ps(fours[k], fours[4 + k], 0x20));
        rows[4 + k] = Lanes(_mm256_permute2f128_ps(fours[k], fours[4 + k], 0x31));
    }
}

}  // namespace axk1
