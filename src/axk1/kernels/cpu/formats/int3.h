#pragma once

#include "wide.h"

namespace axk1 {

// Blocks of 32 values, stored plus 4, in twelve bytes; a scale for every `group` values. First their lower two bits: those of
// value 8 j + i in byte i, from bit 2 j on. Then their upper bits: that of value 8 j + i in byte 8 + j, bit i. So one shift
// makes four runs of eight values, in order.
struct Int3 {
    typedef uint8_t Stored;
    static constexpr int kBits = 3;
    static constexpr int64_t kBlock = 32, kBytes = 12;
    static float one(const uint8_t* row, int64_t column) {
        const uint8_t* block = row + column / kBlock * kBytes;
        const int64_t i = column % 8, j = column % kBlock / 8;
        return float((block[i] >> 2 * j & 3 | (block[8 + j] >> i & 1) << 2) - 4);
    }
};

#ifndef AXK1_LOAD_INT3
// The values of a block.
inline void load_int3(const uint8_t* p, Lanes* out) {
    uint64_t low;
    std::memcpy(&low, p, 8);
    alignas(8) uint8_t bytes[Int3::kBlock];
    for (int j = 0; j < 4; ++j) {  // eight values at once: bit i of the byte in byte i, then at the place of a four
        const uint64_t spread = p[8 + j] * 0x0101010101010101ull & 0x8040201008040201ull;
        const uint64_t fours = ((spread & 0x7f7f7f7f7f7f7f7full) + 0x7f7f7f7f7f7f7f7full | spread) >> 5 & 0x0404040404040404ull;
        const uint64_t eight = low >> 2 * j & 0x0303030303030303ull | fours;
        std::memcpy(bytes + 8 * j, &eight, 8);
    }
    typedef uint8_t Few __attribute__((vector_size(kLanes)));
    for (int k = 0; k < Int3::kBlock / kLanes; ++k) {
        Few some;
        std::memcpy(&some, bytes + k * kLanes, sizeof some);
        out[k] = __builtin_convertvector(some, Lanes) - 4.0f;
    }
}
#endif

template <>
struct Wide<Int3> {
    typedef FloatInputs Inputs;
    static constexpr int rows_at_once(int inputs) { return axk1::rows_at_once(inputs); }
    static Inputs prepare(const float* x, int64_t x_stride, int64_t, int64_t) { return {x, x_stride}; }

    // A group has a multiple of 32 values.
    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        constexpr int kParts = Int3::kBlock / kLanes;
        const auto* w = m.values<uint8_t>();
        const int64_t groups = m.length / m.group;
        Lanes total[R][T] = {};
        for (int64_t g = 0; g < groups; ++g) {
            Lanes first[R][T] = {}, second[R][T] = {};
            for (int64_t i = g * m.group; i < (g + 1) * m.group; i += Int3::kBlock)
                #pragma GCC unroll 6
                for (int r = 0; r < R; ++r) {
                    const uint8_t* place = w + (r * m.stride + i) / Int3::kBlock * Int3::kBytes;
                    __builtin_prefetch(place + kAhead, 0, 2);
                    Lanes values[kParts];
                    load_int3(place, values);
                    #pragma GCC unroll 6
                    for (int t = 0; t < T; ++t)
                        #pragma GCC unroll 4
                        for (int k = 0; k < kParts; k += 2) {
                            first[r][t] += values[k] * lanes(x.values + t * x.stride + i + k * kLanes);
                            second[r][t] += values[k + 1] * lanes(x.values + t * x.stride + i + (k + 1) * kLanes);
                        }
                }
            for (int r = 0; r < R; ++r)
                for (int t = 0; t < T; ++t) total[r][t] += (first[r][t] + second[r][t]) * m.scale[r * groups + g];
        }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) out[t * out_stride + r] = sum(total[r][t]);
    }
};

}  // namespace axk1
