// Products of bfloat16 by AMX: one instruction multiplies sixteen rows by sixteen inputs over thirty-two columns.
//
// The rows of a weight are read as they lie, or copied tile by tile where many inputs pass: sixteen rows far apart are slow to
// load. The inputs are arranged once for all weights, pairs of columns of sixteen inputs side by side. A sum of one row and one
// input depends on nothing else, whatever they are computed with.
#pragma once

#include "../avx512/panel.h"

namespace axk1 {

namespace tile {

constexpr int64_t kSide = 16, kDepth = 32, kBytes = 1024;  // rows or inputs, columns, bytes of a tile

inline int64_t chunks(int64_t columns) { return (columns + kDepth - 1) / kDepth; }

// The compiler keeps what it writes to memory in order with these.
template <int t> inline void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(t)); }
template <int t> inline void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(t) : "memory");
}
template <int t> inline void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(t) : "memory");
}
template <int sums, int rows, int inputs> inline void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(rows), "i"(inputs));
}

template <class What, int... i>
inline __attribute__((always_inline)) void each(const What& what, std::integer_sequence<int, i...>) {
    (what.template operator()<i>(), ...);
}
template <int count, class What>
inline __attribute__((always_inline)) void each(const What& what) { each(what, std::make_integer_sequence<int, count>()); }

// Sixteen rows: their whole chunks of columns, `step` bytes from one to the next, and a tile of what is left, zeros at its end.
struct Side {
    const char *whole, *rest;
    int64_t stride, step;  // bytes
};

// Sixteen inputs, or vectors of a panel: pairs of columns, `stride` bytes from one pair to the next.
struct Pack {
    const char* data;
    int64_t stride;
};

// sums[16 S][16 P], from `out` on and `out_stride` bytes apart: of S sides and P packs, up to four products. Products of
// `sums` that are there are added to. `fetch` is fetched meanwhile.
template <int S, int P, bool fresh>
inline void products(const Side* sides, const Pack* packs, int64_t columns, float* out, int64_t out_stride, Fetch& fetch) {
    static_assert(S * P <= 4 && (S <= 2 || P == 1));
    const auto place = [&](int s, int p) { return reinterpret_cast<char*>(out) + s * kSide * out_stride + p * kLine; };
    each<S * P>([&]<int i>() {
        if constexpr (fresh) zero<i>();
        else load<i>(place(i / P, i % P), out_stride);
    });
    const auto chunk = [&](int64_t c, bool whole) __attribute__((always_inline)) {
        const auto load_side = [&]<int s>() __attribute__((always_inline)) {
            load<4 + s % 2>(whole ? sides[s].whole + c * sides[s].step : sides[s].rest, whole ? sides[s].stride : kLine);
        };
        if constexpr (S <= 2) each<S>(load_side);
        each<P>([&]<int p>() __attribute__((always_inline)) {
            load<6 + p % 2>(packs[p].data + c * kSide * packs[p].stride, packs[p].stride);
            each<S>([&]<int s>() __attribute__((always_inline)) {
                if constexpr (S > 2) load_side.template operator()<s>();
                multiply<s * P + p, 4 + s % 2, 6 + p % 2>();
            });
        });
    };
    for (int64_t c = 0; c < columns / kDepth; ++c) {
        if (fetch) fetch.more(S * kBytes);
        chunk(c, true);
    }
    if (columns % kDepth) chunk(columns / kDepth, false);
    each<S * P>([&]<int i>() { store<i>(place(i / P, i % P), out_stride); });
}

}  // namespace tile

struct Tiles : Pairs {
    struct Inputs {
        const uint16_t* values;  // [ceil(inputs / 16)][ceil(columns / 32)][16 pairs][16 inputs]
    };
    static constexpr bool kArranges = true;

    // Tiles of sixteen rows of 64 bytes, until this thread multiplies no more.
    struct Use {
        Use() {
            struct alignas(64) {
                uint8_t palette = 1, start = 0, reserved[14] = {};
                uint16_t bytes[16] = {};
                uint8_t rows[16] = {};
            } shape;
            for (int t = 0; t < 8; ++t) shape.bytes[t] = kLine, shape.rows[t] = tile::kSide;
            asm volatile("ldtilecfg %0" ::"m"(shape));
        }
        ~Use() { asm volatile("tilerelease"); }
        Use(const Use&) = delete;
    };

    class Panel : public Pairs::Panel {
    public:
        // Columns after the last pair are zeros, up to a whole tile.
        void resize(int64_t columns) {
            Pairs::Panel::resize(columns);
            for (int64_t k = pairs; k < (pairs + 15) / 16 * 16; ++k)
                for (int64_t g = 0; g < kVectors; ++g) start()[k * kVectors + g] = _mm512_setzero_si512();
        }
        tile::Pack pack_of(int64_t vector) const { return {reinterpret_cast<const char*>(start() + vector), kVectors * kLine}; }
    };

    static int64_t arranged(int64_t count, int64_t columns) { return lines(count * 4) * tile::chunks(columns) * (tile::kBytes / 2); }

    // Inputs 16 * block to 16 * block + 16, zeros where there are none.
    static void arrange(const Wanted<Tiles>& some, int64_t columns, int64_t block) {
        const int64_t first = block * tile::kSide, here = std::min(tile::kSide, some.count - first);
        auto* out = reinterpret_cast<__m512i*>(some.place) + block * tile::chunks(columns) * tile::kSide;
        const uint16_t* rows[16];
        for (int64_t i = 0; i < 16; ++i) rows[i] = some.rows(first + std::min(i, here - 1));
        for (int64_t column = 0; column < columns; column += tile::kDepth, out += tile::kSide) {
            const __mmask32 there = narrow::words(columns - column);
            __m512i words[16];
            #pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) words[i] = _mm512_maskz_loadu_epi16(i < here ? there : 0, rows[i] + column);
            transpose(words);
            #pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) out[i] = words[i];
        }
    }

    // `here` rows, sixteen at most, of m; copied to `room`, a tile for each chunk of columns, where they do not lie so or do not
    // `stay`.
    static tile::Side side(const Matrix& m, int64_t here, char* room, bool stay = true) {
        const int64_t whole = m.length / tile::kDepth;
        const bool lies = stay && here == tile::kSide && m.kind == Matrix::kBFloat16;
        for (int64_t c = lies ? whole : 0; c < tile::chunks(m.length); ++c)
            for (int64_t i = 0; i < tile::kSide; ++i)
                _mm512_storeu_si512(room + c * tile::kBytes + i * kLine,
                                    i < here ? Panel::rounded_columns(m.from(i), c * tile::kDepth) : _mm512_setzero_si512());
        const char* rest = room + whole * tile::kBytes;
        return lies ? tile::Side{m.values<char>(), rest, 2 * m.stride, kLine} : tile::Side{room, rest, kLine, tile::kBytes};
    }

    template <bool fresh>
    static void add_all(const Panel& panel, int64_t inputs, int64_t columns, const Rows<uint16_t>& x, Sums* sums, int64_t vectors) {
        const int64_t size = tile::chunks(columns) * tile::kBytes;
        char* room = memory<Panel, char>(2 * size);
        Matrix rows;
        rows.kind = Matrix::kBFloat16, rows.length = columns, rows.stride = x.stride;
        Fetch none;
        for (int64_t m = 0; m < inputs; m += 2 * tile::kSide) {
            tile::Side sides[2];
            const bool both = m + tile::kSide < inputs;
            for (int64_t s = 0; s <= both; ++s) {
                rows.data = x(m + s * tile::kSide);
                sides[s] = side(rows, std::min(tile::kSide, inputs - m - s * tile::kSide), room + s * size);
            }
            float* out = reinterpret_cast<float*>(sums + m);
            const tile::Pack packs[4] = {panel.pack_of(0), panel.pack_of(1), panel.pack_of(2), panel.pack_of(3)};
            const auto some = [&]<int S, int P>(int64_t vector) { tile::products<S, P, fresh>(sides, packs + vector, columns, out + vector * kLanes, sizeof(Sums), none); };
            if (vectors == 1) both ? some.template operator()<2, 1>(0) : some.template operator()<1, 1>(0);
            else if (vectors == 2) both ? some.template operator()<2, 2>(0) : some.template operator()<1, 2>(0);
            else if (both) some.template operator()<2, 2>(0), some.template operator()<2, 2>(2);
            else some.template operator()<1, 4>(0);
        }
    }

    template <int parts, class Done>
    static void multiply(const Matrix (&w)[parts], int64_t each, int64_t inputs, const Inputs& x, const Done& done, Fetch next) {
        constexpr int64_t kGroups = 4, kOf = kGroups / parts;  // of sixteen rows: in all, of a part
        constexpr int64_t kMany = 8;                           // blocks of inputs for which rows are copied
        const int64_t columns = w[0].length, chunks = tile::chunks(columns), blocks = (inputs + tile::kSide - 1) / tile::kSide;
        char* room = memory<Tiles, char>(kGroups * chunks * tile::kBytes);
        tile::Side sides[kGroups];
        for (int p = 0; p < parts; ++p) {
            const Matrix plain = readable(w[p], std::min(each, kOf * tile::kSide));
            for (int64_t g = 0; g < kOf; ++g) {
                const int64_t first = std::min(g * tile::kSide, each);
                const bool stays = blocks < kMany && (parts == 1 || w[p].kind == Matrix::kBFloat16);  // what is unpacked is there until the next part
                sides[p * kOf + g] = side(plain.from(first), std::clamp<int64_t>(each - first, 0, tile::kSide), room + (p * kOf + g) * chunks * tile::kBytes, stays);
            }
        }
        alignas(64) float found[kWide][2 * kLanes];
        const auto results = [&](int64_t block, int64_t half, int64_t wide) {
            Sums sums[kLanes];
            for (int64_t g = 0; g < kGroups; ++g) {
                Lanes rows[kLanes];
                #pragma GCC unroll 16
                for (int64_t i = 0; i < kLanes; ++i) rows[i] = lanes(&found[0][0] + (g * kLanes + i) * wide * kLanes + half * kLanes);
                transpose(rows);
                #pragma GCC unroll 16
                for (int64_t i = 0; i < kLanes; ++i) sums[i][g] = rows[i];
            }
            for (int64_t t = block * kLanes; t < std::min(inputs, (block + 1) * kLanes); ++t) done(t, sums[t - block * kLanes]);
        };
        const auto pack = [&](int64_t block) { return tile::Pack{reinterpret_cast<const char*>(x.values) + block * chunks * tile::kBytes, kLine}; };
        for (int64_t block = 0; block < blocks; block += 2) {
            if (block + 1 == blocks) {
                const tile::Pack packs[1] = {pack(block)};
                tile::products<4, 1, true>(sides, packs, columns, &found[0][0], kLine, next);
                results(block, 0, 1);
                break;
            }
            const tile::Pack packs[2] = {pack(block), pack(block + 1)};
            tile::products<2, 2, true>(sides, packs, columns, &found[0][0], 2 * kLine, next);
            tile::products<2, 2, true>(sides + 2, packs, columns, &found[kWide / 2][0], 2 * kLine, next);
            results(block, 0, 2), results(block + 1, 1, 2);
        }
    }
};

}  // namespace axk1
