#pragma once

#include "wide.h"

namespace axk1 {

struct Int4 {  // two values per byte, the first in the lower half, stored plus 8; a scale for every `group` values
    typedef uint8_t Stored;
    static constexpr int kBits = 4;
    static float one(const uint8_t* row, int64_t column) { return float((row[column / 2] >> (column % 2 * 4) & 15) - 8); }
};

template <>
struct Wide<Int4> {
    typedef FloatInputs Inputs;
    static constexpr int rows_at_once(int inputs) { return axk1::rows_at_once(inputs); }
    static Inputs prepare(const float* x, int64_t x_stride, int64_t, int64_t) { return {x, x_stride}; }

    // A group has a multiple of 32 values.
    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        const auto* w = m.values<uint8_t>();
        const int64_t groups = m.length / m.group;
        Lanes total[R][T] = {};
        for (int64_t g = 0; g < groups; ++g) {
            Lanes first[R][T] = {}, second[R][T] = {};
            for (int64_t i = g * m.group; i < (g + 1) * m.group; i += 2 * kLanes)
                #pragma GCC unroll 6
                for (int r = 0; r < R; ++r) {
                    const uint8_t* place = w + (r * m.stride + i) / 2;
                    __builtin_prefetch(place + kAhead, 0, 2);
                    Lanes left, right;
                    load_int4(place, left, right);
                    #pragma GCC unroll 6
                    for (int t = 0; t < T; ++t) {
                        first[r][t] += left * lanes(x.values + t * x.stride + i);
                        second[r][t] += right * lanes(x.values + t * x.stride + i + kLanes);
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
