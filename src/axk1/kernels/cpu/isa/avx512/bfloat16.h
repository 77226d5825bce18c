// Products of bfloat16 weights by AVX-512's instruction for pairs of them; inputs are rounded to bfloat16, as PyTorch's layers do.
#pragma once

#include <algorithm>

#include "../../formats/lossless.h"

#define AXK1_NARROW_SUMS 1

namespace axk1 {

namespace narrow {

inline __mmask32 words(int64_t count) { return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1; }

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

}  // namespace narrow

template <>
struct Narrow<BFloat16> {
    static constexpr bool kExists = true;
    static bool can(const Matrix&) { return true; }
    struct Inputs {
        const __m512i* values;
        int64_t stride;  // in lines, from one input to the next
        const Inputs from(int64_t t) const { return {values + t * stride, stride}; }
    };
    static constexpr int rows_at_once(int) { return 4; }
    static constexpr int at_once(int inputs) { return inputs == 1 ? 1 : inputs <= 6 ? 4 : 2; }
    static constexpr int kTogether = 8;

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        const int64_t stride = lines(2 * length);
        __m256bh* out = memory<BFloat16, __m256bh>(inputs * stride * 2);
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
            #pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
                const __m512bh values = __m512bh(x.values[t * x.stride + i / 32]);
                #pragma GCC unroll 6
                for (int r = 0; r < S; ++r) sums[r][t] = _mm512_dpbf16_ps(sums[r][t], __m512bh(row[r]), values);
            }
        };
        int64_t i = 0;
        for (; i + 32 <= length; i += 32) {
            if constexpr (T > 1 || kFetchesAlone)
                for (int r = 0; r < S; ++r) __builtin_prefetch(reinterpret_cast<const char*>(w + r * w_stride + i) + kAhead, 0, 2);
            add(i, ~__mmask32(0));
        }
        if (i < length) add(i, narrow::words(length - i));
        for (int r = 0; r < S; ++r)
            for (int t = 0; t < T; ++t) result[t][r] = sums[r][t];
    }

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        constexpr int S = std::min(R, at_once(T));
        const auto* w = m.values<uint16_t>();
        __m512 sums[T][4];
        for (int r = 0; r < R; r += S) lanes_of<S, T>(w + r * m.stride, m.stride, x, m.length, reinterpret_cast<__m512(*)[4]>(&sums[0][r]));
        for (int t = 0; t < T; ++t) narrow::totals<R>(sums[t], out + t * out_stride);
    }
};

template <>
struct Narrow<Lossless> : Narrow<BFloat16> {
    static constexpr int kTogether = 6;
    // The lowest bit of each word becomes the highest.
    static inline __m512i turned(__m512i words) {
        return _mm512_shldi_epi16(words, words, 15);
    }

    static inline void unpack(const uint8_t* block, uint8_t base, const uint16_t*& raw, __m512i& first, __m512i& second) {
        if (__builtin_expect(!base, 0)) {
            first = _mm512_loadu_si512(raw), second = _mm512_loadu_si512(raw + 32);
            raw += Lossless::kBlock;
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

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        const int64_t blocks = m.length / Lossless::kBlock;
        const uint8_t *block = m.values<uint8_t>(), *base = m.bases;
        const uint16_t* raw = Lossless::raw_blocks(m);  // of all these rows, one after the other
        __m512 sums[T][4];
        for (int r = 0; r < R; ++r) {
            __m512 row[T] = {};
            for (int64_t i = 0; i < blocks; ++i, block += Lossless::kBytes, ++base) {
                if constexpr (kFetchesAlone) __builtin_prefetch(block + kAhead, 0, 2), __builtin_prefetch(block + kAhead + kLine, 0, 2);
                __m512i first, second;
                unpack(block, *base, raw, first, second);
                #pragma GCC unroll 6
                for (int t = 0; t < T; ++t) row[t] = _mm512_dpbf16_ps(row[t], __m512bh(first), __m512bh(x.values[t * x.stride + 2 * i]));
                #pragma GCC unroll 6
                for (int t = 0; t < T; ++t) row[t] = _mm512_dpbf16_ps(row[t], __m512bh(second), __m512bh(x.values[t * x.stride + 2 * i + 1]));
            }
            for (int t = 0; t < T; ++t) sums[t][r] = row[t];
        }
        for (int t = 0; t < T; ++t) narrow::totals<R>(sums[t], out + t * out_stride);
    }
};

namespace narrow {

// Pairs of neighbouring weights p[t][2 j], p[t][2 j + 1] as one word, an odd last one beside zero: `stride` words an input.
inline const uint32_t* pair_weights(const float* p, int64_t p_stride, int64_t inputs, int64_t rows, int64_t& stride) {
    const auto prepared = Narrow<BFloat16>::prepare(p, p_stride, inputs, rows);
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

}  // namespace narrow
}  // namespace axk1
