// Panels of bfloat16 pairs: one instruction multiplies and adds two columns of sixteen rows.
#pragma once

#include "../../panel.h"

namespace axk1 {

struct Pairs {
    typedef uint16_t Value;
    typedef Rows<uint16_t> Inputs;
    struct Use {};
    static constexpr bool kArranges = false;
    static constexpr int64_t kDeepest = 4096;
    static constexpr Matrix::Kind kKind = Matrix::kBFloat16;
    static constexpr int64_t padded(int64_t count) { return (count + 1) / 2 * 2; }
    static float to_float(uint16_t value) { return axk1::to_float(value); }
    static uint16_t from_float(float value) { return to_bfloat16(value); }

    static void store(const Lanes& values, int64_t count, uint16_t* out) {
        _mm256_mask_storeu_epi16(out, __mmask16(narrow::words(std::max<int64_t>(count, 0))), __m256i(_mm512_cvtneps_pbh(__m512(values))));
    }

    // `count` values as bfloat16, and a zero after an odd number of them.
    static void round_row(const float* x, int64_t count, uint16_t* out) {
        for (int64_t i = 0; i < padded(count); i += kLanes) store(lanes(x + i, count - i), padded(count) - i, out + i);
    }

    // 2 ** (factor * (score - largest)) to 4e-6: these are rounded to bfloat16.
    static Lanes weight(const Lanes& score, const Lanes& largest, float scale) {
        const __m512 power = _mm512_mul_ps(__m512(score - largest), _mm512_set1_ps(scale * 1.44269504f));
        const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m512 rest = _mm512_sub_ps(power, whole);  // 2 ** rest, a polynomial fitted to [-0.5, 0.5]
        __m512 y = _mm512_set1_ps(9.58285e-3f);
        for (float next : {5.590643e-2f, 2.4024099e-1f, 6.9312419e-1f, 1.0f}) y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(next));
        return Lanes(_mm512_scalef_ps(y, whole));
    }

    class Panel {
        typedef uint32_t Pair __attribute__((aligned(2), may_alias));  // two neighbouring columns of an input
        std::vector<Line> held;
        mutable Fetch ahead;

    protected:
        int64_t pairs = 0;

        // [pairs][64], a pair per word.
        __m512i* start() { return reinterpret_cast<__m512i*>(held.data()); }
        const __m512i* start() const { return reinterpret_cast<const __m512i*>(held.data()); }

    private:

        template <int M, bool fresh, int V>
        __attribute__((noinline)) void add_to(const uint16_t* const* given, Sums* sums) const {
            const Pair* x[M];
            __m512 s[M][V];
            #pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                x[m] = reinterpret_cast<const Pair*>(given[m]);
                #pragma GCC unroll 4
                for (int g = 0; g < V; ++g) s[m][g] = fresh ? _mm512_setzero_ps() : __m512(sums[m][g]);
            }
            const __m512i* w = start();
            Fetch fetch = ahead;
            for (int64_t k = 0; k < pairs; ++k, w += kVectors) {
                if (fetch) fetch.more(kWide * 4);
                __m512bh rows[V];
                #pragma GCC unroll 4
                for (int g = 0; g < V; ++g) rows[g] = __m512bh(w[g]);
                #pragma GCC unroll 8
                for (int m = 0; m < M; ++m) {
                    const __m512bh both = __m512bh(_mm512_set1_epi32(int(x[m][k])));
                    #pragma GCC unroll 4
                    for (int g = 0; g < V; ++g) s[m][g] = _mm512_dpbf16_ps(s[m][g], rows[g], both);
                }
            }
            ahead = fetch;
            #pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
                #pragma GCC unroll 4
                for (int g = 0; g < V; ++g) sums[m][g] = Lanes(s[m][g]);
        }

        // Pairs k to k + 16 of vector `group`; row(i) are those of its row i.
        template <class Row>
        void write(int64_t group, int64_t k, const Row& row) {
            __m512i words[16];
            #pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) words[i] = row(i);
            transpose(words);
            #pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) start()[(k + i) * kVectors + group] = words[i];
        }

    public:
        // Thirty-two values from column `first` of a row, zero after the last; quantised ones times their scale.
        static __m512i rounded_columns(const Matrix& row, int64_t first) {
            if (row.kind == Matrix::kBFloat16)
                return _mm512_maskz_loadu_epi16(narrow::words(std::max<int64_t>(row.length - first, 0)), row.values<uint16_t>() + first);
            return __m512i(_mm512_cvtne2ps_pbh(__m512(widened(row, first + kLanes)), __m512(widened(row, first))));
        }

        void resize(int64_t columns, bool = false, Fetch next = {}) {
            ahead = next;
            pairs = padded(columns) / 2;
            const int64_t written = (pairs + 15) / 16 * 16;  // as `pack` writes them
            if (int64_t(held.size()) < written * kVectors) held.resize(written * kVectors);
        }

        void pack(const Matrix& m, int64_t rows, int64_t first, int64_t vector = 0, int64_t end = kVectors) {
            for (int64_t g = vector; g < end; ++g) {
                const int64_t here = std::clamp<int64_t>(rows - (g - vector) * 16, 0, 16);
                const Matrix sixteen = here ? readable(m.from((g - vector) * 16), here) : m;
                const int64_t full = here < 16 || sixteen.kind != Matrix::kBFloat16 ? 0 : std::min(pairs, (m.length - first) / 2) / 16 * 16;
                const auto* place = sixteen.values<uint16_t>() + first;
                for (int64_t k = 0; k < full; k += 16)
                    write(g, k, [&](int64_t i) __attribute__((always_inline)) {
                        __builtin_prefetch(place + (i + 16) * sixteen.stride + 2 * k, 0, 2);
                        return _mm512_loadu_si512(place + i * sixteen.stride + 2 * k);
                    });
                for (int64_t k = full; k < pairs; k += 16)
                    write(g, k, [&](int64_t i) { return i < here ? rounded_columns(sixteen.from(i), first + 2 * k) : _mm512_setzero_si512(); });
            }
        }

        // Columns k, an even number, and k + 1.
        void put(int64_t k, int64_t vector, const Lanes& one, const Lanes& two) {
            alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                                8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
            const __m512i both = __m512i(_mm512_cvtne2ps_pbh(__m512(two), __m512(one)));  // from all first and all second ones to pairs
            start()[k / 2 * kVectors + vector] = _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), both);
        }

        template <bool fresh>
        void add(int64_t inputs, const uint16_t* const* x, Sums* sums, int64_t vectors = kVectors) const {
            with_number(inputs, [&]<int M>() {
                vectors == 1 ? add_to<M, fresh, 1>(x, sums) : vectors == 2 ? add_to<M, fresh, 2>(x, sums) : add_to<M, fresh, kVectors>(x, sums);
            });
        }
    };
};

}  // namespace axk1
