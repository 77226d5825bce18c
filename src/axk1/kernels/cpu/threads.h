// Threads that share a step. Who waits spins for some microseconds and then sleeps, so that a busy neighbour gets the core.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace axk1 {

constexpr int kSpins = 4000;  // looks at a flag before a thread sleeps: some 20 to 60 microseconds

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A number that threads wait for to change.
class Flag {
    std::atomic<int> value{0}, sleeping{0};

public:
    int get() const { return value.load(std::memory_order_acquire); }

    void raise() {
        value.fetch_add(1);
        if (sleeping.load()) value.notify_all();
    }

    void wait(int old) {
        for (int spin = 0; spin < kSpins; ++spin) {
            if (get() != old) return;
            pause();
        }
        sleeping.fetch_add(1);
        while (value.load() == old) value.wait(old);
        sleeping.fetch_sub(1);
    }
};

// What the threads of a call share.
struct Shared {
    static constexpr int kLoops = 8;
    std::atomic<int64_t> arrived{0}, next[kLoops]{};
    Flag opened;
    std::exception_ptr failure;  // of thread 0
};

// [begin, end) of a thread's share of `count` items.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int64_t thread, int64_t threads) : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

// One thread's view of the team that it belongs to. All members make the same calls in the same order.
class Team {
    Shared& shared;
    int64_t loop = 0;

public:
    const int64_t me, count;
    Team(Shared& all, int64_t thread, int64_t threads) : shared(all), me(thread), count(threads) {}

    // Returns once all members have come here.
    void barrier() {
        if (count == 1) return;
        const int before = shared.opened.get();
        if (shared.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            shared.arrived.store(0, std::memory_order_relaxed);
            shared.opened.raise();
        } else {
            shared.opened.wait(before);
        }
    }

    // One member does `what`; all others wait for it.
    template <class What>
    void single(const What& what) {
        if (me == 0) what();
        barrier();
    }

    // The same for what may fail: the others go on, after `otherwise`, and the call throws once all are done.
    template <class What, class Otherwise>
    void attempt(const What& what, const Otherwise& otherwise) {
        single([&] {
            try {
                what();
            } catch (...) {
                shared.failure = std::current_exception();
                otherwise();
            }
        });
    }

    Share share(int64_t items) const { return {items, me, count}; }

    // what(i) for all items, each by the member whose share it is in. No member waits for others.
    template <class What>
    void each(int64_t items, const What& what) const {
        for (Share mine = share(items); mine.begin < mine.end; ++mine.begin) what(mine.begin);
    }

    // The same, each by the first member that is free. Between any four such loops there has to be a barrier.
    template <class What>
    void dynamic(int64_t items, const What& what) {
        const int64_t here = loop++;
        if (count == 1) {
            for (int64_t i = 0; i < items; ++i) what(i);
            return;
        }
        // nobody is in the loop that used this counter last, and nobody is in the one that will use it next
        shared.next[(here + Shared::kLoops / 2) % Shared::kLoops].store(0, std::memory_order_relaxed);
        std::atomic<int64_t>& next = shared.next[here % Shared::kLoops];
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) what(i);
    }
};

// Threads that stay. One call runs on them at a time.
class Pool {
    struct Job {
        void (*run)(void*, Shared&, int64_t, int64_t) = nullptr;
        void* what = nullptr;
        int64_t threads = 0;
    };
    std::mutex busy;
    Job job;
    Shared* shared = nullptr;
    Flag started, ended;
    std::atomic<int64_t> left{0};
    int64_t workers = 0;

    void work(int64_t me, int seen) {
        for (;;) {
            started.wait(seen);
            seen = started.get();
            const Job mine = job;
            if (me < mine.threads) mine.run(mine.what, *shared, me, mine.threads);
            if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) ended.raise();
        }
    }

public:
    static Pool*& instance() {
        static Pool* pool = nullptr;
        return pool;
    }

    static Pool& get() {
        static std::mutex making;
        std::lock_guard<std::mutex> lock(making);
        Pool*& pool = instance();
        if (!pool) {
            pool = new Pool;  // never deleted: its threads may outlive every static object
#if defined(__unix__) || defined(__APPLE__)
            static const int registered = pthread_atfork(nullptr, nullptr, [] { instance() = nullptr; });  // a child has no threads
            (void)registered;
#endif
        }
        return *pool;
    }

    template <class What>
    void run(int64_t threads, const What& what) {
        std::lock_guard<std::mutex> lock(busy);
        for (; workers + 1 < threads; ++workers)
            std::thread([this, me = workers + 1, seen = started.get()] { work(me, seen); }).detach();
        Shared all;
        shared = &all;
        job = {[](void* given, Shared& common, int64_t me, int64_t count) {
                   Team team(common, me, count);
                   (*static_cast<const What*>(given))(team);
               },
               const_cast<void*>(static_cast<const void*>(&what)), threads};
        left.store(workers, std::memory_order_release);
        const int before = ended.get();
        started.raise();
        job.run(job.what, all, 0, threads);
        if (workers) ended.wait(before);
        if (all.failure) std::rethrow_exception(all.failure);
    }
};

// what(team) by `threads` threads, this one included; returns when all are done.
template <class What>
void parallel(int64_t threads, const What& what) {
    if (threads > 1) return Pool::get().run(threads, what);
    Shared all;
    Team team(all, 0, 1);
    what(team);
    if (all.failure) std::rethrow_exception(all.failure);
}

}  // namespace axk1
