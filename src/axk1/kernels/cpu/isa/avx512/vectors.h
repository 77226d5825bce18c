// Sixteen values at once: AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace axk1 {

constexpr int64_t kLanes = 16;
constexpr int kRegisters = 32;
constexpr int64_t kAhead = 8192;
#if defined(__AMX_BF16__)
constexpr const char* kInstructions = "amx";
constexpr bool kFetchesAlone = true;  // weights of a single input too: Intel's own prefetchers leave half of the bandwidth
#elif defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
constexpr const char* kInstructions = "avx512_bf16";
constexpr bool kFetchesAlone = false;
#else
constexpr const char* kInstructions = "avx512";
#endif
typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t LanesI32 __attribute__((vector_size(64), aligned(4), may_alias));

inline Lanes load_bfloat16(const uint16_t* p) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return Lanes(_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)));
}

// 2 * kLanes values of bfloat16: those of even index, those of odd index.
inline void load_bfloat16_pairs(const uint16_t* p, Lanes& even, Lanes& odd) {
    const __m512i words = _mm512_loadu_si512(p);
    even = Lanes(_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)));
    odd = Lanes(_mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000)))));
}

// The same of float32 values.
inline void split_pairs(const float* x, Lanes& even, Lanes& odd) {
    const __m512i evens = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + 16);
    even = Lanes(_mm512_permutex2var_ps(first, evens, second));
    odd = Lanes(_mm512_permutex2var_ps(first, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), second));
}

inline Lanes load_int8(const int8_t* p) {
    return Lanes(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
}

// 2 * kLanes values of four bits, stored plus 8, the first of a byte in its lower half.
inline void load_int4(const uint8_t* p, Lanes& first, Lanes& second) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), lower = _mm_set1_epi8(15);
    const __m128i low = _mm_and_si128(bytes, lower), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), lower), eight = _mm_set1_epi8(8);
    const auto widened = [&](__m128i pairs) { return Lanes(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_sub_epi8(pairs, eight)))); };
    first = widened(_mm_unpacklo_epi8(low, high));
    second = widened(_mm_unpackhi_epi8(low, high));
}

// 32 values of three bits, stored plus 4, as Int3 has them.
inline __m256i bytes_of_int3(const uint8_t* p) {
    int64_t low;
    uint32_t high;
    std::memcpy(&low, p, 8), std::memcpy(&high, p + 8, 4);
    const __m256i twos = _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(low), _mm256_set_epi64x(6, 4, 2, 0)), _mm256_set1_epi8(3));
    return _mm256_mask_sub_epi8(twos, ~__mmask32(high), twos, _mm256_set1_epi8(4));
}
#define AXK1_LOAD_INT3
inline void load_int3(const uint8_t* p, Lanes* out) {
    const __m256i values = bytes_of_int3(p);
    out[0] = Lanes(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(values))));
    out[1] = Lanes(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(values, 1))));
}

// Sixteen vectors of sixteen words to those of their columns.
inline void transpose(__m512i* rows) {
    __m512i pairs[16], fours[16];
    #pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    #pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4)
        #pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
            fours[i + 2 * k] = _mm512_unpacklo_epi64(pairs[i + k], pairs[i + 2 + k]);
            fours[i + 2 * k + 1] = _mm512_unpackhi_epi64(pairs[i + k], pairs[i + 2 + k]);
        }
    #pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        const __m512i low = _mm512_shuffle_i32x4(fours[k], fours[4 + k], 0x88), high = _mm512_shuffle_i32x4(fours[k], fours[4 + k], 0xdd);
        const __m512i lower = _mm512_shuffle_i32x4(fours[8 + k], fours[12 + k], 0x88), higher = _mm512_shuffle_i32x4(fours[8 + k], fours[12 + k], 0xdd);
        rows[k] = _mm512_shuffle_i32x4(low, lower, 0x88), rows[8 + k] = _mm512_shuffle_i32x4(low, lower, 0xdd);
        rows[4 + k] = _mm512_shuffle_i32x4(high, higher, 0x88), rows[12 + k] = _mm512_shuffle_i32x4(high, higher, 0xdd);
    }
}

inline void transpose(Lanes* rows) {
    __m512i words[16];
    #pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) words[i] = _mm512_castps_si512(__m512(rows[i]));
    transpose(words);
    #pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = Lanes(_mm512_castsi512_ps(words[i]));
}

}  // namespace axk1
