// Products in float32 arithmetic, for every format and instruction set: the fallback of all others.
//
// A format F says what a row's values are: `Stored`, `kBits`, load(row, column) for kLanes of them in order, one(row, column),
// and load_two for 2 * kLanes as two vectors. Where F::kPairs, these two hold the values of even and of odd index, which is
// cheap to make, and inputs are brought into that order once. `kScaled`: a row's sum is multiplied by its scale.
#pragma once

#include "../matrix.h"

namespace axk1 {

// Rows that are read at once: as many sums as there are registers; one stream alone where that is the fastest.
constexpr int rows_at_once(int inputs) {
    if (kRegisters == 32) return inputs == 1 ? (kLanes == 16 ? 1 : 4) : inputs <= 3 ? 4 : 2;
    return inputs == 1 ? 4 : inputs == 2 ? 2 : 1;
}

struct FloatInputs {
    const float* values;
    int64_t stride;
    FloatInputs from(int64_t t) const { return {values + t * stride, stride}; }
};

template <class F>
struct Wide {
    typedef FloatInputs Inputs;
    static constexpr int rows_at_once(int inputs) { return axk1::rows_at_once(inputs); }

    static Inputs prepare(const float* x, int64_t x_stride, int64_t inputs, int64_t length) {
        if constexpr (!F::kPairs) {
            return {x, x_stride};
        } else {
            const int64_t stride = lines(length * 4) * kLine / 4;
            float* out = memory<Wide, float>(inputs * stride);
            for (int64_t t = 0; t < inputs; ++t) {
                const float* from = x + t * x_stride;
                float* to = out + t * stride;
                int64_t i = 0;
                for (; i + 2 * kLanes <= length; i += 2 * kLanes) split_pairs(from + i, lanes(to + i), lanes(to + i + kLanes));
                std::copy(from + i, from + length, to + i);
            }
            return {out, stride};
        }
    }

    // first[r][t] += row r * x[t] in the first kLanes of 2 * kLanes columns, second in the others.
    template <int R, int T>
    static void add_products(const typename F::Stored* w, int64_t stride, const float* x, int64_t x_stride, Lanes* first, Lanes* second) {
        const auto row = [&](int r, Lanes& left, Lanes& right) { F::load_two(w + F::place(r * stride), left, right); };
        if constexpr (T == 1) {
            Lanes a = lanes(x), b = lanes(x + kLanes);
            if (R > 1) hold(a), hold(b);
            #pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                Lanes left, right;
                row(r, left, right);
                first[r] += left * a, second[r] += right * b;
            }
        } else if constexpr (kRegisters == 16 && R == 2) {
            Lanes left[R], right[R];
            row(0, left[0], right[0]), row(1, left[1], right[1]);
            #pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                Lanes a = lanes(x + t * x_stride), b = lanes(x + t * x_stride + kLanes);
                hold(a), hold(b);
                first[t] += left[0] * a, second[t] += right[0] * b;
                first[T + t] += left[1] * a, second[T + t] += right[1] * b;
            }
        } else {
            #pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                Lanes left, right;
                row(r, left, right);
                #pragma GCC unroll 6
                for (int t = 0; t < T; ++t) {
                    first[r * T + t] += left * lanes(x + t * x_stride);
                    second[r * T + t] += right * lanes(x + t * x_stride + kLanes);
                }
            }
        }
    }

    template <int R, int T>
    static void dot(const Matrix& m, const Inputs& x, float* out, int64_t out_stride) {
        constexpr int64_t kStep = 2 * kLanes, kSteps = std::max<int64_t>(1, kLine * 8 / (kStep * F::kBits));  // of a line
        const auto* w = m.values<typename F::Stored>();
        constexpr int kSums = (R * T + 3) / 4 * 4;
        Lanes first[kSums] = {}, second[R * T] = {};
        int64_t i = 0;
        for (; i + kSteps * kStep <= m.length; i += kSteps * kStep) {
            #pragma GCC unroll 6
            for (int r = 0; r < R; ++r) __builtin_prefetch(reinterpret_cast<const char*>(w + F::place(r * m.stride + i)) + kAhead, 0, 2);
            #pragma GCC unroll 4
            for (int64_t step = 0; step < kSteps; ++step)
                add_products<R, T>(w + F::place(i + step * kStep), m.stride, x.values + i + step * kStep, x.stride, first, second);
        }
        for (; i + kStep <= m.length; i += kStep) add_products<R, T>(w + F::place(i), m.stride, x.values + i, x.stride, first, second);
        float totals[kSums];
        #pragma GCC unroll 12
        for (int k = 0; k < R * T; ++k) first[k] += second[k];
        if constexpr (R * T == 1) totals[0] = sum(first[0]);
        else
            #pragma GCC unroll 3
            for (int k = 0; k < kSums; k += 4) sum_four(first + k, totals + k);
        #pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
            #pragma GCC unroll 6
            for (int t = 0; t < T; ++t) {
                float total = totals[r * T + t];
                for (int64_t j = i; j < m.length; ++j) total = multiply_add(F::one(w + F::place(r * m.stride), j), x.values[t * x.stride + j], total);
                out[t * out_stride + r] = F::kScaled ? total * m.scale[r] : total;
            }
    }

    // Columns in registers while rows pass.
    static constexpr int vectors_at_once(int inputs) {
        if (kRegisters == 32) return 4;
        return inputs == 1 ? 8 : inputs == 2 ? 4 : 2;
    }

    template <int T>
    static void add_weighted(const Matrix& m, int64_t rows, const float* p, int64_t p_stride, int64_t columns, float* out, int64_t out_stride, Fetch* fetch) {
        constexpr int C = vectors_at_once(T);
        const auto* w = m.values<typename F::Stored>();
        int64_t c = 0;
        for (; c + C * kLanes <= columns; c += C * kLanes) {
            Lanes total[T][C];
            for (int t = 0; t < T; ++t)
                for (int k = 0; k < C; ++k) total[t][k] = lanes(out + t * out_stride + c + k * kLanes);
            for (int64_t j = 0; j < rows; ++j) {
                Lanes row[C];
                if (fetch) fetch->more(C * kLanes * F::kBits / 8);
                #pragma GCC unroll 8
                for (int k = 0; k < C; ++k) row[k] = F::load(w + F::place(j * m.stride + c + k * kLanes));
                #pragma GCC unroll 8
                for (int t = 0; t < T; ++t)
                    #pragma GCC unroll 8
                    for (int k = 0; k < C; ++k) total[t][k] += row[k] * p[t * p_stride + j];
            }
            for (int t = 0; t < T; ++t)
                for (int k = 0; k < C; ++k) lanes(out + t * out_stride + c + k * kLanes) = total[t][k];
        }
        for (; c < columns; ++c)
            for (int t = 0; t < T; ++t) {
                float total = out[t * out_stride + c];
                for (int64_t j = 0; j < rows; ++j) total = multiply_add(F::one(w + F::place(j * m.stride), c), p[t * p_stride + j], total);
                out[t * out_stride + c] = total;
            }
    }
};

// Faster arithmetic of an instruction set's own, with inputs rounded to what it takes; specialised in isa/.
template <class F>
struct Narrow {
    static constexpr bool kExists = false;
    static bool can(const Matrix&) { return false; }
};

}  // namespace axk1
