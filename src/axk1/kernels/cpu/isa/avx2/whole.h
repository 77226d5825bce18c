// Products of int8, int4 and int3 weights by whole numbers, on AVX2's multiplication of pairs of 16-bit numbers.
//
// Inputs are rounded to whole numbers of 15 bits and a sign, with one scale per input: an error of 1.5e-5 of the largest.
#pragma once

#include "../../formats/int3.h"
#include "../../formats/int4.h"
#include "../../formats/int8.h"

namespace axk1 {

constexpr float kFixed = 127 * 256 + 127;  // products of 16-bit pairs are summed 256 times before a lane is full

// Values of `length` as whole numbers; zero up to `padded`. Returns the scale.
inline float to_whole(const float* x, int64_t length, int64_t padded, int16_t* out) {
    const float most = largest_size(x, length), factor = most > 0.0f ? kFixed / most : 0.0f;
    int64_t i = 0;
    for (; i + 16 <= length; i += 16) {
        const auto whole = [&](int64_t k) { return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + k), _mm256_set1_ps(factor))); };
        const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole(0), whole(8)), 0xd8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), both);
    }
    for (; i < padded; ++i) out[i] = i < length ? int16_t(std::nearbyint(x[i] * factor)) : 0;
    return most / kFixed;
}

inline float sum_whole(__m256 v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct WholeInputs {
    const int16_t* values;
    int64_t stride;
    const float* scales;
    WholeInputs from(int64_t t) const { return {values + t * stride, stride, scales + t}; }
};

// Inputs of `length` values, each brought into order by `arrange(int16_t*)` of its padded values.
template <class User, class Arrange>
inline WholeInputs whole_inputs(const float* x, int64_t x_stride, int64_t inputs, int64_t length, const Arrange& arrange) {
    const int64_t stride = (length + 63) / 64 * 64;
    auto* scales = memory<User, float>((inputs * 4 + 63) / 64 * 64 / 4 + inputs * stride / 2);
    auto* values = reinterpret_cast<int16_t*>(scales + (inputs * 4 + 63) / 64 * 64 / 4);
    for (int64_t t = 0; t < inputs; ++t) {
        scales[t] = to_whole(x + t * x_stride, length, stride, values + t * stride);
        arrange(values + t * stride, stride);
    }
    return {values, stride, scales};
}

template <>
struct Narrow<Int8> {
    static constexpr bool kExists = true;
    typedef WholeInputs Inputs;
    static bool can(const Matrix&) { return true; }
    static constexpr int rows_at_once(int inputs) { return inputs <= 2 ? 4 : 2; }

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        return whole_inputs<Int8>(x, x_stride, inputs, length, [](int16_t*, int64_t) {});
    }

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        constexpr int64_t kFull = 4096;  // columns after which a lane of 32 bits may be full
        const auto* w = m.values<int8_t>();
        __m256 sums[R][T] = {};
        for (int64_t first = 0; first < m.length; first += kFull) {
            const int64_t last = std::min(m.length, first + kFull);
            __m256i whole[R][T] = {};
            int64_t i = first;
            for (; i + 32 <= last; i += 32)
                #pragma GCC unroll 4
                for (int r = 0; r < R; ++r) {
                    const int8_t* place = w + r * m.stride + i;
                    __builtin_prefetch(place + kAhead, 0, 2);
                    #pragma GCC unroll 2
                    for (int half = 0; half < 2; ++half) {
                        const __m256i row = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(place + 16 * half)));
                        #pragma GCC unroll 6
                        for (int t = 0; t < T; ++t) {
                            const auto* values = reinterpret_cast<const __m256i*>(x.values + t * x.stride + i + 16 * half);
                            whole[r][t] = _mm256_add_epi32(whole[r][t], _mm256_madd_epi16(row, _mm256_loadu_si256(values)));
                        }
                    }
                }
            for (; i < last; i += 16)
                for (int r = 0; r < R; ++r) {
                    alignas(16) int8_t some[16] = {};
                    std::memcpy(some, w + r * m.stride + i, std::min<int64_t>(16, last - i));
                    const __m256i row = _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(some)));
                    for (int t = 0; t < T; ++t) {
                        const auto* values = reinterpret_cast<const __m256i*>(x.values + t * x.stride + i);
                        whole[r][t] = _mm256_add_epi32(whole[r][t], _mm256_madd_epi16(row, _mm256_loadu_si256(values)));
                    }
                }
            for (int r = 0; r < R; ++r)
                for (int t = 0; t < T; ++t) sums[r][t] = _mm256_add_ps(sums[r][t], _mm256_cvtepi32_ps(whole[r][t]));
        }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) out[t * out_stride + r] = sum_whole(sums[r][t]) * (x.scales[t] * m.scale[r]);
    }
};

template <>
struct Narrow<Int4> {
    static constexpr bool kExists = true;
    typedef WholeInputs Inputs;
    static bool can(const Matrix& m) { return m.group % 64 == 0 || (m.group == 32 && m.length % 64 == 0); }
    static constexpr int rows_at_once(int inputs) { return inputs <= 2 ? 2 : 1; }

    // 64 values make 16 words of four: so of each 64 inputs come every fourth one from the first on, then from the second, ...
    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        return whole_inputs<Int4>(x, x_stride, inputs, length, [](int16_t* values, int64_t count) {
            for (int64_t b = 0; b < count; b += 64) {
                int16_t ordered[64];
                for (int64_t i = 0; i < 64; ++i) ordered[i % 4 * 16 + i / 4] = values[b + i];
                std::memcpy(values + b, ordered, sizeof ordered);
            }
        });
    }

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        const auto* w = m.values<uint8_t>();
        const int64_t groups = m.length / m.group, blocks = std::max<int64_t>(1, m.group / 64);
        const __m256i four = _mm256_set1_epi16(15), eight = _mm256_set1_epi16(8);
        __m256 sums[R][T] = {};
        for (int64_t b = 0, block = 0, g = 0; b < m.length; b += 64) {
            #pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const uint8_t* place = w + (r * m.stride + b) / 2;
                __builtin_prefetch(place + kAhead, 0, 2);
                const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place));
                const __m256i parts[4] = {
                    _mm256_sub_epi16(_mm256_and_si256(words, four), eight), _mm256_sub_epi16(_mm256_and_si256(_mm256_srli_epi16(words, 4), four), eight),
                    _mm256_sub_epi16(_mm256_and_si256(_mm256_srli_epi16(words, 8), four), eight), _mm256_sub_epi16(_mm256_srli_epi16(words, 12), eight)};
                const float* scale = m.scale + r * groups + g;
                const __m256 scales = m.group == 32 ? _mm256_set_m128(_mm_set1_ps(scale[1]), _mm_set1_ps(scale[0])) : _mm256_set1_ps(scale[0]);
                #pragma GCC unroll 6
                for (int t = 0; t < T; ++t) {
                    const auto* values = reinterpret_cast<const __m256i*>(x.values + t * x.stride + b);
                    const auto product = [&](int k) __attribute__((always_inline)) { return _mm256_madd_epi16(parts[k], _mm256_loadu_si256(values + k)); };
                    const __m256i whole = _mm256_add_epi32(_mm256_add_epi32(product(0), product(1)), _mm256_add_epi32(product(2), product(3)));
                    sums[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scales, sums[r][t]);
                }
            }
            if (m.group == 32) g += 2;
            else if (++block == blocks) block = 0, ++g;
        }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) out[t * out_stride + r] = sum_whole(sums[r][t]) * x.scales[t];
    }
};

template <>
struct Narrow<Int3> {
    static constexpr bool kExists = true;
    typedef WholeInputs Inputs;
    static bool can(const Matrix&) { return true; }
    static constexpr int rows_at_once(int inputs) { return inputs <= 2 ? 2 : 1; }

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        return whole_inputs<Int3>(x, x_stride, inputs, length, [](int16_t*, int64_t) {});
    }

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        const auto* w = m.values<uint8_t>();
        const int64_t groups = m.length / m.group, blocks = m.group / Int3::kBlock;
        __m256 sums[R][T] = {};
        for (int64_t b = 0, block = 0, g = 0; b < m.length; b += Int3::kBlock) {
            #pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const uint8_t* place = w + (r * m.stride + b) / Int3::kBlock * Int3::kBytes;
                __builtin_prefetch(place + kAhead, 0, 2);
                const __m256i bytes = bytes_of_int3(place);
                const __m256i first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes)), second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
                const __m256 scale = _mm256_set1_ps(m.scale[r * groups + g]);
                #pragma GCC unroll 6
                for (int t = 0; t < T; ++t) {
                    const auto* values = reinterpret_cast<const __m256i*>(x.values + t * x.stride + b);
                    const __m256i whole = _mm256_add_epi32(_mm256_madd_epi16(first, _mm256_loadu_si256(values)), _mm256_madd_epi16(second, _mm256_loadu_si256(values + 1)));
                    sums[r][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, sums[r][t]);
                }
            }
            if (++block == blocks) block = 0, ++g;
        }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) out[t * out_stride + r] = sum_whole(sums[r][t]) * x.scales[t];
    }
};

}  // namespace axk1
