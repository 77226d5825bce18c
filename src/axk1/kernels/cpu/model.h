// Decoder layers by name, checked, and steps through them.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "axk1.h"
#include "prompt.h"
#include "stream.h"

namespace axk1 {

struct Layer {
    AttentionWeights attention;
    MLPWeights mlp;
    bool dense = false;
    ResidentExperts resident;
    std::unique_ptr<StreamedExperts> streamed;
};

// A weight that layers need: its name in checkpoints, where it goes, its shape.
struct Slot {
    const char* name;
    Matrix* matrix;      // or
    const float** norm;  // float32
    int64_t rows, columns;
};

class Layers {
    const axk1_shape given;
    AttentionShape shape;
    RouterRule rule;
    std::vector<std::unique_ptr<Layer>> layers;
    Matrix embedding, head, eh_proj;
    const float *norm = nullptr, *hnorm = nullptr, *enorm = nullptr;
    std::vector<int64_t> head_ids;
    int64_t head_rows = 0;
    bool finished = false, pairs = false;

    std::vector<Slot> attention_slots(Layer& layer) const {
        AttentionWeights& a = layer.attention;
        const AttentionShape& s = shape;
        return {
            {"input_layernorm", nullptr, &a.input_norm, 1, s.hidden},
            {"self_attn.q_a_proj", &a.q_a, nullptr, s.query_rank, s.hidden},
            {"self_attn.q_a_layernorm", nullptr, &a.query_norm, 1, s.query_rank},
            {"self_attn.q_b_proj", &a.q_b, nullptr, s.heads * s.width(), s.query_rank},
            {"self_attn.kv_a_proj_with_mqa", &a.kv_a, nullptr, s.joint(), s.hidden},
            {"self_attn.kv_a_layernorm", nullptr, &a.latent_norm, 1, s.latent},
            {"self_attn.kv_b_proj", &a.kv_b, nullptr, s.heads * (s.nope + s.value), s.latent},
            {"self_attn.o_proj", &a.o, nullptr, s.hidden, s.heads * s.value},
            {"post_attention_layernorm", nullptr, &layer.mlp.norm, 1, s.hidden},
        };
    }
    std::vector<Slot> dense_slots(Layer& layer) const {
        Expert& e = layer.mlp.shared;
        return {
            {"mlp.gate_proj", &e.gate, nullptr, given.dense_width, shape.hidden},
            {"mlp.up_proj", &e.up, nullptr, given.dense_width, shape.hidden},
            {"mlp.down_proj", &e.down, nullptr, shape.hidden, given.dense_width},
        };
    }
    std::vector<Slot> moe_slots(Layer& layer) const {
        const int64_t hidden = shape.hidden, width = given.expert_width, shared = given.shared_width;
        std::vector<Slot> slots = {
            {"post_mlp_layernorm", nullptr, &layer.mlp.post_norm, 1, hidden},
            {"mlp.gate", &layer.mlp.router, nullptr, rule.experts, hidden},
            {"mlp.gate.e_score_correction_bias", nullptr, &layer.mlp.bias, 1, rule.experts},
            {"mlp.experts.gate_up_proj", &layer.resident.gate_up, nullptr, rule.experts * 2 * width, hidden},
            {"mlp.experts.down_proj", &layer.resident.down, nullptr, rule.experts * hidden, width},
        };
        Expert& e = layer.mlp.shared;
        if (shared) {
            slots.push_back({"mlp.shared_experts.gate_proj", &e.gate, nullptr, shared, hidden});
            slots.push_back({"mlp.shared_experts.up_proj", &e.up, nullptr, shared, hidden});
            slots.push_back({"mlp.shared_experts.down_proj", &e.down, nullptr, hidden, shared});
        }
        return slots;
    }
    std::vector<Slot> outer_slots() {
        return {
            {"norm", nullptr, &norm, 1, shape.hidden},
            {"embed_tokens", &embedding, nullptr, given.vocabulary, shape.hidden},
            {"lm_head", &head, nullptr, 0, shape.hidden},  // as many rows as there are tokens to choose from
            {"hnorm", nullptr, &hnorm, 1, shape.hidden},
            {"enorm", nullptr, &enorm, 1, shape.hidden},
            {"eh_proj", &eh_proj, nullptr, shape.hidden, 2 * shape.hidden},
        };
    }

    static bool fill(std::vector<Slot> slots, const std::string& name, const axk1_matrix& weight, bool exact) {
        for (const Slot& slot : slots) {
            if (name != slot.name) continue;
            const int64_t rows = slot.rows ? slot.rows : weight.rows;
            expect(weight.rows == rows && weight.columns == slot.columns,
                   name + " of shape [" + std::to_string(weight.rows) + ", " + std::to_string(weight.columns) + "] where [" + std::to_string(rows) + ", " +
                       std::to_string(slot.columns) + "] belongs");
            const Matrix m = matrix(weight, exact);
            if (slot.norm) {
                expect(m.kind == Matrix::kFloat32, name + " in another format than float32");
                *slot.norm = static_cast<const float*>(m.data);
            } else {
                *slot.matrix = m;
            }
            return true;
        }
        return false;
    }

    static void expect_full(const std::vector<Slot>& slots, const std::string& where) {
        for (const Slot& slot : slots) expect(slot.norm ? *slot.norm != nullptr : bool(*slot.matrix), "no " + std::string(slot.name) + where);
    }

public:
    explicit Layers(const axk1_shape& sizes) : given(sizes) {
        constexpr int64_t kMost = 1 << 24;
        for (int64_t size : {given.layers, given.hidden, given.heads, given.nope, given.rope, given.value, given.query_rank, given.latent, given.vocabulary})
            expect(size > 0 && size <= kMost, "a size of " + std::to_string(size));
        for (int64_t size : {given.dense_width, given.expert_width, given.shared_width, given.experts}) expect(size >= 0 && size <= kMost, "a size of " + std::to_string(size));
        expect(given.layers <= 1 << 16 && given.heads <= 1 << 16 && given.experts <= 1 << 16, "more layers, heads or experts than there can be");
        expect(given.rope % 2 == 0, "a rotated width (qk_rope_head_dim) that is odd");
        shape.hidden = given.hidden, shape.heads = given.heads, shape.nope = given.nope, shape.rope = given.rope, shape.value = given.value;
        shape.query_rank = given.query_rank, shape.latent = given.latent, shape.interleave = given.interleave;
        shape.scale = float(given.softmax_scale), shape.eps = float(given.eps);
        expect(shape.scale > 0.0f && std::isfinite(shape.scale), "a softmax scale that is not above 0");
        rule = {given.experts, given.groups, given.kept_groups, given.group_best, given.chosen, bool(given.sigmoid), bool(given.normalise), bool(given.grouped), float(given.routed_scaling)};
        if (rule.experts) {
            expect(rule.groups > 0 && rule.experts % rule.groups == 0 && rule.kept_groups > 0 && rule.kept_groups <= rule.groups, "groups that do not divide the experts");
            const int64_t size = rule.experts / rule.groups;
            expect(rule.group_best > 0 && (!rule.grouped || rule.group_best <= size), "groups of too few experts");
            expect(rule.chosen > 0 && rule.chosen <= (rule.grouped ? rule.kept_groups * size : rule.experts), "more chosen experts than may be chosen");
            expect(given.expert_width > 0, "experts of no width");
        }
        for (int64_t i = 0; i < given.layers; ++i) layers.push_back(std::make_unique<Layer>());
    }

    void set(int64_t number, const std::string& name, const axk1_matrix& weight) {
        expect(!finished, "a weight after the last one");
        if (number == -1) {
            expect(fill(outer_slots(), name, weight, given.exact), "a weight called " + name);
            if (name == "lm_head") head_rows = weight.rows;
            return;
        }
        expect(number >= 0 && number < given.layers, "a weight of layer " + std::to_string(number));
        Layer& layer = *layers[number];
        const bool dense = name == "mlp.gate_proj" || name == "mlp.up_proj" || name == "mlp.down_proj";
        layer.dense = layer.dense || dense;
        const bool known = fill(attention_slots(layer), name, weight, given.exact) ||
                           fill(dense ? dense_slots(layer) : rule.experts ? moe_slots(layer) : std::vector<Slot>(), name, weight, given.exact);
        expect(known, "a weight called " + name);
    }

    void set_head_ids(const int64_t* ids, int64_t count) {
        head_ids.assign(ids, ids + count);
        for (int64_t id : head_ids) expect(id >= 0 && id < given.vocabulary, "draft tokens outside of the vocabulary");
    }

    // `layer` of a stream, whose experts stand for this layer's.
    void set_store(int64_t number, Stream* stream, int64_t layer) {
        expect(number >= 0 && number < given.layers && rule.experts && stream, "a store for a layer without experts");
        auto store = std::make_unique<StreamedExperts>();
        store->stream = stream, store->layer = layer, store->exact = given.exact;
        store->floats = stream->check(layer, rule.experts, given.expert_width, shape.hidden);
        layers[number]->streamed = std::move(store);
    }

    void finish() {
        pairs = !given.exact;
        for (size_t i = 0; i < layers.size(); ++i) {
            Layer& layer = *layers[i];
            const std::string where = " in layer " + std::to_string(i);
            expect_full(attention_slots(layer), where);
            expect(!layer.attention.kv_b.group, "weights of a few bits for kv_b_proj, which is read in columns too");
            std::vector<Slot> rest = layer.dense ? dense_slots(layer) : moe_slots(layer);
            expect(layer.dense || rule.experts, "neither an MLP nor experts" + where);
            if (layer.streamed) std::erase_if(rest, [](const Slot& slot) { return std::string(slot.name).starts_with("mlp.experts."); });
            expect_full(rest, where);
            layer.mlp.width = layer.dense ? given.dense_width : given.shared_width;
            if (!layer.dense) {
                expect(layer.mlp.router.kind <= Matrix::kBFloat16, "a router that is quantised");
                layer.mlp.expert_width = layer.resident.width = given.expert_width, layer.resident.hidden = shape.hidden;
                layer.mlp.store = layer.streamed ? static_cast<ExpertStore*>(layer.streamed.get()) : &layer.resident;
            }
            const AttentionWeights& a = layer.attention;
            const Expert &e = layer.mlp.shared, &r = {layer.resident.gate_up, {}, layer.resident.down};
            for (const Matrix* m : std::initializer_list<const Matrix*>{&a.q_a, &a.q_b, &a.kv_a, &a.kv_b, &a.o, &r.gate, &r.down, &e.gate, &e.up, &e.down})
                pairs = pairs && !(*m && m->kind == Matrix::kFloat32);
            pairs = pairs && !(layer.streamed && layer.streamed->floats);
        }
        expect(norm, "no norm after the layers");
        expect(!embedding || embedding.kind <= Matrix::kBFloat16, "an embedding that is quantised");
        expect(!head || (head_ids.empty() ? head_rows == given.vocabulary : int64_t(head_ids.size()) == head_rows), "a head of another vocabulary");
        expect(bool(eh_proj) == bool(hnorm) && bool(eh_proj) == bool(enorm), "a part of an MTP module");
        finished = true;
    }

    const axk1_shape& sizes() const { return given; }
    int64_t draftable() const { return head_rows; }

    void run(const axk1_step& step) {
        check(step);
        const std::lock_guard<std::mutex> lock(running);
#ifdef AXK1_NARROW_SUMS
        if (pairs && step.cache_format == AXK1_BFLOAT16) return run_with<Narrowest>(step);
#endif
        run_with<Singles>(step);
    }

private:
    void check(const axk1_step& step) const {
        expect(finished, "a step before all weights");
        expect(step.sequences > 0 && step.prompts >= 0 && step.prompts <= step.sequences, "no sequences");
        expect(step.starts && step.cached && step.positions && step.pages && step.layers && step.frequencies && step.wanted && step.scored, "half a step");
        expect(step.cache_format == AXK1_FLOAT32 || step.cache_format == AXK1_BFLOAT16, "a cache that is quantised");
        expect(!step.hidden || step.hidden_format == AXK1_FLOAT32 || step.hidden_format == AXK1_BFLOAT16, "states that are quantised");
        expect(step.states_format == AXK1_FLOAT32 || step.states_format == AXK1_BFLOAT16, "states to return quantised");
        expect(step.threads > 0 && step.threads <= 4096, "no threads");
        expect(step.starts[0] == 0, "sequences that do not start at the first token");
        for (int64_t i = 0; i < step.sequences; ++i) {
            const int64_t tokens = step.starts[i + 1] - step.starts[i], last = step.cached[i] + tokens;
            expect(tokens > 0, "a sequence without tokens");
            expect(step.cached[i] >= 0 && (last + kPage - 1) / kPage <= step.most_pages, "fewer pages than a sequence needs");
            for (int64_t page = 0; page * kPage < last; ++page)  // addresses, or places in one cache whose address the layers have
                expect(step.pages[i * step.most_pages + page] + step.layers[0] > 4096, "a page that is not there");
            expect(!step.keep || step.keep_stride >= last, "a mask that is shorter than a sequence");
            expect(step.scored[i] >= 0 && step.scored[i] <= step.wanted[i] && step.wanted[i] <= tokens, "more wanted tokens than a sequence has");
        }
        const int64_t tokens = step.starts[step.sequences];
        expect(!step.ids || bool(embedding), "token ids without an embedding");
        expect(step.ids || step.hidden, "neither token ids nor states");
        expect(!step.ids || bool(step.hidden) == bool(eh_proj), "states for a trunk, or none for an MTP module");
        expect(!(step.logits || step.best) || bool(head), "logits to compute without a head");
        for (int64_t i = 0; step.ids && i < tokens; ++i)
            if (step.ids[i] < 0 || step.ids[i] >= given.vocabulary) throw Refused("Token " + std::to_string(step.ids[i]) + " is not in the vocabulary.");
    }

    // The tokens of one role on their way through the layers.
    template <class P>
    struct Part {
        Tokens all, last;             // last: those whose states are wanted
        std::vector<int64_t> origin;  // of the last ones
        std::vector<float> state;
        bool reduced = false;
        int64_t first = 0;            // token of the step
        std::optional<AttentionPrompt<P>> attend_prompt[2];
        std::optional<MLPPrompt<P>> feed_prompt[2];
        std::optional<AttentionStep> attend_step[2];
        std::optional<MLPStep> feed_step[2];
    };

    template <class P>
    void run_with(const axk1_step& step) {
        Part<P> parts[2];  // prompts, replies
        for (int64_t i = 0; i < step.sequences; ++i) {
            Part<P>& part = parts[i >= step.prompts];
            const int64_t tokens = step.starts[i + 1] - step.starts[i], wanted = step.wanted[i];
            const bool* keep = step.keep ? reinterpret_cast<const bool*>(step.keep) + i * step.keep_stride : nullptr;
            Sequence sequence{0, tokens, step.cached[i] + tokens, step.pages + i * step.most_pages, keep};
            if (wanted) {
                for (int64_t t = tokens - wanted; t < tokens; ++t) part.origin.push_back(part.all.count + t);
                Sequence rest = sequence;
                rest.tokens = wanted;
                part.last.add(rest);
            }
            part.all.add(sequence);
        }
        parts[1].first = parts[0].all.count;
        const int64_t width = shape.hidden, half = shape.rope / 2;
        thread_local Workspace attention[2], mlp[2], arranged;  // per role; the last layer's fewer tokens need no more than all
        const int64_t widths = std::max(given.chosen * P::padded(given.expert_width) + P::padded(given.shared_width), P::padded(given.dense_width));
        for (int role = 0; role < 2; ++role) {
            Part<P>& part = parts[role];
            part.reduced = part.last.count < part.all.count;
            part.state.resize(part.all.count * width);
            for (Tokens* tokens : {&part.all, &part.last}) tokens->cos.resize(tokens->count * half), tokens->sin.resize(tokens->count * half);
            for (int k = 0; k < 2; ++k) {
                const Tokens& tokens = k ? part.last : part.all;
                if (!tokens.count || (k && !part.reduced)) continue;
                if (role == 0) {
                    part.attend_prompt[k].emplace(shape, tokens, attention[role]);
                    part.feed_prompt[k].emplace(tokens.count, width, shape.eps, rule.experts, widths, mlp[role], arranged);
                } else {
                    part.attend_step[k].emplace(shape, tokens, step.threads, attention[role]);
                    part.feed_step[k].emplace(tokens.count, width, shape.eps, rule.experts, rule.chosen, widths, mlp[role]);
                }
            }
        }
        parallel(step.threads, [&](Team& team) {
            std::optional<typename P::Use> use;
            if (parts[0].all.count) use.emplace();
            for (Part<P>& part : parts) enter(team, step, part);
            for (int64_t i = 0; i < given.layers; ++i)
                for (int role = 0; role < 2; ++role)
                    if (parts[role].all.count) through<P>(team, *layers[i], {Matrix::Kind(step.cache_format), bool(given.exact), shape.joint(), step.layers[i]}, parts[role], i + 1 == given.layers);
            leave(team, step, parts);
        });
        for (Workspace& space : attention) space.trim();
        for (Workspace& space : mlp) space.trim();
        arranged.trim();
    }

    // Angles, and the states that go into the first layer.
    template <class P>
    void enter(Team& team, const axk1_step& step, Part<P>& part) {
        const int64_t width = shape.hidden, half = shape.rope / 2, rows = part.all.count;
        if (!rows) return;
        const bool combines = bool(eh_proj) && step.ids;
        if (combines) team.single([&] { combined.resize(rows * 2 * width); });
        float* both = combined.data();
        Matrix given_states;
        given_states.kind = Matrix::Kind(step.hidden_format), given_states.data = step.hidden, given_states.length = given_states.stride = width;
        team.each(rows, [&](int64_t row) {
            for (int64_t i = 0; i < half; ++i) {
                const float angle = float(step.positions[part.first + row]) * step.frequencies[i];
                part.all.cos[row * half + i] = std::cos(angle) * float(given.angle_factor);
                part.all.sin[row * half + i] = std::sin(angle) * float(given.angle_factor);
            }
            float* state = part.state.data() + row * width;
            if (!step.ids) return given_states.from(part.first + row).read(state);
            if (!combines) return embedding.from(step.ids[part.first + row]).read(state);
            float* place = both + row * 2 * width;
            embedding.from(step.ids[part.first + row]).read(place), given_states.from(part.first + row).read(place + width);
            rms_norm(place, enorm, shape.eps, width, place);
            rms_norm(place + width, hnorm, shape.eps, width, place + width);
        });
        team.barrier();
        if (combines) {  // eh_proj times [enorm(embedding), hnorm(state)]
            team.spread(width, eh_proj.grain(), [&](int64_t begin, int64_t end) {
                eh_proj.from(begin).dot(end - begin, both, 2 * width, rows, part.state.data() + begin, width);
            });
        }
        team.each(part.reduced ? part.last.count : 0, [&](int64_t row) {
            std::copy_n(part.all.cos.data() + part.origin[row] * half, half, part.last.cos.data() + row * half);
            std::copy_n(part.all.sin.data() + part.origin[row] * half, half, part.last.sin.data() + row * half);
        });
        team.barrier();
    }

    template <class P>
    void through(Team& team, const Layer& layer, const Cache& cache, Part<P>& part, bool is_last) {
        float* state = part.state.data();
        const auto attend = [&](int k, bool cache_only) {
            if (part.attend_prompt[k]) part.attend_prompt[k]->run(team, layer.attention, cache, state, cache_only);
            else part.attend_step[k]->run(team, layer.attention, cache, state, cache_only);
        };
        int k = 0;
        if (is_last && part.reduced) {  // of the other tokens nothing but their latents is used any more
            attend(0, true);
            team.barrier();
            if (!part.last.count) return;
            team.single([&] {
                for (size_t row = 0; row < part.origin.size(); ++row) std::copy_n(state + part.origin[row] * shape.hidden, shape.hidden, state + row * shape.hidden);
            });
            k = 1;
        }
        attend(k, false);
        const RouterRule none, &use = layer.dense ? none : rule;
        if (part.feed_prompt[k]) part.feed_prompt[k]->run(team, layer.mlp, use, state);
        else part.feed_step[k]->run(team, layer.mlp, use, state);
    }

    // The norm after the layers, states and logits.
    template <class P>
    void leave(Team& team, const axk1_step& step, Part<P>* parts) {
        const int64_t width = shape.hidden, outputs = head_rows;
        const bool halves = step.states_format == AXK1_BFLOAT16;
        int64_t before = 0;
        for (int role = 0; role < 2; ++role) {
            Part<P>& part = parts[role];
            team.each(part.last.count, [&](int64_t row) {
                float* state = part.state.data() + row * width;
                rms_norm(state, norm, shape.eps, width, state);
                if (halves)  // what the head reads has the precision of what is returned
                    for (int64_t i = 0; i < width; ++i) state[i] = to_float(to_bfloat16(state[i]));
                if (step.states)
                    store(halves ? Matrix::kBFloat16 : Matrix::kFloat32, static_cast<char*>(step.states) + (before + row) * width * (halves ? 2 : 4), state, width);
            });
            before += part.last.count;
        }
        team.barrier();
        if (!step.logits && !step.best) return;
        team.single([&] {
            inputs.clear();
            int64_t at[2] = {0, 0};
            for (int64_t i = 0; i < step.sequences; ++i) {
                Part<P>& part = parts[i >= step.prompts];
                int64_t& row = at[i >= step.prompts];
                row += step.wanted[i];
                inputs.insert(inputs.end(), part.state.data() + (row - step.scored[i]) * width, part.state.data() + row * width);
            }
            if (!head_ids.empty() || !step.logits) few.resize(inputs.size() / width * outputs);
        });
        const int64_t rows = int64_t(inputs.size()) / width;
        if (!rows) return;
        float* scores = head_ids.empty() && step.logits ? step.logits : few.data();
        team.spread(outputs, head.grain(), [&](int64_t begin, int64_t end) {
            head.from(begin).dot(end - begin, inputs.data(), width, rows, scores + begin, outputs);
            for (int64_t row = 0; row < rows && halves; ++row)
                for (int64_t i = begin; i < end; ++i) scores[row * outputs + i] = to_float(to_bfloat16(scores[row * outputs + i]));
        });
        team.barrier();
        team.each(rows, [&](int64_t row) {
            const int64_t place = place_of_largest(scores + row * outputs, outputs);
            if (step.best) step.best[row] = head_ids.empty() ? place : head_ids[place];
            if (head_ids.empty() || !step.logits) return;
            float* out = step.logits + row * given.vocabulary;
            std::fill_n(out, given.vocabulary, -std::numeric_limits<float>::infinity());
            for (int64_t i = 0; i < outputs; ++i) out[head_ids[i]] = scores[row * outputs + i];
        });
    }

    std::mutex running;  // one step at a time
    std::vector<float> combined, inputs, few;
};

}  // namespace axk1
