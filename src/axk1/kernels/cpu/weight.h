// A weight as it is given from outside, checked.
#pragma once

#include <stdexcept>
#include <string>

#include "axk1.h"
#include "matrix.h"

namespace axk1 {

struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};
inline void expect(bool holds, const std::string& what) {
    if (!holds) throw Refused("The kernels were given " + what + ".");
}

inline int64_t padded_bytes(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// A weight from outside, its side information checked.
inline Matrix matrix(const axk1_matrix& given, bool exact) {
    expect(given.data && given.rows > 0 && given.columns > 0, "an empty weight");
    expect(given.format >= AXK1_FLOAT32 && given.format <= AXK1_LOSSLESS, "a weight of an unknown format");
    Matrix m;
    m.kind = Matrix::Kind(given.format), m.data = given.data, m.length = m.stride = given.columns, m.exact = exact;
    if (m.kind == Matrix::kInt8) {
        expect(given.side && given.side_bytes == given.rows * 4, "int8 weights without one scale per row");
    } else if (m.kind == Matrix::kInt4 || m.kind == Matrix::kInt3) {
        const int64_t scales = given.side_bytes / 4;
        expect(given.side && scales > 0 && scales % given.rows == 0 && given.columns % (scales / given.rows) == 0, "weights of a few bits whose scales do not divide their rows");
        m.group = given.columns / (scales / given.rows);
        expect(m.group % 32 == 0, "weights of a few bits with a scale for " + std::to_string(m.group) + " values; it must be a multiple of 32");
    } else if (m.kind == Matrix::kLossless) {
        const int64_t blocks = given.rows * (given.columns / 64), fixed = padded_bytes(blocks) + padded_bytes(given.rows * 4);
        expect(given.columns % 64 == 0 && given.side && given.side_bytes >= fixed, "weights that are not packed without loss");
        m.bases = static_cast<const uint8_t*>(given.side);
        m.starts = reinterpret_cast<const int32_t*>(m.bases + padded_bytes(blocks));
        m.raw = reinterpret_cast<const uint16_t*>(m.bases + fixed);
        int64_t raw = 0;
        for (int64_t row = 0; row < given.rows; ++row) {
            expect(m.starts[row] == raw, "weights packed without loss whose rows begin elsewhere");
            raw += std::count(m.bases + row * (given.columns / 64), m.bases + (row + 1) * (given.columns / 64), 0);
        }
        expect(given.side_bytes == fixed + raw * 128, "weights packed without loss that lack blocks");
        return m;
    }
    m.scale = m.kind == Matrix::kFloat32 || m.kind == Matrix::kBFloat16 ? nullptr : static_cast<const float*>(given.side);
    return m;
}

}  // namespace axk1
