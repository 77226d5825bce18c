// Vectors of kLanes float32 values in the compiler's own vector types, as wide as the instruction set that is compiled for.
//
// An instruction set names kLanes, kRegisters (vectors that it holds) and kAhead: the bytes between what is read of a row and
// what is fetched into the second-level cache meanwhile. Of 256 to 16,384, 1,024 was the best on a Zen 3 and 8,192 on a Zen 4.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "isa/avx512/vectors.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "isa/avx2/vectors.h"
#elif defined(__aarch64__)
#include "isa/neon/vectors.h"
#else
#include "isa/plain/vectors.h"
#endif

namespace axk1 {

inline const Lanes& lanes(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
inline Lanes& lanes(float* p) { return *reinterpret_cast<Lanes*>(p); }

// The first `count` values, zero after them.
inline Lanes lanes(const float* p, int64_t count) {
    if (count >= kLanes) return lanes(p);
    float some[kLanes] = {};
    if (count > 0) std::memcpy(some, p, count * sizeof(float));
    return lanes(some);
}

inline void store(const Lanes& v, int64_t count, float* out) {
    if (count >= kLanes) lanes(out) = v;
    else if (count > 0) std::memcpy(out, &v, count * sizeof(float));
}

inline uint16_t to_bfloat16(float value) {  // round to nearest even, as torch does; not-a-numbers stay such
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 64);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float to_float(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float sum(const Lanes& v) {
    float values[kLanes];
    std::memcpy(values, &v, sizeof v);
    typedef float Four __attribute__((vector_size(16)));
    Four fours[kLanes / 4];
    std::memcpy(fours, values, sizeof v);
    if constexpr (kLanes == 16) fours[0] = (fours[0] + fours[2]) + (fours[1] + fours[3]);
    else if constexpr (kLanes == 8) fours[0] = fours[0] + fours[1];
    return (fours[0][0] + fours[0][2]) + (fours[0][1] + fours[0][3]);
}

#ifndef AXK1_SUM_FOUR
inline void hold(Lanes&) {}
inline void sum_four(const Lanes* v, float* out) {
    for (int k = 0; k < 4; ++k) out[k] = sum(v[k]);
}
#endif

// a * b + c, rounded as vectors round it: once where the processor fuses the two. Which columns are vectors' may depend on how
// many inputs there are; their bits may not.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

inline Lanes maximum(const Lanes& a, const Lanes& b) { return b > a ? b : a; }

inline float largest(const Lanes& v) {
    float most = v[0];
    for (int64_t i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
    return most;
}

// The largest absolute value.
inline float largest_size(const float* x, int64_t length) {
    Lanes most = {};
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
        const Lanes value = lanes(x + i);
        most = maximum(most, value < 0.0f ? -value : value);
    }
    float result = largest(most);
    for (; i < length; ++i) result = std::fabs(x[i]) > result ? std::fabs(x[i]) : result;
    return result;
}

// exp of values that are at most 0, to 2 units in the last place (Cephes' polynomial).
inline Lanes exp_lanes(Lanes x) {
    const Lanes zero = {}, least = zero - 87.0f;
    const LanesI32 vanishes = x < least;
    x = vanishes ? least : x;
    const Lanes shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
    const Lanes n = shifted - 12582912.0f;
    Lanes r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Lanes y = zero + 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const LanesI32 power = (__builtin_convertvector(n, LanesI32) + 127) << 23;
    y = y * reinterpret_cast<const Lanes&>(power);
    return vanishes ? zero : y;
}

// x / (1 + exp(-x)).
inline Lanes silu(Lanes x) {
    const Lanes zero = {};
    const LanesI32 negative = x < zero;
    const Lanes small = exp_lanes(negative ? x : -x);
    return x * (negative ? small : zero + 1.0f) / (small + 1.0f);
}

// The first place of the largest of `count` values; where some are not finite, the first place of those.
inline int64_t place_of_largest(const float* values, int64_t count) {
    float most = values[0], wrong = 0.0f;
    int64_t i = 0;
    if (count >= kLanes) {
        Lanes high = lanes(values), nothing = high - high;  // zeros, if all are finite
        for (i = kLanes; i + kLanes <= count; i += kLanes) {
            const Lanes next = lanes(values + i);
            high = maximum(high, next), nothing += next - next;
        }
        most = largest(high), wrong = sum(nothing);
    }
    for (; i < count; ++i) most = values[i] > most ? values[i] : most, wrong += values[i] - values[i];
    const bool finite = wrong == 0.0f;
    for (int64_t place = 0; place < count; ++place)
        if (finite ? values[place] == most : !std::isfinite(values[place])) return place;
    return 0;
}

// `count` values to bfloat16.
inline void round_values(const float* x, int64_t count, uint16_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(x[i]);
}

}  // namespace axk1
