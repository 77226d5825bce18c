// Products of many inputs with the rows of a weight matrix, in bfloat16: what a prompt is made of.
//
// Sixty-four rows of the weight are brought into the order that the processor's instruction takes, a panel, once for all
// inputs; six inputs at a time then pass it, with their 24 vectors of sums in registers. A panel stays in the second-level
// cache. Every sum adds its pairs of columns in order, whatever the number of inputs or threads.
#pragma once

#include "rows.h"

#ifdef AXK1_PACKED
namespace axk1 {

constexpr int64_t kWide = 64;     // rows of a weight in a panel, and results of an input
constexpr int64_t kVectors = 4;   // of results
constexpr int64_t kDeepest = 4096;  // columns of a panel

typedef uint16_t Half;
typedef uint32_t Pair __attribute__((aligned(2), may_alias));  // two neighbouring columns of an input
typedef __m512 Sums[kVectors];

inline int64_t even(int64_t count) { return (count + 1) / 2 * 2; }

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

inline __m256i rounded(__m512 values) { return __m256i(_mm512_cvtneps_pbh(values)); }

// Writes the first `count` of sixteen values.
inline void store_rounded(__m512 values, int64_t count, Half* out) { _mm256_mask_storeu_epi16(out, __mmask16(packed::words(count)), rounded(values)); }

// `count` values as bfloat16, and a zero behind an odd number of them.
inline void round_row(const float* x, int64_t count, Half* out) {
    for (int64_t i = 0; i < even(count); i += 16) {
        const __m512 values = _mm512_maskz_loadu_ps(__mmask16(packed::words(count - i)), x + i);
        store_rounded(values, even(count) - i, out + i);
    }
}

// Thirty-two values from column `first` of the first row, zero behind the last; quantised ones times their scale.
inline __m512i rounded_columns(const Matrix& m, int64_t first) {
    const int64_t count = m.length - first;
    if (m.kind == Matrix::kBFloat16) return _mm512_maskz_loadu_epi16(packed::words(count), static_cast<const Half*>(m.data) + first);
    __m512i low, high;
    float scale = *m.scale;
    if (m.kind == Matrix::kInt8) {
        const __m256i bytes = _mm256_maskz_loadu_epi8(packed::words(count), static_cast<const int8_t*>(m.data) + first);
        low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)), high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1));
    } else {  // rows of int4 end with a group, which is a multiple of 32
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint8_t*>(m.data) + first / 2));
        const __m128i lower = _mm_and_si128(bytes, _mm_set1_epi8(15)), upper = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
        const __m512i eight = _mm512_set1_epi32(8);
        low = _mm512_sub_epi32(_mm512_cvtepi8_epi32(_mm_unpacklo_epi8(lower, upper)), eight);
        high = _mm512_sub_epi32(_mm512_cvtepi8_epi32(_mm_unpackhi_epi8(lower, upper)), eight);
        scale = m.scale[first / m.group];
    }
    const __m512 factor = _mm512_set1_ps(scale);
    return __m512i(_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_cvtepi32_ps(high), factor), _mm512_mul_ps(_mm512_cvtepi32_ps(low), factor)));
}

class Panel {
    struct alignas(64) Line { char bytes[64]; };
    std::vector<Line> memory;
    int64_t pairs = 0;

    // sums[m] gains, or `fresh` becomes, what input m, x[m], gives with every row.
    template <int M, bool fresh>
    __attribute__((noinline)) void add_to(const Pair* const* x, Sums* sums) const {
        __m512 s[M][kVectors];
        #pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
            #pragma GCC unroll 4
            for (int g = 0; g < kVectors; ++g) s[m][g] = fresh ? _mm512_setzero_ps() : sums[m][g];
        const __m512i* w = lines();
        for (int64_t k = 0; k < pairs; ++k, w += kVectors) {
            const __m512bh first = __m512bh(w[0]), second = __m512bh(w[1]), third = __m512bh(w[2]), fourth = __m512bh(w[3]);
            #pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const __m512bh both = __m512bh(_mm512_set1_epi32(int(x[m][k])));
                s[m][0] = _mm512_dpbf16_ps(s[m][0], first, both);
                s[m][1] = _mm512_dpbf16_ps(s[m][1], second, both);
                s[m][2] = _mm512_dpbf16_ps(s[m][2], third, both);
                s[m][3] = _mm512_dpbf16_ps(s[m][3], fourth, both);
            }
        }
        #pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
            #pragma GCC unroll 4
            for (int g = 0; g < kVectors; ++g) sums[m][g] = s[m][g];
    }

    // Pairs k to k + 16 of vector `group`; row(i) are those of its row i.
    template <class Row>
    void write(int64_t group, int64_t k, const Row& row) {
        __m512i words[16];
        #pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i) words[i] = row(i);
        transpose(words);
        #pragma GCC unroll 16
        for (int64_t i = 0; i < 16; ++i) lines()[(k + i) * kVectors + group] = words[i];
    }

public:
    static constexpr int kTogether = 6;  // inputs

    // Room for pairs of `columns`, of which nothing is known yet.
    void resize(int64_t columns) {
        pairs = even(columns) / 2;
        const int64_t padded = (pairs + 15) / 16 * 16;  // as `pack` writes them
        if (int64_t(memory.size()) < padded * kVectors) memory.resize(padded * kVectors);
    }

    // [pairs][64], a pair a word.
    __m512i* lines() { return reinterpret_cast<__m512i*>(memory.data()); }
    const __m512i* lines() const { return reinterpret_cast<const __m512i*>(memory.data()); }

    // Vectors `group` to `end` of the panel: `rows` rows of m, and zeros behind them, from column `first`.
    void pack(const Matrix& m, int64_t rows, int64_t first, int64_t group = 0, int64_t end = kVectors) {
        for (int64_t g = group; g < end; ++g) {
            const int64_t here = std::clamp<int64_t>(rows - (g - group) * 16, 0, 16);
            const Matrix sixteen = m.from((g - group) * 16).unpacked(here);
            const int64_t full = here < 16 || sixteen.kind != Matrix::kBFloat16 ? 0 : std::min(pairs, (m.length - first) / 2) / 16 * 16;
            const Half* place = static_cast<const Half*>(sixteen.data) + first;
            for (int64_t k = 0; k < full; k += 16)
                write(g, k, [&](int64_t i) __attribute__((always_inline)) {
                    __builtin_prefetch(place + (i + 16) * sixteen.stride + 2 * k, 0, 2);
                    return _mm512_loadu_si512(place + i * sixteen.stride + 2 * k);
                });
            for (int64_t k = full; k < pairs; k += 16)
                write(g, k, [&](int64_t i) { return i < here ? rounded_columns(sixteen.from(i), first + 2 * k) : _mm512_setzero_si512(); });
        }
    }

    template <bool fresh>
    void add(int64_t inputs, const Pair* const* x, Sums* sums) const {
        switch (inputs) {
            case 1: return add_to<1, fresh>(x, sums);
            case 2: return add_to<2, fresh>(x, sums);
            case 3: return add_to<3, fresh>(x, sums);
            case 4: return add_to<4, fresh>(x, sums);
            case 5: return add_to<5, fresh>(x, sums);
            default: return add_to<kTogether, fresh>(x, sums);
        }
    }

    // The same for any number of inputs x(m), of `columns` values; the next ones are fetched meanwhile.
    template <bool fresh, class Input>
    void add_all(int64_t inputs, int64_t columns, const Input& x, Sums* sums) const {
        for (int64_t m = 0; m < inputs; m += kTogether) {
            const int64_t some = std::min<int64_t>(kTogether, inputs - m);
            const Pair* rows[kTogether];
            for (int64_t i = 0; i < some; ++i) {
                rows[i] = reinterpret_cast<const Pair*>(x(m + i));
                for (int64_t c = 0; c < columns; c += 32) __builtin_prefetch(x(m + some + i) + c, 0, 3);
            }
            add<fresh>(some, rows, sums + m);
        }
    }
};

inline Panel& own_panel() {
    thread_local Panel panel;
    return panel;
}

// Calls done(t, sums) for each of the inputs x(t), of `columns` values, with its 64 results; pack(panel, first column)
// fills a panel that has room for what is left, or as many columns as it may have.
template <class Pack, class Input, class Done>
inline void multiply_panel(int64_t columns, int64_t inputs, const Pack& pack, const Input& x, const Done& done) {
    constexpr int64_t kTogether = Panel::kTogether;
    Panel& panel = own_panel();
    thread_local std::vector<float> carried;  // sums of the panels before
    if (columns > kDeepest) carried.resize(inputs * kWide);
    for (int64_t first = 0; first < columns; first += kDeepest) {
        panel.resize(std::min(kDeepest, columns - first));
        pack(panel, first);
        for (int64_t t = 0; t < inputs; t += kTogether) {
            const int64_t count = std::min(kTogether, inputs - t);
            const Pair* rows[kTogether];
            Sums sums[kTogether];
            for (int64_t m = 0; m < count; ++m) rows[m] = reinterpret_cast<const Pair*>(x(t + m) + first);
            if (first) {
                std::memcpy(sums, carried.data() + t * kWide, count * sizeof(Sums));
                panel.add<false>(count, rows, sums);
            } else {
                panel.add<true>(count, rows, sums);
            }
            if (first + kDeepest < columns) {
                std::memcpy(carried.data() + t * kWide, sums, count * sizeof(Sums));
            } else {
                for (int64_t m = 0; m < count; ++m) done(t + m, sums[m]);
            }
        }
    }
}

// The same with up to 64 rows of a matrix.
template <class Input, class Done>
inline void multiply_rows(const Matrix& w, int64_t rows, int64_t inputs, const Input& x, const Done& done) {
    multiply_panel(w.length, inputs, [&](Panel& panel, int64_t first) { panel.pack(w, rows, first); }, x, done);
}

inline void store_sums(const Sums& sums, int64_t count, float* out) {
    for (int64_t g = 0; g < kVectors && g * 16 < count; ++g) _mm512_mask_storeu_ps(out + g * 16, __mmask16(packed::words(count - g * 16)), sums[g]);
}

inline void store_rounded(const Sums& sums, int64_t count, Half* out) {
    for (int64_t g = 0; g < kVectors && g * 16 < count; ++g) store_rounded(sums[g], count - g * 16, out + g * 16);
}

// out += sums, `count` values.
inline void add_sums(const Sums& sums, int64_t count, float* out) {
    for (int64_t g = 0; g < kVectors && g * 16 < count; ++g) {
        const __mmask16 there = __mmask16(packed::words(count - g * 16));
        _mm512_mask_storeu_ps(out + g * 16, there, _mm512_add_ps(_mm512_maskz_loadu_ps(there, out + g * 16), sums[g]));
    }
}

}  // namespace axk1
#endif
