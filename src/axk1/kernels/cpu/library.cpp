// torch.library operators of the CPU decode step. Built on first use by axk1.kernels; see rows.h for the arithmetic.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
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
Matrix matrix(const Tensor& weight, const Scale& scale = std::nullopt) {
    Matrix m;
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

// weights: input norm, q_a, its norm, q_b, kv_a, its norm, kv_b, o; norms are float32, `scales` those of quantised ones.
// The last T columns of `joint` [B, S, C + R] are written, `hidden` [B, T, D] float32 is updated. `keep` [B, S]: false
// where nothing is to be attended.
void attention_step(const Tensor& hidden, at::TensorList weights, const c10::List<Scale>& scales, const Tensor& joint, const Tensor& cos,
                    const Tensor& sin, const std::optional<Tensor>& keep, int64_t heads, int64_t nope, int64_t rope, double scale,
                    double eps, bool interleave) {
    const auto read = [&](int64_t i) { return matrix(weights[i], scales[i]); };
    const axk1::AttentionWeights w{floats(weights[0]), floats(weights[2]), floats(weights[5]), read(1), read(3), read(4), read(6), read(7)};
    axk1::AttentionShape s{};
    s.batch = hidden.size(0), s.tokens = hidden.size(1), s.hidden = hidden.size(2);
    s.heads = heads, s.nope = nope, s.rope = rope, s.value = w.o.length / heads;
    s.query_rank = weights[1].size(0), s.latent = joint.size(2) - rope, s.cached = joint.size(1);
    s.sequence_rows = joint.stride(0) / joint.stride(1), s.keep_stride = keep ? keep->stride(0) : 0;
    s.scale = float(scale), s.eps = float(eps), s.interleave = interleave;
    Matrix cache = matrix(joint);
    cache.stride = joint.stride(1);
    axk1::AttentionStep step(s, w, at::get_num_threads(), scratch());
    float* state = hidden.mutable_data_ptr<float>();
    const bool* kept = keep ? keep->const_data_ptr<bool>() : nullptr;
    #pragma omp parallel num_threads(at::get_num_threads())
    step.run(state, floats(cos), floats(sin), cache, kept, omp_get_thread_num(), omp_get_num_threads());
}

// weights of a dense layer: norm, gate, up, down; of a MoE layer: norm, post norm, router, its bias, experts' gate_up and
// down, then gate, up and down of the shared expert where there is one. `hidden` [B, T, D] float32 is updated.
void mlp_step(const Tensor& hidden, at::TensorList weights, const c10::List<Scale>& scales, int64_t groups, int64_t kept_groups,
              int64_t group_best, int64_t chosen, bool sigmoid, bool normalise, bool grouped, double scaling, double eps) {
    const auto read = [&](int64_t i) { return matrix(weights[i], scales[i]); };
    const bool dense = weights.size() == 4;
    const int64_t first = dense ? 1 : 6;  // gate of the dense MLP or of the shared expert
    axk1::RouterRule rule;
    axk1::MLPWeights w{};
    w.norm = floats(weights[0]);
    if (!dense) {
        w.post_norm = floats(weights[1]), w.router = read(2), w.bias = floats(weights[3]), w.gate_ups = read(4), w.downs = read(5);
        w.expert_width = w.downs.length;
        rule.experts = weights[2].size(0), rule.groups = groups, rule.kept_groups = kept_groups, rule.group_best = group_best;
        rule.chosen = chosen, rule.sigmoid = sigmoid, rule.normalise = normalise, rule.grouped = grouped, rule.scaling = float(scaling);
    }
    if (int64_t(weights.size()) > first)
        w.gate = read(first), w.up = read(first + 1), w.down = read(first + 2), w.width = w.down.length;
    axk1::MLPStep step(w, rule, hidden.size(0) * hidden.size(1), hidden.size(2), float(eps), scratch());
    float* state = hidden.mutable_data_ptr<float>();
    #pragma omp parallel num_threads(at::get_num_threads())
    step.run(state, omp_get_thread_num(), omp_get_num_threads());
}

// x [rows, I] float32 times weight [O, I], to float32 [rows, O].
Tensor linear(const Tensor& x, const Tensor& weight, const Scale& scale) {
    const int64_t rows = x.size(0), outputs = weight.size(0);
    const Matrix w = matrix(weight, scale);
    Tensor out = at::empty({rows, outputs}, x.options());
    const float* in = floats(x);
    float* result = out.mutable_data_ptr<float>();
    #pragma omp parallel num_threads(at::get_num_threads())
    {
        const axk1::Share mine(outputs, omp_get_thread_num(), omp_get_num_threads());
        w.from(mine.begin).dot(mine.end - mine.begin, in, w.length, rows, result + mine.begin, outputs);
    }
    return out;
}

}  // namespace

TORCH_LIBRARY(axk1, library) {
    library.def("attention_step(Tensor(a!) hidden, Tensor[] weights, Tensor?[] scales, Tensor(b!) joint, Tensor cos, Tensor sin, "
                "Tensor? keep, int heads, int nope, int rope, float scale, float eps, bool interleave) -> ()");
    library.def("mlp_step(Tensor(a!) hidden, Tensor[] weights, Tensor?[] scales, int groups, int kept_groups, int group_best, "
                "int chosen, bool sigmoid, bool normalise, bool grouped, float scaling, float eps) -> ()");
    library.def("linear(Tensor x, Tensor weight, Tensor? scale=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(axk1, CPU, library) {
    library.impl("attention_step", &attention_step);
    library.impl("mlp_step", &mlp_step);
    library.impl("linear", &linear);
}
