#pragma once

#include "wide.h"

namespace axk1 {

struct Int8 {  // symmetric, one scale per row
    typedef int8_t Stored;
    static constexpr int kBits = 8;
    static constexpr bool kPairs = false, kScaled = true;
    static int64_t place(int64_t value) { return value; }
    static Lanes load(const int8_t* p) { return load_int8(p); }
    static float one(const int8_t* row, int64_t column) { return float(row[column]); }
    static void load_two(const int8_t* p, Lanes& first, Lanes& second) { first = load_int8(p), second = load_int8(p + kLanes); }
};

}  // namespace axk1
