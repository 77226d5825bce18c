// Four values at once by the compiler's own vector types: what every processor can do.
#pragma once

#include <cstdint>
#include <cstring>

namespace axk1 {

constexpr int64_t kLanes = 4;
constexpr int kRegisters = 16;
constexpr int64_t kAhead = 8192;
constexpr const char* kInstructions = "plain";
typedef float Lanes __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t LanesI32 __attribute__((vector_size(16), aligned(4), may_alias));

inline Lanes load_bfloat16(const uint16_t* p) {
    const LanesI32 bits = {int32_t(p[0]) << 16, int32_t(p[1]) << 16, int32_t(p[2]) << 16, int32_t(p[3]) << 16};
    return reinterpret_cast<const Lanes&>(bits);
}

// 2 * kLanes values of bfloat16: those of even index, those of odd index.
inline void load_bfloat16_pairs(const uint16_t* p, Lanes& even, Lanes& odd) {
    LanesI32 words;
    std::memcpy(&words, p, 16);
    const LanesI32 low = words << 16, high = words & int32_t(0xffff0000);
    even = reinterpret_cast<const Lanes&>(low);
    odd = reinterpret_cast<const Lanes&>(high);
}

// The same of float32 values.
inline void split_pairs(const float* x, Lanes& even, Lanes& odd) {
    even = Lanes{x[0], x[2], x[4], x[6]};
    odd = Lanes{x[1], x[3], x[5], x[7]};
}

inline Lanes load_int8(const int8_t* p) { return Lanes{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }

// 2 * kLanes values of four bits, stored plus 8, the first of a byte in its lower half.
inline void load_int4(const uint8_t* p, Lanes& first, Lanes& second) {
    const auto low = [&](int i) { return float((p[i] & 15) - 8); };
    const auto high = [&](int i) { return float((p[i] >> 4) - 8); };
    first = Lanes{low(0), high(0), low(1), high(1)};
    second = Lanes{low(2), high(2), low(3), high(3)};
}

inline void transpose(Lanes* rows) {
    float values[4][4];
    std::memcpy(values, rows, 64);
    for (int i = 0; i < 4; ++i) rows[i] = Lanes{values[0][i], values[1][i], values[2][i], values[3][i]};
}

}  // namespace axk1
