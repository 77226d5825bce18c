// One attention block over single tokens and few: norm, MLA over the cached latents, output projection, residual.
//
// MLA stays in the latent space (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): the key half of kv_b_proj is applied to
// the queries, its value half to the attended latents, so the cache is read as it is stored and once for all heads.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "threads.h"
#include "tokens.h"

namespace axk1 {

struct AttentionShape {
    int64_t hidden = 0, heads = 0, nope = 0, rope = 0, value = 0, query_rank = 0, latent = 0;
    bool interleave = true;
    float scale = 1.0f, eps = 1e-6f;

    int64_t width() const { return nope + rope; }    // of a query
    int64_t joint() const { return latent + rope; }  // of what is cached for a token
};

struct AttentionWeights {
    const float *input_norm = nullptr, *query_norm = nullptr, *latent_norm = nullptr;
    Matrix q_a, q_b, kv_a, kv_b, o;
};

constexpr float kLatentEps = 1e-6f;  // of the norms of latents, whatever the configuration says of the others
constexpr int64_t kFirstKeys = 16384;  // bytes of keys that are fetched before the first head
constexpr int64_t kRows = 16;        // rows of kv_b whose columns are summed in several passes
constexpr int64_t kSegment = 8;      // pages whose sums are made one after the other, apart from those of others

// Running softmax of one query: the largest score so far, and the sum of exp(score - largest).
struct Running {
    float largest = -std::numeric_limits<float>::infinity(), total = 0.0f;

    // Turns kPage scores into weights relative to the new largest score; returns the factor of what came before.
    float take(float* scores) {
        Lanes highest = lanes(scores);
        for (int64_t j = kLanes; j < kPage; j += kLanes) highest = maximum(highest, lanes(scores + j));
        const float now = std::max(largest, axk1::largest(highest));
        if (now == -std::numeric_limits<float>::infinity()) {
            std::fill(scores, scores + kPage, 0.0f);
            return 1.0f;
        }
        Lanes sums = {};
        for (int64_t j = 0; j < kPage; j += kLanes) {
            const Lanes weights = exp_lanes(lanes(scores + j) - now);
            lanes(scores + j) = weights;
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
inline void cache_latent(const AttentionShape& s, const AttentionWeights& w, const Tokens& tokens, int64_t token, float* latent, const Cache& cache) {
    float* rotated = memory<Running, float>(s.rope);
    rotate(latent + s.latent, tokens.cos.data() + token * s.rope / 2, tokens.sin.data() + token * s.rope / 2, s.rope, s.interleave, rotated);
    rms_norm(latent, w.latent_norm, kLatentEps, s.latent, latent);
    std::copy_n(rotated, s.rope, latent + s.latent);
    const Matrix row = cache.row(tokens.sequences[tokens.owner[token]], tokens.column[token]);
    store(cache.kind, const_cast<void*>(row.data), latent, s.joint());
}

class AttentionStep {
    struct Item {  // some heads of a token, and the pages of a segment
        int64_t token, head, heads, segment;
    };
    const AttentionShape& s;
    const Tokens& tokens;
    const int64_t rows, width, joint;
    std::vector<int64_t> first_part;  // per token: where the parts of its segments begin
    std::vector<Item> items;
    std::vector<Running> running;
    float *normed, *down, *latents, *queries, *joined, *partial, *attended, *values;

    static int64_t segments(int64_t columns) { return (columns + kSegment * kPage - 1) / (kSegment * kPage); }

public:
    AttentionStep(const AttentionShape& shape, const Tokens& all, int64_t threads, Workspace& space)
        : s(shape), tokens(all), rows(all.count), width(shape.width()), joint(shape.joint()) {
        int64_t parts = 0;
        for (int64_t token = 0; token < rows; ++token) {
            first_part.push_back(parts);
            parts += segments(tokens.column[token] + 1);
        }
        first_part.push_back(parts);
        const int64_t pieces = std::clamp<int64_t>(2 * threads / std::max<int64_t>(parts, 1), 1, (s.heads + 1) / 2), size = (s.heads + pieces - 1) / pieces;
        for (int64_t token = 0; token < rows; ++token)
            for (int64_t segment = 0; segment < first_part[token + 1] - first_part[token]; ++segment)
                for (int64_t head = 0; head < s.heads; head += size) items.push_back({token, head, std::min(size, s.heads - head), segment});
        running.resize(parts * s.heads);
        space.divide([&] {
            space.take(normed, rows * s.hidden), space.take(down, rows * (s.query_rank + joint)), space.take(latents, rows * s.query_rank);
            space.take(queries, rows * s.heads * width), space.take(joined, rows * s.heads * joint);
            space.take(partial, parts * s.heads * s.latent), space.take(attended, rows * s.heads * s.latent), space.take(values, rows * s.heads * s.value);
        });
    }

    // Called by every thread of a team. `cache_only`: the tokens are cached, and attend to nothing.
    void run(Team& team, const AttentionWeights& w, const Cache& cache, float* hidden, bool cache_only) {
        team.each(rows, [&](int64_t row) { rms_norm(hidden + row * s.hidden, w.input_norm, s.eps, s.hidden, normed + row * s.hidden); });
        team.barrier();
        project_down(team, w, cache_only ? s.query_rank : 0);
        team.barrier();
        team.each(rows, [&](int64_t row) {
            float* query = down + row * (s.query_rank + joint);
            if (!cache_only) rms_norm(query, w.query_norm, kLatentEps, s.query_rank, latents + row * s.query_rank);
            cache_latent(s, w, tokens, row, query + s.query_rank, cache);
        });
        if (cache_only) return;
        team.barrier();
        team.spread(s.heads * width, w.q_b.grain(), [&](int64_t begin, int64_t end) {
            w.q_b.from(begin).dot(end - begin, latents, s.query_rank, rows, queries + begin, s.heads * width);
        });
        team.barrier();
        const Share heads = team.share(s.heads);
        Fetch keys = w.kv_b.from(heads.begin * (s.nope + s.value)).pieces(s.nope, s.nope + s.value, heads.end - heads.begin);
        keys.more(kFirstKeys);
        for (int64_t head = heads.begin; head < heads.end; ++head) absorb_query(w, head, keys);
        team.barrier();
        team.dynamic(int64_t(items.size()), [&](int64_t i) { attend(items[i], cache); });
        team.barrier();
        for (int64_t head = heads.begin; head < heads.end; ++head) merge(w, head);
        team.barrier();
        project_out(team, w, hidden);
    }

private:
    // q_a and kv_a over the normed states, their rows from `first` on shared between the threads as if they were one matrix.
    void project_down(Team& team, const AttentionWeights& w, int64_t first) {
        const int64_t stride = s.query_rank + joint;
        team.spread(stride - first, w.q_a.grain(), [&](int64_t begin, int64_t end) {
            begin += first, end += first;
            const int64_t split = std::clamp(s.query_rank, begin, end);
            w.q_a.from(begin).dot(split - begin, normed, s.hidden, rows, down + begin, stride);
            w.kv_a.from(split - s.query_rank).dot(end - split, normed, s.hidden, rows, down + split, stride);
        });
    }

    // q_nope of one head times the key half of kv_b_proj, for all tokens, and its rotated q_rope beside it.
    void absorb_query(const AttentionWeights& w, int64_t head, Fetch& keys) {
        for (int64_t row = 0; row < rows; ++row) {
            float* both = joined + (row * s.heads + head) * joint;
            std::fill(both, both + s.latent, 0.0f);
            rotate(queries + (row * s.heads + head) * width + s.nope, tokens.cos.data() + row * s.rope / 2, tokens.sin.data() + row * s.rope / 2, s.rope,
                   s.interleave, both + s.latent);
        }
        const Matrix key_half = w.kv_b.from(head * (s.nope + s.value));
        for (int64_t j = 0; j < s.nope; j += kRows)
            key_half.from(j).add_weighted(std::min(kRows, s.nope - j), queries + head * width + j, s.heads * width, rows, s.latent,
                                          joined + head * joint, s.heads * joint, &keys);
    }

    // Softmax-weighted sums of the latents of a segment's pages.
    void attend(const Item& item, const Cache& cache) {
        const Sequence& sequence = tokens.sequences[tokens.owner[item.token]];
        const int64_t part = (first_part[item.token] + item.segment) * s.heads + item.head, columns = tokens.column[item.token] + 1;
        float* out = partial + part * s.latent;
        Running* soft = running.data() + part;
        std::fill(out, out + item.heads * s.latent, 0.0f);
        std::fill(soft, soft + item.heads, Running());
        const float* queries_here = joined + (item.token * s.heads + item.head) * joint;
        float* scores = memory<Item, float>(item.heads * kPage);
        const int64_t last = std::min((columns + kPage - 1) / kPage, (item.segment + 1) * kSegment);
        for (int64_t number = item.segment * kSegment; number < last; ++number) {
            const Matrix page = cache.page(sequence, number);
            const int64_t count = std::min(kPage, columns - number * kPage);
            const bool* seen = sequence.keep ? sequence.keep + number * kPage : nullptr;
            page.dot(count, queries_here, joint, item.heads, scores, kPage);
            for (int64_t i = 0; i < item.heads; ++i) {
                float* mine = scores + i * kPage;
                if (count == kPage && !seen)
                    for (int64_t j = 0; j < kPage; j += kLanes) lanes(mine + j) = lanes(mine + j) * s.scale;
                else
                    for (int64_t j = 0; j < kPage; ++j)
                        mine[j] = j < count && (!seen || seen[j]) ? mine[j] * s.scale : -std::numeric_limits<float>::infinity();
                const float factor = soft[i].take(mine);
                if (factor != 1.0f)
                    for (int64_t c = 0; c < s.latent; ++c) out[i * s.latent + c] *= factor;
            }
            page.add_weighted(count, scores, kPage, item.heads, s.latent, out, s.latent, nullptr);
        }
    }

    // Joins the segments of one head and applies the value half of kv_b_proj.
    void merge(const AttentionWeights& w, int64_t head) {
        for (int64_t row = 0; row < rows; ++row) {
            float largest = -std::numeric_limits<float>::infinity(), total = 0.0f;
            for (int64_t k = first_part[row]; k < first_part[row + 1]; ++k) largest = std::max(largest, running[k * s.heads + head].largest);
            float* out = attended + (row * s.heads + head) * s.latent;
            std::fill(out, out + s.latent, 0.0f);
            for (int64_t k = first_part[row]; k < first_part[row + 1]; ++k) {
                const Running& part = running[k * s.heads + head];
                if (part.total == 0.0f) continue;
                const float factor = std::exp(part.largest - largest);
                const float* sums = partial + (k * s.heads + head) * s.latent;
                total += part.total * factor;
                for (int64_t c = 0; c < s.latent; ++c) out[c] += sums[c] * factor;
            }
            if (total > 0.0f)
                for (int64_t c = 0; c < s.latent; ++c) out[c] /= total;
        }
        const Matrix value_half = w.kv_b.from(head * (s.nope + s.value) + s.nope);
        value_half.dot(s.value, attended + head * s.latent, s.heads * s.latent, rows, values + head * s.value, s.heads * s.value);
    }

    void project_out(Team& team, const AttentionWeights& w, float* hidden) {
        const int64_t inputs = s.heads * s.value;
        team.spread(s.hidden, w.o.grain(), [&](int64_t begin, int64_t end) {
            float* update = normed + begin;  // its values have been used
            w.o.from(begin).dot(end - begin, values, inputs, rows, update, s.hidden);
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t i = 0; i < end - begin; ++i) hidden[row * s.hidden + begin + i] += update[row * s.hidden + i];
        });
        team.barrier();
    }
};

}  // namespace axk1
