// One attention block of a decode step: norm, MLA over the cached latents, output projection, residual.
//
// MLA stays in the latent space (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): the key half of kv_b_proj is applied to
// the queries, its value half to the attended latents, so the cache is read as it is stored and once for all heads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "rows.h"

namespace axk1 {

struct AttentionShape {
    int64_t batch, tokens, hidden, heads, nope, rope, value, query_rank, latent, cached;
    int64_t sequence_rows, keep_stride;  // rows of the cache from one sequence to the next, and the same in `keep`
    float scale, eps;
    bool interleave;
};

struct AttentionWeights {
    const float *input_norm, *query_norm, *latent_norm;
    Matrix q_a, q_b, kv_a, kv_b, o;
};

constexpr int64_t kRows = 16;       // rows of kv_b whose columns are summed in several passes
constexpr int64_t kPositions = 64;  // cached positions a block of the running softmax takes

// Running softmax of one query: the largest score so far, and the sum of exp(score - largest).
struct Running {
    float largest = -std::numeric_limits<float>::infinity(), total = 0.0f;

    // Turns kPositions scores into weights relative to the new largest score; returns the factor of what came before.
    float absorb(float* scores) {
        Lanes highest = lanes(scores);
        for (int64_t j = kLanes; j < kPositions; j += kLanes) {
            const Lanes next = lanes(scores + j);
            highest = next > highest ? next : highest;
        }
        float now = largest;
        for (int64_t j = 0; j < kLanes; ++j) now = std::max(now, highest[j]);
        if (now == -std::numeric_limits<float>::infinity()) {
            std::fill(scores, scores + kPositions, 0.0f);
            return 1.0f;
        }
        Lanes sums = {};
        for (int64_t j = 0; j < kPositions; j += kLanes) {
            const Lanes weights = exp_lanes(lanes(scores + j) - now);
            *reinterpret_cast<Lanes*>(scores + j) = weights;
            sums += weights;
        }
        const float factor = std::exp(largest - now);
        largest = now;
        total = total * factor + sum(sums);
        return factor;
    }
};

// Rotates `rope` values into the order the cache holds: all first members of the pairs, then all second ones.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t rope, bool interleave, float* out) {
    const int64_t half = rope / 2;
    for (int64_t i = 0; i < half; ++i) {
        const float first = interleave ? x[2 * i] : x[i], second = interleave ? x[2 * i + 1] : x[half + i];
        out[i] = first * cos[i] - second * sin[i];
        out[half + i] = second * cos[i] + first * sin[i];
    }
}

// The norm of one token's key-value latent, which goes to the cache with the rotated key; `latent` is overwritten.
inline void cache_latent(const AttentionShape& s, const AttentionWeights& w, int64_t row, float* latent, const float* cos, const float* sin,
                         const Matrix& cache) {
    const int64_t batch = row / s.tokens, position = s.cached - s.tokens + row % s.tokens;
    void* stored = const_cast<void*>(cache.from(batch * s.sequence_rows + position).data);
    thread_local std::vector<float> rotated;  // as wide as the checkpoint says
    rotated.resize(s.rope);
    rotate(latent + s.latent, cos + row * s.rope / 2, sin + row * s.rope / 2, s.rope, s.interleave, rotated.data());
    rms_norm(latent, w.latent_norm, 1e-6f, s.latent, latent);
    std::copy_n(rotated.data(), s.rope, latent + s.latent);
    store(cache.kind, stored, latent, s.latent + s.rope);
}

class AttentionStep {
    const AttentionShape& s;
    const AttentionWeights& w;
    const int64_t rows, width, joint, strands;
    std::vector<float>& scratch;
    float *normed, *down, *latents, *queries, *cats, *partial, *attended, *values;
    std::vector<Running> running;

public:
    AttentionStep(const AttentionShape& shape, const AttentionWeights& weights, int64_t threads, std::vector<float>& memory)
        : s(shape), w(weights), rows(s.batch * s.tokens), width(s.nope + s.rope), joint(s.latent + s.rope),
          strands(std::max<int64_t>(1, std::min(threads, (s.cached + kPositions - 1) / kPositions))), scratch(memory) {
        const int64_t pairs = rows * s.heads;
        const int64_t sizes[] = {rows * s.hidden, rows * (s.query_rank + joint), rows * s.query_rank, pairs * width,
                                 pairs * joint, strands * pairs * s.latent, pairs * s.latent, pairs * s.value};
        float** parts[] = {&normed, &down, &latents, &queries, &cats, &partial, &attended, &values};
        int64_t total = 0;
        for (int64_t size : sizes) total += size;
        if (int64_t(scratch.size()) < total) scratch.resize(total);
        float* next = scratch.data();
        for (int i = 0; i < 8; ++i) { *parts[i] = next; next += sizes[i]; }
        running.resize(strands * pairs);
    }

    // Called by every thread of a parallel region. `cache_only`: the tokens are cached, and attend to nothing.
    void run(float* hidden, const float* cos, const float* sin, const Matrix& cache, const bool* keep, bool cache_only, int64_t me, int64_t threads) {
        for (Share n(rows, me, threads); n.begin < n.end; ++n.begin)
            rms_norm(hidden + n.begin * s.hidden, w.input_norm, s.eps, s.hidden, normed + n.begin * s.hidden);
        #pragma omp barrier
        project_down(cache_only ? s.query_rank : 0, me, threads);
        #pragma omp barrier
        for (Share n(rows, me, threads); n.begin < n.end; ++n.begin) {
            float* query = down + n.begin * (s.query_rank + joint);
            if (!cache_only) rms_norm(query, w.query_norm, 1e-6f, s.query_rank, latents + n.begin * s.query_rank);
            cache_latent(s, w, n.begin, query + s.query_rank, cos, sin, cache);
        }
        if (cache_only) return;
        #pragma omp barrier
        const Share outputs(s.heads * width, me, threads);
        w.q_b.from(outputs.begin).dot(outputs.end - outputs.begin, latents, s.query_rank, rows, queries + outputs.begin, s.heads * width);
        #pragma omp barrier
        const Share heads(s.heads, me, threads);
        Fetch keys = w.kv_b.from(heads.begin * (s.nope + s.value)).pieces(s.nope, s.nope + s.value, heads.end - heads.begin);
        keys.more(2 * kAhead);
        for (int64_t head = heads.begin; head < heads.end; ++head) absorb_query(head, cos, sin, keys);
        #pragma omp barrier
        for (int64_t item = 0; item < s.batch * strands; ++item)
            if ((item / strands + item % strands) % threads == me) attend(item / strands, item % strands, cache, keep);
        #pragma omp barrier
        for (int64_t head = heads.begin; head < heads.end; ++head) merge(head);
        #pragma omp barrier
        project_out(hidden, me, threads);
    }

private:
    // The rows of q_a and kv_a, one after the other, from `first` on.
    void project_down(int64_t first, int64_t me, int64_t threads) {
        Share outputs(s.query_rank + joint - first, me, threads);
        outputs.begin += first, outputs.end += first;
        const int64_t split = std::clamp(s.query_rank, outputs.begin, outputs.end), stride = s.query_rank + joint;
        w.q_a.from(outputs.begin).dot(split - outputs.begin, normed, s.hidden, rows, down + outputs.begin, stride);
        w.kv_a.from(split - s.query_rank).dot(outputs.end - split, normed, s.hidden, rows, down + split, stride);
    }

    // q_nope of one head times the key half of kv_b_proj, for all tokens, and its rotated q_rope beside it.
    void absorb_query(int64_t head, const float* cos, const float* sin, Fetch& keys) {
        for (int64_t row = 0; row < rows; ++row) {
            float* cat = cats + (row * s.heads + head) * joint;
            std::fill(cat, cat + s.latent, 0.0f);
            rotate(queries + (row * s.heads + head) * width + s.nope, cos + row * s.rope / 2, sin + row * s.rope / 2, s.rope,
                   s.interleave, cat + s.latent);
        }
        const Matrix key_half = w.kv_b.from(head * (s.nope + s.value));
        for (int64_t j = 0; j < s.nope; j += kRows)
            key_half.from(j).add_weighted(std::min(kRows, s.nope - j), queries + head * width + j, s.heads * width, rows, s.latent,
                                          cats + head * joint, s.heads * joint, &keys);
    }

    // One sequence, every `strands`-th block of its cached positions: softmax-weighted sums of latents for all heads.
    void attend(int64_t batch, int64_t strand, const Matrix& cache, const bool* keep) {
        const int64_t inputs = s.tokens * s.heads, first = (strand * s.batch + batch) * inputs;
        float* out = partial + first * s.latent;
        std::fill(out, out + inputs * s.latent, 0.0f);
        std::fill(running.begin() + first, running.begin() + first + inputs, Running());
        std::vector<float> scores(inputs * kPositions);
        for (int64_t start = strand * kPositions; start < s.cached; start += strands * kPositions) {
            const int64_t count = std::min(kPositions, s.cached - start);
            const Matrix block = cache.from(batch * s.sequence_rows + start);
            block.dot(count, cats + batch * inputs * joint, joint, inputs, scores.data(), kPositions);
            const bool* seen = keep ? keep + batch * s.keep_stride + start : nullptr;
            for (int64_t i = 0; i < inputs; ++i) {
                float* mine = scores.data() + i * kPositions;
                const int64_t visible = std::min(count, s.cached - s.tokens + i / s.heads + 1 - start);  // causal
                if (visible == kPositions && !seen)
                    for (int64_t j = 0; j < kPositions; j += kLanes) *reinterpret_cast<Lanes*>(mine + j) = lanes(mine + j) * s.scale;
                else
                    for (int64_t j = 0; j < kPositions; ++j)
                        mine[j] = j < visible && (!seen || seen[j]) ? mine[j] * s.scale : -std::numeric_limits<float>::infinity();
                const float factor = running[first + i].absorb(mine);
                if (factor != 1.0f)
                    for (int64_t c = 0; c < s.latent; ++c) out[i * s.latent + c] *= factor;
            }
            block.add_weighted(count, scores.data(), kPositions, inputs, s.latent, out, s.latent, nullptr);
        }
    }

    // Joins the strands of one head and applies the value half of kv_b_proj.
    void merge(int64_t head) {
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t pairs = rows * s.heads, pair = row * s.heads + head;
            float largest = -std::numeric_limits<float>::infinity(), total = 0.0f;
            for (int64_t k = 0; k < strands; ++k) largest = std::max(largest, running[k * pairs + pair].largest);
            float* out = attended + pair * s.latent;
            std::fill(out, out + s.latent, 0.0f);
            for (int64_t k = 0; k < strands; ++k) {
                const Running& part = running[k * pairs + pair];
                if (part.total == 0.0f) continue;
                const float factor = std::exp(part.largest - largest);
                const float* sums = partial + (k * pairs + pair) * s.latent;
                total += part.total * factor;
                for (int64_t c = 0; c < s.latent; ++c) out[c] += sums[c] * factor;
            }
            if (total > 0.0f)
                for (int64_t c = 0; c < s.latent; ++c) out[c] /= total;
        }
        const Matrix value_half = w.kv_b.from(head * (s.nope + s.value) + s.nope);
        value_half.dot(s.value, attended + head * s.latent, s.heads * s.latent, rows, values + head * s.value, s.heads * s.value);
    }

    void project_out(float* hidden, int64_t me, int64_t threads) {
        const Share outputs(s.hidden, me, threads);
        const int64_t inputs = s.heads * s.value, count = outputs.end - outputs.begin;
        float* update = normed + outputs.begin;  // its values have been used
        w.o.from(outputs.begin).dot(count, values, inputs, rows, update, s.hidden);
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t i = 0; i < count; ++i) hidden[row * s.hidden + outputs.begin + i] += update[row * s.hidden + i];
    }
};

}  // namespace axk1
