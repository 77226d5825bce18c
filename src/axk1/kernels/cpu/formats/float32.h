#pragma once

#include "wide.h"

namespace axk1 {

struct Float32 {
    typedef float Stored;
    static constexpr int kBits = 32;
    static constexpr bool kPairs = false, kScaled = false;
    static int64_t place(int64_t value) { return value; }
    static Lanes load(const float* p) { return lanes(p); }
    static float one(const float* row, int64_t column) { return row[column]; }
    static void load_two(const float* p, Lanes& first, Lanes& second) { first = lanes(p), second = lanes(p + kLanes); }
};

}  // namespace axk1
