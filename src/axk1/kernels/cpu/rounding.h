// Rounding to four or three bits, bit for bit as axk1.quantized.formats does: every group tries several clips of its largest weight, and
// the one of least squared error stays. Errors are compared as whole numbers, so that no order of summing matters.
#pragma once

#include <limits>
#include <stdexcept>

#include "vectors.h"

namespace axk1 {

constexpr int kTries = 16;             // clips at most
constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which is then in the low bits
constexpr int32_t kWholeBits = 0x4B400000;

struct Clips {
    float shares[kTries];  // a negative one makes a negative scale
    int count;
    float largest, tiny;  // the stored value of a group's largest weight; below it, a scale would be none
};

inline const LanesI32& bits_of(const Lanes& v) { return reinterpret_cast<const LanesI32&>(v); }
inline LanesI32 clamped(const LanesI32& v, int32_t low, int32_t high) {
    const LanesI32 zero = {}, least = zero + low, most = zero + high;
    const LanesI32 some = v < least ? least : v;
    return some > most ? most : some;
}

// A product that is rounded before it is used, as the reference does: never fused with what it is added to.
inline Lanes product(const Lanes& v, float factor) {
    Lanes done = v * factor;
#if defined(__x86_64__)
    asm("" : "+x"(done));
#elif defined(__aarch64__)
    asm("" : "+w"(done));
#endif
    return done;
}

// The whole number nearest to each, from -8 to 7 or from -4 to 3, in the low bits.
template <int Bits>
inline LanesI32 whole(const Lanes& number) {
    return clamped(bits_of(number + kWhole), kWholeBits - (1 << (Bits - 1)), kWholeBits + (1 << (Bits - 1)) - 1);
}

// Eight values of four bits, each in a byte, to four bytes.
inline uint32_t nibbles(uint64_t bytes) {
    bytes = (bytes | bytes >> 4) & 0x00FF00FF00FF00FFull;
    bytes = (bytes | bytes >> 8) & 0x0000FFFF0000FFFFull;
    return uint32_t(bytes | bytes >> 16);
}

// 32 values of three bits, each in a byte, to the twelve bytes of Int3.
inline void planes(const uint8_t* bytes, uint8_t* packed) {
    uint64_t low = 0;
    for (int i = 0; i < 4; ++i) {
        uint64_t eight;
        std::memcpy(&eight, bytes + 8 * i, 8);
        low |= (eight & 0x0303030303030303ull) << 2 * i;
        packed[8 + i] = uint8_t((eight >> 2 & 0x0101010101010101ull) * 0x0102040810204080ull >> 56);  // a bit of each byte
    }
    std::memcpy(packed, &low, 8);
}

template <int Group, int Bits>
struct RoundedGroup {
    static constexpr int kParts = Group / kLanes;
    Lanes x[kParts];

    void read(const uint16_t* from) {
        alignas(64) uint32_t wide[Group];
        for (int i = 0; i < Group; ++i) wide[i] = uint32_t(from[i]) << 16;
        std::memcpy(x, wide, sizeof x);
    }
    void read(const float* from) { std::memcpy(x, from, sizeof x); }

    float largest() const {
        LanesI32 most = {};
        for (int i = 0; i < kParts; ++i) {
            const LanesI32 bits = reinterpret_cast<const LanesI32&>(x[i]) & 0x7fffffff;
            most = bits > most ? bits : most;
        }
        int32_t one = 0;
        for (int64_t i = 0; i < kLanes; ++i) one = most[i] > one ? int32_t(most[i]) : one;
        if (one >= 0x7f800000) throw std::invalid_argument("holds NaN or infinity");
        float value;
        std::memcpy(&value, &one, 4);
        return value;
    }

    // The squared error in units of 2^-26 of the largest weight's square.
    uint32_t error(float inverse, float factor) const {
        LanesI32 total = {};
        for (int i = 0; i < kParts; ++i) {
            const Lanes number = product(x[i], inverse);
            const LanesI32 nearest = whole<Bits>(number);
            const Lanes share = product(reinterpret_cast<const Lanes&>(nearest) - kWhole - number, factor);
            const LanesI32 steps = clamped(bits_of(share + kWhole) - kWholeBits, -4096, 4096);
            total += steps * steps;
        }
        typedef uint32_t Four __attribute__((vector_size(16)));
        Four fours[kLanes / 4];
        std::memcpy(fours, &total, sizeof total);
        for (int i = 1; i < kLanes / 4; ++i) fours[0] += fours[i];
        return (fours[0][0] + fours[0][2]) + (fours[0][1] + fours[0][3]);
    }

    float best_scale(const Clips& clips) const {
        const float most = largest();
        float scales[kTries], inverses[kTries], factors[kTries];
        for (int i = 0; i < clips.count; ++i) {
            const float exact = most * clips.shares[i] / clips.largest;
            uint32_t bits;
            std::memcpy(&bits, &exact, 4);
            bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;  // to bfloat16
            float scale;
            std::memcpy(&scale, &bits, 4);
            scales[i] = std::fabs(scale) < clips.tiny ? 1.0f : scale;
            inverses[i] = 1.0f / scales[i];
            factors[i] = scales[i] / most * 8192.0f;
        }
        if (most == 0) return 1.0f;
        float best = 1.0f;
        uint32_t least = std::numeric_limits<uint32_t>::max();
        for (int i = 0; i < clips.count; ++i) {
            const uint32_t found = error(inverses[i], factors[i]);
            if (found < least) best = scales[i], least = found;
        }
        return best;
    }

    void write(float scale, uint8_t* packed, double& error, double& size) const {
        typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
        alignas(64) uint8_t stored[Group];
        Lanes errors = {}, sizes = {};
        const float inverse = 1.0f / scale;
        for (int i = 0; i < kParts; ++i) {
            const LanesI32 nearest = whole<Bits>(product(x[i], inverse));
            const Lanes off = (reinterpret_cast<const Lanes&>(nearest) - kWhole) * scale - x[i];
            const Bytes bytes = __builtin_convertvector(nearest - (kWholeBits - (1 << (Bits - 1))), Bytes);
            std::memcpy(stored + i * kLanes, &bytes, sizeof bytes);
            errors += off * off, sizes += x[i] * x[i];
        }
        if constexpr (Bits == 3) {
            for (int i = 0; i < Group; i += 32) planes(stored + i, packed + i / 8 * 3);
        } else {
            for (int i = 0; i < Group; i += 8) {
                uint64_t eight;
                std::memcpy(&eight, stored + i, 8);
                const uint32_t word = nibbles(eight);
                std::memcpy(packed + i / 2, &word, 4);
            }
        }
        error += sum(errors), size += sum(sizes);
    }
};

template <int Group, int Bits, class Stored>
inline void round_groups(const Stored* weight, int64_t groups, const Clips& clips, uint8_t* packed, float* scales, double* squares) {
    RoundedGroup<Group, Bits> group;
    double error = 0, size = 0;
    for (int64_t g = 0; g < groups; ++g) {
        group.read(weight + g * Group);
        scales[g] = group.best_scale(clips);
        group.write(scales[g], packed + g * Group * Bits / 8, error, size);
    }
    squares[0] = error, squares[1] = size;
}

template <int Bits, class Stored>
inline void round_weights(const Stored* weight, int64_t groups, int64_t group, const Clips& clips, uint8_t* packed, float* scales, double* squares) {
    if (group == 32) round_groups<32, Bits>(weight, groups, clips, packed, scales, squares);
    else if (group == 64) round_groups<64, Bits>(weight, groups, clips, packed, scales, squares);
    else if (group == 128) round_groups<128, Bits>(weight, groups, clips, packed, scales, squares);
    else throw std::invalid_argument("groups of other than 32, 64 or 128 values");
}

}  // namespace axk1
