// torch.library operators of the CPU decode step. Built on first use by axk1.kernels; see rows.h for the arithmetic.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "attention.h"
#include "mlp.h"

namespace {

using at::Tensor;
using axk1::Matrix;
typedef std::optional<at::Tensor> Scale;

const float* floats(const Tensor& t) { return t.const_data_ptr<float>(); }

// A weight [..., O, I], seen as rows. uint8: four-bit values, two a byte, with `scale` [..., O, groups];
// int8: with `scale` [..., O, 1].
Matrix matrix(const Tensor& weight, const Scale& scale, bool exact) {
    Matrix m;
    m.exact = exact;
    m.data = weight.const_data_ptr();
    m.length = weight.size(-1);
    const auto type = weight.scalar_type();
    if (type == at::kFloat) m.kind = Matrix::kFloat32;
    else if (type == at::kBFloat16) m.kind = Matrix::kBFloat16;
    else if (type == at::kChar && scale) m.kind = Matrix::kInt8;
    else if (type == at::kByte && scale) m.kind = Matrix::kInt4, m.length *= 2, m.group = m.length / scale->size(-1);
    else TORCH_CHECK_VALUE(false, "axk1 kernels read float32, bfloat16, and scaled int8 and int4 weights, not ", type, ".");
    TORCH_CHECK_VALUE(m.kind != Matrix::kInt4 || m.group % 32 == 0, "A group of int4 weights has ", m.group, " values; it must be a multiple of 32.");
    m.stride = m.length;
    if (scale) m.scale = floats(*scale);
    return m;
}

// Reused, so that a step allocates next to nothing; operators called from one thread do not overlap.
std::vector<float>& scratch() {
    thread_local std::vector<float> memory;
    return memory;
}

struct Step {  // what all layers of a step have in common
    int64_t batch, tokens, hidden, cached;
    float* state;  // [B, T, D]
    const float *cos, *sin;  // [B, T, R / 2]
    const bool* keep;
    int64_t keep_stride;
    at::IntArrayRef attention, routing;
    at::ArrayRef<double> numbers;
    bool exact;
};

// weights: input norm, q_a, its norm, q_b, kv_a, its norm, kv_b, o.
void attention_block(const Step& step, const Tensor* weights, const Matrix* read, const Tensor& buffer) {
    const axk1::AttentionWeights w{floats(weights[0]), floats(weights[2]), floats(weights[5]), read[1], read[3], read[4], read[6], read[7]};
    axk1::AttentionShape s{};
    s.batch = step.batch, s.tokens = step.tokens, s.hidden = step.hidden, s.cached = step.cached;
    s.heads = step.attention[0], s.nope = step.attention[1], s.rope = step.attention[2], s.interleave = step.attention[3];
    s.value = w.o.length / s.heads, s.query_rank = weights[1].size(0), s.latent = buffer.size(3) - s.rope;
    s.sequence_rows = buffer.size(2), s.keep_stride = step.keep_stride;
    s.scale = float(step.numbers[0]), s.eps = float(step.numbers[1]);
    const Matrix cache = matrix(buffer, std::nullopt, step.exact);
    axk1::AttentionStep block(s, w, at::get_num_threads(), scratch());
    #pragma omp parallel num_threads(at::get_num_threads())
    block.run(step.state, step.cos, step.sin, cache, step.keep, omp_get_thread_num(), omp_get_num_threads());
}

// weights of a dense layer: norm, gate, up, down; of a MoE layer: norm, post norm, router, its bias, experts' gate_up and
// down, then gate, up and down of the shared expert where there is one.
void mlp_block(const Step& step, const Tensor* weights, const Matrix* read, int64_t count) {
    const bool dense = count == 4;
    const int64_t first = dense ? 1 : 6;  // gate of the dense MLP or of the shared expert
    axk1::RouterRule rule;
    axk1::MLPWeights w{};
    w.norm = floats(weights[0]);
    if (!dense) {
        w.post_norm = floats(weights[1]), w.router = read[2], w.bias = floats(weights[3]), w.gate_ups = read[4], w.downs = read[5];
        w.expert_width = w.downs.length;
        const auto& r = step.routing;
        rule.experts = weights[2].size(0), rule.groups = r[0], rule.kept_groups = r[1], rule.group_best = r[2], rule.chosen = r[3];
        rule.sigmoid = r[4], rule.normalise = r[5], rule.grouped = r[6], rule.scaling = float(step.numbers[2]);
    }
    if (count > first) w.gate = read[first], w.up = read[first + 1], w.down = read[first + 2], w.width = w.down.length;
    axk1::MLPStep block(w, rule, step.batch * step.tokens, step.hidden, float(step.numbers[1]), scratch());
    #pragma omp parallel num_threads(at::get_num_threads())
    block.run(step.state, omp_get_thread_num(), omp_get_num_threads());
}

// cos and sin, [B, T, R / 2] each, of positions [B or 1, T] times frequencies [R / 2]; both times `factor`.
void angles(const Tensor& positions, const Tensor& frequencies, float factor, int64_t rows, float* cos, float* sin) {
    const int64_t width = frequencies.numel(), given = positions.numel();
    const int64_t* at = positions.const_data_ptr<int64_t>();
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t i = 0; i < width; ++i) {
            const float angle = float(at[n % given]) * floats(frequencies)[i];
            cos[n * width + i] = std::cos(angle) * factor;
            sin[n * width + i] = std::sin(angle) * factor;
        }
}

// Whole layers and the norm behind them, over hidden [B, T, D], float32 or bfloat16, to the same of what they make of it.
// `weights` are all layers' one after the other, eight of the attention block, then `parts[layer]` of the MLP block; and the
// norm's. Norms and biases are float32, `scales` those of quantised weights. Columns `cached` - T to `cached` of each layer's
// `buffers` [B, 1, capacity, C + R] are written. positions [B or 1, T] int64 and frequencies [R / 2] float32 make the rotary
// angles. `keep` [B, cached or more]: false where nothing is to be attended.
// attention: heads, nope, rope, interleave; routing: groups, kept groups, best of a group, chosen, sigmoid, normalise,
// grouped; numbers: softmax scale, eps of the norms, routed scaling, factor of cos and sin. A float32 cache asks for float32
// arithmetic throughout.
Tensor layers_step(const Tensor& hidden, at::TensorList weights, const c10::List<Scale>& scales, at::IntArrayRef parts,
                   at::IntArrayRef attention, at::IntArrayRef routing, at::ArrayRef<double> numbers, at::TensorList buffers,
                   int64_t cached, const Tensor& positions, const Tensor& frequencies, const std::optional<Tensor>& keep) {
    const auto given = hidden.expect_contiguous(), where = positions.expect_contiguous();
    const int64_t rows = hidden.size(0) * hidden.size(1), width = hidden.size(2), turned = frequencies.numel();
    thread_local std::vector<float> memory;
    memory.resize(rows * (width + 2 * turned));
    float *state = memory.data(), *cos = state + rows * width, *sin = cos + rows * turned;
    const bool exact = buffers[0].scalar_type() == at::kFloat;
    const Matrix in = matrix(*given, std::nullopt, exact);
    for (int64_t row = 0; row < rows; ++row) in.from(row).read(state + row * width);
    angles(*where, frequencies, float(numbers[3]), rows, cos, sin);
    const Step step{hidden.size(0), hidden.size(1), width, cached, state, cos, sin, keep ? keep->const_data_ptr<bool>() : nullptr,
                    keep ? keep->stride(0) : 0, attention, routing, numbers, exact};
    std::vector<Matrix> read;
    for (size_t i = 0, first = 0; i < parts.size(); ++i) {
        const int64_t count = 8 + parts[i];
        read.clear();
        for (int64_t k = 0; k < count; ++k) read.push_back(matrix(weights[first + k], scales[first + k], exact));
        attention_block(step, &weights[first], read.data(), buffers[i]);
        mlp_block(step, &weights[first + 8], read.data() + 8, parts[i]);
        first += count;
    }
    Tensor out = at::empty_like(*given);
    for (int64_t row = 0; row < rows; ++row)
        axk1::rms_norm(state + row * width, floats(weights.back()), float(numbers[1]), width, state + row * width);
    axk1::store(in.kind, out.mutable_data_ptr(), state, rows * width);
    return out;
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

// What an MTP module's block reads: eh_proj times [enorm(embeddings), hnorm(states)], for states and embeddings [..., D].
Tensor combine(const Tensor& states, const Tensor& embeddings, const Tensor& hnorm, const Tensor& enorm, const Tensor& eh_proj,
               const Scale& scale, double eps, bool exact) {
    const auto given = states.expect_contiguous(), beside = embeddings.expect_contiguous();
    const int64_t width = states.size(-1), rows = states.numel() / width;
    const Matrix w = matrix(eh_proj, scale, exact), left = matrix(*beside, std::nullopt, exact), right = matrix(*given, std::nullopt, exact);
    thread_local std::vector<float> both;
    both.resize(rows * 2 * width);
    for (int64_t row = 0; row < rows; ++row) {
        float* place = both.data() + row * 2 * width;
        left.from(row).read(place), right.from(row).read(place + width);
        axk1::rms_norm(place, floats(enorm), float(eps), width, place);
        axk1::rms_norm(place + width, floats(hnorm), float(eps), width, place + width);
    }
    Tensor out = at::empty_like(*given);
    multiply(w, both.data(), rows, width, right.kind, out.mutable_data_ptr());
    return out;
}

}  // namespace

TORCH_LIBRARY(axk1, library) {
    library.def("layers_step(Tensor hidden, Tensor[] weights, Tensor?[] scales, int[] parts, int[] attention, int[] routing, "
                "float[] numbers, Tensor(a!)[] buffers, int cached, Tensor positions, Tensor frequencies, Tensor? keep) -> Tensor");
    library.def("linear(Tensor x, Tensor weight, Tensor? scale, bool exact) -> Tensor");
    library.def("combine(Tensor states, Tensor embeddings, Tensor hnorm, Tensor enorm, Tensor eh_proj, Tensor? scale, float eps, "
                "bool exact) -> Tensor");
}

TORCH_LIBRARY_IMPL(axk1, CPU, library) {
    library.impl("layers_step", &layers_step);
    library.impl("linear", &linear);
    library.impl("combine", &combine);
}
