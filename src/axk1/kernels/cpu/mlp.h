// One MLP block over single tokens and few: norm, router, the chosen experts and the shared one, post-MLP norm, residual.
#pragma once

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "threads.h"
#include "tokens.h"

namespace axk1 {

struct RouterRule {
    int64_t experts = 0, groups = 1, kept_groups = 1, group_best = 2, chosen = 0;
    bool sigmoid = true, normalise = true, grouped = true;
    float scaling = 1.0f;
};

// A SwiGLU MLP: gate and up [width, hidden], down [hidden, width].
struct Expert {
    Matrix gate, up, down;
};

// Where the routed experts of a layer are. It is asked after routing, once per layer and step, by one thread.
struct ExpertStore {
    virtual ~ExpertStore() = default;
    // `experts` are ascending, each once, and stay until the end. A store may begin to get them.
    virtual void begin(const int64_t* experts, int64_t count) = 0;
    // How many from the `first` on are there, at least one where it `waits`; `out` of each, which stays until the next call.
    virtual int64_t next(int64_t first, bool waits, Expert* out) = 0;
    // All have been used.
    virtual void end() {}
};

// All of them in memory: gate_up [E * 2 width, hidden], gate rows first, and down [E * hidden, width].
struct ResidentExperts : ExpertStore {
    Matrix gate_up, down;
    int64_t width = 0, hidden = 0, count = 0;
    const int64_t* experts = nullptr;

    void begin(const int64_t* wanted, int64_t number) override { experts = wanted, count = number; }
    int64_t next(int64_t first, bool, Expert* out) override {
        for (int64_t i = first; i < count; ++i) {
            const Matrix gate = gate_up.from(experts[i] * 2 * width);
            out[i - first] = {gate, gate.from(width), down.from(experts[i] * hidden)};
        }
        return count - first;
    }
};

struct MLPWeights {
    const float *norm = nullptr, *post_norm = nullptr;  // post_norm: null in dense layers
    Matrix router;                                      // [E, hidden]
    const float* bias = nullptr;                        // [E]
    ExpertStore* store = nullptr;
    int64_t expert_width = 0;
    Expert shared;  // the shared expert, or a dense layer's MLP
    int64_t width = 0;
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
    float* choice = memory<RouterRule, float>(experts);
    int64_t* order = memory<RouterRule, int64_t>(std::max(experts, rule.groups));
    for (int64_t e = 0; e < experts; ++e) choice[e] = scores[e] + bias[e];
    if (rule.grouped) {
        float* best = memory<ExpertStore, float>(rule.groups + size);
        float* members = best + rule.groups;
        for (int64_t g = 0; g < rule.groups; ++g) {
            std::partial_sort_copy(choice + g * size, choice + (g + 1) * size, members, members + rule.group_best, std::greater<float>());
            best[g] = std::accumulate(members, members + rule.group_best, 0.0f);
        }
        std::iota(order, order + rule.groups, 0);
        std::stable_sort(order, order + rule.groups, [&](int64_t a, int64_t b) { return best[a] > best[b]; });
        for (int64_t k = rule.kept_groups; k < rule.groups; ++k)
            std::fill_n(choice + order[k] * size, size, -std::numeric_limits<float>::infinity());
    }
    std::iota(order, order + experts, 0);
    std::partial_sort(order, order + rule.chosen, order + experts,
                      [&](int64_t a, int64_t b) { return choice[a] > choice[b] || (choice[a] == choice[b] && a < b); });
    float total = 0.0f;
    for (int64_t k = 0; k < rule.chosen; ++k) total += scores[order[k]];
    std::sort(order, order + rule.chosen);
    const float factor = rule.scaling / (rule.normalise ? total + 1e-20f : 1.0f);
    for (int64_t k = 0; k < rule.chosen; ++k) {
        chosen[k] = order[k];
        weights[k] = scores[order[k]] * factor;
    }
}

// Which experts a step needs, the tokens of each, and which of them are computed next: those that are in memory while
// others are still read, always in the same order.
class Routing {
public:
    struct Unit {  // an expert, and its `inputs` tokens from index `first` of `tokens` and `weights` on
        Expert expert;
        int64_t width, inputs, first;
    };
    std::vector<int64_t> chosen, tokens;  // chosen: [rows, K]
    std::vector<float> chosen_weights, weights;
    std::vector<Unit> units;
    std::vector<size_t> up, down;     // units whose hidden values, and then whose outputs, are computed now
    bool is_first = true, is_last = true;  // of the waves of this step

    void resize(int64_t rows, const RouterRule& rule) {
        chosen.resize(rows * rule.chosen);
        chosen_weights.resize(rows * rule.chosen);
    }

    void choose(const MLPWeights& w, const RouterRule& rule, int64_t row, float* scores) {
        axk1::choose(rule, w.bias, scores, chosen.data() + row * rule.chosen, chosen_weights.data() + row * rule.chosen);
    }

    // Lists the experts in ascending order, each with its tokens; the shared one, or a dense MLP, is last.
    void plan(const MLPWeights& w, const RouterRule& rule, int64_t rows) {
        tokens.clear(), weights.clear(), units.clear(), experts.clear();
        if (rule.experts) {
            counts.assign(rule.experts + 1, 0);
            const int64_t slots = rows * rule.chosen;
            for (int64_t slot = 0; slot < slots; ++slot) ++counts[chosen[slot] + 1];
            for (int64_t e = 0; e < rule.experts; ++e) {
                if (counts[e + 1]) experts.push_back(e), units.push_back({{}, w.expert_width, counts[e + 1], counts[e]});
                counts[e + 1] += counts[e];
            }
            tokens.resize(slots), weights.resize(slots);
            for (int64_t slot = 0; slot < slots; ++slot) {
                const int64_t place = counts[chosen[slot]]++;
                tokens[place] = slot / rule.chosen, weights[place] = chosen_weights[slot];
            }
            found.resize(experts.size());
            w.store->begin(experts.data(), int64_t(experts.size()));
        }
        if (w.shared.gate) {
            units.push_back({w.shared, w.width, rows, int64_t(tokens.size())});
            for (int64_t row = 0; row < rows; ++row) tokens.push_back(row), weights.push_back(1.0f);
        }
        ready = 0, is_last = false;
        take(w, true);
    }

    // Goes on to the units that have come since, or waits for the next one.
    void advance(const MLPWeights& w) { take(w, false); }

    // Nothing is computed any more.
    void stop() { up.clear(), down.clear(), is_last = true; }

private:
    std::vector<int64_t> counts, experts;
    std::vector<Expert> found;
    int64_t ready = 0;

    // The shared expert's hidden values need no waiting; its outputs are added last.
    void take(const MLPWeights& w, bool at_first) {
        const int64_t routed = int64_t(experts.size()), more = ready < routed ? w.store->next(ready, !at_first, found.data()) : 0;
        up.clear(), down.clear();
        for (int64_t i = 0; i < more; ++i) units[ready + i].expert = found[i], up.push_back(ready + i);
        ready += more, down = up, is_first = at_first, is_last = ready == routed;
        if (int64_t(units.size()) == routed) return;
        if (at_first) up.push_back(routed);
        if (is_last) down.push_back(routed);
    }
};

constexpr int64_t kResults = 4096;  // results that are near while a weight is read

class MLPStep {
    const int64_t rows, hidden, tile;
    const float eps;
    float *normed, *logits, *gathered, *inner, *update;
    std::vector<float*> inputs, inners;  // per unit: what it reads, and its hidden values [inputs, width]
    Routing routing;

public:
    // `chosen`, `experts`: the most of any layer; `widths`: of all experts of a token together.
    MLPStep(int64_t rows_, int64_t hidden_, float eps_, int64_t experts, int64_t chosen, int64_t widths, Workspace& space)
        : rows(rows_), hidden(hidden_), tile(std::max<int64_t>(kTile, kResults / rows / kTile * kTile)), eps(eps_) {
        space.divide([&] {
            space.take(normed, rows * hidden), space.take(logits, rows * experts), space.take(gathered, rows * chosen * hidden);
            space.take(inner, rows * widths), space.take(update, rows * hidden);
        });
    }

    // Called by every thread of a team.
    void run(Team& team, const MLPWeights& w, const RouterRule& rule, float* state) {
        team.each(rows, [&](int64_t row) { rms_norm(state + row * hidden, w.norm, eps, hidden, normed + row * hidden); });
        team.barrier();
        if (rule.experts) {
            const Share outputs = team.share(rule.experts);
            w.router.from(outputs.begin).dot(outputs.end - outputs.begin, normed, hidden, rows, logits + outputs.begin, rule.experts);
            team.barrier();
        }
        team.attempt([&] { plan(w, rule); }, [&] { routing.stop(); });
        for (bool last = false; !last;) {
            last = routing.is_last;
            project_up(team);
            team.barrier();
            project_down(team);
            team.barrier();
            if (!last) team.attempt([&] { routing.advance(w); }, [&] { routing.stop(); });
        }
        if (team.me == 0 && rule.experts) w.store->end();
        team.each(rows, [&](int64_t row) { finish(w, state, row); });
        team.barrier();
    }

private:
    void plan(const MLPWeights& w, const RouterRule& rule) {
        routing.resize(rows, rule);
        for (int64_t row = 0; row < rows && rule.experts; ++row) routing.choose(w, rule, row, logits + row * rule.experts);
        routing.plan(w, rule, rows);
        inputs.clear(), inners.clear();
        float* h = inner;
        for (const Routing::Unit& unit : routing.units) {
            const bool all = unit.inputs == rows;  // then they are in order
            float* x = gathered + unit.first * hidden;
            if (!all)
                for (int64_t t = 0; t < unit.inputs; ++t) std::copy_n(normed + routing.tokens[unit.first + t] * hidden, hidden, x + t * hidden);
            inputs.push_back(all ? normed : x), inners.push_back(h);
            h += unit.inputs * unit.width;
        }
    }

    // silu(gate) * up of these units, as if they were one matrix.
    void project_up(Team& team) {
        int64_t total = 0;
        for (size_t u : routing.up) total += routing.units[u].width;
        if (total) team.spread(total, routing.units[routing.up[0]].expert.gate.grain(), [&](int64_t first, int64_t last) { project_up(first, last); });
    }

    void project_up(int64_t first, int64_t last) {
        int64_t passed = 0;
        float *gate = memory<MLPStep, float>(2 * tile * rows), *up = gate + tile * rows;
        for (size_t u : routing.up) {
            const Routing::Unit& unit = routing.units[u];
            const int64_t begin = std::max<int64_t>(first - passed, 0), end = std::min(last - passed, unit.width);
            for (int64_t f = begin; f < end; f += tile) {
                const int64_t count = std::min(tile, end - f);
                unit.expert.gate.from(f).dot(count, inputs[u], hidden, unit.inputs, gate, tile);
                unit.expert.up.from(f).dot(count, inputs[u], hidden, unit.inputs, up, tile);
                for (int64_t t = 0; t < unit.inputs; ++t) {  // what lies after `count` is of no use, and does no harm
                    for (int64_t i = 0; i < count; i += kLanes)
                        lanes(gate + t * tile + i) = silu(lanes(gate + t * tile + i)) * lanes(up + t * tile + i);
                    std::copy_n(gate + t * tile, count, inners[u] + t * unit.width + f);
                }
            }
            passed += unit.width;
        }
    }

    void project_down(Team& team) {
        const int64_t grain = routing.down.empty() ? hidden : routing.units[routing.down[0]].expert.down.grain();
        team.spread(hidden, grain, [&](int64_t first, int64_t last) { project_down(first, last); });
    }

    void project_down(int64_t first, int64_t last) {
        float* part = memory<MLPStep, float>(tile * rows);
        for (int64_t d = first; d < last; d += tile) {
            const int64_t count = std::min(tile, last - d);
            for (int64_t row = 0; row < rows && routing.is_first; ++row) std::fill_n(update + row * hidden + d, count, 0.0f);
            for (size_t u : routing.down) {
                const Routing::Unit& unit = routing.units[u];
                unit.expert.down.from(d).dot(count, inners[u], unit.width, unit.inputs, part, tile);
                for (int64_t t = 0; t < unit.inputs; ++t) {
                    float* out = update + routing.tokens[unit.first + t] * hidden + d;
                    const float weight = routing.weights[unit.first + t];
                    for (int64_t i = 0; i < count; ++i) out[i] += weight * part[t * tile + i];
                }
            }
        }
    }

    void finish(const MLPWeights& w, float* state, int64_t row) {
        float* out = update + row * hidden;
        if (w.post_norm) rms_norm(out, w.post_norm, eps, hidden, out);
        for (int64_t i = 0; i < hidden; ++i) state[row * hidden + i] += out[i];
    }
};

}  // namespace axk1
