// Dot products of a few fp32 rows with the rows of a weight matrix, and weighted sums of such rows.
//
// Decoding is bound by reading weights, so every row of a weight is read once and used for all inputs. The order of
// additions for one input depends neither on how many inputs there are nor on the number of threads: a verified draft
// and a batch neighbour leave a row's bits alone.
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
    static float one(const uint16_t* p) {
        const uint32_t bits = uint32_t(*p) << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
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

inline uint16_t to_bfloat16(float value) {  // round to nearest even, as torch does
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
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

// out[t * out_stride + r] = dot(x[t], w[r]) for R weight rows and T inputs of `length` values.
template <class Format, int R, int T>
inline void dot_block(const typename Format::Stored* w, int64_t w_stride, const float* x, int64_t x_stride,
                      int64_t length, float* out, int64_t out_stride) {
    constexpr int64_t kLine = 64 / sizeof(typename Format::Stored);
    Lanes even[R][T] = {}, odd[R][T] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= length; i += 2 * kLanes) {
        Lanes left[T], right[T];
        for (int t = 0; t < T; ++t) Format::arrange(x + t * x_stride + i, left[t], right[t]);
        for (int r = 0; r < R; ++r) {
            const auto* row = w + r * w_stride + i;
            for (int64_t ahead = 0; ahead < 2 * kLanes; ahead += kLine) __builtin_prefetch(row + R * w_stride + ahead);
            Lanes first, second;
            Format::load(row, first, second);
            for (int t = 0; t < T; ++t) {
                even[r][t] += first * left[t];
                odd[r][t] += second * right[t];
            }
        }
    }
    for (int r = 0; r < R; ++r)
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
                __builtin_prefetch(place + R * length / 2);
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
                           int64_t p_stride, int64_t columns, float* out, int64_t out_stride) {
    constexpr int C = 4;
    int64_t c = 0;
    for (; c + C * kLanes <= columns; c += C * kLanes) {
        Lanes total[T][C];
        for (int t = 0; t < T; ++t)
            for (int k = 0; k < C; ++k) total[t][k] = lanes(out + t * out_stride + c + k * kLanes);
        for (int64_t j = 0; j < rows; ++j) {
            Lanes row[C];
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
    enum Kind { kFloat32, kBFloat16, kInt8, kInt4 };
    Kind kind = kFloat32;
    const void* data = nullptr;
    int64_t length = 0, stride = 0;  // values
    const float* scale = nullptr;    // int8: one a row, int4: one a group
    int64_t group = 0;

    explicit operator bool() const { return data != nullptr; }

    Matrix from(int64_t row) const {
        Matrix rest = *this;
        const int64_t bits = kind == kFloat32 ? 32 : kind == kBFloat16 ? 16 : kind == kInt8 ? 8 : 4;
        rest.data = static_cast<const char*>(data) + row * stride * bits / 8;
        if (scale) rest.scale = scale + (kind == kInt4 ? row * (length / group) : row);
        return rest;
    }

    // out[t * out_stride + r] = dot(x[t], row r) for `rows` rows from the first and any number of inputs.
    void dot(int64_t rows, const float* x, int64_t x_stride, int64_t inputs, float* out, int64_t out_stride) const {
        constexpr int64_t kTile = 16;  // rows that stay in the first-level cache while further inputs pass
        for (int64_t r = 0; r < rows; r += kTile) {
            const Matrix tile = from(r);
            const int64_t here = rows - r < kTile ? rows - r : kTile;
            int64_t t = 0;
            for (; t + 4 <= inputs; t += 4) tile.dot_inputs<4>(here, x + t * x_stride, x_stride, out + t * out_stride + r, out_stride);
            const float* rest = x + t * x_stride;
            float* rest_out = out + t * out_stride + r;
            if (inputs - t == 3) tile.dot_inputs<3>(here, rest, x_stride, rest_out, out_stride);
            if (inputs - t == 2) tile.dot_inputs<2>(here, rest, x_stride, rest_out, out_stride);
            if (inputs - t == 1) tile.dot_inputs<1>(here, rest, x_stride, rest_out, out_stride);
        }
    }

    // out[t][c] += sum over j of p[t][j] * row j [c], for float formats.
    void add_weighted(int64_t rows, const float* p, int64_t p_stride, int64_t inputs, int64_t columns, float* out, int64_t out_stride) const {
        int64_t t = 0;
        for (; t + 4 <= inputs; t += 4) add_block<4>(rows, p + t * p_stride, p_stride, columns, out + t * out_stride, out_stride);
        for (; t < inputs; ++t) add_block<1>(rows, p + t * p_stride, p_stride, columns, out + t * out_stride, out_stride);
    }

private:
    template <int T>
    void dot_inputs(int64_t rows, const float* x, int64_t x_stride, float* out, int64_t out_stride) const {
        constexpr int R = T <= 3 ? 4 : 2;  // as many sums at once as there are vector registers
        int64_t r = 0;
        for (; r + R <= rows; r += R) from(r).dot_rows<R, T>(x, x_stride, out + r, out_stride);
        for (; r < rows; ++r) from(r).dot_rows<1, T>(x, x_stride, out + r, out_stride);
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
    void add_block(int64_t rows, const float* p, int64_t p_stride, int64_t columns, float* out, int64_t out_stride) const {
        if (kind == kFloat32) weighted_block<Float32, T>(static_cast<const float*>(data), stride, rows, p, p_stride, columns, out, out_stride);
        else weighted_block<BFloat16, T>(static_cast<const uint16_t*>(data), stride, rows, p, p_stride, columns, out, out_stride);
    }
};

inline void store(Matrix::Kind kind, void* row, int64_t i, float value) {
    if (kind == Matrix::kFloat32) static_cast<float*>(row)[i] = value;
    else static_cast<uint16_t*>(row)[i] = to_bfloat16(value);
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
