// Products of many inputs with the rows of a weight matrix: what a prompt is made of.
//
// Sixty-four rows of the weight are brought into the order that the processor's instructions take, a panel, once for all
// inputs; six inputs at a time then pass it, with their sums in registers. A panel stays in the second-level cache. Every sum
// adds its columns in order, whatever the number of inputs or threads.
//
// `Singles` multiplies in float32, on every instruction set; an instruction set with products of bfloat16 pairs has `Pairs`,
// and one with products of tiles `Tiles`, which takes weights as they lie and arranges the inputs instead.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "formats/formats.h"
#include "threads.h"

namespace axk1 {

constexpr int64_t kWide = 64;                  // rows of a weight in a panel, and results of an input
constexpr int64_t kVectors = kWide / kLanes;   // of results
constexpr int kTogether = 6;                   // inputs
typedef Lanes Sums[kVectors];

// Inputs of a product: rows of values, or those that `order` names.
template <class Value>
struct Rows {
    const Value* values;
    int64_t stride;
    const int64_t* order = nullptr;

    const Value* operator()(int64_t t) const { return values + (order ? order[t] : t) * stride; }
};

// Some inputs of a weight, and room for them arranged.
template <class P>
struct Wanted {
    Rows<typename P::Value> rows;
    int64_t count;
    typename P::Value* place;
};

// Calls `some<inputs>()` for one to six inputs.
template <class Some>
inline void with_number(int64_t inputs, const Some& some) {
    static_assert(kTogether == 6);
    switch (inputs) {
        case 1: return some.template operator()<1>();
        case 2: return some.template operator()<2>();
        case 3: return some.template operator()<3>();
        case 4: return some.template operator()<4>();
        case 5: return some.template operator()<5>();
        default: return some.template operator()<6>();
    }
}

// kLanes values of a row from `column` on as float32, times their scale; zero after the last.
inline Lanes widened(const Matrix& row, int64_t column) {
    const int64_t count = row.length - column;
    if (count <= 0) return Lanes{};
    if (row.kind == Matrix::kFloat32) return lanes(row.values<float>() + column, count);
    if (row.kind == Matrix::kInt4) {  // a vector may lie across two of the halves that are read at once, never across groups
        alignas(64) float values[2 * kLanes];
        const int64_t first = column / (2 * kLanes) * (2 * kLanes);
        load_int4(row.values<uint8_t>() + first / 2, lanes(values), lanes(values + kLanes));
        return lanes(values + (column - first)) * row.scale[column / row.group];
    }
    if (row.kind == Matrix::kInt3) {
        Lanes block[Int3::kBlock / kLanes];
        load_int3(row.values<uint8_t>() + column / Int3::kBlock * Int3::kBytes, block);
        return block[column % Int3::kBlock / kLanes] * row.scale[column / row.group];
    }
    if (count >= kLanes)
        return row.kind == Matrix::kBFloat16 ? load_bfloat16(row.values<uint16_t>() + column) : load_int8(row.values<int8_t>() + column) * *row.scale;
    alignas(64) float values[kLanes] = {};
    for (int64_t i = 0; i < count; ++i)
        values[i] = row.kind == Matrix::kBFloat16 ? to_float(row.values<uint16_t>()[column + i]) : float(row.values<int8_t>()[column + i]) * *row.scale;
    return lanes(values);
}

inline bool is_bfloat16(const Matrix& m) { return m.kind == Matrix::kBFloat16 || m.kind == Matrix::kLossless; }

// A matrix whose values can be read where they are.
inline Matrix readable(const Matrix& m, int64_t rows) { return m.kind == Matrix::kLossless ? Lossless::unpacked(m, rows) : m; }

struct Singles {
    typedef float Value;                            // of inputs
    typedef Rows<float> Inputs;                     // as products take them: as they lie
    struct Use {};                                  // of a thread, while it multiplies
    static constexpr bool kArranges = false;
    static constexpr int64_t kDeepest = 512;        // columns of a panel
    static constexpr Matrix::Kind kKind = Matrix::kFloat32;
    static constexpr int64_t padded(int64_t count) { return count; }
    static float to_float(float value) { return value; }
    static float from_float(float value) { return value; }
    static void store(const Lanes& values, int64_t count, float* out) { axk1::store(values, count, out); }
    static void round_row(const float* x, int64_t count, float* out) { std::copy_n(x, count, out); }

    // exp(scale * (score - largest)).
    static Lanes weight(const Lanes& score, const Lanes& largest, float scale) { return exp_lanes((score - largest) * scale); }

    // Columns of float32, or of bfloat16 two by two, each pair in a word: these are widened in registers, which is cheaper
    // than to write and read twice as much, and takes half as long to bring into order.
    class Panel {
        static constexpr int64_t kGroup = kRegisters == 32 ? 4 : 2;  // vectors of results whose sums are in registers together
        std::vector<Line> held;
        int64_t depth = 0, words = 0;  // columns; vectors of them per vector of results
        mutable Fetch ahead;
        bool paired = false;

        Lanes* place(int64_t word, int64_t vector) { return start() + ((vector / kGroup) * words + word) * kGroup + vector % kGroup; }
        Lanes* start() { return reinterpret_cast<Lanes*>(held.data()); }
        const Lanes* start() const { return reinterpret_cast<const Lanes*>(held.data()); }

        // The first columns of pairs, or the second ones: one of the two costs what is wanted of it.
        template <bool second>
        static Lanes half(const Lanes& pairs) {
            Lanes even, odd;
            load_bfloat16_pairs(reinterpret_cast<const uint16_t*>(&pairs), even, odd);
            return second ? odd : even;
        }

        template <int M, bool fresh, bool two>
        __attribute__((noinline)) void add_to(const float* const* x, Sums* sums, int64_t vectors) const {
            for (int64_t g = 0; g < vectors; g += kGroup) {
                Lanes s[M][kGroup];
                #pragma GCC unroll 8
                for (int m = 0; m < M; ++m)
                    #pragma GCC unroll 4
                    for (int v = 0; v < kGroup; ++v) s[m][v] = fresh ? Lanes{} : sums[m][g + v];
                const auto column = [&](int64_t k, const auto& row) __attribute__((always_inline)) {
                    Lanes rows[kGroup];
                    #pragma GCC unroll 4
                    for (int v = 0; v < kGroup; ++v) rows[v] = row(v);
                    #pragma GCC unroll 8
                    for (int m = 0; m < M; ++m) {
                        const float value = x[m][k];
                        #pragma GCC unroll 4
                        for (int v = 0; v < kGroup; ++v) s[m][v] += rows[v] * value;
                    }
                };
                const Lanes* w = start() + g * words;
                Fetch fetch = ahead;
                if constexpr (two) {
                    int64_t k = 0;
                    for (; k + 2 <= depth; k += 2, w += kGroup) {
                        if (fetch) fetch.more(kGroup * kLanes * 4);
                        column(k, [&](int v) __attribute__((always_inline)) { return half<false>(w[v]); });
                        column(k + 1, [&](int v) __attribute__((always_inline)) { return half<true>(w[v]); });
                    }
                    if (k < depth) column(k, [&](int v) { return half<false>(w[v]); });
                } else {
                    for (int64_t k = 0; k < depth; ++k, w += kGroup) column(k, [&](int v) __attribute__((always_inline)) { return w[v]; });
                }
                ahead = fetch;
                #pragma GCC unroll 8
                for (int m = 0; m < M; ++m)
                    #pragma GCC unroll 4
                    for (int v = 0; v < kGroup; ++v) sums[m][g + v] = s[m][v];
            }
        }

        // 2 * kLanes values, of which `count` are there, as they lie.
        static Lanes pairs_of(const uint16_t* values, int64_t count) {
            if (count >= 2 * kLanes) return lanes(reinterpret_cast<const float*>(values));
            uint16_t some[2 * kLanes] = {};
            std::copy_n(values, count, some);
            return lanes(reinterpret_cast<const float*>(some));
        }

    public:
        // Room for `columns`, of which nothing is known yet; `two`: they come from bfloat16. `next` is fetched while inputs pass.
        void resize(int64_t columns, bool two = false, Fetch next = {}) {
            ahead = next, depth = columns, paired = two, words = two ? (columns + 1) / 2 : columns;
            const int64_t bytes = (words + kLanes) * kWide * int64_t(sizeof(float));
            if (int64_t(held.size()) < lines(bytes)) held.resize(lines(bytes));
        }

        // Vectors `vector` to `end` of the panel: `rows` rows of m, and zeros after them, from column `first`.
        void pack(const Matrix& m, int64_t rows, int64_t first, int64_t vector = 0, int64_t end = kVectors) {
            for (int64_t v = vector; v < end; ++v) {
                const int64_t here = std::clamp<int64_t>(rows - (v - vector) * kLanes, 0, kLanes);
                const Matrix some = here ? readable(m.from((v - vector) * kLanes), here) : m;
                const auto* halves = some.template values<uint16_t>() + first;
                for (int64_t k = 0; k < words; k += kLanes) {
                    Lanes block[kLanes];
                    #pragma GCC unroll 16
                    for (int64_t i = 0; i < kLanes; ++i)
                        block[i] = i >= here ? Lanes{} : paired ? pairs_of(halves + i * some.stride + 2 * k, depth - 2 * k) : widened(some.from(i), first + k);
                    transpose(block);
                    for (int64_t i = 0; i < std::min(kLanes, words - k); ++i) *place(k + i, v) = block[i];
                }
            }
        }

        // Columns k and, where there is one, k + 1 of a vector, in a panel of float32.
        void put(int64_t k, int64_t vector, const Lanes& one, const Lanes& two) {
            *place(k, vector) = one;
            if (k + 1 < depth) *place(k + 1, vector) = two;
        }

        // sums[m] gains, or `fresh` becomes, what input m, x[m], gives with the rows of the first `vectors`, one, two or all.
        template <bool fresh>
        void add(int64_t inputs, const float* const* x, Sums* sums, int64_t vectors = kVectors) const {
            with_number(inputs, [&]<int M>() { paired ? add_to<M, fresh, true>(x, sums, vectors) : add_to<M, fresh, false>(x, sums, vectors); });
        }
    };
};

}  // namespace axk1

#ifdef AXK1_NARROW_SUMS
#include "isa/avx512/panel.h"
#ifdef __AMX_BF16__
#include "isa/amx/tiles.h"
namespace axk1 {
typedef Tiles Narrowest;
}
#else
namespace axk1 {
typedef Pairs Narrowest;
}
#endif
#endif

namespace axk1 {

// The same for any number of inputs, of `columns` values; the next ones are fetched meanwhile.
template <class P, bool fresh>
inline void add_all(const typename P::Panel& panel, int64_t inputs, int64_t columns, const Rows<typename P::Value>& x, Sums* sums, int64_t vectors) {
    if constexpr (P::kArranges) return P::template add_all<fresh>(panel, inputs, columns, x, sums, vectors);
    for (int64_t m = 0; m < inputs; m += kTogether) {
        const int64_t some = std::min<int64_t>(kTogether, inputs - m);
        const typename P::Value* rows[kTogether];
        for (int64_t i = 0; i < some; ++i) {
            rows[i] = x(m + i);
            if (m + some + i < inputs)
                for (int64_t c = 0; c < columns; c += kLine / int64_t(sizeof(typename P::Value))) __builtin_prefetch(x(m + some + i) + c, 0, 3);
        }
        panel.template add<fresh>(some, rows, sums + m, vectors);
    }
}

// Values that `count` inputs of `columns` values take arranged: none, where products take them as they lie.
template <class P>
constexpr int64_t arranged(int64_t count, int64_t columns) {
    if constexpr (P::kArranges) return P::arranged(count, columns);
    return 0;
}

// Arranges the inputs of a weight, of `columns` values each: they are there after the next barrier.
template <class P>
inline void arrange(Team& team, const Wanted<P>& some, int64_t columns) {
    if constexpr (P::kArranges)
        team.each((some.count + kLanes - 1) / kLanes, [&](int64_t block) { P::arrange(some, columns, block); });
}

template <class P>
inline typename P::Inputs inputs_of(const Wanted<P>& some) {
    if constexpr (P::kArranges) return {some.place};
    else return some.rows;
}

// The same of all threads, which go on when they are there.
template <class P>
inline typename P::Inputs arranged_inputs(Team& team, const Wanted<P>& some, int64_t columns) {
    if constexpr (P::kArranges) arrange<P>(team, some, columns), team.barrier();
    return inputs_of<P>(some);
}

// Calls done(t, sums) for each input with its 64 results: those of `each` rows from the first of one part on, or of two
// parts, half of the results each. `next` is fetched meanwhile: what this thread multiplies by after this.
template <class P, int parts, class Done>
inline void multiply(const Matrix (&w)[parts], int64_t each, int64_t inputs, const typename P::Inputs& x, const Done& done, const Fetch& next = {}) {
    if constexpr (P::kArranges) return P::template multiply<parts>(w, each, inputs, x, done, next);
    else {
        thread_local typename P::Panel panel;
        const int64_t columns = w[0].length;
        const bool two = is_bfloat16(w[0]) && is_bfloat16(w[parts - 1]), carries = columns > P::kDeepest;  // two: all from bfloat16
        Sums* carried = memory<P, Sums>(carries ? inputs : 1);  // sums of the panels before
        for (int64_t first = 0; first < columns; first += P::kDeepest) {
            panel.resize(std::min(P::kDeepest, columns - first), two, first ? Fetch() : next);
            for (int p = 0; p < parts; ++p) panel.pack(w[p], each, first, p * kVectors / parts, (p + 1) * kVectors / parts);
            for (int64_t t = 0; t < inputs; t += kTogether) {
                const int64_t count = std::min<int64_t>(kTogether, inputs - t);
                const typename P::Value* rows[kTogether];
                Sums own[kTogether];
                Sums* sums = carries ? carried + t : own;
                for (int64_t m = 0; m < count; ++m) rows[m] = x(t + m) + first;
                if (first) panel.template add<false>(count, rows, sums);
                else panel.template add<true>(count, rows, sums);
                if (first + P::kDeepest >= columns)
                    for (int64_t m = 0; m < count; ++m) done(t + m, sums[m]);
            }
        }
    }
}

inline void store_sums(const Sums& sums, int64_t count, float* out) {
    for (int64_t g = 0; g < kVectors && g * kLanes < count; ++g) store(sums[g], count - g * kLanes, out + g * kLanes);
}

template <class P>
inline void store_values(const Lanes* sums, int64_t count, typename P::Value* out) {
    for (int64_t g = 0; g * kLanes < count; ++g) P::store(sums[g], count - g * kLanes, out + g * kLanes);
}

// out += sums, `count` values.
inline void add_sums(const Sums& sums, int64_t count, float* out) {
    for (int64_t g = 0; g < kVectors && g * kLanes < count; ++g) {
        float* place = out + g * kLanes;
        store(lanes(place, count - g * kLanes) + sums[g], count - g * kLanes, place);
    }
}

}  // namespace axk1
