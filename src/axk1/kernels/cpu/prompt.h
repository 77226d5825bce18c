// The two blocks of a layer over the many tokens of a prompt: what attention.h and mlp.h do, by the products of panel.h.
//
// Attention expands the cached latents to keys and values of some heads and attends to these; scores stay in the caches,
// with a running softmax over blocks of keys (FlashAttention, arXiv 2205.14135). P: Singles or Pairs.
#pragma once

#include "attention.h"
#include "mlp.h"
#include "panel.h"

namespace axk1 {

// done(token, first output, how many, sums) for all inputs and all outputs, shared between the threads of a team, which
// do not wait for each other after it.
template <class P, class Done>
inline void project(Team& team, const Matrix& w, int64_t outputs, const typename P::Inputs& x, int64_t rows, const Done& done) {
    team.dynamic((outputs + kWide - 1) / kWide, [&](int64_t block) {
        const int64_t first = block * kWide, count = std::min(kWide, outputs - first);
        const int64_t later = first + team.count * kWide;  // this thread's next block, if all are as fast
        multiply<P>({w.from(first)}, count, rows, x, [&](int64_t row, const Sums& sums) { done(row, first, count, sums); },
                    later < outputs ? w.from(later).pieces(std::min(kWide, outputs - later), 0, 1) : Fetch());
    });
}

template <class P>
class AttentionPrompt {
    typedef typename P::Value Value;
    static constexpr int64_t kKeys = 192;           // a block of the running softmax
    static constexpr float kHidden = -1e30f;        // a score that comes to nothing beside any other
    static constexpr int64_t kExpanded = 64 << 20;  // bytes of keys and values at a time, or those of one head
    const AttentionShape& s;
    const Tokens& tokens;
    const int64_t rows, width, joint, down_width;
    int64_t positions = 0, group = 1;  // of the longest sequence, a multiple of kWide; heads that are expanded at a time
    int64_t value_stride = 0;          // from one value to the next: a line more than positions, else rows share a few sets of a cache
    Value *normed, *latents, *queries, *attended, *keys, *values, *value_rows;
    Value *inputs, *value_inputs, *seen;  // arranged; `seen`: latents, one behind the other where inputs are not
    float* down;

public:
    AttentionPrompt(const AttentionShape& shape, const Tokens& all, Workspace& space)
        : s(shape), tokens(all), rows(all.count), width(shape.width()), joint(shape.joint()), down_width(shape.query_rank + joint) {
        for (const Sequence& sequence : all.sequences) positions = std::max(positions, (sequence.cached + kWide - 1) / kWide * kWide);
        value_stride = positions + kLine / int64_t(sizeof(Value));
        group = std::clamp<int64_t>(kExpanded / (positions * (P::padded(width) + s.value) * int64_t(sizeof(Value))), 1, s.heads);
        space.divide([&] {
            space.take(normed, rows * P::padded(s.hidden)), space.take(down, rows * down_width), space.take(latents, rows * P::padded(s.query_rank));
            space.take(queries, rows * s.heads * width), space.take(attended, rows * P::padded(s.heads * s.value));
            space.take(keys, group * positions * P::padded(width)), space.take(values, group * s.value * value_stride);
            space.take(value_rows, group * s.value * P::padded(s.latent));
            space.take(inputs, arranged<P>(rows, std::max({s.hidden, s.query_rank, s.heads * s.value})));
            space.take(value_inputs, arranged<P>(group * s.value, s.latent)), space.take(seen, P::kArranges ? arranged<P>(positions, s.latent) : positions * P::padded(s.latent));
        });
    }

    // Called by every thread of a team. `cache_only`: the tokens are cached, and attend to nothing.
    void run(Team& team, const AttentionWeights& w, const Cache& cache, float* hidden, bool cache_only) {
        team.each(rows, [&](int64_t row) {
            norm_row(hidden + row * s.hidden, w.input_norm, s.eps, s.hidden, normed + row * P::padded(s.hidden));
            attended[(row + 1) * P::padded(s.heads * s.value) - 1] = 0;  // after an odd number of values
        });
        team.barrier();
        const auto store_down = [&](int64_t offset) {
            return [=, this](int64_t row, int64_t first, int64_t count, const Sums& sums) { store_sums(sums, count, down + row * down_width + offset + first); };
        };
        const auto states = arranged_inputs<P>(team, {{normed, P::padded(s.hidden)}, rows, inputs}, s.hidden);
        if (!cache_only) project<P>(team, w.q_a, s.query_rank, states, rows, store_down(0));
        project<P>(team, w.kv_a, joint, states, rows, store_down(s.query_rank));
        team.barrier();
        team.each(rows, [&](int64_t row) {
            if (!cache_only) norm_row(down + row * down_width, w.query_norm, kLatentEps, s.query_rank, latents + row * P::padded(s.query_rank));
            cache_latent(s, w, tokens, row, down + row * down_width + s.query_rank, cache);
        });
        team.barrier();
        if (cache_only) return;
        const auto query_latents = arranged_inputs<P>(team, {{latents, P::padded(s.query_rank)}, rows, inputs}, s.query_rank);
        project<P>(team, w.q_b, s.heads * width, query_latents, rows, [&](int64_t row, int64_t first, int64_t count, const Sums& sums) {
            store_values<P>(sums, count, queries + row * s.heads * width + first);
        });
        team.barrier();
        team.each(rows, [&](int64_t row) { rotate_queries(row); });
        for (const Sequence& sequence : tokens.sequences) {
            for (int64_t head = 0; head < s.heads; head += group) {
                const int64_t count = std::min(group, s.heads - head), blocks = (sequence.tokens + kWide - 1) / kWide;
                expand(team, w, cache, sequence, head, count);
                team.barrier();
                team.dynamic(count * blocks, [&](int64_t item) {  // the last queries, which see most, first
                    attend(sequence, head, item % count, (blocks - 1 - item / count) * kWide);
                });
                team.barrier();
            }
        }
        const auto outputs = arranged_inputs<P>(team, {{attended, P::padded(s.heads * s.value)}, rows, inputs}, s.heads * s.value);
        project<P>(team, w.o, s.hidden, outputs, rows, [&](int64_t row, int64_t first, int64_t count, const Sums& sums) {
            add_sums(sums, count, hidden + row * s.hidden + first);
        });
        team.barrier();
    }

private:
    static void norm_row(const float* x, const float* weight, float eps, int64_t length, Value* out) {
        float* normed_row = memory<AttentionPrompt, float>(length);
        rms_norm(x, weight, eps, length, normed_row);
        P::round_row(normed_row, length, out);
    }

    void rotate_queries(int64_t row) {
        float *before = memory<AttentionPrompt, float>(2 * s.rope), *after = before + s.rope;
        for (int64_t head = 0; head < s.heads; ++head) {
            Value* query = queries + (row * s.heads + head) * width + s.nope;
            for (int64_t i = 0; i < s.rope; ++i) before[i] = P::to_float(query[i]);
            rotate(before, tokens.cos.data() + row * s.rope / 2, tokens.sin.data() + row * s.rope / 2, s.rope, s.interleave, after);
            for (int64_t i = 0; i < s.rope; ++i) query[i] = P::from_float(after[i]);
        }
    }

    // The rows of a page as values of products.
    Rows<Value> values_of(const Matrix& page, int64_t count) const {
        if (page.kind == P::kKind) return {page.template values<Value>(), page.stride};
        struct Widened;
        Value* out = memory<Widened, Value>(count * joint);
        float* row = memory<AttentionPrompt, float>(joint);
        for (int64_t i = 0; i < count; ++i) {
            page.from(i).read(row);
            for (int64_t k = 0; k < joint; ++k) out[i * joint + k] = P::from_float(row[k]);
        }
        return {out, joint};
    }

    // Keeps the latents of page `number` as inputs of products.
    void keep_latents(const Rows<Value>& page, int64_t count, int64_t number) {
        if constexpr (P::kArranges) {
            const Wanted<P> some = {page, count, seen + number * P::arranged(kPage, s.latent)};
            for (int64_t block = 0; block * kLanes < count; ++block) P::arrange(some, s.latent, block);
        } else {
            const int64_t stride = P::padded(s.latent);
            for (int64_t i = 0; i < count; ++i) {
                Value* out = seen + (number * kPage + i) * stride;
                std::copy_n(page(i), s.latent, out);
                if (stride > s.latent) out[s.latent] = 0;
            }
        }
    }

    // keys [count, positions, N + R] and, transposed, values [count, V, positions] of `count` heads from `head` on, of the
    // latents of one sequence. A page is read once: for its values, its rotated keys and, the first time, its latents.
    void expand(Team& team, const AttentionWeights& w, const Cache& cache, const Sequence& sequence, int64_t head, int64_t count) {
        const int64_t each = s.nope + s.value, stride = P::padded(s.latent), key_width = P::padded(width), head_size = positions * key_width;
        team.each(count * s.value, [&](int64_t row) {
            const Matrix weight = readable(w.kv_b.from((head + row / s.value) * each + s.nope + row % s.value), 1);
            for (int64_t i = 0; i < stride; i += kLanes) P::store(widened(weight, i), stride - i, value_rows + row * stride + i);
        });
        team.barrier();
        const auto value_weights = arranged_inputs<P>(team, {{value_rows, stride}, count * s.value, value_inputs}, s.latent);
        team.dynamic((sequence.cached + kPage - 1) / kPage, [&](int64_t number) {
            const int64_t first = number * kPage, here = std::min(kPage, sequence.cached - first);
            Matrix page = cache.page(sequence, number);
            const Rows<Value> rows = values_of(page, here);
            if (head == 0) keep_latents(rows, here, number);
            for (int64_t mine = 0; mine < count; ++mine)
                for (int64_t i = 0; i < here; ++i) {
                    Value* key = keys + mine * head_size + (first + i) * key_width + s.nope;
                    std::copy_n(rows(i) + s.latent, s.rope, key);
                    if (key_width > width) key[s.rope] = 0;
                }
            page.length = s.latent;
            multiply<P>({page}, here, count * s.value, value_weights,
                        [&](int64_t row, const Sums& sums) { store_values<P>(sums, kWide, values + row * value_stride + first); });
        });
        team.barrier();
        // A panel is a part of a head's keys, or all of two heads where these have few.
        const auto latents_seen = inputs_of<P>({{seen, stride}, sequence.cached, seen});
        const int64_t together = 2 * s.nope <= kWide ? 2 : 1, parts = (s.nope + kWide - 1) / kWide;
        team.dynamic((count + together - 1) / together * parts, [&](int64_t item) {
            const int64_t mine = item / parts * together, first = item % parts * kWide, wide = std::min(kWide, s.nope - first);
            const Matrix weight = w.kv_b.from((head + mine) * each + first);
            Value* out = keys + mine * head_size + first;
            if (mine + 1 < count && together == 2) {
                multiply<P>({weight, weight.from(each)}, wide, sequence.cached, latents_seen, [&](int64_t position, const Sums& sums) {
                    for (int64_t i = 0; i < 2; ++i) store_values<P>(sums + i * kVectors / 2, wide, out + i * head_size + position * key_width);
                });
            } else {
                multiply<P>({weight}, wide, sequence.cached, latents_seen,
                            [&](int64_t position, const Sums& sums) { store_values<P>(sums, wide, out + position * key_width); });
            }
        });
    }

    // One head over up to 64 queries of a sequence from its token `first` on. Queries are the lanes: of scores [keys, 64], of
    // the weights computed from these, and of the weighted sums of values [V, 64]. Few queries fill one or two of the vectors.
    void attend(const Sequence& sequence, int64_t head, int64_t mine, int64_t first) {
        thread_local typename P::Panel query, weights;
        const int64_t past = sequence.cached - sequence.tokens, key_width = P::padded(width);
        const int64_t count = std::min(kWide, sequence.tokens - first), last = past + first + count;  // columns that are seen
        const int64_t vectors = count <= kLanes ? 1 : count <= 2 * kLanes ? 2 : kVectors;
        Sums *scores = memory<AttentionPrompt, Sums>(kKeys + (s.value + kLanes - 1) / kLanes * kLanes), *sums = scores + kKeys;
        for (int64_t v = 0; v < s.value; ++v)
            for (Lanes& each : sums[v]) each = Lanes{};
        Matrix block;
        block.kind = P::kKind, block.length = width, block.stride = s.heads * width;
        block.data = queries + (sequence.first + first) * s.heads * width + (head + mine) * width;
        query.resize(width), query.pack(block, count, 0, 0, vectors);
        Sums largest, totals = {};
        for (Lanes& each : largest) each = Lanes{} + kHidden / 2;
        for (int64_t start = 0; start < last; start += kKeys) {
            const int64_t seen = std::min(kKeys, last - start);
            const Value *key = keys + (mine * positions + start) * key_width, *value = values + mine * s.value * value_stride + start;
            add_all<P, true>(query, seen, width, {key, key_width}, scores, vectors);
            if (sequence.keep || start + seen > past + first) hide(scores, seen, past + first - start, sequence.keep ? sequence.keep + start : nullptr);
            weights.resize(seen);
            take(scores, seen, vectors, largest, totals, weights, sums);
            add_all<P, false>(weights, s.value, seen, {value, value_stride}, sums, vectors);
        }
        store_attended(sums, totals, sequence.first + first, count, head + mine);
    }

    // Sums [V, 64] over the totals of their weights, to `count` tokens from `token` on.
    void store_attended(const Sums* sums, const Sums& totals, int64_t token, int64_t count, int64_t head) {
        for (int64_t g = 0; g * kLanes < count; ++g) {
            const Lanes factor = totals[g] > 0.0f ? 1.0f / totals[g] : Lanes{};
            for (int64_t v = 0; v < s.value; v += kLanes) {
                Lanes block[kLanes];
                for (int64_t i = 0; i < kLanes; ++i) block[i] = v + i < s.value ? sums[v + i][g] * factor : Lanes{};
                transpose(block);
                for (int64_t i = 0; i < std::min(kLanes, count - g * kLanes); ++i)
                    P::store(block[i], s.value - v, attended + (token + g * kLanes + i) * P::padded(s.heads * s.value) + head * s.value + v);
            }
        }
    }

    // Query i may see `ahead` + i + 1 of these keys, and none that is not kept.
    static void hide(Sums* scores, int64_t seen, int64_t ahead, const bool* keep) {
        for (int64_t k = 0; k < seen; ++k) {
            const int64_t hidden = keep && !keep[k] ? kWide : std::min(k - ahead, kWide);  // of the queries
            int64_t i = 0;
            for (; i + kLanes <= hidden; i += kLanes) scores[k][i / kLanes] = Lanes{} + kHidden;
            for (; i < hidden; ++i) reinterpret_cast<float*>(scores[k])[i] = kHidden;
        }
    }

    // Turns `vectors` of scores into weights relative to the largest so far, in a panel's order, and `sums` along with them.
    void take(const Sums* scores, int64_t seen, int64_t vectors, Sums& largest, Sums& totals, typename P::Panel& weights, Sums* sums) const {
        for (int64_t g = 0; g < vectors; ++g) {
            Lanes most = largest[g], total = {};
            for (int64_t k = 0; k < seen; ++k) most = maximum(most, scores[k][g]);
            for (int64_t k = 0; k < seen; k += 2) {
                const Lanes one = P::weight(scores[k][g], most, s.scale), two = k + 1 < seen ? P::weight(scores[k + 1][g], most, s.scale) : Lanes{};
                total += one + two;
                weights.put(k, g, one, two);
            }
            const Lanes shrunk = P::weight(largest[g], most, s.scale);
            totals[g] = totals[g] * shrunk + total;
            for (int64_t v = 0; v < s.value; ++v) sums[v][g] *= shrunk;
            largest[g] = most;
        }
    }
};

template <class P>
class MLPPrompt {
    typedef typename P::Value Value;
    static constexpr int64_t kHalf = kWide / 2;  // columns of gate and of up in one panel
    const int64_t rows, hidden;
    const float eps;
    Value *rounded, *inner;
    float *normed, *logits, *update;
    Workspace& arrangement;
    std::vector<Wanted<P>> ups, downs;               // per unit: what gate and up take, and what down takes, [inputs, width]
    std::vector<std::pair<int64_t, int64_t>> tiles;  // unit, first column
    Routing routing;

public:
    // `experts`: the most of any layer; `widths`: of all experts of a token together.
    MLPPrompt(int64_t rows_, int64_t hidden_, float eps_, int64_t experts, int64_t widths, Workspace& space, Workspace& arranged)
        : rows(rows_), hidden(hidden_), eps(eps_), arrangement(arranged) {
        space.divide([&] {
            space.take(rounded, rows * P::padded(hidden)), space.take(normed, rows * hidden), space.take(logits, rows * experts);
            space.take(update, rows * hidden), space.take(inner, rows * widths);
        });
    }

    // Called by every thread of a team.
    void run(Team& team, const MLPWeights& w, const RouterRule& rule, float* state) {
        team.single([&] { routing.resize(rows, rule); });
        team.each(rows, [&](int64_t row) {
            rms_norm(state + row * hidden, w.norm, eps, hidden, normed + row * hidden);
            P::round_row(normed + row * hidden, hidden, rounded + row * P::padded(hidden));
        });
        team.barrier();
        if (rule.experts) {
            team.dynamic((rows + 63) / 64, [&](int64_t block) { route(w, rule, block * 64, std::min<int64_t>(64, rows - block * 64)); });
            team.barrier();
        }
        team.attempt([&] { plan(w, rule); }, [&] { stop(); });
        if constexpr (P::kArranges) {
            for (const Wanted<P>& unit : ups) arrange<P>(team, unit, hidden);
            team.barrier();
        }
        for (bool last = false; !last;) {
            last = routing.is_last;
            team.dynamic(int64_t(tiles.size()), [&](int64_t i) {
                const size_t later = i + team.count;  // this thread's next tile, if all are as fast
                project_up(tiles[i].first, tiles[i].second, later < tiles.size() ? pieces(tiles[later].first, tiles[later].second) : Fetch());
            });
            if (routing.is_first && !last) team.each(rows, [&](int64_t row) { std::fill_n(update + row * hidden, hidden, 0.0f); });
            team.barrier();
            if constexpr (P::kArranges) {
                for (size_t u : routing.up) arrange<P>(team, downs[u], routing.units[u].width);
                team.barrier();
            }
            team.dynamic((hidden + kWide - 1) / kWide, [&](int64_t block) { project_down(block * kWide, std::min(kWide, hidden - block * kWide)); });
            team.barrier();
            if (!last) team.attempt([&] { routing.advance(w), lay_out(); }, [&] { stop(); });
        }
        if (team.me == 0 && rule.experts) w.store->end();
        team.each(rows, [&](int64_t row) {
            float* out = update + row * hidden;
            if (w.post_norm) rms_norm(out, w.post_norm, eps, hidden, out);
            for (int64_t i = 0; i < hidden; ++i) state[row * hidden + i] += out[i];
        });
        team.barrier();
    }

private:
    void route(const MLPWeights& w, const RouterRule& rule, int64_t first, int64_t count) {
        w.router.dot(rule.experts, normed + first * hidden, hidden, count, logits + first * rule.experts, rule.experts);
        for (int64_t row = first; row < first + count; ++row) routing.choose(w, rule, row, logits + row * rule.experts);
    }

    void plan(const MLPWeights& w, const RouterRule& rule) {
        routing.plan(w, rule, rows);
        ups.clear(), downs.clear();
        Value* h = inner;
        for (const Routing::Unit& unit : routing.units) {
            ups.push_back({{rounded, P::padded(hidden), routing.tokens.data() + unit.first}, unit.inputs, nullptr});
            downs.push_back({{h, P::padded(unit.width)}, unit.inputs, nullptr});
            h += unit.inputs * P::padded(unit.width);
        }
        arrangement.divide([&] {
            for (size_t u = 0; u < ups.size(); ++u) {
                arrangement.take(ups[u].place, arranged<P>(ups[u].count, hidden));
                arrangement.take(downs[u].place, arranged<P>(downs[u].count, routing.units[u].width));
            }
        });
        lay_out();
    }

    void lay_out() {
        tiles.clear();
        for (size_t u : routing.up)
            for (int64_t first = 0; first < routing.units[u].width; first += kHalf) tiles.emplace_back(u, first);
    }

    void stop() { routing.stop(), tiles.clear(); }

    // silu(gate) * up of an expert's tokens, 32 columns.
    void project_up(int64_t u, int64_t first, const Fetch& next) {
        const Routing::Unit& unit = routing.units[u];
        const int64_t count = std::min(kHalf, unit.width - first), stored = std::min(kHalf, P::padded(unit.width) - first);
        Value* inner = const_cast<Value*>(downs[u].rows.values);
        multiply<P>({unit.expert.gate.from(first), unit.expert.up.from(first)}, count, unit.inputs, inputs_of<P>(ups[u]), [&](int64_t t, const Sums& sums) {
            Value* out = inner + t * P::padded(unit.width) + first;
            for (int64_t g = 0; g < kVectors / 2 && g * kLanes < stored; ++g)
                P::store(silu(sums[g]) * sums[kVectors / 2 + g], stored - g * kLanes, out + g * kLanes);
        }, next);
    }

    // The rows of a tile.
    Fetch pieces(int64_t u, int64_t first) const {
        const Routing::Unit& unit = routing.units[u];
        const Matrix gate = unit.expert.gate.from(first), up = unit.expert.up.from(first);
        const int64_t distance = static_cast<const char*>(up.data) - static_cast<const char*>(gate.data);
        return {gate.data, gate.bytes(std::min(kHalf, unit.width - first)), distance, 2};
    }

    // Adds up the weighted outputs of these experts, `count` columns from `first` on. Where they are all that there are, the
    // sums stay together until the end; else they go on from where those before ended, to the same bits.
    void project_down(int64_t first, int64_t count) {
        const bool all = routing.is_first && routing.is_last;
        Sums* total = memory<MLPPrompt, Sums>(all ? rows : 1);
        if (all) std::memset(static_cast<void*>(total), 0, rows * sizeof(Sums));
        for (size_t i = 0; i < routing.down.size(); ++i) {
            const size_t u = routing.down[i];
            const Routing::Unit& unit = routing.units[u];
            multiply<P>({unit.expert.down.from(first)}, count, unit.inputs, inputs_of<P>(downs[u]), [&](int64_t t, const Sums& sums) {
                const float weight = routing.weights[unit.first + t];
                const int64_t row = routing.tokens[unit.first + t];
                if (!all) return add_weighted(sums, weight, count, update + row * hidden + first);
                for (int64_t g = 0; g < kVectors; ++g) total[row][g] += sums[g] * weight;
            }, i + 1 < routing.down.size() ? routing.units[routing.down[i + 1]].expert.down.from(first).pieces(count, 0, 1) : Fetch());
        }
        for (int64_t row = 0; row < rows && all; ++row) store_sums(total[row], count, update + row * hidden + first);
    }

    static void add_weighted(const Sums& sums, float weight, int64_t count, float* out) {
        for (int64_t g = 0; g < kVectors && g * kLanes < count; ++g) {
            float* place = out + g * kLanes;
            store(lanes(place, count - g * kLanes) + sums[g] * weight, count - g * kLanes, place);
        }
    }
};

}  // namespace axk1
