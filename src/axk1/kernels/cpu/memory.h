// Memory that is used again: by a thread from call to call, and by a step from layer to layer.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace axk1 {

constexpr int64_t kLine = 64;  // bytes of a cache line
struct alignas(kLine) Line { char bytes[kLine]; };

inline int64_t lines(int64_t bytes) { return (bytes + kLine - 1) / kLine; }

// Of this thread, until its next call for the same `User`.
template <class User, class T>
inline T* memory(int64_t count) {
    thread_local std::vector<Line> held;
    const int64_t needed = lines(count * sizeof(T));
    if (int64_t(held.size()) < needed) held.resize(needed);
    return reinterpret_cast<T*>(held.data());
}

// One piece of memory in parts, each at the start of a cache line.
class Workspace {
    std::unique_ptr<Line[]> held;
    int64_t size = 0, next = 0;
    bool counting = false;

public:
    template <class T>
    void take(T*& part, int64_t count) {
        part = counting ? nullptr : reinterpret_cast<T*>(held.get() + next);
        next += lines(count * sizeof(T));
    }

    // Gives back what is more than is worth keeping until the next step.
    void trim() {
        constexpr int64_t kKept = 128 << 20;  // bytes
        if (size * kLine > kKept) size = 0, held.reset();
    }

    // `parts` takes all there is to take; it is called twice, first to find out how much that is.
    template <class Parts>
    void divide(const Parts& parts) {
        next = 0, counting = true;
        parts();
        if (size <= next) size = next + 1, held.reset(new Line[size]);
        next = 0, counting = false;
        parts();
    }
};

// Pieces of memory at equal distances, fetched in order and little by little.
class Fetch {
    const char* piece = nullptr;
    int64_t size = 0, distance = 0, left = 0, place = 0, due = 0;

public:
    Fetch() = default;  // nothing

    // `count` pieces of `size` bytes, the first at `data`, each `distance` bytes after the one before.
    Fetch(const void* data, int64_t size_, int64_t distance_, int64_t count)
        : piece(static_cast<const char*>(data)), size(size_), distance(distance_), left(count) {}

    explicit operator bool() const { return left; }

    // Fetches the next `bytes`.
    void more(int64_t bytes) {
        for (due += bytes; due >= kLine && left; due -= kLine) {
            __builtin_prefetch(piece + place, 0, 2);
            if ((place += kLine) >= size) piece += distance, place = 0, --left;
        }
    }
};

}  // namespace axk1
