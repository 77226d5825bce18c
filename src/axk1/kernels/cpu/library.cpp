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
    const Tensor &hidden, &cos, &sin;
    const std::optional<Tensor>& keep;
    at::IntArrayRef attention, routing;
    at::ArrayRef<double> numbers;
    bool exact;
};

// weights: input norm, q_a, its norm, q_b, kv_a, its norm, kv_b, o.
void attention_block(const Step& step, const Tensor* weights, const Matrix* read, const Tensor& joint) {
    const axk1::AttentionWeights w{floats(weights[0]), floats(weights[2]), floats(weights[5]), read[1], read[3], read[4], read[6], read[7]};
    axk1::AttentionShape s{};
    s.batch = step.hidden.size(0), s.tokens = step.hidden.size(1), s.hidden = step.hidden.size(2);
    s.heads = step.attention[0], s.nope = step.attention[1], s.rope = step.attention[2], s.interleave = step.attention[3];
    s.value = w.o.length / s.heads, s.query_rank = weights[1].size(0), s.latent = joint.size(2) - s.rope, s.cached = joint.size(1);
    s.sequence_rows = joint.stride(0) / joint.stride(1), s.keep_stride = step.keep ? step.keep->stride(0) : 0;
    s.scale = float(step.numbers[0]), s.eps = float(step.numbers[1]);
    Matrix cache = matrix(joint, std::nullopt, step.exact);
    cache.stride = joint.stride(1);
    axk1::AttentionStep block(s, w, at::get_num_threads(), scratch());
    float* state = step.hidden.mutable_data_ptr<float>();
    const bool* kept = step.keep ? step.keep->const_data_ptr<bool>() : nullptr;
    #pragma omp parallel num_threads(at::get_num_threads())
    block.run(state, floats(step.cos), floats(step.sin), cache, kept, omp_get_thread_num(), omp_get_num_threads());
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
    const Tensor& hidden = step.hidden;
    axk1::MLPStep block(w, rule, hidden.size(0) * hidden.size(1), hidden.size(2), float(step.numbers[1]), scratch());
    float* state = hidden.mutable_data_ptr<float>();
    #pragma omp parallel num_threads(at::get_num_threads())
    block.run(state, omp_get_thread_num(), omp_get_num_threads());
}

// Whole layers. `weights` are all layers' one after the other, eight of the attention block, then `parts[layer]` of the MLP
// block; and the norm behind them all. Norms and biases are float32, `scales` those of quantised weights. The last T columns of each layer's `joints`
// [B, S, C + R] are written, `hidden` [B, T, D] float32 is updated. `keep` [B, S]: false where nothing is to be attended.
// attention: heads, nope, rope, interleave; routing: groups, kept groups, best of a group, chosen, sigmoid, normalise,
// grouped; numbers: softmax scale, eps of the norms, routed scaling. A float32 cache asks for float32 arithmetic throughout.
void layers_step(const Tensor& hidden, at::TensorList weights, const c10::List<Scale>& scales, at::IntArrayRef parts,
                 at::IntArrayRef attention, at::IntArrayRef routing, at::ArrayRef<double> numbers, at::TensorList joints,
                 const Tensor& cos, const Tensor& sin, const std::optional<Tensor>& keep) {
    const Step step{hidden, cos, sin, keep, attention, routing, numbers, joints[0].scalar_type() == at::kFloat};
    std::vector<Matrix> read;
    for (size_t i = 0, first = 0; i < parts.size(); ++i) {
        const int64_t count = 8 + parts[i];
        read.clear();
        for (int64_t k = 0; k < count; ++k) read.push_back(matrix(weights[first + k], scales[first + k], step.exact));
        attention_block(step, &weights[first], read.data(), joints[i]);
        mlp_block(step, &weights[first + 8], read.data() + 8, parts[i]);
        first += count;
    }
    const int64_t width = hidden.size(2);
    float* state = hidden.mutable_data_ptr<float>();
    for (int64_t row = 0; row < hidden.size(0) * hidden.size(1); ++row)
        axk1::rms_norm(state + row * width, floats(weights.back()), step.numbers[1], width, state + row * width);
}

// x [..., I], float32 or bfloat16, times weight [O, I], to [..., O] of x's type; `exact`: in float32 arithmetic.
Tensor linear(const Tensor& x, const Tensor& weight, const Scale& scale, bool exact) {
    const Matrix w = matrix(weight, scale, exact), in = matrix(x, std::nullopt, exact);
    const int64_t rows = x.numel() / w.length, outputs = weight.size(0), threads = at::get_num_threads();
    auto shape = x.sizes().vec();
    shape.back() = outputs;
    Tensor out = at::empty(shape, x.options());
    std::vector<float>& memory = scratch();
    if (int64_t(memory.size()) < rows * (w.length + outputs)) memory.resize(rows * (w.length + outputs));
    float *inputs = memory.data(), *results = inputs + rows * w.length;
    for (int64_t row = 0; row < rows; ++row) in.from(row).read(inputs + row * w.length);
    #pragma omp parallel num_threads(threads)
    {
        const axk1::Share mine(outputs, omp_get_thread_num(), omp_get_num_threads());
        w.from(mine.begin).dot(mine.end - mine.begin, inputs, w.length, rows, results + mine.begin, outputs);
    }
    for (int64_t i = 0; i < rows * outputs; ++i) axk1::store(in.kind, out.mutable_data_ptr(), i, results[i]);
    return out;
}

// cos and sin [B, T, R / 2] of positions [B, T] times frequencies [R / 2], both times `factor`.
std::tuple<Tensor, Tensor> angles(const Tensor& positions, const Tensor& frequencies, double factor) {
    const int64_t count = positions.numel(), width = frequencies.numel();
    auto shape = positions.sizes().vec();
    shape.push_back(width);
    Tensor cos = at::empty(shape, frequencies.options()), sin = at::empty_like(cos);
    const int64_t* at = positions.const_data_ptr<int64_t>();
    float *cosines = cos.mutable_data_ptr<float>(), *sines = sin.mutable_data_ptr<float>();
    for (int64_t n = 0; n < count; ++n)
        for (int64_t i = 0; i < width; ++i) {
            const float angle = float(at[n]) * floats(frequencies)[i];
            cosines[n * width + i] = std::cos(angle) * float(factor);
            sines[n * width + i] = std::sin(angle) * float(factor);
        }
    return {cos, sin};
}

}  // namespace

TORCH_LIBRARY(axk1, library) {
    library.def("layers_step(Tensor(a!) hidden, Tensor[] weights, Tensor?[] scales, int[] parts, int[] attention, int[] routing, "
                "float[] numbers, Tensor(b!)[] joints, Tensor cos, Tensor sin, Tensor? keep) -> ()");
    library.def("linear(Tensor x, Tensor weight, Tensor? scale, bool exact) -> Tensor");
    library.def("angles(Tensor positions, Tensor frequencies, float factor) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(axk1, CPU, library) {
    library.impl("layers_step", &layers_step);
    library.impl("linear", &linear);
    library.impl("angles", &angles);
}
