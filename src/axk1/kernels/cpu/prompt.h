// The two blocks of a layer over the many tokens of a prompt: what attention.h and mlp.h do, by the products of panel.h.
//
// Attention expands the cached latents to keys and values of some heads and attends to these; scores stay in the caches,
// with a running softmax over blocks of keys (FlashAttention, arXiv 2205.14135).
#pragma once

#include <memory>

#include "attention.h"
#include "mlp.h"
#include "panel.h"

namespace axk1 {

// One piece of memory in parts, each at the start of a cache line.
class Workspace {
    std::unique_ptr<char[]> memory;
    uintptr_t size = 0, next = 0;

public:
    template <class T>
    void take(T*& part, int64_t count) {
        next = (next + 63) / 64 * 64;
        part = reinterpret_cast<T*>(next);
        next += count * sizeof(T);
    }

    // `parts` takes all there is to take; it is called twice, first to find out how much that is.
    template <class Parts>
    void divide(const Parts& parts) {
        next = 0;
        parts();
        if (next + 64 > size) size = next + 64, memory.reset(new char[size]);
        next = reinterpret_cast<uintptr_t>(memory.get());
        parts();
    }
};

#ifdef AXK1_PACKED

// done(row, first output, how many, sums) for all rows of x and all outputs, shared between the threads of a region, which
// do not wait for each other behind it.
template <class Done>
inline void project(const Matrix& w, int64_t outputs, const Half* x, int64_t x_stride, int64_t rows, const Done& done) {
    #pragma omp for schedule(dynamic) nowait
    for (int64_t first = 0; first < outputs; first += kWide) {
        const int64_t count = std::min(kWide, outputs - first);
        multiply_rows(w.from(first), count, rows, [&](int64_t row) { return x + row * x_stride; },
                      [&](int64_t row, const Sums& sums) { done(row, first, count, sums); });
    }
}

inline void rounded_norm(const float* x, const float* weight, float eps, int64_t length, Half* out) {
    thread_local std::vector<float> normed;
    normed.resize(length);
    rms_norm(x, weight, eps, length, normed.data());
    round_row(normed.data(), length, out);
}

class AttentionPrompt {
    static constexpr int64_t kKeys = 192;             // a block of the running softmax
    static constexpr float kHidden = -1e30f;          // a score that comes to nothing beside any other
    static constexpr int64_t kExpanded = 64 << 20;    // bytes of keys and values at a time, or those of one head
    const AttentionShape& s;
    const AttentionWeights& w;
    const int64_t rows, width, joint, down_width, past, positions, group;
    Half *normed, *latents, *queries, *attended, *keys, *values, *value_rows;
    float* down;

public:
    AttentionPrompt(const AttentionShape& shape, const AttentionWeights& weights, Workspace& space)
        : s(shape), w(weights), rows(s.batch * s.tokens), width(s.nope + s.rope), joint(s.latent + s.rope), down_width(s.query_rank + joint),
          past(s.cached - s.tokens), positions((s.cached + kWide - 1) / kWide * kWide),
          group(std::clamp<int64_t>(kExpanded / (positions * (even(width) + s.value) * 2), 1, s.heads)) {
        space.divide([&] {
            space.take(normed, rows * even(s.hidden)), space.take(down, rows * down_width), space.take(latents, rows * even(s.query_rank));
            space.take(queries, rows * s.heads * width), space.take(attended, rows * even(s.heads * s.value));
            space.take(keys, group * positions * even(width)), space.take(values, group * s.value * positions);
            space.take(value_rows, group * s.value * even(s.latent));
        });
    }

    // Called by every thread of a parallel region. `cache_only`: the tokens are cached, and attend to nothing.
    void run(float* hidden, const float* cos, const float* sin, const Matrix& cache, const bool* keep, bool cache_only) {
        #pragma omp for
        for (int64_t row = 0; row < rows; ++row) {
            rounded_norm(hidden + row * s.hidden, w.input_norm, s.eps, s.hidden, normed + row * even(s.hidden));
            attended[(row + 1) * even(s.heads * s.value) - 1] = 0;  // behind an odd number of values
        }
        const auto keep_down = [&](int64_t offset) {
            return [=, this](int64_t row, int64_t first, int64_t count, const Sums& sums) {
                store_sums(sums, count, down + row * down_width + offset + first);
            };
        };
        if (!cache_only) project(w.q_a, s.query_rank, normed, even(s.hidden), rows, keep_down(0));
        project(w.kv_a, joint, normed, even(s.hidden), rows, keep_down(s.query_rank));
        #pragma omp barrier
        #pragma omp for
        for (int64_t row = 0; row < rows; ++row) {
            if (!cache_only) rounded_norm(down + row * down_width, w.query_norm, 1e-6f, s.query_rank, latents + row * even(s.query_rank));
            cache_latent(s, w, row, down + row * down_width + s.query_rank, cos, sin, cache);
        }
        if (cache_only) return;
        project(w.q_b, s.heads * width, latents, even(s.query_rank), rows, [&](int64_t row, int64_t first, int64_t count, const Sums& sums) {
            store_rounded(sums, count, queries + row * s.heads * width + first);
        });
        #pragma omp barrier
        #pragma omp for
        for (int64_t row = 0; row < rows; ++row) rotate_queries(row, cos, sin);
        for (int64_t batch = 0; batch < s.batch; ++batch)
            for (int64_t head = 0; head < s.heads; head += group) {
                const int64_t count = std::min(group, s.heads - head), blocks = (s.tokens + kWide - 1) / kWide;
                expand(head, count, cache.from(batch * s.sequence_rows));
                #pragma omp for schedule(dynamic)
                for (int64_t item = 0; item < count * blocks; ++item)  // the last queries, which see most, first
                    attend(batch, head, item % count, (blocks - 1 - item / count) * kWide, keep);
            }
        project(w.o, s.hidden, attended, even(s.heads * s.value), rows, [&](int64_t row, int64_t first, int64_t count, const Sums& sums) {
            add_sums(sums, count, hidden + row * s.hidden + first);
        });
        #pragma omp barrier
    }

private:
    void rotate_queries(int64_t row, const float* cos, const float* sin) {
        std::vector<float> before(s.rope), after(s.rope);
        for (int64_t head = 0; head < s.heads; ++head) {
            Half* query = queries + (row * s.heads + head) * width + s.nope;
            for (int64_t i = 0; i < s.rope; ++i) before[i] = to_float(query[i]);
            rotate(before.data(), cos + row * s.rope / 2, sin + row * s.rope / 2, s.rope, s.interleave, after.data());
            for (int64_t i = 0; i < s.rope; ++i) query[i] = to_bfloat16(after[i]);
        }
    }

    // keys [count, positions, N + R] and, transposed, values [count, V, positions] of `count` heads from `head` on, of the
    // latents of one sequence.
    void expand(int64_t head, int64_t count, const Matrix& cache) {
        const int64_t key_parts = (s.nope + kWide - 1) / kWide, each = s.nope + s.value, stride = even(s.latent);
        #pragma omp for
        for (int64_t row = 0; row < count * s.value; ++row) {
            const Matrix weight = w.kv_b.from((head + row / s.value) * each + s.nope + row % s.value).unpacked(1);
            for (int64_t i = 0; i < s.latent; i += 32)
                _mm512_mask_storeu_epi16(value_rows + row * stride + i, packed::words(stride - i), rounded_columns(weight, i));
        }
        Matrix latent = cache;
        latent.length = s.latent;  // the rotated key is not expanded
        #pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < count * key_parts + positions / kWide; ++item) {
            if (item < count * key_parts) {
                const int64_t mine = item / key_parts, first = item % key_parts * kWide, wide = std::min(kWide, s.nope - first);
                Half* out = keys + mine * positions * even(width);
                multiply_rows(w.kv_b.from((head + mine) * each + first), wide, s.cached,
                              [&](int64_t position) { return static_cast<const Half*>(cache.from(position).data); },
                              [&](int64_t position, const Sums& sums) { store_rounded(sums, wide, out + position * even(width) + first); });
                if (first) continue;
                for (int64_t position = 0; position < s.cached; ++position) {
                    Half* key = out + position * even(width) + s.nope;
                    std::copy_n(static_cast<const Half*>(cache.from(position).data) + s.latent, s.rope, key);
                    if (width % 2) key[s.rope] = 0;
                }
            } else {
                const int64_t first = (item - count * key_parts) * kWide;
                multiply_rows(latent.from(first), std::min(kWide, s.cached - first), count * s.value,
                              [&](int64_t row) { return value_rows + row * stride; },
                              [&](int64_t row, const Sums& sums) { store_rounded(sums, kWide, values + row * positions + first); });
            }
        }
    }

    // One head over up to 64 queries from token `first` on. Queries are the lanes: of scores [keys, 64], of the weights made
    // of these, and of the weighted sums of values [V, 64].
    void attend(int64_t batch, int64_t head, int64_t mine, int64_t first, const bool* keep) {
        thread_local Panel query, weights;
        const int64_t count = std::min(kWide, s.tokens - first), last = past + first + count;  // columns that are seen
        Sums *scores = packed::memory<Sums>((kKeys + s.value) * sizeof(Sums)), *sums = scores + kKeys;
        std::fill_n(reinterpret_cast<float*>(sums), s.value * kWide, 0.0f);
        Matrix block{Matrix::kBFloat16, queries + (batch * s.tokens + first) * s.heads * width + (head + mine) * width, width, s.heads * width};
        query.resize(width), query.pack(block, count, 0);
        Sums largest, totals = {};
        for (__m512& lanes : largest) lanes = _mm512_set1_ps(kHidden / 2);
        for (int64_t start = 0; start < last; start += kKeys) {
            const int64_t seen = std::min(kKeys, last - start);
            const Half *key = keys + (mine * positions + start) * even(width), *value = values + mine * s.value * positions + start;
            query.add_all<true>(seen, width, [&](int64_t k) { return key + k * even(width); }, scores);
            if (keep || start + seen > past + first) hide(scores, seen, past + first - start, keep ? keep + batch * s.keep_stride + start : nullptr);
            weights.resize(seen);
            absorb(scores, seen, largest, totals, weights.lines(), sums);
            weights.add_all<false>(s.value, seen, [&](int64_t v) { return value + v * positions; }, sums);
        }
        store_attended(sums, totals, batch * s.tokens + first, count, head + mine);
    }

    // Sums [V, 64] over the totals of their weights, to `count` rows from `row` on.
    void store_attended(const Sums* sums, const Sums& totals, int64_t row, int64_t count, int64_t head) {
        for (int64_t g = 0; g * 16 < count; ++g) {
            const __mmask16 any = _mm512_cmp_ps_mask(totals[g], _mm512_setzero_ps(), _CMP_GT_OQ);
            const __m512 factor = _mm512_maskz_div_ps(any, _mm512_set1_ps(1.0f), totals[g]);
            for (int64_t v = 0; v < s.value; v += 16) {
                __m512i block[16] = {};
                for (int64_t i = 0; i < std::min<int64_t>(16, s.value - v); ++i) block[i] = __m512i(_mm512_mul_ps(sums[v + i][g], factor));
                transpose(block);
                for (int64_t i = 0; i < std::min<int64_t>(16, count - g * 16); ++i)
                    store_rounded(__m512(block[i]), s.value - v, attended + (row + g * 16 + i) * even(s.heads * s.value) + head * s.value + v);
            }
        }
    }

    // Query i may see `ahead` + i + 1 of these keys, and none that is not kept.
    static void hide(Sums* scores, int64_t seen, int64_t ahead, const bool* keep) {
        for (int64_t k = 0; k < seen; ++k) {
            const int64_t hidden = keep && !keep[k] ? kWide : k - ahead;  // of the queries
            for (int64_t g = 0; g * 16 < hidden; ++g) {
                const __mmask16 mask = 0xffff >> std::max<int64_t>(0, 16 - (hidden - g * 16));
                scores[k][g] = _mm512_mask_mov_ps(scores[k][g], mask, _mm512_set1_ps(kHidden));
            }
        }
    }

    // 2 ** (factor * (score - largest)) to 4e-6: these are rounded to bfloat16.
    static __m512 weight(__m512 score, __m512 largest, __m512 factor) {
        const __m512 power = _mm512_mul_ps(_mm512_sub_ps(score, largest), factor);
        const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m512 rest = _mm512_sub_ps(power, whole);  // 2 ** rest, a polynomial fitted to [-0.5, 0.5]
        __m512 y = _mm512_set1_ps(9.58285e-3f);
        for (float next : {5.590643e-2f, 2.4024099e-1f, 6.9312419e-1f, 1.0f}) y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(next));
        return _mm512_scalef_ps(y, whole);
    }

    // Turns scores into weights relative to the largest so far, in a panel's order, and `sums` along with them.
    void absorb(const Sums* scores, int64_t seen, Sums& largest, Sums& totals, __m512i* weights, Sums* sums) const {
        alignas(64) uint16_t order[32];
        for (int i = 0; i < 32; ++i) order[i] = i / 2 + i % 2 * 16;  // from all first and all second ones to pairs
        const __m512i pairs = _mm512_load_si512(order);
        const __m512 factor = _mm512_set1_ps(s.scale * 1.44269504f);
        for (int64_t g = 0; g < kVectors; ++g) {
            __m512 most = largest[g], total = _mm512_setzero_ps();
            for (int64_t k = 0; k < seen; ++k) most = _mm512_max_ps(most, scores[k][g]);
            for (int64_t k = 0; k < seen; k += 2) {
                const __m512 one = weight(scores[k][g], most, factor), two = k + 1 < seen ? weight(scores[k + 1][g], most, factor) : _mm512_setzero_ps();
                total = _mm512_add_ps(total, _mm512_add_ps(one, two));
                weights[k / 2 * kVectors + g] = _mm512_permutexvar_epi16(pairs, __m512i(_mm512_cvtne2ps_pbh(two, one)));
            }
            const __m512 shrunk = weight(largest[g], most, factor);
            totals[g] = _mm512_fmadd_ps(totals[g], shrunk, total);
            if (_mm512_cmp_ps_mask(largest[g], most, _CMP_LT_OQ))
                for (int64_t v = 0; v < s.value; ++v) sums[v][g] = _mm512_mul_ps(sums[v][g], shrunk);
            largest[g] = most;
        }
    }
};

class MLPPrompt {
    static constexpr int64_t kTile = kWide / 2;  // columns of gate and of up in one panel
    struct Unit {  // an expert and the tokens it serves
        Matrix gate, up, down;
        int64_t width, inputs, first;  // first: index into `tokens` and `weights`
        Half* h;                       // [inputs, width]
    };
    const MLPWeights& w;
    const RouterRule& rule;
    const int64_t rows, hidden;
    const float eps;
    Half *rounded, *inner;
    float *normed, *logits, *update;
    std::vector<int64_t> chosen, tokens;
    std::vector<float> chosen_weights, weights;
    std::vector<Unit> units;
    std::vector<std::pair<int64_t, int64_t>> tiles;  // unit, first column

public:
    MLPPrompt(const MLPWeights& mlp, const RouterRule& routing, int64_t rows_, int64_t hidden_, float eps_, Workspace& space)
        : w(mlp), rule(routing), rows(rows_), hidden(hidden_), eps(eps_) {
        space.divide([&] {
            space.take(rounded, rows * even(hidden)), space.take(normed, rows * hidden), space.take(logits, rows * rule.experts);
            space.take(update, rows * hidden), space.take(inner, rows * (rule.chosen * even(w.expert_width) + even(w.width)));
        });
        chosen.resize(rows * rule.chosen);
        chosen_weights.resize(rows * rule.chosen);
    }

    // Called by every thread of a parallel region.
    void run(float* state) {
        #pragma omp for
        for (int64_t row = 0; row < rows; ++row) {
            rms_norm(state + row * hidden, w.norm, eps, hidden, normed + row * hidden);
            round_row(normed + row * hidden, hidden, rounded + row * even(hidden));
        }
        if (rule.experts) {
            #pragma omp for
            for (int64_t row = 0; row < rows; row += 64) route(row, std::min<int64_t>(64, rows - row));
        }
        #pragma omp single
        plan();
        #pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tiles.size(); ++i) project_up(units[tiles[i].first], tiles[i].second);
        #pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < hidden; first += kWide) project_down(first, std::min(kWide, hidden - first));
        #pragma omp for
        for (int64_t row = 0; row < rows; ++row) {
            float* out = update + row * hidden;
            if (w.post_norm) rms_norm(out, w.post_norm, eps, hidden, out);
            for (int64_t i = 0; i < hidden; ++i) state[row * hidden + i] += out[i];
        }
    }

private:
    void route(int64_t first, int64_t count) {
        w.router.dot(rule.experts, normed + first * hidden, hidden, count, logits + first * rule.experts, rule.experts);
        for (int64_t row = first; row < first + count; ++row)
            choose(rule, w.bias, logits + row * rule.experts, chosen.data() + row * rule.chosen, chosen_weights.data() + row * rule.chosen);
    }

    // Lists the experts in ascending order, each with its tokens; the shared one, or a dense MLP, is last.
    void plan() {
        std::vector<std::vector<int64_t>> slots(rule.experts);
        for (int64_t slot = 0; slot < rows * rule.chosen; ++slot) slots[chosen[slot]].push_back(slot);
        Half* h = inner;
        for (int64_t expert = 0; expert < rule.experts; ++expert) {
            const int64_t inputs = int64_t(slots[expert].size()), first = int64_t(tokens.size());
            if (!inputs) continue;
            for (int64_t slot : slots[expert]) tokens.push_back(slot / rule.chosen), weights.push_back(chosen_weights[slot]);
            const Matrix gate = w.gate_ups.from(expert * 2 * w.expert_width);
            units.push_back({gate, gate.from(w.expert_width), w.downs.from(expert * hidden), w.expert_width, inputs, first, h});
            h += inputs * even(w.expert_width);
        }
        if (w.gate) {
            units.push_back({w.gate, w.up, w.down, w.width, rows, int64_t(tokens.size()), h});
            for (int64_t row = 0; row < rows; ++row) tokens.push_back(row), weights.push_back(1.0f);
        }
        for (size_t unit = 0; unit < units.size(); ++unit)
            for (int64_t first = 0; first < units[unit].width; first += kTile) tiles.emplace_back(unit, first);
    }

    // silu(gate) * up of an expert's tokens, 32 columns.
    void project_up(const Unit& unit, int64_t first) {
        const int64_t count = std::min(kTile, unit.width - first), stored = std::min(kTile, even(unit.width) - first);
        const auto pack = [&](Panel& panel, int64_t column) {
            panel.pack(unit.gate.from(first), count, column, 0, kVectors / 2);
            panel.pack(unit.up.from(first), count, column, kVectors / 2);
        };
        multiply_panel(hidden, unit.inputs, pack, [&](int64_t t) { return rounded + tokens[unit.first + t] * even(hidden); },
                       [&](int64_t t, const Sums& sums) {
                           for (int64_t g = 0; g < kVectors / 2 && g * 16 < stored; ++g)
                               store_rounded(__m512(silu(Lanes(sums[g])) * Lanes(sums[kVectors / 2 + g])), stored - g * 16,
                                             unit.h + t * even(unit.width) + first + g * 16);
                       });
    }

    // The weighted sum of all experts' outputs, `count` columns from `first` on.
    void project_down(int64_t first, int64_t count) {
        Sums* total = packed::memory<Sums>(rows * sizeof(Sums));  // in one piece, whatever the hidden size
        std::memset(total, 0, rows * sizeof(Sums));
        for (const Unit& unit : units)
            multiply_rows(unit.down.from(first), count, unit.inputs, [&](int64_t t) { return unit.h + t * even(unit.width); },
                          [&](int64_t t, const Sums& sums) {
                              const __m512 weight = _mm512_set1_ps(weights[unit.first + t]);
                              Sums& mine = total[tokens[unit.first + t]];
                              for (int64_t g = 0; g < kVectors; ++g) mine[g] = _mm512_fmadd_ps(weight, sums[g], mine[g]);
                          });
        for (int64_t row = 0; row < rows; ++row) store_sums(total[row], count, update + row * hidden + first);
    }
};

#endif
}  // namespace axk1
