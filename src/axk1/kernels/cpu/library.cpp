// The C interface of axk1.h. Compiled once per instruction set, by flags; axk1.kernels.build chooses.
#include "axk1.h"

#include "model.h"
#include "rounding.h"

struct axk1_layers : axk1::Layers {
    using axk1::Layers::Layers;
};
struct axk1_stream : axk1::Stream {
    using axk1::Stream::Stream;
};

namespace {

using namespace axk1;

std::string& error() {
    thread_local std::string text;
    return text;
}

template <class What>
int guarded(const What& what) {
    try {
        what();
        return 0;
    } catch (const std::exception& failure) {
        error() = failure.what();
    } catch (...) {
        error() = "The kernels failed.";
    }
    return 1;
}

}  // namespace

extern "C" {

const char* axk1_instructions(void) { return kInstructions; }
const char* axk1_error(void) { return error().c_str(); }

axk1_layers* axk1_new(const axk1_shape* shape) {
    axk1_layers* made = nullptr;
    guarded([&] { made = new axk1_layers(*shape); });
    return made;
}
void axk1_delete(axk1_layers* layers) { delete layers; }

int axk1_set(axk1_layers* layers, int64_t layer, const char* name, const axk1_matrix* weight) {
    return guarded([&] { layers->set(layer, name, *weight); });
}
int axk1_set_head_ids(axk1_layers* layers, const int64_t* ids, int64_t count) {
    return guarded([&] { layers->set_head_ids(ids, count); });
}
int axk1_set_store(axk1_layers* layers, int64_t layer, axk1_stream* stream, int64_t stream_layer) {
    return guarded([&] { layers->set_store(layer, stream, stream_layer); });
}
int axk1_finish(axk1_layers* layers) {
    return guarded([&] { layers->finish(); });
}

int axk1_run(axk1_layers* layers, const axk1_step* step) {
    return guarded([&] { layers->run(*step); });
}

int axk1_speculate(axk1_layers* trunk, axk1_layers* module, const axk1_step* waiting, const axk1_step* step, int64_t count) {
    return guarded([&] {
        const int64_t sequences = waiting->sequences, width = module->sizes().hidden;
        expect(count >= 1 && count <= 4096 && step->sequences == sequences && step->prompts == 0, "drafts for other sequences");
        for (int64_t i = 0; i < sequences; ++i) {
            expect(step->starts[i + 1] - step->starts[i] == count + 1, "another number of tokens than drafts and one");
            expect(waiting->wanted[i] == 1 && waiting->scored[i] == 1, "drafts after no token");
            const int64_t last = waiting->cached[i] + waiting->starts[i + 1] - waiting->starts[i] + count - 1;
            expect((last + kPage - 1) / kPage <= waiting->most_pages, "fewer pages than drafts need");
        }
        std::vector<float> states(sequences * width);  // room for either format
        std::vector<int64_t> best(sequences), cached(sequences), positions(sequences), starts(sequences + 1), next(sequences);
        axk1_step draft = *waiting;
        draft.states = states.data(), draft.logits = nullptr, draft.best = best.data();
        for (int64_t made = 0;;) {
            module->run(draft);
            for (int64_t i = 0; i < sequences; ++i) step->ids[step->starts[i] + 1 + made] = best[i];
            if (++made == count) break;
            for (int64_t i = 0; i < sequences; ++i) {
                cached[i] = draft.cached[i] + draft.starts[i + 1] - draft.starts[i];
                positions[i] = draft.positions[draft.starts[i + 1] - 1] + 1;
                next[i] = best[i];
            }
            for (int64_t i = 0; i <= sequences; ++i) starts[i] = i;
            draft.prompts = 0, draft.starts = starts.data(), draft.cached = cached.data(), draft.positions = positions.data();
            draft.ids = next.data(), draft.hidden = states.data(), draft.hidden_format = draft.states_format, draft.keep = nullptr;
        }
        trunk->run(*step);
    });
}

axk1_stream* axk1_stream_new(int64_t slots, int64_t slot_bytes, int64_t readers, double decay) {
    axk1_stream* made = nullptr;
    guarded([&] { made = new axk1_stream(slots, slot_bytes, readers, decay); });
    return made;
}
void axk1_stream_delete(axk1_stream* stream) { delete stream; }
int axk1_stream_file(axk1_stream* stream, const char* path) {
    return guarded([&] { stream->add_file(path); });
}
int axk1_stream_add(axk1_stream* stream, int64_t layer, int64_t expert, const axk1_place* place) {
    return guarded([&] { stream->add(layer, expert, *place); });
}
void axk1_stream_count(axk1_stream* stream, axk1_counters* out) { *out = stream->count(); }
int64_t axk1_stream_trace(axk1_stream* stream, int64_t on, int64_t* out, int64_t room) { return stream->copy_trace(on, out, room); }

int axk1_linear(const axk1_matrix* weight, int64_t exact, const void* x, int64_t format, int64_t rows, void* out, int64_t threads) {
    return guarded([&] {
        const Matrix w = matrix(*weight, exact);
        expect((format == AXK1_FLOAT32 || format == AXK1_BFLOAT16) && x && out && rows > 0 && threads > 0, "inputs that are no floats");
        Matrix in;
        in.kind = Matrix::Kind(format), in.data = x, in.length = in.stride = w.length;
        const int64_t outputs = weight->rows;
        std::vector<float> inputs(rows * w.length), results(rows * outputs);
        for (int64_t row = 0; row < rows; ++row) in.from(row).read(inputs.data() + row * w.length);
        parallel(threads, [&](Team& team) {
            const Share mine = team.share(outputs);
            w.from(mine.begin).dot(mine.end - mine.begin, inputs.data(), w.length, rows, results.data() + mine.begin, outputs);
        });
        store(in.kind, out, results.data(), rows * outputs);
    });
}

int axk1_round(const void* weight, int64_t format, int64_t bits, int64_t groups, int64_t group, const float* clips, int64_t tries, float largest, float tiny,
                    uint8_t* packed, float* scales, double* squares) {
    return guarded([&] {
        expect(format == AXK1_FLOAT32 || format == AXK1_BFLOAT16, "weights that are no floats");
        expect(bits == 3 || bits == 4, "weights to round to other than 3 or 4 bits");
        expect(tries >= 1 && tries <= kTries, "too many clips");
        Clips given{{}, int(tries), largest, tiny};
        std::copy_n(clips, tries, given.shares);
        const auto round = [&](const auto* values) {
            if (bits == 4) round_weights<4>(values, groups, group, given, packed, scales, squares);
            else round_weights<3>(values, groups, group, given, packed, scales, squares);
        };
        if (format == AXK1_FLOAT32) round(static_cast<const float*>(weight));
        else round(static_cast<const uint16_t*>(weight));
    });
}

int64_t axk1_lossless_side(const uint16_t* values, int64_t rows, int64_t columns, int64_t threads) {
    const int64_t blocks = columns / Lossless::kBlock;
    std::atomic<int64_t> raw{0};
    parallel(threads, [&](Team& team) {
        int64_t mine = 0;
        team.each(rows, [&](int64_t row) {
            for (int64_t b = 0; b < blocks; ++b) mine += !Lossless::base(values + row * columns + b * Lossless::kBlock);
        });
        raw += mine;
    });
    return padded_bytes(rows * blocks) + padded_bytes(rows * 4) + raw * 2 * Lossless::kBlock;
}

int axk1_pack_lossless(const uint16_t* values, int64_t rows, int64_t columns, uint8_t* packed, uint8_t* side, int64_t side_bytes, int64_t threads) {
    return guarded([&] {
        expect(rows > 0 && columns > 0 && columns % Lossless::kBlock == 0, "weights to pack whose rows are no multiple of 64 values");
        const int64_t blocks = columns / Lossless::kBlock, first_start = padded_bytes(rows * blocks), first_raw = first_start + padded_bytes(rows * 4);
        std::memset(side, 0, std::min(side_bytes, first_raw));
        auto* starts = reinterpret_cast<int32_t*>(side + first_start);
        parallel(threads, [&](Team& team) {
            team.each(rows, [&](int64_t row) {
                int32_t raw = 0;
                for (int64_t b = 0; b < blocks; ++b) raw += !(side[row * blocks + b] = Lossless::base(values + row * columns + b * Lossless::kBlock));
                starts[row] = raw;
            });
            team.barrier();
            team.single([&] {
                int32_t before = 0;
                for (int64_t row = 0; row < rows; ++row) {
                    const int32_t own = starts[row];
                    starts[row] = before;
                    before += own;
                }
            });
            team.each(rows, [&](int64_t row) {
                uint8_t* raw = side + first_raw + int64_t(starts[row]) * 2 * Lossless::kBlock;
                for (int64_t b = 0; b < blocks; ++b) {
                    const uint16_t* block = values + row * columns + b * Lossless::kBlock;
                    uint8_t* place = packed + (row * blocks + b) * Lossless::kBytes;
                    if (side[row * blocks + b]) {
                        Lossless::pack(block, side[row * blocks + b], place);
                    } else {
                        std::memset(place, 0, Lossless::kBytes);
                        std::memcpy(raw, block, 2 * Lossless::kBlock), raw += 2 * Lossless::kBlock;
                    }
                }
            });
        });
    });
}

}  // extern "C"
