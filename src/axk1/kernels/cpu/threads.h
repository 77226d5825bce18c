// Threads that share a step. Who waits spins for some microseconds and then sleeps, so that a busy neighbour gets the core;
// and while a neighbour keeps one of the cores, a step does without a thread there. Bits do not depend on how many there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
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

inline int64_t now() {  // nanoseconds
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
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

    // Returns the nanoseconds that it slept: mostly none.
    int64_t wait(int old) {
        for (int spin = 0; spin < kSpins; ++spin) {
            if (get() != old) return 0;
            pause();
        }
        const int64_t start = now();
        sleeping.fetch_add(1);
        while (value.load() == old) value.wait(old);
        sleeping.fetch_sub(1);
        return now() - start;
    }
};

// What the threads of a call share.
struct Shared {
    static constexpr int kLoops = 8;
    std::atomic<int64_t> arrived{0}, slept{0}, next[kLoops]{};  // slept: nanoseconds, of all, for members that came late
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
    void barrier(bool late = true) {
        if (count == 1) return;
        const int before = shared.opened.get();
        if (shared.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            shared.arrived.store(0, std::memory_order_relaxed);
            shared.opened.raise();
        } else if (const int64_t slept = shared.opened.wait(before); slept && late) {
            shared.slept.fetch_add(slept, std::memory_order_relaxed);
        }
    }

    // One member does `what`; all others wait for it.
    template <class What>
    void single(const What& what) {
        if (me == 0) what();
        barrier(false);
    }

    // The same for what may fail: the others go on, after `otherwise`, and the call throws once all are done. After a
    // failure nothing else is attempted.
    template <class What, class Otherwise>
    void attempt(const What& what, const Otherwise& otherwise) {
        single([&] {
            if (shared.failure) return otherwise();
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

    // what(begin, end) for [0, items), `grain` of them at a time, so that a core which is slower just now, or always, holds up
    // nobody; in equal shares where there are few.
    template <class What>
    void spread(int64_t items, int64_t grain, const What& what) {
        const int64_t grains = items / grain;
        if (count > 1 && grains >= 4 * count)
            return dynamic(grains, [&](int64_t i) { what(i * grain, i + 1 == grains ? items : (i + 1) * grain); });
        if (const Share mine = share(items); mine.begin < mine.end) what(mine.begin, mine.end);
    }
};

// How many threads a call takes. Where others sleep for more than a third of a call, one of the cores is somebody else's: one
// thread fewer, and after a while a call with it again. Of two threads, one has to sleep for half of it: a second one that
// has two thirds of its core, beside a server's other threads, is still worth a third more.
class Crew {
    static constexpr int64_t kMillisecond = 1000000, kShortest = 20 * kMillisecond, kLongest = 640 * kMillisecond;
    int64_t missing = 0, lost = 0;  // threads that are left out; nanoseconds of late calls, less those of others
    int64_t until = 0, pause = kShortest, since = 0, last = 0;

public:
    int64_t size(int64_t threads, int64_t time) {
        if (time - last > kShortest) missing = lost = 0;  // what was seen then says nothing of now
        if (missing && time >= until) --missing, lost = 0, since = time;
        return std::max<int64_t>(threads - missing, 1);
    }

    // A call of `threads` ended at `time`, after so many nanoseconds.
    void record(int64_t threads, int64_t time, int64_t took, int64_t slept) {
        last = time;
        if (threads < 2 || took > kShortest) return;  // a long call may end beside others than it began
        const bool late = std::min<int64_t>(threads, 3) * slept > took * (threads - 1);
        lost = std::max<int64_t>(late ? lost + took : lost - took, 0);
        if (lost > 3 * kMillisecond) {
            pause = time - since < kLongest ? std::min(2 * pause, kLongest) : kShortest;
            ++missing, lost = 0, until = time + pause, since = until;
        }
    }
};

inline int this_core() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// Keeps a thread away from the core of the one that it works for: woken while others are busy for a moment, it would be put
// behind that one, and stay there for milliseconds.
class Elsewhere {
#if defined(__linux__)
    cpu_set_t allowed;
    int left = -1;

public:
    Elsewhere() {
        CPU_ZERO(&allowed);
        pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed);
    }

    void than(int core) {
        if (core == left || core < 0 || core >= CPU_SETSIZE || CPU_COUNT(&allowed) < 2) return;
        cpu_set_t others = allowed;
        CPU_CLR(core, &others);
        if (pthread_setaffinity_np(pthread_self(), sizeof others, &others) == 0) left = core;
    }
#else
public:
    void than(int) {}
#endif
};

// Threads that stay. One call runs on them at a time.
class Pool {
    struct Job {
        void (*run)(void*, Shared&, int64_t, int64_t) = nullptr;
        void* what = nullptr;
        Shared* shared = nullptr;
        int64_t threads = 0, number = 0;  // number: of all jobs, from 1
        int core = -1;                    // of thread 0
    };
    std::mutex busy, giving;
    Crew crew;
    Job job;
    Flag started, ended;
    std::atomic<int64_t> left{0};
    int64_t workers = 0;

    void work(int64_t me, int seen, int64_t last) {
        Elsewhere elsewhere;
        for (;;) {
            started.wait(seen);
            seen = started.get();
            Job mine;
            {
                std::lock_guard<std::mutex> lock(giving);
                mine = job;
            }
            const bool known = mine.number == last;  // it was seen before the flag rose
            last = mine.number;
            if (known || me >= mine.threads) continue;  // nobody waits for this thread
            elsewhere.than(mine.core);
            mine.run(mine.what, *mine.shared, me, mine.threads);
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
            std::thread([this, me = workers + 1, seen = started.get(), last = job.number] { work(me, seen, last); }).detach();
        const int64_t start = now();
        threads = crew.size(threads, start);
        Shared all;
        const Job given = {[](void* given, Shared& common, int64_t me, int64_t count) {
                   Team team(common, me, count);
                   (*static_cast<const What*>(given))(team);
               },
               const_cast<void*>(static_cast<const void*>(&what)), &all, threads, job.number + 1, this_core()};
        const int before = ended.get();
        if (threads > 1) {
            left.store(threads - 1, std::memory_order_release);
            {
                std::lock_guard<std::mutex> giver(giving);
                job = given;
            }
            started.raise();
        }
        given.run(given.what, all, 0, threads);
        const int64_t slept = threads > 1 ? ended.wait(before) : 0, end = now();
        crew.record(threads, end, end - start, slept + all.slept.load());
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
