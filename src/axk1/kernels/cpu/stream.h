// Experts that are read from files as they are asked for, into a cache whose size is fixed.
//
// Reader threads read past the page cache (O_DIRECT), one contiguous piece per expert where the file has it so. What is
// asked for first is read first, and handed out in the order in which it is asked for, as soon as it is there. Which
// expert gives way depends on what was asked for alone, never on how fast the disk was (axk1.experts.simulate counts the
// same hits).
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <vector>

#include "axk1.h"
#include "mlp.h"
#include "weight.h"

#ifdef __APPLE__
#define AXK1_CHANGED st_mtimespec
#else
#define AXK1_CHANGED st_mtim
#endif

namespace axk1 {

constexpr int64_t kFilePage = 4096;  // what offsets, lengths and addresses are multiples of past the page cache

// A file of weights, opened once: one that is replaced under its name meanwhile is not seen.
class WeightFile {
    int descriptor = -1;
    struct stat found = {};

public:
    const std::string name;

    explicit WeightFile(const char* path) : name(path) {
#ifdef O_DIRECT
        descriptor = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
#endif
        if (descriptor < 0) descriptor = open(path, O_RDONLY | O_CLOEXEC);  // a file system without it
#ifdef F_NOCACHE
        if (descriptor >= 0) fcntl(descriptor, F_NOCACHE, 1);
#endif
        if (descriptor < 0 || fstat(descriptor, &found)) fail(errno);
    }
    WeightFile(const WeightFile&) = delete;
    ~WeightFile() {
        if (descriptor >= 0) close(descriptor);
    }

    int64_t size() const { return found.st_size; }

    // `needed` bytes from `offset` on, or up to `bytes` where the file has as many.
    void read(char* out, int64_t offset, int64_t bytes, int64_t needed) const {
        for (int64_t done = 0, before = -1; done < needed;) {
            const iovec piece = {out + done, size_t(bytes - done)};
            const ssize_t got = preadv(descriptor, &piece, 1, offset + done);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) fail(errno);
            done += got;
            if (done < needed) done = done / kFilePage * kFilePage;  // a read that stopped early goes on at a page
            if (done <= before || (!got && done < needed)) throw Refused(name + " ends in the middle of it");
            before = done;
        }
        struct stat now;
        if (fstat(descriptor, &now)) fail(errno);
        if (now.st_size != found.st_size || std::memcmp(&now.AXK1_CHANGED, &found.AXK1_CHANGED, sizeof(timespec)))
            throw Refused(name + " was changed while it was in use");
    }

private:
    [[noreturn]] void fail(int error) const { throw Refused(name + " cannot be read: " + std::system_category().message(error)); }
};

class Stream {
    struct Slot {
        int64_t key = -1, position = -1;  // position: in the list that is being handed out
        enum { kEmpty, kReading, kReady, kFailed } state = kEmpty;
        std::string failure;
    };
    struct Known {  // an expert
        axk1_place place = {};
        bool there = false;
        int64_t slot = -1, last = 0, stamp = 0;  // last: of its layer's steps, stamp: of all uses, the latest one's number
        double heat = 0.0;                       // uses, each counting less with every step of its layer since
    };

    const int64_t slot_bytes, readers;
    const double decay;
    char* memory_ = nullptr;
    std::vector<std::unique_ptr<WeightFile>> files;
    std::vector<std::vector<Known>> experts;  // by layer
    std::vector<int64_t> steps;               // by layer: lists so far
    std::vector<Slot> slots;
    std::vector<std::thread> threads;
    std::deque<int64_t> queue;  // slots to read into
    std::mutex lock;
    std::condition_variable work, ready, idle;
    bool stopping = false, busy = false;
    int64_t uses = 0, used = 0;  // used: slots that were ever filled

    // the list that is being handed out
    int64_t layer = 0, issued = 0, given = 0;
    std::vector<int64_t> list;

    int64_t key(int64_t of_layer, int64_t expert) const { return of_layer << 32 | expert; }
    Known& known(int64_t of_key) { return experts[of_key >> 32][of_key & 0xffffffff]; }

    axk1_counters counters = {};
    bool tracing = false;
    std::vector<int64_t> trace;

public:
    Stream(int64_t slot_count, int64_t slot_size, int64_t reader_count, double decay_) : slot_bytes(slot_size), readers(reader_count), decay(decay_) {
        expect(slot_count > 0 && slot_count < 1 << 24 && slot_size > 0 && slot_size % kFilePage == 0, "a cache of no experts");
        expect(reader_count > 0 && reader_count <= 256 && decay_ >= 0.0 && decay_ <= 1.0, "no threads to read by");
        slots.resize(slot_count);
        void* made = mmap(nullptr, slot_count * slot_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        expect(made != MAP_FAILED, "a cache for which there is no memory");
        memory_ = static_cast<char*>(made);
#ifdef MADV_HUGEPAGE
        madvise(made, slot_count * slot_size, MADV_HUGEPAGE);
#endif
        for (int64_t place = 0; place < slot_count * slot_size; place += kFilePage) memory_[place] = 1;  // taken now, not later
    }
    Stream(const Stream&) = delete;
    ~Stream() {
        {
            std::lock_guard<std::mutex> hold(lock);
            stopping = true;
        }
        work.notify_all();
        for (std::thread& each : threads) each.join();
        munmap(memory_, slots.size() * slot_bytes);
    }

    void add_file(const char* path) { files.push_back(std::make_unique<WeightFile>(path)); }

    void add(int64_t of_layer, int64_t expert, const axk1_place& place) {
        expect(of_layer >= 0 && of_layer < 1 << 16 && expert >= 0 && expert < 1 << 16, "an expert of no layer");
        expect(place.extents > 0 && place.extents <= AXK1_EXTENTS, "an expert in too many pieces");
        int64_t end = 0;
        for (int64_t i = 0; i < place.extents; ++i) {
            const axk1_extent& e = place.extent[i];
            expect(e.file >= 0 && e.file < int64_t(files.size()), "an expert in no file");
            expect(e.offset >= 0 && e.offset % kFilePage == 0 && e.bytes > 0 && e.bytes % kFilePage == 0 && e.needed > 0 && e.needed <= e.bytes, "a piece of an expert that is no whole pages");
            expect(e.offset + e.needed <= files[e.file]->size(), "an expert after the end of " + files[e.file]->name);
            expect(e.place == end, "pieces of an expert that do not follow each other");
            end += e.bytes;
        }
        expect(end <= slot_bytes, "an expert that is larger than its place");
        for (const axk1_stored* part : {&place.gate, &place.up, &place.down}) {
            const Matrix m = matrix(seen(nullptr, *part), false);
            expect(part->data >= 0 && part->data + m.bytes(part->rows) <= end, "a matrix outside of its expert");
            if (!part->scale_count) continue;
            expect(part->scale_bytes == 2 || part->scale_bytes == 4, "scales that are neither bfloat16 nor float32");
            expect(part->scales >= 0 && part->scales + part->scale_count * part->scale_bytes <= end, "scales outside of their expert");
            expect(part->side >= end && part->side % 4 == 0 && part->side + part->scale_count * 4 <= slot_bytes, "no room for scales");
        }
        if (int64_t(experts.size()) <= of_layer) experts.resize(of_layer + 1), steps.resize(of_layer + 1);
        if (int64_t(experts[of_layer].size()) <= expert) experts[of_layer].resize(expert + 1);
        experts[of_layer][expert].place = place, experts[of_layer][expert].there = true;
    }

    // Whether a layer has `count` experts of these sizes; and whether they are float32.
    bool check(int64_t of_layer, int64_t count, int64_t width, int64_t hidden) const {
        expect(of_layer >= 0 && of_layer < int64_t(experts.size()) && int64_t(experts[of_layer].size()) == count, "a store of another number of experts");
        bool floats = false;
        for (const Known& one : experts[of_layer]) {
            expect(one.there, "a store that lacks an expert");
            for (const axk1_stored* part : {&one.place.gate, &one.place.up}) expect(part->rows == width && part->columns == hidden, "a store of experts of another shape");
            expect(one.place.down.rows == hidden && one.place.down.columns == width, "a store of experts of another shape");
            floats = floats || one.place.gate.format == AXK1_FLOAT32 || one.place.down.format == AXK1_FLOAT32;
        }
        return floats;
    }

    // A layer's experts, ascending, each once, for one step; waits for the end of another thread's list. Reads begin.
    void begin(int64_t of_layer, const int64_t* wanted, int64_t count) {
        std::unique_lock<std::mutex> hold(lock);
        idle.wait(hold, [&] { return !busy; });
        busy = true, layer = of_layer, issued = given = 0;
        list.assign(wanted, wanted + count);
        if (tracing) trace.push_back(layer), trace.push_back(count), trace.insert(trace.end(), list.begin(), list.end());
        ++steps[layer], ++counters.lists, counters.asked += count;
        for (int64_t i = 0; i < count; ++i) {
            Known& one = experts[layer][list[i]];
            one.heat = warmth(layer, one) + 1.0, one.last = steps[layer], one.stamp = ++uses;
            if (one.slot >= 0) slots[one.slot].position = i;
        }
        while (int64_t(threads.size()) < readers) threads.emplace_back([this] { read_on(); });
        issue();
    }

    // How many from the `first` on are in memory, `out` of each: at least one, where it `waits`. Those before it are not
    // used any more.
    int64_t next(int64_t first, bool waits, bool exact, Expert* out) {
        std::unique_lock<std::mutex> hold(lock);
        given = first;
        issue();
        const int64_t started = now();
        bool waited = false;
        const auto at = [&](int64_t i) -> Slot* {
            const int64_t slot = experts[layer][list[i]].slot;
            return i < issued && slot >= 0 ? &slots[slot] : nullptr;
        };
        while (waits && (!at(first) || at(first)->state == Slot::kReading)) waited = true, ready.wait(hold);
        if (waited) ++counters.stalls, counters.stalled += now() - started;
        int64_t count = 0;
        for (; first + count < int64_t(list.size()); ++count) {
            Slot* slot = at(first + count);
            if (!slot || slot->state == Slot::kReading) break;
            if (slot->state == Slot::kFailed) {
                if (count) break;  // those before it are handed out first
                const std::string failure = slot->failure;
                finish(hold);
                throw Refused(failure);
            }
            const axk1_place& place = experts[layer][list[first + count]].place;
            const char* start = memory_ + (slot - slots.data()) * slot_bytes;
            out[count] = {matrix(seen(start, place.gate), exact), matrix(seen(start, place.up), exact), matrix(seen(start, place.down), exact)};
        }
        return count;
    }

    // The list has been used.
    void end() {
        std::unique_lock<std::mutex> hold(lock);
        if (busy) finish(hold);
    }

    axk1_counters count() {
        std::lock_guard<std::mutex> hold(lock);
        return counters;
    }

    int64_t copy_trace(bool on, int64_t* out, int64_t room) {
        std::lock_guard<std::mutex> hold(lock);
        tracing = on;
        const int64_t count = int64_t(trace.size());
        std::copy_n(trace.begin(), std::min(count, room), out);
        if (count <= room) trace.clear();
        return count;
    }

private:
    static axk1_matrix seen(const char* start, const axk1_stored& part) {
        static const char nothing = 0;  // addresses are checked before there are any
        const char* base = start ? start + part.data : &nothing;
        return {base, part.format, part.rows, part.columns, part.scale_count ? (start ? start + part.side : &nothing) : nullptr, part.scale_count * 4};
    }

    double warmth(int64_t of_layer, const Known& one) const { return one.heat * std::pow(decay, double(steps[of_layer] - one.last)); }

    // Finds a slot for expert `i` of the list: an empty one, else the coldest that is not on the list, else the first of
    // the list that has been used; and where all are still to be used, the last of these. -1: that one is in use.
    int64_t vacate(int64_t i) {
        if (used < int64_t(slots.size())) return used++;
        int64_t best = -1, earliest = -1, latest = -1;
        double coldest = 0.0;
        for (int64_t s = 0; s < int64_t(slots.size()); ++s) {
            const Slot& slot = slots[s];
            if (slot.position >= 0) {
                if (slot.position < i && (earliest < 0 || slot.position < slots[earliest].position)) earliest = s;
                if (slot.position > i && (latest < 0 || slot.position > slots[latest].position)) latest = s;
                continue;
            }
            if (slot.key < 0) return s;
            const Known& one = known(slot.key);
            const double warm = warmth(slot.key >> 32, one);
            if (best < 0 || warm < coldest || (warm == coldest && one.stamp < known(slots[best].key).stamp)) best = s, coldest = warm;
        }
        if (best < 0) best = earliest >= 0 ? (slots[earliest].position < given ? earliest : -1) : latest;
        if (best >= 0) known(slots[best].key).slot = -1;
        return best;
    }

    // Goes on with the list as far as there is room: what is there is hit, the rest is read.
    void issue() {
        bool more = false;
        for (; issued < int64_t(list.size()); ++issued) {
            Known& one = experts[layer][list[issued]];
            if (one.slot >= 0) {
                ++counters.hits;
                continue;
            }
            const int64_t s = vacate(issued);
            if (s < 0) break;
            slots[s].key = key(layer, list[issued]), slots[s].position = issued, slots[s].state = Slot::kReading;
            one.slot = s, more = true;
            queue.push_back(s);
        }
        if (more) work.notify_all();
    }

    // Nothing is on the list any more; reads that nobody waits for come to their end.
    void finish(std::unique_lock<std::mutex>& hold) {
        const auto reading = [&] {
            for (const Slot& slot : slots)
                if (slot.position >= 0 && slot.state == Slot::kReading) return true;
            return false;
        };
        while (reading()) ready.wait(hold);
        for (Slot& slot : slots) {
            slot.position = -1;
            if (slot.state == Slot::kFailed) known(slot.key).slot = -1, slot.key = -1, slot.state = Slot::kEmpty, slot.failure.clear();
        }
        busy = false;
        idle.notify_one();
    }

    void read_on() {
        std::unique_lock<std::mutex> hold(lock);
        for (;;) {
            work.wait(hold, [&] { return stopping || !queue.empty(); });
            if (stopping) return;
            const int64_t s = queue.front();
            queue.pop_front();
            const int64_t of_key = slots[s].key;
            const axk1_place& place = known(of_key).place;
            hold.unlock();
            std::string failure;
            const int64_t started = now();
            try {
                read(place, memory_ + s * slot_bytes);
            } catch (const std::exception& error) {
                failure = "Expert " + std::to_string(of_key & 0xffffffff) + " of layer " + std::to_string(of_key >> 32) + " is not there: " + error.what() + ".";
            }
            const int64_t took = now() - started;
            hold.lock();
            counters.reading += took, ++counters.reads;
            for (int64_t i = 0; i < place.extents; ++i) counters.bytes += failure.empty() ? std::min(place.extent[i].bytes, files[place.extent[i].file]->size() - place.extent[i].offset) : 0;
            slots[s].failure = failure, slots[s].state = failure.empty() ? Slot::kReady : Slot::kFailed;
            ready.notify_all();
        }
    }

    void read(const axk1_place& place, char* out) const {
        for (int64_t i = 0; i < place.extents; ++i) {
            const axk1_extent& e = place.extent[i];
            files[e.file]->read(out + e.place, e.offset, e.bytes, e.needed);
        }
        for (const axk1_stored* part : {&place.gate, &place.up, &place.down}) {
            float* side = reinterpret_cast<float*>(out + part->side);
            if (part->scale_bytes == 4) std::memcpy(side, out + part->scales, part->scale_count * 4);
            for (int64_t k = 0; part->scale_bytes == 2 && k < part->scale_count; ++k) {
                uint16_t half;
                std::memcpy(&half, out + part->scales + 2 * k, 2);
                side[k] = to_float(half);
            }
        }
    }
};

// A layer's experts in a stream.
struct StreamedExperts : ExpertStore {
    Stream* stream;
    int64_t layer;
    bool exact, floats, open = false;

    void begin(const int64_t* experts, int64_t count) override { stream->begin(layer, experts, count), open = true; }
    int64_t next(int64_t first, bool waits, Expert* out) override {
        try {
            return stream->next(first, waits, exact, out);
        } catch (...) {
            open = false;  // the list has ended
            throw;
        }
    }
    void end() override {
        if (open) stream->end();
        open = false;
    }
};

}  // namespace axk1
