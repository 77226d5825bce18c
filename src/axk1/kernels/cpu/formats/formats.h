// All formats: what a new one has to be added to, here and in Matrix::Kind.
#pragma once

#include "bfloat16.h"
#include "float32.h"
#include "int3.h"
#include "int4.h"
#include "int8.h"
#include "lossless.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)
#include "../isa/avx512/bfloat16.h"
#include "../isa/avx512/whole.h"
#elif defined(__AVX2__)
#include "../isa/avx2/whole.h"
#endif

namespace axk1 {

// some<F>() for the format F of a kind.
template <class Some>
inline auto with_format(Matrix::Kind kind, const Some& some) {
    switch (kind) {
        case Matrix::kFloat32: return some.template operator()<Float32>();
        case Matrix::kBFloat16: return some.template operator()<BFloat16>();
        case Matrix::kInt8: return some.template operator()<Int8>();
        case Matrix::kInt4: return some.template operator()<Int4>();
        case Matrix::kInt3: return some.template operator()<Int3>();
        default: return some.template operator()<Lossless>();
    }
}

// A function for each number of inputs: together in one, their loops take each other's registers.
template <class Products, int R, int T>
__attribute__((noinline)) void dot_rows(const Matrix& m, int64_t rows, const typename Products::Inputs& x, float* out, int64_t out_stride) {
    int64_t s = 0;
    for (; s + R <= rows; s += R) Products::template dot<R, T>(m.from(s), x, out + s, out_stride);
    for (; s < rows; ++s) Products::template dot<1, T>(m.from(s), x, out + s, out_stride);
}

// Inputs that rows are multiplied by at once, where a format does not say it: six.
template <class Products>
constexpr int most_together() {
    if constexpr (requires { Products::kTogether; }) return Products::kTogether;
    else return 6;
}

template <class Products>
inline void dot_by(const Matrix& m, int64_t rows, const float* x, int64_t x_stride, int64_t inputs, float* out, int64_t out_stride) {
    const auto prepared = Products::prepare(x, x_stride, inputs, m.length);
    // rows that stay in half of the first-level cache while further inputs pass
    constexpr int kMost = most_together<Products>();
    const int64_t size = inputs <= (kMost == 8 ? 8 : 4) ? rows : std::clamp<int64_t>(16384 * 8 / (m.length * m.bits()) / 4 * 4, 4, 64);
    for (int64_t r = 0; r < rows; r += size) {
        const Matrix tile = m.from(r);
        const int64_t here = std::min(rows - r, size);
        together<kMost>(inputs, [&]<int T>(int64_t t) {
            constexpr int R = Products::rows_at_once(T);
            const auto some = [&]<int Rows>() { dot_rows<Products, Rows, T>(tile, here, prepared.from(t), out + t * out_stride + r, out_stride); };
            // the processor's own prefetchers follow one row at a time: up to a third faster than two or four, which are for caches
            if (T == 1 && kRegisters == 16 && m.bytes(here) >= kStream) some.template operator()<1>();
            else some.template operator()<R>();
        });
    }
}

inline void Matrix::dot(int64_t rows, const float* x, int64_t x_stride, int64_t inputs, float* out, int64_t out_stride) const {
    with_format(kind, [&]<class F>() {
        if constexpr (Narrow<F>::kExists)
            if (!exact && Narrow<F>::can(*this)) return dot_by<Narrow<F>>(*this, rows, x, x_stride, inputs, out, out_stride);
        dot_by<Wide<F>>(*this, rows, x, x_stride, inputs, out, out_stride);
    });
}

inline void Matrix::add_weighted(int64_t rows, const float* p, int64_t p_stride, int64_t inputs, int64_t columns, float* out, int64_t out_stride,
                                 Fetch* fetch) const {
    if (kind == kLossless) return Lossless::unpacked(*this, rows).add_weighted(rows, p, p_stride, inputs, columns, out, out_stride, nullptr);
    if (kind == kInt8) {
        float* scaled = memory<Int8, float>(inputs * rows);
        for (int64_t t = 0; t < inputs; ++t)
            for (int64_t j = 0; j < rows; ++j) scaled[t * rows + j] = p[t * p_stride + j] * scale[j];
        p = scaled, p_stride = rows;
    }
#ifdef AXK1_NARROW_SUMS
    if (kind == kBFloat16 && !exact) {
        int64_t pairs_stride;
        const uint32_t* pairs = narrow::pair_weights(p, p_stride, inputs, rows, pairs_stride);
        return together(inputs, [&]<int T>(int64_t t) {
            narrow::add_weighted<T>(values<uint16_t>(), stride, rows, pairs + t * pairs_stride, pairs_stride, columns, out + t * out_stride, out_stride,
                                    t == 0 ? fetch : nullptr);
        });
    }
#endif
    together(inputs, [&]<int T>(int64_t t) {
        const auto add = [&]<class F>() { Wide<F>::template add_weighted<T>(*this, rows, p + t * p_stride, p_stride, columns, out + t * out_stride, out_stride, t == 0 ? fetch : nullptr); };
        if (kind == kFloat32) add.template operator()<Float32>();
        else if (kind == kBFloat16) add.template operator()<BFloat16>();
        else add.template operator()<Int8>();  // int4 and int3 are never summed by rows: groups lie along them
    });
}

inline void Matrix::read(float* out) const {
    with_format(kind, [&]<class F>() {
        if constexpr (std::is_same_v<F, Lossless>) {
            Lossless::unpacked(*this, 1).read(out);
        } else {
            for (int64_t i = 0; i < length; ++i) {
                const float value = F::one(values<typename F::Stored>(), i);
                out[i] = scale ? value * scale[group ? i / group : 0] : value;
            }
        }
    });
}

// Writes `count` values as float32 or bfloat16.
inline void store(Matrix::Kind kind, void* out, const float* values, int64_t count) {
    if (kind == Matrix::kFloat32) std::copy_n(values, count, static_cast<float*>(out));
    else round_values(values, count, static_cast<uint16_t*>(out));
}

inline void rms_norm(const float* x, const float* weight, float eps, int64_t length, float* out) {
    Matrix row;
    row.data = x, row.length = row.stride = length;
    float squares;
    Wide<Float32>::dot<1, 1>(row, {x, length}, &squares, 0);
    const float factor = 1.0f / std::sqrt(squares / float(length) + eps);
    for (int64_t i = 0; i < length; ++i) out[i] = x[i] * factor * weight[i];
}

}  // namespace axk1
