// The tokens of a step, and where the latents that they attend to are.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/formats.h"

namespace axk1 {

constexpr int64_t kPage = 64;  // tokens per page of latents, and per block of the running softmax

// Some tokens of one sequence, one after the other.
struct Sequence {
    int64_t first, tokens;  // its tokens' place among all of its role
    int64_t cached;         // tokens in the cache once these are
    const int64_t* pages;   // addresses of its pages
    const bool* keep;       // false where nothing is to be attended to; null: nowhere
};

// A layer's latents: pages of kPage rows of `width` values.
struct Cache {
    Matrix::Kind kind;
    bool exact;
    int64_t width, layer;  // layer: bytes that are added to the addresses of pages

    Matrix page(const Sequence& sequence, int64_t number) const {
        Matrix m;
        m.kind = kind, m.exact = exact, m.length = m.stride = width;
        m.data = reinterpret_cast<const void*>(sequence.pages[number] + layer);
        return m;
    }
    Matrix row(const Sequence& sequence, int64_t column) const { return page(sequence, column / kPage).from(column % kPage); }
};

// The tokens of one role, of all sequences that have it.
struct Tokens {
    int64_t count = 0;
    std::vector<Sequence> sequences;
    std::vector<int64_t> owner, column;  // per token: its sequence, and its place in that
    std::vector<float> cos, sin;         // [count, rope / 2]

    void add(Sequence sequence) {
        sequence.first = count;
        for (int64_t t = 0; t < sequence.tokens; ++t) {
            owner.push_back(int64_t(sequences.size()));
            column.push_back(sequence.cached - sequence.tokens + t);
        }
        sequences.push_back(sequence);
        count += sequence.tokens;
    }
};

}  // namespace axk1
