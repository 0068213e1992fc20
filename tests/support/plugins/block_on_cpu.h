// Definitions with which a CUDA kernel that uses the macros of additive_attention.cu compiles as C++ and runs on the CPU,
// block by block, with the same additions in the same order. THREADS runs its lines for each thread of the block, first to last
// or last to first. Nothing here depends on the kernel's algorithm.
//
// A cell that threads share records which threads wrote and read it since the last barrier: a write by one thread after
// a read or write by another is a race and is counted. Registers and shared memory start as NaN.

#pragma once

#include <cmath>
#include <limits>

#define DEVICE static inline
#define KERNEL extern "C" void
#define THREADS(t) for (int t : EachThread())
#define SYNC() (++block.epoch)
#define EXP std::exp
#define TANH std::tanh
#define MINUS_INFINITY (-std::numeric_limits<float>::infinity())
#define SHARED(name, n)                     \
    static Cell name[n];                    \
    for (Cell& cell : name) cell = Cell();

struct Block {
    int row = 0, threads = 0, thread = 0;
    bool backwards = false;
    long epoch = 0, races = 0;
};
static Block block;

static inline int block_row() { return block.row; }
static inline int block_threads() { return block.threads; }

struct EachThread {
    struct At {
        int index;
        int operator*() const { return block.thread = block.backwards ? block.threads - 1 - index : index; }
        void operator++() { ++index; }
        bool operator!=(const At& other) const { return index != other.index; }
    };
    At begin() const { return {0}; }
    At end() const { return {block.threads}; }
};

struct Cell {
    static constexpr int NOBODY = -1, SEVERAL = -2;
    float value = std::numeric_limits<float>::quiet_NaN();
    int reader = NOBODY, writer = NOBODY;
    long epoch = -1;

    Cell() = default;
    operator float() {
        meet();
        if (writer != NOBODY && writer != block.thread) ++block.races;
        reader = reader == NOBODY || reader == block.thread ? block.thread : SEVERAL;
        return value;
    }
    Cell& operator=(float x) {
        meet();
        if (writer != NOBODY && writer != block.thread) ++block.races;
        if (reader != NOBODY && reader != block.thread) ++block.races;
        writer = block.thread;
        value = x;
        return *this;
    }
    Cell& operator=(const Cell&) = default;

   private:
    void meet() {  // forgets the accesses before the last barrier
        if (epoch != block.epoch) reader = writer = NOBODY;
        epoch = block.epoch;
    }
};

template <typename V>
struct PerThread {
    V values[MAX_THREADS];
    PerThread() {
        for (V& value : values) value = std::numeric_limits<V>::quiet_NaN();
    }
    V& operator[](int t) { return values[t]; }
};

// The butterfly of __shfl_xor_sync: in each step all threads read the values from before it.
template <typename Join>
static void butterfly(PerThread<float>& x, Join join) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        const PerThread<float> before = x;
        for (int t = 0; t < block.threads; ++t) x[t] = join(before.values[t], before.values[t ^ apart]);
    }
}
static inline void warp_sum(PerThread<float>& x) {
    butterfly(x, [](float a, float b) { return a + b; });
}
static inline void warp_max(PerThread<float>& x) {
    butterfly(x, [](float a, float b) { return std::fmax(a, b); });
}

struct Half {
    unsigned short bits;
};

static float widen(Half half) {
    const int exponent = half.bits >> 10 & 31, mantissa = half.bits & 1023;
    float size = std::ldexp(float(mantissa + (exponent ? 1024 : 0)), (exponent ? exponent : 1) - 25);
    if (exponent == 31) size = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
    return half.bits >> 15 ? -size : size;
}

static Half narrow(float x) {  // to the nearest, ties to even
    const unsigned sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    unsigned bits;
    if (std::isnan(x)) bits = 0x7e00;
    else if (size >= 65520.0f) bits = 0x7c00;
    else if (size < 0x1p-14f) bits = unsigned(std::nearbyint(size * 0x1p24f));
    else {
        const int exponent = std::ilogb(size);
        bits = ((exponent + 15) << 10) + unsigned(std::nearbyint(std::ldexp(size, 10 - exponent))) - 1024;
    }
    return {static_cast<unsigned short>(sign | bits)};
}

static inline float load(const float* from, long long at) { return from[at]; }
static inline float load(const Half* from, long long at) { return widen(from[at]); }
static inline void store(float* to, long long at, float x) { to[at] = x; }
static inline void store(Half* to, long long at, float x) { to[at] = narrow(x); }

extern "C" float half_to_float(unsigned short bits) { return widen({bits}); }
extern "C" unsigned short float_to_half(float x) { return narrow(x).bits; }

// Runs call() for each block of the grid; returns the number of races.
template <typename Call>
static long run_grid(int blocks, int threads, bool backwards, Call call) {
    block = Block();
    block.threads = threads;
    block.backwards = backwards;
    for (block.row = 0; block.row < blocks; ++block.row, ++block.epoch) call();
    return block.races;
}
