// The CPU decode step as a class and an operator of torch.library. Built on first use by axk1.kernels; see rows.h for the arithmetic.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "attention.h"
#include "mlp.h"
#include "prompt.h"

namespace {

using at::Tensor;
using axk1::Matrix;
typedef std::optional<at::Tensor> Scale;

const float* floats(const Tensor& t) { return t.const_data_ptr<float>(); }

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// bfloat16 [..., O, I] packed to uint8 [..., O, 3 I / 2]; `side` holds the bases of all blocks, each row's first raw block
// (int32) and the raw blocks, each part at a multiple of 64 bytes.
Matrix lossless(const Tensor& weight, const Tensor& side, Matrix m) {
#ifndef AXK1_PACKED
    TORCH_CHECK_VALUE(false, "Weights packed without loss need AVX-512's instructions for bfloat16.");
#endif
    m.kind = Matrix::kLossless;
    m.length = m.stride = weight.size(-1) / 3 * 2;
    const int64_t rows = weight.numel() / weight.size(-1), fixed = padded(rows * m.length / 64) + padded(rows * 4);
    TORCH_CHECK_VALUE(weight.size(-1) % 96 == 0 && side.numel() >= fixed, "These are not weights packed without loss.");
    m.bases = side.const_data_ptr<uint8_t>();
    const int64_t raw_blocks = std::count(m.bases, m.bases + rows * m.length / 64, 0);
    TORCH_CHECK_VALUE(side.numel() == fixed + raw_blocks * 128, "Weights packed without loss lack blocks.");
    const uint8_t* starts = m.bases + padded(rows * m.length / 64);
    m.starts = reinterpret_cast<const int32_t*>(starts);
    m.raw = reinterpret_cast<const uint16_t*>(starts + padded(rows * 4));
    return m;
}

#ifdef AXK1_PACKED
// bfloat16 [..., O, I], I a multiple of 64, to what `lossless` reads.
std::tuple<Tensor, Tensor> pack_lossless(const Tensor& weight) {
    using axk1::packed::Lossless;
    const auto given = weight.expect_contiguous();
    const int64_t length = weight.size(-1), rows = weight.numel() / length, blocks = length / Lossless::kBlock;
    TORCH_CHECK_VALUE(weight.scalar_type() == at::kBFloat16 && length % Lossless::kBlock == 0, "Packed without loss are bfloat16 weights of a multiple of 64 columns.");
    const auto* values = static_cast<const uint16_t*>(given->const_data_ptr());
    std::vector<uint8_t> bases(rows * blocks);
    std::vector<int32_t> starts(rows + 1);
    #pragma omp parallel for num_threads(at::get_num_threads())
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t b = 0; b < blocks; ++b) {
            bases[row * blocks + b] = Lossless::base(values + row * length + b * Lossless::kBlock);
            starts[row + 1] += !bases[row * blocks + b];
        }
    for (int64_t row = 0; row < rows; ++row) starts[row + 1] += starts[row];
    const int64_t first_start = padded(rows * blocks), first_raw = first_start + padded(rows * 4), raw_blocks = starts[rows];
    auto shape = weight.sizes().vec();
    shape.back() = length / 2 * 3;
    Tensor packed = at::empty(shape, weight.options().dtype(at::kByte)), side = at::zeros({first_raw + raw_blocks * 2 * Lossless::kBlock}, packed.options());
    uint8_t *out = packed.mutable_data_ptr<uint8_t>(), *beside = side.mutable_data_ptr<uint8_t>();
    std::copy(bases.begin(), bases.end(), beside);
    std::memcpy(beside + first_start, starts.data(), rows * 4);
    #pragma omp parallel for num_threads(at::get_num_threads())
    for (int64_t row = 0; row < rows; ++row) {
        uint8_t* raw = beside + first_raw + starts[row] * 2 * Lossless::kBlock;
        for (int64_t b = 0; b < blocks; ++b) {
            const uint16_t* block = values + row * length + b * Lossless::kBlock;
            uint8_t* place = out + (row * blocks + b) * Lossless::kBytes;
            if (bases[row * blocks + b]) {
                Lossless::pack(block, bases[row * blocks + b], place);
            } else {
                std::memset(place, 0, Lossless::kBytes);
                std::memcpy(raw, block, 2 * Lossless::kBlock), raw += 2 * Lossless::kBlock;
            }
        }
    }
    return {packed, side};
}
#endif

// A weight [..., O, I], seen as rows. uint8: four-bit values, two a byte, with `scale` [..., O, groups];
// int8: with `scale` [..., O, 1].
Matrix matrix(const Tensor& weight, const Scale& scale, bool exact) {
    TORCH_CHECK_VALUE(weight.is_contiguous() && weight.dim() >= 1 && weight.numel() > 0, "axk1 kernels read contiguous weights, none of them empty.");
    if (scale) TORCH_CHECK_VALUE(scale->is_contiguous() && scale->dim() >= 1, "axk1 kernels read contiguous scales.");
    Matrix m;
    m.exact = exact;
    m.data = weight.const_data_ptr();
    m.length = weight.size(-1);
    const auto type = weight.scalar_type();
    if (type == at::kFloat) m.kind = Matrix::kFloat32;
    else if (type == at::kBFloat16) m.kind = Matrix::kBFloat16;
    else if (type == at::kChar && scale) m.kind = Matrix::kInt8;
    else if (type == at::kByte && scale && scale->scalar_type() == at::kByte) return lossless(weight, *scale, m);
    else if (type == at::kByte && scale) {
        m.kind = Matrix::kInt4, m.length *= 2;
        const int64_t groups = scale->size(-1);
        TORCH_CHECK_VALUE(groups > 0 && m.length % groups == 0, "Rows of ", m.length, " int4 weights cannot have ", groups, " groups of equal size.");
        m.group = m.length / groups;
    }
    else TORCH_CHECK_VALUE(false, "axk1 kernels read float32, bfloat16, and scaled int8 and int4 weights, not ", type, ".");
    TORCH_CHECK_VALUE(m.kind != Matrix::kInt4 || m.group % 32 == 0, "A group of int4 weights has ", m.group, " values; it must be a multiple of 32.");
    m.stride = m.length;
    if (scale) {
        const int64_t scales = m.kind == Matrix::kInt4 ? weight.numel() * 2 / m.group : weight.numel() / m.length;
        TORCH_CHECK_VALUE(scale->numel() == scales, "Quantised weights of shape ", weight.sizes(), " need ", scales, " scales, not ", scale->numel(), ".");
        m.scale = floats(*scale);
    }
    return m;
}

// Nothing is read or written outside of a tensor whose shape came from a file or a caller.
void expect(bool holds, const char* what) { TORCH_CHECK_VALUE(holds, "axk1 kernels were given ", what, "."); }
void expect_norm(const Tensor& norm, int64_t width) {
    expect(norm.scalar_type() == at::kFloat && norm.is_contiguous() && norm.numel() == width, "a norm of another width than its input");
}
void expect_matrix(const Matrix& m, const Tensor& weight, int64_t outputs, int64_t inputs) {
    const int64_t rows = weight.numel() / weight.size(-1);
    expect(rows == outputs && m.length == inputs, "a weight of another shape than its neighbours imply");
}

// Reused, so that a step allocates next to nothing; operators called from one thread do not overlap.
std::vector<float>& scratch() {
    thread_local std::vector<float> memory;
    return memory;
}

// out [rows, outputs], of `kind`, are the inputs x [rows, I] times the weight.
void multiply(const Matrix& w, const float* x, int64_t rows, int64_t outputs, Matrix::Kind kind, void* out) {
    thread_local std::vector<float> memory;
    memory.resize(rows * outputs);
    float* results = memory.data();
    #pragma omp parallel num_threads(at::get_num_threads())
    {
        const axk1::Share mine(outputs, omp_get_thread_num(), omp_get_num_threads());
        w.from(mine.begin).dot(mine.end - mine.begin, x, w.length, rows, results + mine.begin, outputs);
    }
    axk1::store(kind, out, results, rows * outputs);
}

// x [..., I], float32 or bfloat16, times weight [O, I], to [..., O] of x's type; `exact`: in float32 arithmetic.
Tensor linear(const Tensor& x, const Tensor& weight, const Scale& scale, bool exact) {
    const auto given = x.expect_contiguous();
    const Matrix w = matrix(weight, scale, exact), in = matrix(*given, std::nullopt, exact);
    TORCH_CHECK_VALUE(weight.dim() == 2 && in.length == w.length && in.kind <= Matrix::kBFloat16, "Inputs of ", in.length, " values do not fit a weight of shape ", weight.sizes(), ".");
    const int64_t rows = x.numel() / w.length, outputs = weight.size(0);
    auto shape = x.sizes().vec();
    shape.back() = outputs;
    Tensor out = at::empty(shape, x.options());
    thread_local std::vector<float> inputs;
    inputs.resize(rows * w.length);
    for (int64_t row = 0; row < rows; ++row) in.from(row).read(inputs.data() + row * w.length);
    multiply(w, inputs.data(), rows, outputs, in.kind, out.mutable_data_ptr());
    return out;
}

struct Layer {
    axk1::AttentionWeights attention;
    axk1::MLPWeights mlp;
    axk1::RouterRule rule;
    int64_t query_rank;
};

// Decoder layers and the norm behind them, ready to run: what is known of their weights is looked up once.
class Layers : public torch::CustomClassHolder {
    const std::vector<Tensor> tensors;  // these and the next keep alive what is read
    const std::vector<Scale> scales;
    const std::vector<int64_t> shape;
    const std::vector<double> numbers;
    const bool exact;
    bool prompts = false;
    std::vector<Layer> layers;
    std::vector<Tensor> around;
    std::optional<Tensor> head_ids;
    Matrix embedding, head, eh_proj;
    const float *hnorm = nullptr, *enorm = nullptr;

public:
    // `tensors` are all layers' weights one after the other: input norm, q_a, its norm, q_b, kv_a, its norm, kv_b, o; then
    // `parts[layer]` of the MLP block: norm, gate, up, down of a dense one, or norm, post norm, router, its bias, experts'
    // gate_up and down and, where there is one, gate, up and down of the shared expert; and at last the norm behind all
    // layers. Norms and biases are float32, `scales` those of quantised weights.
    // shape: heads, nope, rope, interleave, and how many tokens of a sequence are never read as a prompt; routing: groups,
    // kept groups, best of a group, chosen, sigmoid, normalise, grouped; numbers: softmax scale, eps of the norms, routed
    // scaling, factor of cos and sin. `exact`: the cache and all arithmetic are float32.
    Layers(std::vector<Tensor> tensors_, std::vector<Scale> scales_, const std::vector<int64_t>& parts, std::vector<int64_t> shape_,
           const std::vector<int64_t>& routing, std::vector<double> numbers_, bool exact_)
        : tensors(std::move(tensors_)), scales(std::move(scales_)), shape(std::move(shape_)), numbers(std::move(numbers_)), exact(exact_) {
        size_t first = 0, total = 1;
        expect(!parts.empty() && shape.size() == 5 && routing.size() == 7 && numbers.size() == 4, "settings of another number");
        expect(shape[0] > 0 && shape[1] > 0 && shape[2] > 0 && shape[2] % 2 == 0, "heads of no or of odd width");
        for (int64_t count : parts) expect(count == 4 || count == 6 || count == 9, "a layer of unknown parts"), total += 8 + count;
        expect(tensors.size() == total && scales.size() == total, "another number of weights than the layers have");
        for (int64_t count : parts) {
            const Tensor* w = &tensors[first];
            const auto read = [&](int64_t i) { return matrix(w[i], scales[first + i], exact); };
            Layer layer{};
            layer.attention = {floats(w[0]), floats(w[2]), floats(w[5]), read(1), read(3), read(4), read(6), read(7)};
            layer.query_rank = w[1].size(0);
            const bool dense = count == 4;
            layer.mlp.norm = floats(w[8]);
            if (!dense) {
                layer.mlp.post_norm = floats(w[9]), layer.mlp.router = read(10), layer.mlp.bias = floats(w[11]);
                layer.mlp.gate_ups = read(12), layer.mlp.downs = read(13), layer.mlp.expert_width = layer.mlp.downs.length;
                auto& rule = layer.rule;
                rule.experts = w[10].size(0), rule.groups = routing[0], rule.kept_groups = routing[1], rule.group_best = routing[2];
                rule.chosen = routing[3], rule.sigmoid = routing[4], rule.normalise = routing[5], rule.grouped = routing[6];
                rule.scaling = float(numbers[2]);
            }
            const int64_t gate = dense ? 9 : 14;  // of the dense MLP or of the shared expert
            if (8 + count > gate) {
                layer.mlp.gate = read(gate), layer.mlp.up = read(gate + 1), layer.mlp.down = read(gate + 2);
                layer.mlp.width = layer.mlp.down.length;
            }
            check(layer, w, count);
            layers.push_back(layer);
            first += 8 + count;
        }
        expect_norm(tensors.back(), hidden());
#ifdef AXK1_PACKED
        prompts = !exact;  // products of prompts are bfloat16's
        for (const Layer& layer : layers)
            for (const Matrix* m : {&layer.attention.q_a, &layer.attention.q_b, &layer.attention.kv_a, &layer.attention.kv_b, &layer.attention.o,
                                    &layer.mlp.gate_ups, &layer.mlp.downs, &layer.mlp.gate, &layer.mlp.up, &layer.mlp.down})
                prompts = prompts && !(*m && m->kind == Matrix::kFloat32);
#endif
    }

    int64_t hidden() const { return tensors[0].numel(); }

    // Every shape follows from the hidden size, the heads, the ranks and the expert width.
    void check(const Layer& layer, const Tensor* w, int64_t count) const {
        const auto& a = layer.attention;
        const auto& m = layer.mlp;
        const int64_t width = hidden(), heads = shape[0], nope = shape[1], rope = shape[2];
        const int64_t value = a.o.length / heads, latent = a.kv_b.length;
        expect_norm(w[0], width), expect_norm(w[2], layer.query_rank), expect_norm(w[5], latent);
        expect(value > 0 && value * heads == a.o.length, "an output projection that does not fit the heads");
        expect_matrix(a.q_a, w[1], layer.query_rank, width), expect_matrix(a.q_b, w[3], heads * (nope + rope), layer.query_rank);
        expect_matrix(a.kv_a, w[4], latent + rope, width), expect_matrix(a.kv_b, w[6], heads * (nope + value), latent);
        expect_matrix(a.o, w[7], width, heads * value), expect_norm(w[8], width);
        if (count != 4) {
            const auto& rule = layer.rule;
            expect_norm(w[9], width), expect_matrix(m.router, w[10], rule.experts, width), expect_norm(w[11], rule.experts);
            expect(m.router.kind <= Matrix::kBFloat16, "a router that is quantised");
            expect_matrix(m.gate_ups, w[12], rule.experts * 2 * m.expert_width, width), expect_matrix(m.downs, w[13], rule.experts * width, m.expert_width);
            expect(rule.groups > 0 && rule.experts % rule.groups == 0 && rule.kept_groups > 0 && rule.kept_groups <= rule.groups, "groups of experts that do not divide them");
            const int64_t size = rule.experts / rule.groups;
            expect(rule.group_best > 0 && (!rule.grouped || rule.group_best <= size), "groups of too few experts");
            expect(rule.chosen > 0 && rule.chosen <= (rule.grouped ? rule.kept_groups * size : rule.experts), "more chosen experts than may be chosen");
        }
        if (!m.gate) return;
        const int64_t gate = count == 4 ? 9 : 14;
        expect_matrix(m.gate, w[gate], m.width, width), expect_matrix(m.up, w[gate + 1], m.width, width), expect_matrix(m.down, w[gate + 2], width, m.width);
    }

    // Whether steps may run as prompts: by products of many tokens with each weight, over expanded keys and values, whose
    // roundings depend on the number of tokens.
    bool reads_prompts() const { return prompts; }

    // What `decode` needs besides: the embedding and the head [V, D], and of an MTP module the norms of states and of
    // embeddings, and eh_proj with its scale if it is quantised. A head [N, D] may come with the `ids` [N] of its rows.
    void surround(const Tensor& embedding_, const Tensor& head_, const std::optional<Tensor>& ids, const std::vector<Tensor>& norms,
                  const Scale& eh_proj_, const Scale& scale) {
        around = {embedding_, head_};
        head_ids = ids;
        around.insert(around.end(), norms.begin(), norms.end());
        embedding = matrix(embedding_, std::nullopt, exact), head = matrix(head_, std::nullopt, exact);
        expect(embedding.length == hidden() && head.length == hidden() && embedding.kind <= Matrix::kBFloat16, "an embedding or a head of another width");
        if (ids) {
            expect(ids->scalar_type() == at::kLong && ids->is_contiguous() && ids->numel() == head_.size(0), "another number of ids than the head has rows");
            for (int64_t i = 0; i < ids->numel(); ++i) expect(token(i) >= 0 && token(i) < embedding_.size(0), "draft tokens outside of the vocabulary");
        } else {
            expect(head_.size(0) == embedding_.size(0), "a head of another vocabulary than the embedding");
        }
        if (!eh_proj_) return;
        expect(norms.size() == 2, "another number of norms than an MTP module has");
        for (const Tensor& norm : norms) expect_norm(norm, hidden());
        around.push_back(*eh_proj_);
        if (scale) around.push_back(*scale);
        hnorm = floats(norms[0]), enorm = floats(norms[1]), eh_proj = matrix(*eh_proj_, scale, exact);
        expect_matrix(eh_proj, *eh_proj_, hidden(), 2 * hidden());
    }

    // hidden [B, T, D], float32 or bfloat16, to what the layers and the norm make of it. Columns `cached` - T to `cached` of
    // each layer's `buffers` [B, 1, capacity, C + R] are written. positions [B or 1, T] int64 and frequencies [R / 2] make the
    // rotary angles. `keep` [B, cached or more]: false where nothing is to be attended.
    Tensor run(const Tensor& hidden, const std::vector<Tensor>& buffers, int64_t cached, const Tensor& positions,
               const Tensor& frequencies, const std::optional<Tensor>& keep, bool prompt) {
        expect(hidden.dim() == 3 && hidden.size(2) == this->hidden(), "states of another width");
        const auto given = hidden.expect_contiguous();
        const Matrix in = matrix(*given, std::nullopt, exact);
        const int64_t rows = given->size(0) * given->size(1);
        float* state = states(rows * given->size(2));
        for (int64_t row = 0; row < rows; ++row) in.from(row).read(state + row * in.length);
        return run_all(state, given->size(0), given->size(1), in, given->options(), buffers, cached, positions, frequencies, keep, given->size(1), prompt);
    }

    // The same from ids [B, T], and with `hidden` for an MTP module: `hidden` is the trunk's, ids are the tokens after it.
    // Returns the states of the last `wanted` columns; float32 logits of the last `count` of these, which have the precision of the states (tokens that
    // are not among the head's have -inf); and the most probable tokens [B, count].
    std::tuple<Tensor, Tensor, Tensor> decode(const Tensor& ids, const std::optional<Tensor>& hidden, const std::vector<Tensor>& buffers, int64_t cached,
                                      const Tensor& positions, const Tensor& frequencies, const std::optional<Tensor>& keep, int64_t count,
                                              int64_t wanted, bool prompt) {
        expect(count >= 1 && count <= wanted, "more logits to make than states");
        Tensor out = advance(ids, hidden, buffers, cached, positions, frequencies, keep, wanted, prompt);
        const int64_t rows = ids.size(0) * count, outputs = around[1].size(0), vocabulary = around[0].size(0);
        const auto options = around[0].options().dtype(at::kFloat);
        Tensor best = at::empty({ids.size(0), count}, ids.options()), logits = at::empty({ids.size(0), count, outputs}, options);
        score(out, count, logits.mutable_data_ptr<float>(), best.mutable_data_ptr<int64_t>());
        if (head_ids) {
            const Tensor few = logits;
            logits = at::full({ids.size(0), count, vocabulary}, -std::numeric_limits<float>::infinity(), options);
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t i = 0; i < outputs; ++i) logits.mutable_data_ptr<float>()[row * vocabulary + token(i)] = floats(few)[row * outputs + i];
        }
        return {out, logits, best};
    }

    // Greedy drafts [B, count] of an MTP module: one behind the columns that `decode` would run, each further one behind
    // the module's own last state and draft. The buffers have room for count - 1 columns more.
    Tensor propose(const Tensor& ids, const Tensor& hidden, const std::vector<Tensor>& buffers, int64_t cached, const Tensor& positions,
                   const Tensor& frequencies, int64_t count) {
        expect(count >= 1 && ids.dim() == 2 && positions.dim() == 2 && positions.size(1) == ids.size(1), "drafts to make of nothing");
        const int64_t batch = ids.size(0), outputs = around[1].size(0);
        Tensor drafts = at::empty({batch, count}, ids.options());
        Tensor state = advance(ids, hidden, buffers, cached, positions, frequencies, std::nullopt, 1, false), place = positions.narrow(1, positions.size(1) - 1, 1);
        thread_local std::vector<float> scores;
        scores.resize(batch * outputs);
        std::vector<int64_t> best(batch);
        for (int64_t made = 0;;) {
            score(state, 1, scores.data(), best.data());
            for (int64_t b = 0; b < batch; ++b) drafts.mutable_data_ptr<int64_t>()[b * count + made] = best[b];
            if (++made == count) return drafts;
            place = at::add(place, 1);
            state = advance(drafts.narrow(1, made - 1, 1), state.narrow(1, state.size(1) - 1, 1), buffers, cached + made, place, frequencies, std::nullopt, 1, false);
        }
    }

    // A greedy step with drafts: `propose` of `module` behind what waits for it, then `decode` of the newest tokens [B, 1]
    // and the drafts. Returns these ids [B, count + 1] and what `decode` returns.
    std::tuple<Tensor, Tensor, Tensor, Tensor> speculate(const c10::intrusive_ptr<Layers>& module, const Tensor& hidden, const Tensor& ids,
                                                         const Tensor& places, const std::vector<Tensor>& module_buffers, int64_t module_cached,
                                                         const Tensor& newest, const std::vector<Tensor>& buffers, int64_t cached,
                                                         const Tensor& positions, const Tensor& frequencies, int64_t count) {
        const Tensor drafts = module->propose(ids, hidden, module_buffers, module_cached, places, frequencies, count);
        Tensor tokens = at::cat({newest, drafts}, 1);
        auto [out, logits, best] = decode(tokens, std::nullopt, buffers, cached, positions, frequencies, std::nullopt, count + 1, count + 1, false);
        return {tokens, out, logits, best};
    }

private:
    static float* states(int64_t count) {
        thread_local std::vector<float> memory;
        memory.resize(count);
        return memory.data();
    }

    int64_t token(int64_t row) const { return head_ids ? head_ids->const_data_ptr<int64_t>()[row] : row; }  // of a row of the head

    // States [B, wanted, D] of the last of ids [B, T], and `hidden` for an MTP module.
    Tensor advance(const Tensor& ids, const std::optional<Tensor>& hidden, const std::vector<Tensor>& buffers, int64_t cached,
                   const Tensor& positions, const Tensor& frequencies, const std::optional<Tensor>& keep, int64_t wanted, bool prompt) {
        expect(around.size() >= 2, "a step from token ids without an embedding");
        expect(ids.scalar_type() == at::kLong && ids.dim() == 2, "token ids that are not a batch of whole numbers");
        expect(bool(hidden) == bool(eh_proj), "states for a trunk, or none for an MTP module");
        if (hidden) expect(hidden->dim() == 3 && hidden->size(0) == ids.size(0) && hidden->size(1) == ids.size(1) && hidden->size(2) == this->hidden(), "states of another shape than the tokens");
        const auto given = ids.expect_contiguous();
        const int64_t batch = ids.size(0), length = ids.size(1), width = embedding.length, rows = batch * length;
        const int64_t* tokens = given->const_data_ptr<int64_t>();
        for (int64_t row = 0; row < rows; ++row)
            TORCH_CHECK_INDEX(tokens[row] >= 0 && tokens[row] < around[0].size(0), "Token ", tokens[row], " is not in the vocabulary.");
        float* state = states(rows * width);
        if (hidden) {
            combine(*hidden, tokens, rows, state);
        } else {
            for (int64_t row = 0; row < rows; ++row) embedding.from(tokens[row]).read(state + row * width);
        }
        return run_all(state, batch, length, embedding, around[0].options(), buffers, cached, positions, frequencies, keep, wanted, prompt);
    }

    // scores [B, count, rows of the head] of the last columns of `out` [B, T, D], and the tokens of the largest [B, count].
    void score(const Tensor& out, int64_t count, float* scores, int64_t* best) {
        const int64_t batch = out.size(0), length = out.size(1), width = out.size(2), outputs = around[1].size(0);
        const Matrix last = matrix(out, std::nullopt, exact);
        thread_local std::vector<float> inputs;
        inputs.resize(batch * count * width);
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t t = 0; t < count; ++t)
                last.from(b * length + length - count + t).read(inputs.data() + (b * count + t) * width);
        multiply(head, inputs.data(), batch * count, outputs, Matrix::kFloat32, scores);
        if (embedding.kind == Matrix::kBFloat16)
            for (int64_t i = 0; i < batch * count * outputs; ++i) scores[i] = axk1::to_float(axk1::to_bfloat16(scores[i]));
        for (int64_t row = 0; row < batch * count; ++row) best[row] = token(axk1::place_of_largest(scores + row * outputs, outputs));
    }

    // What an MTP module's block reads: eh_proj times [enorm(embedding), hnorm(state)].
    void combine(const Tensor& hidden, const int64_t* token, int64_t rows, float* out) {
        const auto given = hidden.expect_contiguous();
        const Matrix in = matrix(*given, std::nullopt, exact);
        const int64_t width = in.length;
        const float eps = float(numbers[1]);
        thread_local std::vector<float> both;
        both.resize(rows * 2 * width);
        for (int64_t row = 0; row < rows; ++row) {
            float* place = both.data() + row * 2 * width;
            embedding.from(token[row]).read(place), in.from(row).read(place + width);
            axk1::rms_norm(place, enorm, eps, width, place);
            axk1::rms_norm(place + width, hnorm, eps, width, place + width);
        }
        multiply(eh_proj, both.data(), rows, width, Matrix::kFloat32, out);
    }

    Tensor run_all(float* state, int64_t batch, int64_t tokens, const Matrix& like, const at::TensorOptions& options,
                   const std::vector<Tensor>& buffers, int64_t cached, const Tensor& positions, const Tensor& frequencies,
                   const std::optional<Tensor>& keep, int64_t wanted, bool prompt) {
        TORCH_CHECK_VALUE(prompts || !prompt, "These layers do not read prompts.");
        const int64_t rows = batch * tokens, width = like.length;
        expect(rows > 0 && wanted >= 1 && wanted <= tokens, "no tokens, or more wanted states than tokens");
        expect(cached >= tokens && buffers.size() == layers.size(), "another number of caches than layers");
        expect(positions.scalar_type() == at::kLong && (positions.numel() == tokens || positions.numel() == rows), "another number of positions than tokens");
        expect(frequencies.scalar_type() == at::kFloat && frequencies.is_contiguous() && frequencies.numel() * 2 == shape[2],
               "frequencies for another width than the rotated one (qk_rope_head_dim)");
        if (keep)
            expect(keep->scalar_type() == at::kBool && keep->is_contiguous() && keep->dim() == 2 && keep->size(0) == batch && keep->size(1) >= cached,
                   "a mask of another shape than the cached tokens");
        for (size_t i = 0; i < layers.size(); ++i)
            expect(buffers[i].dim() == 4 && buffers[i].is_contiguous() && buffers[i].size(0) == batch && buffers[i].size(1) == 1 && buffers[i].size(2) >= cached &&
                       buffers[i].size(3) == layers[i].attention.kv_b.length + shape[2] && (buffers[i].scalar_type() == at::kFloat || buffers[i].scalar_type() == at::kBFloat16),
                   "a cache of another configuration");
        thread_local std::vector<float> turns;
        turns.resize(rows * 2 * frequencies.numel());
        float *cos = turns.data(), *sin = cos + rows * frequencies.numel();
        const auto where = positions.expect_contiguous();
        angles(*where, frequencies, float(numbers[3]), rows, cos, sin);
        const bool* kept = keep ? keep->const_data_ptr<bool>() : nullptr;
        axk1::Workspace space;
        for (size_t i = 0; i < layers.size(); ++i) {
            const Tensor& buffer = buffers[i];
            axk1::AttentionShape s{};
            s.batch = batch, s.tokens = tokens, s.hidden = width, s.cached = cached;
            s.heads = shape[0], s.nope = shape[1], s.rope = shape[2], s.interleave = shape[3];
            s.value = layers[i].attention.o.length / s.heads, s.query_rank = layers[i].query_rank, s.latent = buffer.size(3) - s.rope;
            s.sequence_rows = buffer.size(2), s.keep_stride = keep ? keep->stride(0) : 0;
            s.scale = float(numbers[0]), s.eps = float(numbers[1]);
            const Matrix cache = matrix(buffer, std::nullopt, exact);
            prompt = prompt && cache.kind == Matrix::kBFloat16;
            if (i + 1 == layers.size() && wanted < tokens) {  // of the other tokens nothing but their latents is used any more
                attend(layers[i], s, state, cos, sin, cache, kept, prompt, true, space);
                for (int64_t row = 0; row < batch * wanted; ++row) {
                    const int64_t from = row / wanted * tokens + tokens - wanted + row % wanted;
                    std::copy_n(state + from * width, width, state + row * width);
                    for (float* angles : {cos, sin}) std::copy_n(angles + from * frequencies.numel(), frequencies.numel(), angles + row * frequencies.numel());
                }
                s.tokens = tokens = wanted, prompt = prompt && tokens > shape[4];
            }
            attend(layers[i], s, state, cos, sin, cache, kept, prompt, false, space);
            feed_forward(layers[i], state, batch * tokens, width, prompt, space);
        }
        for (int64_t row = 0; row < batch * tokens; ++row)
            axk1::rms_norm(state + row * width, floats(tensors.back()), float(numbers[1]), width, state + row * width);
        Tensor out = at::empty({batch, tokens, width}, options);
        axk1::store(like.kind, out.mutable_data_ptr(), state, batch * tokens * width);
        return out;
    }

    // The attention block of one layer; `cache_only`: what it caches.
    static void attend(const Layer& layer, const axk1::AttentionShape& s, float* state, const float* cos, const float* sin, const Matrix& cache,
                       const bool* keep, bool prompt, bool cache_only, axk1::Workspace& space) {
        const int64_t threads = at::get_num_threads();
#ifdef AXK1_PACKED
        if (prompt) {
            axk1::AttentionPrompt block(s, layer.attention, space);
            #pragma omp parallel num_threads(threads)
            block.run(state, cos, sin, cache, keep, cache_only);
            return;
        }
#endif
        axk1::AttentionStep block(s, layer.attention, threads, scratch());
        #pragma omp parallel num_threads(threads)
        block.run(state, cos, sin, cache, keep, cache_only, omp_get_thread_num(), omp_get_num_threads());
    }

    // Its MLP block.
    void feed_forward(const Layer& layer, float* state, int64_t rows, int64_t width, bool prompt, axk1::Workspace& space) const {
        const int64_t threads = at::get_num_threads();
        const float eps = float(numbers[1]);
#ifdef AXK1_PACKED
        if (prompt) {
            axk1::MLPPrompt block(layer.mlp, layer.rule, rows, width, eps, space);
            #pragma omp parallel num_threads(threads)
            block.run(state);
            return;
        }
#endif
        axk1::MLPStep block(layer.mlp, layer.rule, rows, width, eps, scratch());
        #pragma omp parallel num_threads(threads)
        block.run(state, omp_get_thread_num(), omp_get_num_threads());
    }

    // cos and sin, [rows, R / 2] each, of positions [B or 1, T] times frequencies [R / 2]; both times `factor`.
    static void angles(const Tensor& positions, const Tensor& frequencies, float factor, int64_t rows, float* cos, float* sin) {
        const int64_t width = frequencies.numel(), given = positions.numel();
        const int64_t* at = positions.const_data_ptr<int64_t>();
        for (int64_t n = 0; n < rows; ++n)
            for (int64_t i = 0; i < width; ++i) {
                const float angle = float(at[n % given]) * floats(frequencies)[i];
                cos[n * width + i] = std::cos(angle) * factor;
                sin[n * width + i] = std::sin(angle) * factor;
            }
    }
};

}  // namespace

TORCH_LIBRARY(axk1, library) {
    library.class_<Layers>("Layers")
        .def(torch::init<std::vector<Tensor>, std::vector<Scale>, std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>,
                         std::vector<double>, bool>())
        .def("surround", &Layers::surround)
        .def("reads_prompts", &Layers::reads_prompts)
        .def("run", &Layers::run)
        .def("decode", &Layers::decode)
        .def("speculate", &Layers::speculate);
    library.def("has_amx() -> bool", [] {
#ifdef __AMX_BF16__
        return true;
#else
        return false;
#endif
    });
    library.def("reads_lossless() -> bool", [] {
#ifdef AXK1_PACKED
        return true;
#else
        return false;
#endif
    });
    library.def("pack_lossless(Tensor weight) -> (Tensor, Tensor)");
    library.def("linear(Tensor x, Tensor weight, Tensor? scale, bool exact) -> Tensor");
}

TORCH_LIBRARY_IMPL(axk1, CPU, library) {
    library.impl("linear", &linear);
#ifdef AXK1_PACKED
    library.impl("pack_lossless", &pack_lossless);
#endif
}
