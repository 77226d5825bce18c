// One MLP block of a decode step: norm, router, the chosen experts and the shared one, post-MLP norm, residual.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "rows.h"

namespace axk1 {

struct RouterRule {
    int64_t experts = 0, groups = 1, kept_groups = 1, group_best = 2, chosen = 0;
    bool sigmoid = true, normalise = true, grouped = true;
    float scaling = 1.0f;
};

struct MLPWeights {
    const float *norm, *post_norm;  // post_norm: null in dense layers
    Matrix router;                  // [E, D]
    const float* bias;              // [E]
    Matrix gate_ups, downs;         // the experts, [E * 2F, D] and [E * D, F]
    Matrix gate, up, down;          // the shared expert, or the dense MLP; empty: none
    int64_t expert_width, width;
};

// Scores of one token's experts to the chosen ones and their weights, by ascending expert. `scores` is overwritten.
inline void choose(const RouterRule& rule, const float* bias, float* scores, int64_t* chosen, float* weights) {
    const int64_t experts = rule.experts, size = experts / rule.groups;
    if (rule.sigmoid) {
        for (int64_t e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
    } else {
        const float largest = *std::max_element(scores, scores + experts);
        float total = 0.0f;
        for (int64_t e = 0; e < experts; ++e) total += scores[e] = std::exp(scores[e] - largest);
        for (int64_t e = 0; e < experts; ++e) scores[e] /= total;
    }
    std::vector<float> choice(experts);
    for (int64_t e = 0; e < experts; ++e) choice[e] = scores[e] + bias[e];
    if (rule.grouped) {
        std::vector<float> best(rule.groups), members(size);
        std::vector<int64_t> order(rule.groups);
        std::iota(order.begin(), order.end(), 0);
        for (int64_t g = 0; g < rule.groups; ++g) {
            std::partial_sort_copy(choice.begin() + g * size, choice.begin() + (g + 1) * size, members.begin(),
                                   members.begin() + rule.group_best, std::greater<float>());
            best[g] = std::accumulate(members.begin(), members.begin() + rule.group_best, 0.0f);
        }
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return best[a] > best[b]; });
        for (int64_t k = rule.kept_groups; k < rule.groups; ++k)
            std::fill_n(choice.begin() + order[k] * size, size, -std::numeric_limits<float>::infinity());
    }
    std::vector<int64_t> order(experts);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + rule.chosen, order.end(),
                      [&](int64_t a, int64_t b) { return choice[a] > choice[b] || (choice[a] == choice[b] && a < b); });
    float total = 0.0f;
    for (int64_t k = 0; k < rule.chosen; ++k) total += scores[order[k]];
    std::sort(order.begin(), order.begin() + rule.chosen);
    const float factor = rule.scaling / (rule.normalise ? total + 1e-20f : 1.0f);
    for (int64_t k = 0; k < rule.chosen; ++k) {
        chosen[k] = order[k];
        weights[k] = scores[order[k]] * factor;
    }
}

constexpr int64_t kTile = 64, kResults = 4096;  // rows of a weight that are read in one go at least; results that are near then

class MLPStep {
    // One expert and the tokens it serves: `inputs` rows of `x`, the hidden values `h` [inputs, width].
    struct Unit {
        Matrix gate, up, down;
        int64_t width, inputs, first;  // first: index into `tokens` and `weights`
        const float* x;
        float* h;
    };

    const MLPWeights& w;
    const RouterRule& rule;
    const int64_t rows, hidden, tile;
    const float eps;
    float *normed, *logits, *gathered, *inner, *update;
    std::vector<int64_t> chosen, tokens;
    std::vector<float> chosen_weights, weights;
    std::vector<Unit> units;

public:
    MLPStep(const MLPWeights& mlp, const RouterRule& routing, int64_t rows_, int64_t hidden_, float eps_, std::vector<float>& memory)
        : w(mlp), rule(routing), rows(rows_), hidden(hidden_), tile(std::max<int64_t>(kTile, kResults / rows / kTile * kTile)), eps(eps_) {
        const int64_t slots = rows * rule.chosen;
        const int64_t sizes[] = {rows * hidden, rows * rule.experts, slots * hidden, slots * w.expert_width + rows * w.width, rows * hidden};
        float** parts[] = {&normed, &logits, &gathered, &inner, &update};
        const int64_t total = std::accumulate(std::begin(sizes), std::end(sizes), int64_t(0));
        if (int64_t(memory.size()) < total) memory.resize(total);
        float* next = memory.data();
        for (int i = 0; i < 5; ++i) { *parts[i] = next; next += sizes[i]; }
        chosen.resize(slots);
        chosen_weights.resize(slots);
    }

    // Called by every thread of a parallel region.
    void run(float* state, int64_t me, int64_t threads) {
        for (Share n(rows, me, threads); n.begin < n.end; ++n.begin)
            rms_norm(state + n.begin * hidden, w.norm, eps, hidden, normed + n.begin * hidden);
        #pragma omp barrier
        if (rule.experts) {
            const Share outputs(rule.experts, me, threads);
            w.router.from(outputs.begin).dot(outputs.end - outputs.begin, normed, hidden, rows, logits + outputs.begin, rule.experts);
            #pragma omp barrier
        }
        #pragma omp single
        plan();
        project_up(me, threads);
        #pragma omp barrier
        project_down(me, threads);
        #pragma omp barrier
        for (Share n(rows, me, threads); n.begin < n.end; ++n.begin) finish(state, n.begin);
    }

private:
    // Routes every token and lists the experts in ascending order, each with its tokens; the shared expert is last.
    void plan() {
        const int64_t k = rule.chosen;
        for (int64_t row = 0; row < rows && rule.experts; ++row)
            choose(rule, w.bias, logits + row * rule.experts, chosen.data() + row * k, chosen_weights.data() + row * k);
        std::vector<int64_t> order(rows * k);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return chosen[a] < chosen[b]; });
        float* h = inner;
        for (size_t i = 0; i < order.size();) {
            const int64_t expert = chosen[order[i]], first = int64_t(i);
            float* x = gathered + first * hidden;
            for (; i < order.size() && chosen[order[i]] == expert; ++i) {
                tokens.push_back(order[i] / k);
                weights.push_back(chosen_weights[order[i]]);
                if (rows > 1) std::copy_n(normed + tokens.back() * hidden, hidden, gathered + int64_t(i) * hidden);
            }
            const Matrix gate = w.gate_ups.from(expert * 2 * w.expert_width);
            const int64_t inputs = int64_t(i) - first;
            units.push_back({gate, gate.from(w.expert_width), w.downs.from(expert * hidden), w.expert_width, inputs, first,
                             rows > 1 ? x : normed, h});
            h += inputs * w.expert_width;
        }
        if (!w.gate) return;
        const int64_t first = int64_t(tokens.size());
        for (int64_t row = 0; row < rows; ++row) {
            tokens.push_back(row);
            weights.push_back(1.0f);
        }
        units.push_back({w.gate, w.up, w.down, w.width, rows, first, normed, h});
    }

    // silu(gate) * up of all units, their rows shared evenly between the threads.
    void project_up(int64_t me, int64_t threads) {
        int64_t total = 0;
        for (const Unit& unit : units) total += unit.width;
        const Share mine(total, me, threads);
        std::vector<float> pair(2 * tile * rows);
        int64_t passed = 0;
        for (const Unit& unit : units) {
            const int64_t begin = std::max<int64_t>(mine.begin - passed, 0), end = std::min(mine.end - passed, unit.width);
            for (int64_t f = begin; f < end; f += tile) {
                const int64_t count = std::min(tile, end - f);
                float *gate = pair.data(), *up = gate + tile * rows;
                unit.gate.from(f).dot(count, unit.x, hidden, unit.inputs, gate, tile);
                unit.up.from(f).dot(count, unit.x, hidden, unit.inputs, up, tile);
                for (int64_t t = 0; t < unit.inputs; ++t) {  // what lies behind `count` is of no use, and does no harm
                    for (int64_t i = 0; i < count; i += kLanes) {
                        Lanes* place = reinterpret_cast<Lanes*>(gate + t * tile + i);
                        *place = silu(*place) * lanes(up + t * tile + i);
                    }
                    std::copy_n(gate + t * tile, count, unit.h + t * unit.width + f);
                }
            }
            passed += unit.width;
        }
    }

    void project_down(int64_t me, int64_t threads) {
        const Share mine(hidden, me, threads);
        std::vector<float> part(tile * rows);
        for (int64_t d = mine.begin; d < mine.end; d += tile) {
            const int64_t count = std::min(tile, mine.end - d);
            for (int64_t row = 0; row < rows; ++row) std::fill_n(update + row * hidden + d, count, 0.0f);
            for (const Unit& unit : units) {
                unit.down.from(d).dot(count, unit.h, unit.width, unit.inputs, part.data(), tile);
                for (int64_t t = 0; t < unit.inputs; ++t) {
                    float* out = update + tokens[unit.first + t] * hidden + d;
                    const float weight = weights[unit.first + t];
                    for (int64_t i = 0; i < count; ++i) out[i] += weight * part[t * tile + i];
                }
            }
        }
    }

    void finish(float* state, int64_t row) {
        float* out = update + row * hidden;
        if (w.post_norm) rms_norm(out, w.post_norm, eps, hidden, out);
        for (int64_t i = 0; i < hidden; ++i) state[row * hidden + i] += out[i];
    }
};

}  // namespace axk1
