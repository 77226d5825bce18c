// Memory that is read soon, fetched into the second-level cache.
//
// Where rows are read one after the other, the processor's own prefetchers do better than instructions (by 40% where each
// core has a memory link of its own). Several streams at once, or strips of rows, are beyond them.
#pragma once

#include <cstdint>

namespace axk1 {

constexpr int64_t kLine = 64;     // bytes of a cache line
constexpr int64_t kAhead = 8192;  // bytes between what is read in one stream and what is fetched

// Pieces of memory at equal distances, fetched in order and little by little.
class Fetch {
    const char* piece;
    const int64_t size, distance;
    int64_t left, place = 0, due = 0;

public:
    // `count` pieces of `size` bytes, the first at `data`, each `distance` bytes behind the one before.
    Fetch(const void* data, int64_t size_, int64_t distance_, int64_t count)
        : piece(static_cast<const char*>(data)), size(size_), distance(distance_), left(count) {}

    // Fetches the next `bytes`.
    void more(int64_t bytes) {
        for (due += bytes; due >= kLine && left; due -= kLine) {
            __builtin_prefetch(piece + place, 0, 2);
            if ((place += kLine) >= size) piece += distance, place = 0, --left;
        }
    }
};

}  // namespace axk1
