#pragma once

#include "wide.h"

namespace axk1 {

// The upper and lower halves of 32-bit words are the values of odd and of even index: no widening, one shift and one mask.
struct BFloat16 {
    typedef uint16_t Stored;
    static constexpr int kBits = 16;
    static constexpr bool kPairs = true, kScaled = false;
    static int64_t place(int64_t value) { return value; }
    static Lanes load(const uint16_t* p) { return load_bfloat16(p); }
    static float one(const uint16_t* row, int64_t column) { return to_float(row[column]); }
    static void load_two(const uint16_t* p, Lanes& first, Lanes& second) { load_bfloat16_pairs(p, first, second); }
};

}  // namespace axk1
