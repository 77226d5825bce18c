// Products of int8, int4 and int3 weights by whole numbers, on AVX-512's products of unsigned and signed bytes.
//
// Inputs are rounded to whole numbers of 15 bits and a sign, with one scale per input (an error of 1.5e-5 of the largest), and
// split into a high and a low byte.
#pragma once

#include "../../formats/int3.h"
#include "../../formats/int4.h"
#include "../../formats/int8.h"
#include "bfloat16.h"

namespace axk1 {

namespace narrow {

inline __mmask64 bytes(int64_t count) { return count >= 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1; }

// Sixteen, or the first `count`, values as whole numbers: rounded x * factor, at most 127 * 256 + 127.
inline __m512i fixed(const float* x, int64_t count, float factor) {
    const __mmask16 there = count >= 16 ? 0xffff : (1 << std::max<int64_t>(count, 0)) - 1;
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, x), _mm512_set1_ps(factor)));
}
constexpr float kFixed = 127 * 256 + 127;
inline __m512i high(__m512i whole) { return _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8); }
inline __m512i low(__m512i whole) { return _mm512_sub_epi32(whole, _mm512_slli_epi32(high(whole), 8)); }

// 64 values at x, or as many as are left, to the two bytes of their whole numbers.
inline void halves(const float* x, int64_t left, float factor, __m512i& highs, __m512i& lows) {
    alignas(64) int8_t upper[64], lower[64];
    for (int64_t k = 0; k < 64; k += 16) {
        const __m512i whole = fixed(x + k, left - k, factor);
        _mm_store_si128(reinterpret_cast<__m128i*>(upper + k), _mm512_cvtepi32_epi8(high(whole)));
        _mm_store_si128(reinterpret_cast<__m128i*>(lower + k), _mm512_cvtepi32_epi8(low(whole)));
    }
    highs = _mm512_load_si512(upper), lows = _mm512_load_si512(lower);
}

// R rows times T inputs where a scale is for a group of columns: N::lanes_of has both already, but for the inputs' scales.
template <class N, int R, int T>
inline void dot_in_groups(const Matrix& m, const typename N::Inputs& x, float* out, int64_t out_stride) {
    constexpr int S = std::min(R, N::at_once(T));
    const auto* w = static_cast<const uint8_t*>(m.data);
    const int64_t row_bytes = m.length * m.bits() / 8, groups = m.length / m.group;
    __m512 sums[T][4];
    for (int r = 0; r < R; r += S)
        N::template lanes_of<S, T>(w + r * row_bytes, m.scale + r * groups, m.group, x, m.length, reinterpret_cast<__m512(*)[4]>(&sums[0][r]));
    for (int t = 0; t < T; ++t) {
        totals<R>(sums[t], out + t * out_stride);
        for (int r = 0; r < R; ++r) out[t * out_stride + r] *= x.scales[t];
    }
}

}  // namespace narrow

template <>
struct Narrow<Int8> {
    static constexpr bool kExists = true;
    static bool can(const Matrix&) { return true; }
    static constexpr int rows_at_once(int) { return 4; }
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
        auto* offsets = memory<Int8, __m512i>(2 * inputs * (stride + 1) + lines(4 * inputs));
        auto* highs = offsets + 2 * inputs;
        auto* lows = highs + inputs * stride;
        auto* scales = reinterpret_cast<float*>(lows + inputs * stride);
        const __m512i all = _mm512_set1_epi8(-128);  // 128, unsigned
        for (int64_t t = 0; t < inputs; ++t) {
            const float most = largest_size(x + t * x_stride, length), factor = most > 0.0f ? narrow::kFixed / most : 0.0f;
            scales[t] = most / narrow::kFixed;
            __m512i high_sum = {}, low_sum = {};
            for (int64_t i = 0; i < stride; ++i) {
                narrow::halves(x + t * x_stride + i * 64, length - i * 64, factor, highs[t * stride + i], lows[t * stride + i]);
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
        if (i < length) add(i, narrow::bytes(length - i));
        const __m512 byte = _mm512_set1_ps(256.0f);
        for (int r = 0; r < S; ++r)
            for (int t = 0; t < T; ++t)
                result[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(highs[r][t]), byte, _mm512_cvtepi32_ps(lows[r][t]));
    }

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        constexpr int S = std::min(R, at_once(T));
        const auto* w = static_cast<const int8_t*>(m.data);
        __m512 sums[T][4];
        for (int r = 0; r < R; r += S) lanes_of<S, T>(w + r * m.stride, m.stride, x, m.length, reinterpret_cast<__m512(*)[4]>(&sums[0][r]));
        for (int t = 0; t < T; ++t) {
            narrow::totals<R>(sums[t], out + t * out_stride);
            for (int r = 0; r < R; ++r) out[t * out_stride + r] *= x.scales[t] * m.scale[r];
        }
    }
};

template <>
struct Narrow<Int4> {
    static constexpr bool kExists = true;
    static bool can(const Matrix& m) { return 128 % m.group == 0 || m.group % 128 == 0; }
    static constexpr int rows_at_once(int) { return 4; }
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

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        const int64_t stride = (length + 127) / 128;
        auto* blocks = memory<Int4, Block>(inputs * stride + lines(4 * inputs));
        auto* scales = reinterpret_cast<float*>(blocks + inputs * stride);
        const __m512i eights = _mm512_set1_epi8(8);
        for (int64_t t = 0; t < inputs; ++t) {
            const float most = largest_size(x + t * x_stride, length), factor = most > 0.0f ? narrow::kFixed / most : 0.0f;
            scales[t] = most / narrow::kFixed;
            for (int64_t b = 0; b < stride; ++b) {
                alignas(64) int8_t parts[4][64];
                for (int64_t i = 0; i < 128; i += 16) {
                    const __m512i whole = narrow::fixed(x + t * x_stride + b * 128 + i, length - b * 128 - i, factor);
                    const __m512i upper = narrow::high(whole), lower = narrow::low(whole);
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
        if (b * 128 < length) add(b, narrow::bytes((length - b * 128) / 2), (1 << (groups - first)) - 1);
        for (int r = 0; r < S; ++r)
            for (int t = 0; t < T; ++t) result[t][r] = sums[r][t];
    }

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        narrow::dot_in_groups<Narrow, R, T>(m, x, out, out_stride);
    }
};

template <>
struct Narrow<Int3> {
    static constexpr bool kExists = true;
    static bool can(const Matrix& m) { return m.group == 32 || m.group % 64 == 0; }
    static constexpr int rows_at_once(int) { return 4; }
    struct Block {  // of 64 values: their bytes, and -4 times the sums of four
        __m512i highs, lows, high_offsets, low_offsets;
    };
    struct Inputs {
        const Block* blocks;
        int64_t stride;
        const float* scales;
        const Inputs from(int64_t t) const { return {blocks + t * stride, stride, scales + t}; }
    };
    static constexpr int at_once(int inputs) { return inputs > 2 ? 2 : 4; }

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        const int64_t stride = lines(length);
        auto* blocks = memory<Int3, Block>(inputs * stride + lines(4 * inputs));
        auto* scales = reinterpret_cast<float*>(blocks + inputs * stride);
        const __m512i zero = _mm512_setzero_si512(), fours = _mm512_set1_epi8(4);
        for (int64_t t = 0; t < inputs; ++t) {
            const float most = largest_size(x + t * x_stride, length), factor = most > 0.0f ? narrow::kFixed / most : 0.0f;
            scales[t] = most / narrow::kFixed;
            for (int64_t b = 0; b < stride; ++b) {
                Block& block = blocks[t * stride + b];
                narrow::halves(x + t * x_stride + b * 64, length - b * 64, factor, block.highs, block.lows);
                block.high_offsets = _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, fours, block.highs));
                block.low_offsets = _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, fours, block.lows));
            }
        }
        return {blocks, stride, scales};
    }

    // 64 values, or the first 32, plus 4: one load, the two words of lower bits of each half spread, and the upper bits as a mask.
    template <bool both>
    static __m512i values_of(const uint8_t* place) {
        const __m512i spread = _mm512_set_epi32(4, 3, 4, 3, 4, 3, 4, 3, 1, 0, 1, 0, 1, 0, 1, 0), shifts = _mm512_set_epi64(6, 4, 2, 0, 6, 4, 2, 0);
        const __m512i words = _mm512_zextsi256_si512(_mm256_maskz_loadu_epi32(both ? 0x3f : 0x07, place));
        const __m512i twos = _mm512_and_si512(_mm512_srlv_epi64(_mm512_permutexvar_epi32(spread, words), shifts), _mm512_set1_epi8(3));
        uint32_t high[2] = {};
        std::memcpy(high, place + 8, 4);
        if constexpr (both) std::memcpy(high + 1, place + 20, 4);
        return _mm512_mask_add_epi8(twos, __mmask64(uint64_t(high[1]) << 32 | high[0]), twos, _mm512_set1_epi8(4));
    }

    template <int S, int T>
    static void lanes_of(const uint8_t* w, const float* scale, int64_t group, const Inputs& x, int64_t length, __m512 (*result)[4]) {
        const int64_t groups = length / group, blocks = std::max<int64_t>(1, group / 64), row_bytes = length / Int3::kBlock * Int3::kBytes;
        const bool halves = group == 32;
        __m512 sums[S][T] = {};
        int64_t first = 0, passed = 0;  // scale of this block, blocks that it has served
        const auto add = [&]<bool both>(int64_t b) __attribute__((always_inline)) {
            __m512i row[S];
            __m512 scales[S];
            #pragma GCC unroll 6
            for (int r = 0; r < S; ++r) {
                const uint8_t* place = w + r * row_bytes + b * 2 * Int3::kBytes;
                __builtin_prefetch(place + kAhead, 0, 2);
                row[r] = values_of<both>(place);
                const float* mine = scale + r * groups + first;
                scales[r] = _mm512_set1_ps(mine[0]);
                if (halves && both) scales[r] = _mm512_mask_mov_ps(scales[r], 0xff00, _mm512_set1_ps(mine[1]));
            }
            #pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                const Block block = x.blocks[t * x.stride + b];
                #pragma GCC unroll 6
                for (int r = 0; r < S; ++r) {
                    const __m512i highs = _mm512_dpbusd_epi32(block.high_offsets, row[r], block.highs);
                    const __m512i lows = _mm512_dpbusd_epi32(block.low_offsets, row[r], block.lows);
                    const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(highs, 8), lows);
                    sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scales[r], sums[r][t]);
                }
            }
            if (++passed == blocks) passed = 0, first += halves ? 2 : 1;
        };
        int64_t b = 0;
        for (; b * 64 + 64 <= length; ++b) add.template operator()<true>(b);
        if (b * 64 < length) add.template operator()<false>(b);
        for (int r = 0; r < S; ++r)
            for (int t = 0; t < T; ++t) result[t][r] = sums[r][t];
    }

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        narrow::dot_in_groups<Narrow, R, T>(m, x, out, out_stride);
    }
};

}  // namespace axk1
