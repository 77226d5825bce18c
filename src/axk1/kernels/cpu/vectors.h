// Sixteen values at once, in the compiler's own vector types.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace axk1 {

constexpr int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t LanesU32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t LanesU16 __attribute__((vector_size(32), aligned(2), may_alias));
typedef int32_t LanesI32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int8_t LanesI8 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t LanesU8 __attribute__((vector_size(16), aligned(1), may_alias));

inline LanesI32 widen(const LanesI8& bytes) {
#ifdef __AVX512F__
    return LanesI32(_mm512_cvtepi8_epi32(__m128i(bytes)));
#else  // in two steps: GCC makes scalar code of one
    typedef int16_t LanesI16 __attribute__((vector_size(32)));
    return __builtin_convertvector(__builtin_convertvector(bytes, LanesI16), LanesI32);
#endif
}

inline Lanes centred(const LanesI32& fours) {  // 0..15 to -8..7
#ifdef __AVX512F__
    const Lanes values = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return __builtin_shuffle(values, fours);
#else
    return __builtin_convertvector(fours, Lanes) - 8.0f;
#endif
}

inline Lanes lanes(const float* p) { return *reinterpret_cast<const Lanes*>(p); }

inline uint16_t to_bfloat16(float value) {  // round to nearest even, as torch does
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float to_float(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float sum(const Lanes& v) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight halves[2];
    std::memcpy(halves, &v, 64);
    const Eight eight = halves[0] + halves[1];
    Four quarters[2];
    std::memcpy(quarters, &eight, 32);
    const Four four = quarters[0] + quarters[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
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

// The first place of the largest of `count` values.
inline int64_t place_of_largest(const float* values, int64_t count) {
    float most = values[0];
    int64_t i = 0;
    if (count >= kLanes) {
        Lanes high = lanes(values);
        for (i = kLanes; i + kLanes <= count; i += kLanes) {
            const Lanes next = lanes(values + i);
            high = next > high ? next : high;
        }
        for (int64_t j = 0; j < kLanes; ++j) most = high[j] > most ? high[j] : most;
    }
    for (; i < count; ++i) most = values[i] > most ? values[i] : most;
    for (int64_t place = 0; place < count; ++place)
        if (values[place] == most) return place;
    return 0;  // not a number
}

}  // namespace axk1
