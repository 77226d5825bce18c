// A weight, or the cached latents: rows of values in one of the formats, and their products with float32 inputs.
//
// Decoding is bound by reading weights, so every row of a weight is read once and used for all inputs. The order of additions
// for one input depends neither on how many inputs there are nor on the number of threads: a verified draft and a neighbour
// in the batch leave a sequence's bits alone.
#pragma once

#include <algorithm>
#include <cstdint>

#include "memory.h"
#include "vectors.h"

namespace axk1 {

// Bytes from which on weights come from memory, and not from a cache; rows of a weight that are read in one go at least.
constexpr int64_t kStream = 64 << 10, kTile = 64;

struct Matrix {
    enum Kind { kFloat32, kBFloat16, kInt8, kInt4, kInt3, kLossless };
    Kind kind = kFloat32;
    const void* data = nullptr;
    int64_t length = 0, stride = 0;   // values of a row, and from one row to the next
    const float* scale = nullptr;     // int8: one per row, int4 and int3: one per group
    int64_t group = 0;                // values per scale, where it is not one per row
    const uint8_t* bases = nullptr;   // lossless: the largest exponent of each block
    const int32_t* starts = nullptr;  // the first of each row's blocks in `raw`
    const uint16_t* raw = nullptr;
    bool exact = false;  // inputs stay float32, and so does all arithmetic

    explicit operator bool() const { return data != nullptr; }

    int64_t bits() const {  // per value
        constexpr int64_t kBits[] = {32, 16, 8, 4, 3, 12};
        return kBits[kind];
    }
    int64_t bytes(int64_t rows) const { return rows * stride * bits() / 8; }

    // Rows that a thread takes at a time.
    int64_t grain() const { return std::max<int64_t>(1, kStream / kTile / std::max<int64_t>(bytes(1), 1)) * kTile; }

    template <class Stored>
    const Stored* values() const { return static_cast<const Stored*>(data); }

    // The rows from `row` on.
    Matrix from(int64_t row) const {
        Matrix rest = *this;
        rest.data = static_cast<const char*>(data) + bytes(row);
        if (bases) rest.bases = bases + row * length / 64, rest.starts = starts + row;
        if (scale) rest.scale = scale + (group ? row * (length / group) : row);
        return rest;
    }

    // Pieces of `rows` rows, each `distance` rows after the one before, to be fetched.
    Fetch pieces(int64_t rows, int64_t distance, int64_t count) const { return {data, bytes(rows), bytes(distance), count}; }

    // The first row as float32.
    void read(float* out) const;

    // out[t * out_stride + r] = dot(x[t], row r) for `rows` rows from the first and any number of inputs.
    void dot(int64_t rows, const float* x, int64_t x_stride, int64_t inputs, float* out, int64_t out_stride) const;

    // out[t][c] += sum over j of p[t][j] * row j [c], for `rows` rows from the first, their first `columns` values, any number of inputs.
    void add_weighted(int64_t rows, const float* p, int64_t p_stride, int64_t inputs, int64_t columns, float* out, int64_t out_stride, Fetch* fetch) const;
};

// Calls `some<T>(first input)` for all inputs: `Most` of them at a time, six or eight, or four where fewer than five would be left.
template <int Most = 6, class Some>
inline void together(int64_t inputs, const Some& some) {
    int64_t t = 0;
    if constexpr (Most == 8)
        for (; inputs - t > 12; t += 8) some.template operator()<8>(t);
    for (; inputs - t > Most || inputs - t == 4; t += 4) some.template operator()<4>(t);
    switch (inputs - t) {
        case 1: return some.template operator()<1>(t);
        case 2: return some.template operator()<2>(t);
        case 3: return some.template operator()<3>(t);
        case 5: return some.template operator()<5>(t);
        case 6: return some.template operator()<6>(t);
    }
    if constexpr (Most == 8) {
        if (inputs - t == 7) some.template operator()<7>(t);
        else if (inputs - t == 8) some.template operator()<8>(t);
    }
}

}  // namespace axk1
