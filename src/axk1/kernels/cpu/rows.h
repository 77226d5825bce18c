// Dot products of a few fp32 rows with the rows of a weight matrix, and weighted sums of such rows.
//
// Decoding is bound by reading weights, so every row of a weight is read once and used for all inputs. The order of
// additions for one input depends neither on how many inputs there are nor on the number of threads: a verified draft
// and a batch neighbour leave a row's bits alone.
#pragma once

#include <algorithm>
#include <vector>

#include "fetch.h"
#include "packed.h"
#include "vectors.h"

namespace axk1 {

// A format says how the values of a row are read as fp32: sixteen in order, one, and thirty-two as two vectors in an order
// that is cheap to make, in which `arrange` brings the inputs too.
template <class Format>
struct InOrder {
    template <class Stored>
    static void load(const Stored* p, Lanes& first, Lanes& second) {
        first = Format::load(p);
        second = Format::load(p + kLanes);
    }
    static void arrange(const float* x, Lanes& left, Lanes& right) {
        left = lanes(x);
        right = lanes(x + kLanes);
    }
};

struct Float32 : InOrder<Float32> {
    typedef float Stored;
    static Lanes load(const float* p) { return lanes(p); }
    using InOrder::load;
    static float one(const float* p) { return *p; }
};

struct BFloat16 {
    typedef uint16_t Stored;
    // The upper and lower halves of sixteen words are the values of odd and of even index: no widening, so the inputs
    // are taken apart likewise.
    static void load(const uint16_t* p, Lanes& first, Lanes& second) {
        LanesU32 words;
        std::memcpy(&words, p, 64);
        const LanesU32 low = words << 16, high = words & 0xffff0000u;
        first = reinterpret_cast<const Lanes&>(low);
        second = reinterpret_cast<const Lanes&>(high);
    }
    static void arrange(const float* x, Lanes& left, Lanes& right) {
        const LanesI32 evens = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
        left = __builtin_shuffle(lanes(x), lanes(x + kLanes), evens);
        right = __builtin_shuffle(lanes(x), lanes(x + kLanes), evens + 1);
    }
    static Lanes load(const uint16_t* p) {
        const LanesU16 half = *reinterpret_cast<const LanesU16*>(p);
        const LanesU32 bits = __builtin_convertvector(half, LanesU32) << 16;
        return reinterpret_cast<const Lanes&>(bits);
    }
    static float one(const uint16_t* p) { return to_float(*p); }
};

struct Int8 : InOrder<Int8> {  // symmetric, one scale a row
    typedef int8_t Stored;
    using InOrder::load;
    static Lanes load(const int8_t* p) {
        const LanesI8 bytes = *reinterpret_cast<const LanesI8*>(p);
        return __builtin_convertvector(widen(bytes), Lanes);
    }
    static float one(const int8_t* p) { return float(*p); }
};

// out[t * out_stride + r] = dot(x[t], w[r]) for R weight rows and T inputs of `length` values.
template <class Format, int R, int T>
inline void dot_block(const typename Format::Stored* w, int64_t w_stride, const float* x, int64_t x_stride,
                      int64_t length, float* out, int64_t out_stride) {
    Lanes even[R][T] = {}, odd[R][T] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= length; i += 2 * kLanes) {
        Lanes left[T], right[T];
        #pragma GCC unroll 6
        for (int t = 0; t < T; ++t) Format::arrange(x + t * x_stride + i, left[t], right[t]);
        #pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const auto* row = w + r * w_stride + i;
            __builtin_prefetch(reinterpret_cast<const char*>(row) + kAhead, 0, 2);
            Lanes first, second;
            Format::load(row, first, second);
            #pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                even[r][t] += first * left[t];
                odd[r][t] += second * right[t];
            }
        }
    }
    #pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
        #pragma GCC unroll 6
        for (int t = 0; t < T; ++t) {
            float total = sum(even[r][t] + odd[r][t]);
            for (int64_t j = i; j < length; ++j) total = std::fma(Format::one(w + r * w_stride + j), x[t * x_stride + j], total);
            out[t * out_stride + r] = total;
        }
}

// The same for four-bit weights: two values a byte, low half first, stored plus 8; a scale for every `group` values.
template <int R, int T>
inline void dot_block_int4(const uint8_t* w, const float* scale, int64_t group, const float* x, int64_t x_stride, int64_t length,
                           float* out, int64_t out_stride) {
    const LanesI8 lower = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    Lanes total[R][T] = {};
    for (int64_t start = 0; start < length; start += group) {
        Lanes even[R][T] = {}, odd[R][T] = {};
        for (int64_t i = start; i < start + group; i += 2 * kLanes)
            for (int r = 0; r < R; ++r) {
                const uint8_t* place = w + (r * length + i) / 2;
                __builtin_prefetch(place + kAhead, 0, 2);
                const LanesU8 bytes = *reinterpret_cast<const LanesU8*>(place);
                const LanesI8 low = LanesI8(bytes & 15), high = LanesI8(bytes >> 4);
                const Lanes first = centred(widen(__builtin_shuffle(low, high, lower)));
                const Lanes second = centred(widen(__builtin_shuffle(low, high, lower + 8)));
                for (int t = 0; t < T; ++t) {
                    even[r][t] += first * lanes(x + t * x_stride + i);
                    odd[r][t] += second * lanes(x + t * x_stride + i + kLanes);
                }
            }
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < T; ++t) total[r][t] += (even[r][t] + odd[r][t]) * scale[(r * length + start) / group];
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) out[t * out_stride + r] = sum(total[r][t]);
}

// out[t][c] += sum over j of p[t][j] * w[j][c], for T inputs at a time and 4 vectors of columns in registers.
template <class Format, int T>
inline void weighted_block(const typename Format::Stored* w, int64_t w_stride, int64_t rows, const float* p,
                           int64_t p_stride, int64_t columns, float* out, int64_t out_stride, Fetch* fetch) {
    constexpr int C = 4;
    int64_t c = 0;
    for (; c + C * kLanes <= columns; c += C * kLanes) {
        Lanes total[T][C];
        for (int t = 0; t < T; ++t)
            for (int k = 0; k < C; ++k) total[t][k] = lanes(out + t * out_stride + c + k * kLanes);
        for (int64_t j = 0; j < rows; ++j) {
            Lanes row[C];
            if (fetch) fetch->more(C * kLanes * sizeof(*w));
            for (int k = 0; k < C; ++k) row[k] = Format::load(w + j * w_stride + c + k * kLanes);
            for (int t = 0; t < T; ++t)
                for (int k = 0; k < C; ++k) total[t][k] += row[k] * p[t * p_stride + j];
        }
        for (int t = 0; t < T; ++t)
            for (int k = 0; k < C; ++k)
                *reinterpret_cast<Lanes*>(out + t * out_stride + c + k * kLanes) = total[t][k];
    }
    for (; c < columns; ++c)
        for (int t = 0; t < T; ++t) {
            float total = out[t * out_stride + c];
            for (int64_t j = 0; j < rows; ++j) total = std::fma(Format::one(w + j * w_stride + c), p[t * p_stride + j], total);
            out[t * out_stride + c] = total;
        }
}

// A weight, or the cached latents: rows of `length` values in one of the formats.
struct Matrix {
    enum Kind { kFloat32, kBFloat16, kInt8, kInt4, kLossless };
    Kind kind = kFloat32;
    const void* data = nullptr;
    int64_t length = 0, stride = 0;  // values
    const float* scale = nullptr;    // int8: one a row, int4: one a group
    int64_t group = 0;
    const uint8_t* bases = nullptr;  // lossless: the largest exponent of each block
    const int32_t* starts = nullptr;  // the first of each row's blocks in `raw`
    const uint16_t* raw = nullptr;
    bool exact = false;  // inputs stay float32: see packed.h

    explicit operator bool() const { return data != nullptr; }

    Matrix from(int64_t row) const {
        Matrix rest = *this;
        rest.data = static_cast<const char*>(data) + bytes(row);
        if (bases) rest.bases = bases + row * length / 64, rest.starts = starts + row;
        if (scale) rest.scale = scale + (kind == kInt4 ? row * (length / group) : row);
        return rest;
    }

    // The first row as fp32, of float formats.
    void read(float* out) const {
        if (kind == kFloat32) std::copy_n(values<float>(), length, out);
        else for (int64_t i = 0; i < length; ++i) out[i] = BFloat16::one(values<uint16_t>() + i);
    }

    // out[t * out_stride + r] = dot(x[t], row r) for `rows` rows from the first and any number of inputs.
    void dot(int64_t rows, const float* x, int64_t x_stride, int64_t inputs, float* out, int64_t out_stride) const {
#ifdef AXK1_PACKED
        if (kind == kBFloat16 && !exact) return dot_packed<packed::BFloat16>(rows, x, x_stride, inputs, out, out_stride);
        if (kind == kLossless) return dot_packed<packed::Lossless>(rows, x, x_stride, inputs, out, out_stride);
        if (kind == kInt8 && !exact) return dot_packed<packed::Int8>(rows, x, x_stride, inputs, out, out_stride);
        if (kind == kInt4 && !exact && packed::Int4::can(group)) return dot_packed<packed::Int4>(rows, x, x_stride, inputs, out, out_stride);
#endif
        tiled(rows, inputs, [&]<int T>(const Matrix& tile, int64_t here, int64_t t, int64_t r) {
            constexpr int R = T == 1 ? 1 : T <= 3 ? 4 : 2;  // one stream alone, or as many sums as there are vector registers
            tile.blocks<R>(here, [&]<int N>(const Matrix& m, int64_t s) {
                m.dot_rows<N, T>(x + t * x_stride, x_stride, out + t * out_stride + r + s, out_stride);
            });
        });
    }

    // out[t][c] += sum over j of p[t][j] * row j [c], for formats with at most one scale a row.
    // `fetch`: what is fetched meanwhile, a byte for each that is read first; null: nothing.
    void add_weighted(int64_t rows, const float* p, int64_t p_stride, int64_t inputs, int64_t columns, float* out, int64_t out_stride,
                      Fetch* fetch) const {
#ifdef AXK1_PACKED
        if (kind == kLossless) {
            if (fetch) fetch->more(bytes(rows));
            return unpacked(rows).add_weighted(rows, p, p_stride, inputs, columns, out, out_stride, nullptr);
        }
        if (kind == kBFloat16 && !exact) {
            int64_t pairs_stride;
            const uint32_t* pairs = packed::pair_weights(p, p_stride, inputs, rows, pairs_stride);
            return together(inputs, [&]<int T>(int64_t t) {
                packed::add_weighted<T>(values<uint16_t>(), stride, rows, pairs + t * pairs_stride, pairs_stride, columns, out + t * out_stride, out_stride,
                                        t == 0 ? fetch : nullptr);
            });
        }
#endif
        thread_local std::vector<float> scaled;
        if (kind == kInt8) {
            scaled.resize(inputs * rows);
            for (int64_t t = 0; t < inputs; ++t)
                for (int64_t j = 0; j < rows; ++j) scaled[t * rows + j] = p[t * p_stride + j] * scale[j];
            p = scaled.data(), p_stride = rows;
        }
        together(inputs, [&]<int T>(int64_t t) { add_block<T>(rows, p + t * p_stride, p_stride, columns, out + t * out_stride, out_stride, t == 0 ? fetch : nullptr); });
    }

    const uint16_t* raw_blocks() const { return raw + *starts * 64; }  // of the first row

    // The first rows of a lossless one as bfloat16, until this thread's next call; any other as it is.
    Matrix unpacked(int64_t rows) const {
#ifdef AXK1_PACKED
        if (kind == kLossless) {
            thread_local std::vector<uint16_t> values;
            values.resize(rows * length);
            for (int64_t row = 0; row < rows; ++row) packed::Lossless::unpack_row(from(row), values.data() + row * length);
            return {kBFloat16, values.data(), length, length};
        }
#endif
        return *this;
    }

    // Pieces of `rows` rows, each `distance` rows behind the one before, to be fetched.
    Fetch pieces(int64_t rows, int64_t distance, int64_t count) const { return {data, bytes(rows), bytes(distance), count}; }

private:
    int64_t bits() const { return kind == kFloat32 ? 32 : kind == kBFloat16 ? 16 : kind == kInt8 ? 8 : kind == kInt4 ? 4 : 12; }  // a value
    int64_t bytes(int64_t rows) const { return rows * stride * bits() / 8; }

    template <class Stored>
    const Stored* values() const { return static_cast<const Stored*>(data); }

#ifdef AXK1_PACKED
    template <class Format>
    void dot_packed(int64_t rows, const float* x, int64_t x_stride, int64_t inputs, float* out, int64_t out_stride) const {
        const auto prepared = Format::prepare(x, x_stride, inputs, length);
        tiled(rows, inputs, [&]<int T>(const Matrix& tile, int64_t here, int64_t t, int64_t r) {
            tile.blocks<4>(here, [&]<int R>(const Matrix& m, int64_t s) {
                Format::template dot<R, T>(m, prepared.from(t), out + t * out_stride + r + s, out_stride);
            });
        });
    }
#endif

    // Calls `some<T>(first input)` for all inputs, four at a time and what is left, which may be five or six.
    template <class Some>
    static void together(int64_t inputs, const Some& some) {
        int64_t t = 0;
        for (; inputs - t > 6 || inputs - t == 4; t += 4) some.template operator()<4>(t);
        switch (inputs - t) {
            case 1: return some.template operator()<1>(t);
            case 2: return some.template operator()<2>(t);
            case 3: return some.template operator()<3>(t);
            case 5: return some.template operator()<5>(t);
            case 6: return some.template operator()<6>(t);
        }
    }

    // Calls `some<T>(rows from r on, how many, first input, r)` for all rows and inputs.
    template <class Some>
    void tiled(int64_t rows, int64_t inputs, const Some& some) const {
        // rows that stay in half of the first-level cache while further inputs pass
        const int64_t size = inputs <= 4 ? rows : std::clamp<int64_t>(16384 * 8 / (length * bits()) / 4 * 4, 4, 64);
        for (int64_t r = 0; r < rows; r += size) {
            const Matrix tile = from(r);
            const int64_t here = rows - r < size ? rows - r : size;
            together(inputs, [&]<int T>(int64_t t) { some.template operator()<T>(tile, here, t, r); });
        }
    }

    // Calls `some<N>(rows from s on, s)` for blocks of R rows, then single ones.
    template <int R, class Some>
    void blocks(int64_t rows, const Some& some) const {
        int64_t s = 0;
        for (; s + R <= rows; s += R) some.template operator()<R>(from(s), s);
        for (; s < rows; ++s) some.template operator()<1>(from(s), s);
    }

    template <int R, int T>
    void dot_rows(const float* x, int64_t x_stride, float* out, int64_t out_stride) const {
        switch (kind) {
            case kFloat32: return dot_block<Float32, R, T>(static_cast<const float*>(data), stride, x, x_stride, length, out, out_stride);
            case kBFloat16: return dot_block<BFloat16, R, T>(static_cast<const uint16_t*>(data), stride, x, x_stride, length, out, out_stride);
            case kInt8:
                dot_block<Int8, R, T>(static_cast<const int8_t*>(data), stride, x, x_stride, length, out, out_stride);
                for (int r = 0; r < R; ++r)
                    for (int t = 0; t < T; ++t) out[t * out_stride + r] *= scale[r];
                return;
            case kInt4: return dot_block_int4<R, T>(static_cast<const uint8_t*>(data), scale, group, x, x_stride, length, out, out_stride);
        }
    }

    template <int T>
    void add_block(int64_t rows, const float* p, int64_t p_stride, int64_t columns, float* out, int64_t out_stride, Fetch* fetch) const {
        if (kind == kFloat32) weighted_block<Float32, T>(static_cast<const float*>(data), stride, rows, p, p_stride, columns, out, out_stride, fetch);
        else if (kind == kInt8) weighted_block<Int8, T>(static_cast<const int8_t*>(data), stride, rows, p, p_stride, columns, out, out_stride, fetch);
        else weighted_block<BFloat16, T>(static_cast<const uint16_t*>(data), stride, rows, p, p_stride, columns, out, out_stride, fetch);
    }
};

// Writes `count` values as float32 or bfloat16.
inline void store(Matrix::Kind kind, void* out, const float* values, int64_t count) {
    if (kind == Matrix::kFloat32) std::copy_n(values, count, static_cast<float*>(out));
    else for (int64_t i = 0; i < count; ++i) static_cast<uint16_t*>(out)[i] = to_bfloat16(values[i]);
}

inline void rms_norm(const float* x, const float* weight, float eps, int64_t length, float* out) {
    float squares;
    dot_block<Float32, 1, 1>(x, 0, x, 0, length, &squares, 0);
    const float factor = 1.0f / std::sqrt(squares / float(length) + eps);
    for (int64_t i = 0; i < length; ++i) out[i] = x[i] * factor * weight[i];
}

// [begin, end) of this thread's share of `count` items.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int64_t thread, int64_t threads)
        : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

}  // namespace axk1
