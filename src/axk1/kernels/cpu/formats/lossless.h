#pragma once

#include "bfloat16.h"

namespace axk1 {

// bfloat16 in twelve bits, without loss. Products are those of BFloat16, to the bit.
//
// A block has 64 values: 64 bytes of mantissa and sign, the sign lowest, then 32 bytes of differences to the largest exponent,
// `base`, of values i (low half) and 32 + i. Base 0: the block is too wide for that, and is the next of `raw`.
struct Lossless {
    static constexpr int64_t kBlock = 64, kBytes = 96;

    // The largest exponent of 64 values, or 0 where others are more than 15 below it, or all of them zero.
    static uint8_t base(const uint16_t* values) {
        int least = 255, most = 0;
        for (int64_t i = 0; i < kBlock; ++i) {
            const int exponent = values[i] >> 7 & 255;
            least = std::min(least, exponent), most = std::max(most, exponent);
        }
        return most - least < 16 ? most : 0;
    }

    static void pack(const uint16_t* values, uint8_t base, uint8_t* block) {
        for (int64_t i = 0; i < kBlock; ++i) block[i] = uint8_t(values[i] << 1 | values[i] >> 15);
        const auto step = [&](int64_t i) { return base - (values[i] >> 7 & 255); };
        for (int64_t i = 0; i < 32; ++i) block[kBlock + i] = uint8_t(step(i) | step(32 + i) << 4);
    }

    static void unpack(const uint8_t* block, uint8_t base, uint16_t* out) {
        for (int64_t i = 0; i < kBlock; ++i) {
            const int step = block[kBlock + i % 32] >> (i / 32 * 4) & 15;
            out[i] = uint16_t((block[i] & 1) << 15 | (base - step) << 7 | block[i] >> 1);
        }
    }

    static const uint16_t* raw_blocks(const Matrix& m) { return m.raw + *m.starts * kBlock; }  // of the first row

    // The first rows as bfloat16, until this thread's next call.
    static Matrix unpacked(const Matrix& m, int64_t rows) {
        uint16_t* values = memory<Lossless, uint16_t>(rows * m.length);
        for (int64_t row = 0; row < rows; ++row) {
            const Matrix mine = m.from(row);
            const uint16_t* raw = raw_blocks(mine);
            for (int64_t b = 0; b < m.length / kBlock; ++b) {
                uint16_t* out = values + row * m.length + b * kBlock;
                if (mine.bases[b]) unpack(mine.values<uint8_t>() + b * kBytes, mine.bases[b], out);
                else std::memcpy(out, raw, kBlock * 2), raw += kBlock;
            }
        }
        Matrix plain;
        plain.kind = Matrix::kBFloat16, plain.data = values, plain.length = plain.stride = m.length, plain.exact = m.exact;
        return plain;
    }
};

template <>
struct Wide<Lossless> : Wide<BFloat16> {
    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        Wide<BFloat16>::dot<R, T>(Lossless::unpacked(m, R), x, out, out_stride);
    }
};

}  // namespace axk1
