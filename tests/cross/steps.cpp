// Random layers in every format, read as a prompt and as replies, through the C interface: prints the states of each step, so
// that two instruction sets can be compared where there is no Python. Needs nothing but the kernels.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "axk1.h"

namespace {

uint64_t state = 1;
float uniform() {  // -1 to 1, the same everywhere
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return float(int64_t(state >> 40) - (1 << 23)) / float(1 << 23);
}

uint16_t half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

std::vector<std::vector<char>> held;
template <class T>
T* keep(int64_t count) {
    held.emplace_back(count * sizeof(T) + 64);
    return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(held.back().data()) + 63) / 64 * 64);
}

axk1_matrix weight(int64_t rows, int64_t columns, int64_t format) {
    axk1_matrix m{nullptr, format, rows, columns, nullptr, 0};
    const float scale = 1.5f / __builtin_sqrtf(float(columns));
    if (format == AXK1_FLOAT32) {
        auto* values = keep<float>(rows * columns);
        for (int64_t i = 0; i < rows * columns; ++i) values[i] = rows == 1 ? 1 + uniform() / 4 : uniform() * scale;
        m.data = values;
    } else if (format == AXK1_BFLOAT16) {
        auto* values = keep<uint16_t>(rows * columns);
        for (int64_t i = 0; i < rows * columns; ++i) values[i] = half(uniform() * scale);
        m.data = values;
    } else {
        const int64_t groups = format == AXK1_INT8 ? 1 : columns / 32, bytes = format == AXK1_INT8 ? columns : format == AXK1_INT4 ? columns / 2 : columns / 8 * 3;
        auto* values = keep<uint8_t>(rows * bytes);
        auto* scales = keep<float>(rows * groups);
        for (int64_t i = 0; i < rows * bytes; ++i) values[i] = uint8_t(int(uniform() * 127));
        for (int64_t i = 0; i < rows * groups; ++i) scales[i] = scale / (format == AXK1_INT8 ? 127.0f : format == AXK1_INT4 ? 8.0f : 4.0f) * (1 + uniform() / 4);
        m.data = values, m.side = scales, m.side_bytes = rows * groups * 4;
    }
    return m;
}

void check(int failed) {
    if (failed) std::printf("%s\n", axk1_error()), std::exit(1);
}

void run(int64_t format, bool exact) {
    constexpr int64_t D = 96, H = 3, N = 20, R = 8, V = 24, Q = 64, C = 32, E = 8, F = 64, S = 64;
    const axk1_shape shape{2, D, 50, H, N, R, V, Q, C, 1, 64, F, S, E, 4, 2, 2, 3, 1, 1, 1, exact, 0.19, 1e-6, 2.5, 1.1};
    axk1_layers* layers = axk1_new(&shape);
    const bool few = format == AXK1_INT4 || format == AXK1_INT3;
    const int64_t plain = exact ? AXK1_FLOAT32 : AXK1_BFLOAT16;
    const auto set = [&](int64_t layer, const char* name, int64_t rows, int64_t columns, int64_t kind) {
        const axk1_matrix m = weight(rows, columns, kind);
        check(axk1_set(layers, layer, name, &m));
    };
    for (int64_t layer = 0; layer < 2; ++layer) {
        set(layer, "input_layernorm", 1, D, 0), set(layer, "self_attn.q_a_layernorm", 1, Q, 0), set(layer, "self_attn.kv_a_layernorm", 1, C, 0);
        set(layer, "post_attention_layernorm", 1, D, 0);
        set(layer, "self_attn.q_a_proj", Q, D, format), set(layer, "self_attn.q_b_proj", H * (N + R), Q, format);
        set(layer, "self_attn.kv_a_proj_with_mqa", C + R, D, format), set(layer, "self_attn.kv_b_proj", H * (N + V), C, few ? plain : format);
        set(layer, "self_attn.o_proj", D, H * V, few ? plain : format);
        if (layer == 0) {
            set(0, "mlp.gate_proj", 64, D, format), set(0, "mlp.up_proj", 64, D, format), set(0, "mlp.down_proj", D, 64, format);
            continue;
        }
        set(1, "post_mlp_layernorm", 1, D, 0), set(1, "mlp.gate", E, D, plain), set(1, "mlp.gate.e_score_correction_bias", 1, E, 0);
        set(1, "mlp.experts.gate_up_proj", E * 2 * F, D, format), set(1, "mlp.experts.down_proj", E * D, F, format);
        set(1, "mlp.shared_experts.gate_proj", S, D, format), set(1, "mlp.shared_experts.up_proj", S, D, format);
        set(1, "mlp.shared_experts.down_proj", D, S, format);
    }
    set(-1, "norm", 1, D, 0), set(-1, "embed_tokens", 50, D, plain), set(-1, "lm_head", 50, D, plain);
    check(axk1_finish(layers));
    const int64_t item = exact ? 4 : 2, size = 64 * (C + R) * item, offsets[] = {0, size};
    const int64_t pages[] = {int64_t(keep<char>(2 * size)), int64_t(keep<char>(2 * size))};
    float frequencies[R / 2] = {1.0f, 0.3f, 0.1f, 0.03f};
    int64_t cached = 0;
    for (int64_t tokens : {70, 1, 3, 1}) {
        std::vector<int64_t> ids(tokens), positions(tokens), best(tokens);
        for (int64_t t = 0; t < tokens; ++t) ids[t] = (7 * (cached + t) + 3) % 50, positions[t] = cached + t;
        std::vector<float> states(tokens * D), logits(tokens * 50);
        const int64_t starts[] = {0, tokens};
        axk1_step step{};
        step.sequences = 1, step.prompts = tokens > 3, step.threads = 2, step.starts = starts, step.cached = &cached, step.positions = positions.data();
        step.pages = pages, step.most_pages = 2, step.layers = offsets, step.cache_format = plain, step.frequencies = frequencies, step.ids = ids.data();
        step.wanted = &tokens, step.scored = &tokens, step.states = states.data(), step.states_format = AXK1_FLOAT32;
        step.logits = logits.data(), step.best = best.data();
        check(axk1_run(layers, &step));
        for (float value : states) std::printf("%.6g\n", value);
        for (float value : logits) std::printf("%.6g\n", value);
        cached += tokens;
    }
    axk1_delete(layers);
}

}  // namespace

int main() {
    std::printf("# %s\n", axk1_instructions());
    run(AXK1_FLOAT32, true);
    for (int64_t format : {AXK1_BFLOAT16, AXK1_INT8, AXK1_INT4, AXK1_INT3}) run(format, false);
}
