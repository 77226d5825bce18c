// The dot products and weighted sums of rows.h on AVX-512's instructions for bfloat16 and bytes.
//
// Inputs are brought into the form these instructions take, once for a call: to bfloat16 beside bfloat16 weights, as
// PyTorch's own layers do; to whole numbers of 16 bits and one scale beside int8 and int4 weights (a rounding of 1.5e-5 of
// the largest), split into a high and a low byte. As in rows.h, the order of additions for one input depends on nothing else.
#pragma once

#include "fetch.h"
#include "vectors.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define AXK1_PACKED 1

#include <algorithm>
#include <vector>

namespace axk1::packed {

template <class T>
inline T* memory(int64_t bytes) {  // of this thread, until its next call
    struct alignas(kLine) Line { char bytes[kLine]; };
    thread_local std::vector<Line> held;
    if (int64_t(held.size()) * kLine < bytes) held.resize((bytes + kLine - 1) / kLine);
    return reinterpret_cast<T*>(held.data());
}

inline int64_t lines(int64_t bytes) { return (bytes + kLine - 1) / kLine; }
inline __mmask32 words(int64_t count) { return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1; }
inline __mmask64 bytes(int64_t count) { return count >= 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1; }

// The sums of R vectors' lanes, R up to four, each in the same order whatever R is.
template <int R>
inline void totals(const __m512* v, float* out) {
    const __m512 a = v[0], b = v[R > 1 ? 1 : 0], c = v[R > 2 ? 2 : 0], d = v[R > 3 ? 3 : 0];
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512d left = _mm512_castps_pd(ab), right = _mm512_castps_pd(cd);
    const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(left, right)), _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    alignas(16) float each[4];
    _mm_store_ps(each, sums);
    for (int r = 0; r < R; ++r) out[r] = each[r];
}

// Sixteen, or the first `count`, values as whole numbers: rounded x * factor, at most 127 * 256 + 127.
inline __m512i fixed(const float* x, int64_t count, float factor) {
    const __mmask16 there = count >= 16 ? 0xffff : (1 << std::max<int64_t>(count, 0)) - 1;
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, x), _mm512_set1_ps(factor)));
}
constexpr float kFixed = 127 * 256 + 127;
inline __m512i high(__m512i whole) { return _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8); }
inline __m512i low(__m512i whole) { return _mm512_sub_epi32(whole, _mm512_slli_epi32(high(whole), 8)); }

inline float largest(const float* x, int64_t length) {
    Lanes most = {};
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) most = Lanes(_mm512_max_ps(__m512(most), _mm512_abs_ps(__m512(lanes(x + i)))));
    float result = 0.0f;
    for (; i < length; ++i) result = std::max(result, std::fabs(x[i]));
    for (int64_t j = 0; j < kLanes; ++j) result = std::max(result, most[j]);
    return result;
}

struct BFloat16 {
    struct Inputs {
        const __m512i* values;
        int64_t stride;  // in lines, from one input to the next
        const Inputs from(int64_t t) const { return {values + t * stride, stride}; }
    };
    static constexpr int at_once(int inputs) { return inputs == 1 ? 1 : 4; }

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        const int64_t stride = lines(2 * length);
        __m256bh* out = memory<__m256bh>(inputs * stride * kLine);
        for (int64_t t = 0; t < inputs; ++t)
            for (int64_t i = 0; i < stride * 2; ++i) {
                const int64_t left = length - i * 16;
                const __mmask16 there = left >= 16 ? 0xffff : (1 << std::max<int64_t>(left, 0)) - 1;
                out[t * stride * 2 + i] = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, x + t * x_stride + i * 16));
            }
        return {reinterpret_cast<const __m512i*>(out), stride};
    }

    // The lanes' sums of S rows times T inputs.
    template <int S, int T>
    static void lanes_of(const uint16_t* w, int64_t w_stride, const Inputs& x, int64_t length, __m512 (*result)[4]) {
        __m512 sums[S][T] = {};
        const auto add = [&](int64_t i, __mmask32 there) __attribute__((always_inline)) {
            __m512i row[S];
            #pragma GCC unroll 6
            for (int r = 0; r < S; ++r) row[r] = _mm512_maskz_loadu_epi16(there, w + r * w_stride + i);
            #pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                const __m512bh values = __m512bh(x.values[t * x.stride + i / 32]);
                #pragma GCC unroll 6
                for (int r = 0; r < S; ++r) sums[r][t] = _mm512_dpbf16_ps(sums[r][t], __m512bh(row[r]), values);
            }
        };
        int64_t i = 0;
        for (; i + 32 <= length; i += 32) {
            if constexpr (T > 1)
                for (int r = 0; r < S; ++r) __builtin_prefetch(reinterpret_cast<const char*>(w + r * w_stride + i) + kAhead, 0, 2);
            add(i, ~__mmask32(0));
        }
        if (i < length) add(i, words(length - i));
        for (int r = 0; r < S; ++r)
            for (int t = 0; t < T; ++t) result[t][r] = sums[r][t];
    }

    template <int R, int T, class Matrix>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        constexpr int S = std::min(R, at_once(T));
        const auto* w = static_cast<const uint16_t*>(m.data);
        __m512 sums[T][4];
        for (int r = 0; r < R; r += S) lanes_of<S, T>(w + r * m.stride, m.stride, x, m.length, reinterpret_cast<__m512(*)[4]>(&sums[0][r]));
        for (int t = 0; t < T; ++t) totals<R>(sums[t], out + t * out_stride);
    }
};

// bfloat16 in twelve bits, without loss: see `unpack`. Products are those of BFloat16, to the bit.
struct Lossless : BFloat16 {
    static constexpr int64_t kBlock = 64, kBytes = 96;

    // The lowest bit of each word becomes the highest.
    static inline __m512i turned(__m512i words) {
#ifdef __AVX512VBMI2__
        return _mm512_shldi_epi16(words, words, 15);
#else
        return _mm512_or_si512(_mm512_srli_epi16(words, 1), _mm512_slli_epi16(words, 15));
#endif
    }

    // A block's 64 values: 64 bytes of mantissa and sign, the sign lowest, then 32 bytes of differences to the largest
    // exponent, `base`, of values i (low half) and 32 + i. Base 0: the block is too wide for that, and is the next of `raw`.
    static inline void unpack(const uint8_t* block, uint8_t base, const uint16_t*& raw, __m512i& first, __m512i& second) {
        if (__builtin_expect(!base, 0)) {
            first = _mm512_loadu_si512(raw), second = _mm512_loadu_si512(raw + 32);
            raw += kBlock;
            return;
        }
        alignas(64) static constexpr int16_t kSteps[32] = {
            0, -1 << 7, -2 << 7, -3 << 7, -4 << 7, -5 << 7, -6 << 7, -7 << 7, -8 << 7, -9 << 7, -10 << 7, -11 << 7, -12 << 7, -13 << 7, -14 << 7, -15 << 7,
            0, -1 << 7, -2 << 7, -3 << 7, -4 << 7, -5 << 7, -6 << 7, -7 << 7, -8 << 7, -9 << 7, -10 << 7, -11 << 7, -12 << 7, -13 << 7, -14 << 7, -15 << 7};
        const auto words = [&](int64_t at) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + at))); };
        const __m512i exponents = _mm512_add_epi16(_mm512_load_si512(kSteps), _mm512_set1_epi16(int16_t(base << 7)));
        const __m512i steps = words(64), low = words(0), high = words(32);
        first = _mm512_add_epi16(turned(low), _mm512_permutexvar_epi16(steps, exponents));
        second = _mm512_add_epi16(turned(high), _mm512_permutexvar_epi16(_mm512_srli_epi16(steps, 4), exponents));
    }

    // The largest exponent of 64 values, or 0 where others are more than 15 below it, or all of them zero.
    static uint8_t base(const uint16_t* values) {
        int least = 255, most = 0;
        for (int64_t i = 0; i < kBlock; ++i) {
            const int exponent = values[i] >> 7 & 255;
            least = std::min(least, exponent), most = std::max(most, exponent);
        }
        return most - least < 16 ? most : 0;
    }

    static void pack(const uint16_t* values, uint8_t base, uint8_t* block) {
        for (int64_t i = 0; i < kBlock; ++i) block[i] = uint8_t(values[i] << 1 | values[i] >> 15);
        const auto step = [&](int64_t i) { return base - (values[i] >> 7 & 255); };
        for (int64_t i = 0; i < 32; ++i) block[kBlock + i] = uint8_t(step(i) | step(32 + i) << 4);
    }

    // A row as bfloat16.
    template <class Matrix>
    static void unpack_row(const Matrix& m, uint16_t* out) {
        const uint8_t* block = static_cast<const uint8_t*>(m.data);
        const uint16_t* raw = m.raw_blocks();
        for (int64_t i = 0; i < m.length; i += kBlock, block += kBytes) {
            __m512i first, second;
            unpack(block, m.bases[i / kBlock], raw, first, second);
            _mm512_storeu_si512(out + i, first), _mm512_storeu_si512(out + i + 32, second);
        }
    }

    template <int R, int T, class Matrix>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        const int64_t blocks = m.length / kBlock;
        const uint8_t *block = static_cast<const uint8_t*>(m.data), *base = m.bases;
        const uint16_t* raw = m.raw_blocks();  // of all these rows, one after the other
        __m512 sums[T][4];
        for (int r = 0; r < R; ++r) {
            __m512 row[T] = {};
            for (int64_t i = 0; i < blocks; ++i, block += kBytes, ++base) {
                __m512i first, second;
                unpack(block, *base, raw, first, second);
                #pragma GCC unroll 6
                for (int t = 0; t < T; ++t) row[t] = _mm512_dpbf16_ps(row[t], __m512bh(first), __m512bh(x.values[t * x.stride + 2 * i]));
                #pragma GCC unroll 6
                for (int t = 0; t < T; ++t) row[t] = _mm512_dpbf16_ps(row[t], __m512bh(second), __m512bh(x.values[t * x.stride + 2 * i + 1]));
            }
            for (int t = 0; t < T; ++t) sums[t][r] = row[t];
        }
        for (int t = 0; t < T; ++t) totals<R>(sums[t], out + t * out_stride);
    }
};

struct Int8 {  // one scale a row
    struct Inputs {
        const __m512i *highs, *lows;
        int64_t stride;
        const float* scales;
        const __m512i* offsets;  // two an input: what making the weights unsigned adds to the sums of each lane, negative
        const Inputs from(int64_t t) const { return {highs + t * stride, lows + t * stride, stride, scales + t, offsets + 2 * t}; }
    };
    static constexpr int at_once(int inputs) { return inputs == 1 ? 1 : 2; }

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        const int64_t stride = lines(length);
        auto* offsets = memory<__m512i>((2 * inputs * (stride + 1) + lines(4 * inputs)) * kLine);
        auto* highs = offsets + 2 * inputs;
        auto* lows = highs + inputs * stride;
        auto* scales = reinterpret_cast<float*>(lows + inputs * stride);
        const __m512i all = _mm512_set1_epi8(-128);  // 128, unsigned
        for (int64_t t = 0; t < inputs; ++t) {
            const float most = largest(x + t * x_stride, length), factor = most > 0.0f ? kFixed / most : 0.0f;
            scales[t] = most / kFixed;
            __m512i high_sum = {}, low_sum = {};
            for (int64_t i = 0; i < stride; ++i) {
                alignas(64) int8_t upper[64], lower[64];
                for (int64_t k = 0; k < 64; k += 16) {
                    const __m512i whole = fixed(x + t * x_stride + i * 64 + k, length - i * 64 - k, factor);
                    _mm_store_si128(reinterpret_cast<__m128i*>(upper + k), _mm512_cvtepi32_epi8(high(whole)));
                    _mm_store_si128(reinterpret_cast<__m128i*>(lower + k), _mm512_cvtepi32_epi8(low(whole)));
                }
                highs[t * stride + i] = _mm512_load_si512(upper);
                lows[t * stride + i] = _mm512_load_si512(lower);
                high_sum = _mm512_dpbusd_epi32(high_sum, all, highs[t * stride + i]);
                low_sum = _mm512_dpbusd_epi32(low_sum, all, lows[t * stride + i]);
            }
            offsets[2 * t] = _mm512_sub_epi32(_mm512_setzero_si512(), high_sum);
            offsets[2 * t + 1] = _mm512_sub_epi32(_mm512_setzero_si512(), low_sum);
        }
        return {highs, lows, stride, scales, offsets};
    }

    template <int S, int T>
    static void lanes_of(const int8_t* w, int64_t w_stride, const Inputs& x, int64_t length, __m512 (*result)[4]) {
        __m512i highs[S][T], lows[S][T];
        for (int r = 0; r < S; ++r)
            for (int t = 0; t < T; ++t) highs[r][t] = x.offsets[2 * t], lows[r][t] = x.offsets[2 * t + 1];
        const auto add = [&](int64_t i, __mmask64 there) __attribute__((always_inline)) {
            __m512i row[S];
            #pragma GCC unroll 6
            for (int r = 0; r < S; ++r)
                row[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, w + r * w_stride + i), _mm512_set1_epi8(-128));
            #pragma GCC unroll 6
            for (int t = 0; t < T; ++t)
                #pragma GCC unroll 6
                for (int r = 0; r < S; ++r) {
                    highs[r][t] = _mm512_dpbusd_epi32(highs[r][t], row[r], x.highs[t * x.stride + i / 64]);
                    lows[r][t] = _mm512_dpbusd_epi32(lows[r][t], row[r], x.lows[t * x.stride + i / 64]);
                }
        };
        int64_t i = 0;
        for (; i + 64 <= length; i += 64) {
            for (int r = 0; r < S; ++r) __builtin_prefetch(w + r * w_stride + i + kAhead, 0, 2);
            add(i, ~__mmask64(0));
        }
        if (i < length) add(i, bytes(length - i));
        const __m512 byte = _mm512_set1_ps(256.0f);
        for (int r = 0; r < S; ++r)
            for (int t = 0; t < T; ++t)
                result[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(highs[r][t]), byte, _mm512_cvtepi32_ps(lows[r][t]));
    }

    template <int R, int T, class Matrix>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        constexpr int S = std::min(R, at_once(T));
        const auto* w = static_cast<const int8_t*>(m.data);
        __m512 sums[T][4];
        for (int r = 0; r < R; r += S) lanes_of<S, T>(w + r * m.stride, m.stride, x, m.length, reinterpret_cast<__m512(*)[4]>(&sums[0][r]));
        for (int t = 0; t < T; ++t) {
            totals<R>(sums[t], out + t * out_stride);
            for (int r = 0; r < R; ++r) out[t * out_stride + r] *= x.scales[t] * m.scale[r];
        }
    }
};

struct Int4 {  // two values a byte, low half first, stored plus 8; a scale for every `group` values
    struct Block {  // of 128 values: bytes of those of even and of odd index, and -8 times the sums of eight
        __m512i even_highs, odd_highs, even_lows, odd_lows, high_offsets, low_offsets;
    };
    struct Inputs {
        const Block* blocks;
        int64_t stride;
        const float* scales;
        const Inputs from(int64_t t) const { return {blocks + t * stride, stride, scales + t}; }
    };
    static constexpr int at_once(int inputs) { return inputs > 2 ? 2 : 4; }
    static bool can(int64_t group) { return 128 % group == 0 || group % 128 == 0; }

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        const int64_t stride = (length + 127) / 128;
        auto* blocks = memory<Block>(inputs * stride * sizeof(Block) + lines(4 * inputs) * kLine);
        auto* scales = reinterpret_cast<float*>(blocks + inputs * stride);
        const __m512i eights = _mm512_set1_epi8(8);
        for (int64_t t = 0; t < inputs; ++t) {
            const float most = largest(x + t * x_stride, length), factor = most > 0.0f ? kFixed / most : 0.0f;
            scales[t] = most / kFixed;
            for (int64_t b = 0; b < stride; ++b) {
                alignas(64) int8_t parts[4][64];
                for (int64_t i = 0; i < 128; i += 16) {
                    const __m512i whole = fixed(x + t * x_stride + b * 128 + i, length - b * 128 - i, factor);
                    const __m512i upper = high(whole), lower = low(whole);
                    // a pair of neighbours is a word of 64 bits: the first is the even one
                    _mm_storel_epi64(reinterpret_cast<__m128i*>(parts[0] + i / 2), _mm512_cvtepi64_epi8(upper));
                    _mm_storel_epi64(reinterpret_cast<__m128i*>(parts[1] + i / 2), _mm512_cvtepi64_epi8(_mm512_srli_epi64(upper, 32)));
                    _mm_storel_epi64(reinterpret_cast<__m128i*>(parts[2] + i / 2), _mm512_cvtepi64_epi8(lower));
                    _mm_storel_epi64(reinterpret_cast<__m128i*>(parts[3] + i / 2), _mm512_cvtepi64_epi8(_mm512_srli_epi64(lower, 32)));
                }
                Block& block = blocks[t * stride + b];
                __m512i* loaded[] = {&block.even_highs, &block.odd_highs, &block.even_lows, &block.odd_lows};
                for (int k = 0; k < 4; ++k) *loaded[k] = _mm512_load_si512(parts[k]);
                const auto offsets = [&](const __m512i& even, const __m512i& odd) {
                    const __m512i zero = _mm512_setzero_si512();
                    return _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, eights, even), eights, odd));
                };
                block.high_offsets = offsets(block.even_highs, block.odd_highs);
                block.low_offsets = offsets(block.even_lows, block.odd_lows);
            }
        }
        return {blocks, stride, scales};
    }

    template <int S, int T>
    static void lanes_of(const uint8_t* w, const float* scale, int64_t group, const Inputs& x, int64_t length, __m512 (*result)[4]) {
        const int64_t groups = length / group, in_block = std::max<int64_t>(1, 128 / group), blocks = std::max<int64_t>(1, group / 128);
        const __m512i spread = _mm512_srli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                                 in_block == 4 ? 2 : in_block == 2 ? 3 : 4);
        const __m512i lower_half = _mm512_set1_epi8(15);
        __m512 sums[S][T] = {};
        int64_t first = 0, passed = 0;  // scale of this block, blocks that it has served
        const auto add = [&](int64_t b, __mmask64 there, __mmask16 scales_there) __attribute__((always_inline)) {
            __m512i even[S], odd[S];
            __m512 scales[S];
            #pragma GCC unroll 6
            for (int r = 0; r < S; ++r) {
                const uint8_t* place = w + r * length / 2 + b * 64;
                __builtin_prefetch(place + kAhead, 0, 2);
                const __m512i pairs = _mm512_maskz_loadu_epi8(there, place);
                even[r] = _mm512_and_si512(pairs, lower_half), odd[r] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), lower_half);
                scales[r] = _mm512_permutexvar_ps(spread, _mm512_maskz_loadu_ps(scales_there, scale + r * groups + first));
            }
            #pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                const Block block = x.blocks[t * x.stride + b];
                #pragma GCC unroll 6
                for (int r = 0; r < S; ++r) {
                    const __m512i highs = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(block.high_offsets, even[r], block.even_highs), odd[r], block.odd_highs);
                    const __m512i lows = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(block.low_offsets, even[r], block.even_lows), odd[r], block.odd_lows);
                    const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(highs, 8), lows);
                    sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scales[r], sums[r][t]);
                }
            }
            if (++passed == blocks) passed = 0, first += in_block;
        };
        int64_t b = 0;
        const __mmask16 all_scales = (1 << in_block) - 1;
        for (; b * 128 + 128 <= length; ++b) add(b, ~__mmask64(0), all_scales);
        if (b * 128 < length) add(b, bytes((length - b * 128) / 2), (1 << (groups - first)) - 1);
        for (int r = 0; r < S; ++r)
            for (int t = 0; t < T; ++t) result[t][r] = sums[r][t];
    }

    template <int R, int T, class Matrix>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        constexpr int S = std::min(R, at_once(T));
        const auto* w = static_cast<const uint8_t*>(m.data);
        const int64_t length = m.length, group = m.group;
        __m512 sums[T][4];
        for (int r = 0; r < R; r += S)
            lanes_of<S, T>(w + r * length / 2, m.scale + r * length / group, group, x, length, reinterpret_cast<__m512(*)[4]>(&sums[0][r]));
        for (int t = 0; t < T; ++t) {
            totals<R>(sums[t], out + t * out_stride);
            for (int r = 0; r < R; ++r) out[t * out_stride + r] *= x.scales[t];
        }
    }
};

// Pairs of neighbouring weights p[t][2 j], p[t][2 j + 1] as one word, an odd last one beside zero: `stride` words an input.
inline const uint32_t* pair_weights(const float* p, int64_t p_stride, int64_t inputs, int64_t rows, int64_t& stride) {
    const auto prepared = BFloat16::prepare(p, p_stride, inputs, rows);
    stride = prepared.stride * 16;
    return reinterpret_cast<const uint32_t*>(prepared.values);
}

// out[t][c] += sum over j of p[t][j] * w[j][c] for C vectors of 32 columns, the last of which has `there`. Two rows are
// interleaved, so that one instruction adds both: lanes of four columns of the first half, then of the second.
template <int T, int C>
inline void weighted(const uint16_t* w, int64_t w_stride, int64_t rows, const uint32_t* p, int64_t p_stride, float* out, int64_t out_stride,
                     __mmask32 there, Fetch* fetch) {
    const int64_t pairs = (rows + 1) / 2;
    __m512 sums[T][C][2] = {};
    for (int64_t j = 0; j < pairs; ++j) {
        const uint16_t* row = w + 2 * j * w_stride;
        if (fetch) fetch->more(2 * C * kLine);
        __m512bh pair[T];
        #pragma GCC unroll 6
        for (int t = 0; t < T; ++t) pair[t] = __m512bh(_mm512_set1_epi32(int(p[t * p_stride + j])));
        const bool both = 2 * j + 1 < rows;
        #pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const __mmask32 mask = c == C - 1 ? there : ~__mmask32(0);
            const __m512i first = _mm512_maskz_loadu_epi16(mask, row + c * 32);
            const __m512i second = _mm512_maskz_loadu_epi16(both ? mask : 0, row + w_stride + c * 32);
            const __m512bh near = __m512bh(_mm512_unpacklo_epi16(first, second)), far = __m512bh(_mm512_unpackhi_epi16(first, second));
            #pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                sums[t][c][0] = _mm512_dpbf16_ps(sums[t][c][0], near, pair[t]);
                sums[t][c][1] = _mm512_dpbf16_ps(sums[t][c][1], far, pair[t]);
            }
        }
    }
    const __m512i first_half = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
    const __m512i second_half = _mm512_add_epi32(first_half, _mm512_set1_epi32(8));
    #pragma GCC unroll 6
    for (int t = 0; t < T; ++t)
        #pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const __mmask32 mask = c == C - 1 ? there : ~__mmask32(0);
            #pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                float* place = out + t * out_stride + c * 32 + half * 16;
                const __mmask16 here = __mmask16(mask >> (16 * half));
                const __m512 ordered = _mm512_permutex2var_ps(sums[t][c][0], half ? second_half : first_half, sums[t][c][1]);
                _mm512_mask_storeu_ps(place, here, _mm512_add_ps(_mm512_maskz_loadu_ps(here, place), ordered));
            }
        }
}

template <int T>
inline void add_weighted(const uint16_t* w, int64_t w_stride, int64_t rows, const uint32_t* p, int64_t p_stride, int64_t columns, float* out, int64_t out_stride,
                         Fetch* fetch) {
    constexpr int C = T == 1 ? 8 : 2;  // sums in as many registers as there are
    int64_t c = 0;
    for (; c + C * 32 <= columns; c += C * 32) weighted<T, C>(w + c, w_stride, rows, p, p_stride, out + c, out_stride, ~__mmask32(0), fetch);
    for (; c < columns; c += 32) weighted<T, 1>(w + c, w_stride, rows, p, p_stride, out + c, out_stride, words(columns - c), fetch);
}

}  // namespace axk1::packed
#endif
