// Additive attention (Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473, A.1.2): energy, masked softmax and context
// in one kernel.
//
//     e_ij = v^T tanh(q_i + k_j),   alpha_i = softmax of e_i over the keys whose mask is true,   c_i = sum_j alpha_ij h_j
//
// Shapes, row by row in memory:
//     query (batch, tgt, attn), keys (batch, src, attn), values (batch, src, value), mask (batch, src), v (attn)
//     -> context (batch, tgt, value), weights (batch, tgt, src)
//
// All arithmetic is fp32; fp16 is how numbers are stored. A row without a key gives weights 0 and context 0. Neither the
// keys nor the values of a masked position are used, so the content of padding never matters.
//
// One block works on one row (batch, tgt): the grid is batch * tgt blocks of 32, 64, ... 256 threads. Keys come in tiles
// of TILE, so no size is bounded by shared memory: the first pass finds the greatest energy and the sum of the powers
// (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867), the second the weights and the context, COLUMNS for
// each thread in a round. A row of one tile computes its energies once; a longer one computes them again in every round,
// since only one tile of weights is stored: values 1408 wide take 6 rounds of 64 threads, 3 of 128, 2 of 256.
//
// The same lines compile for the CPU (block_on_cpu.h, with the tests), where THREADS runs the threads of a block one after the
// other up to the next barrier. Data that threads share is therefore accessed with these macros only:
//     THREADS(t) { ... }   code of each thread t; no barrier at its end
//     SYNC()               the barrier
//     PerThread<V>         a register that outlives a THREADS: x[t]
//     SHARED(name, n)      n floats that the block shares, of type Cell
//     warp_sum, warp_max   over the 32 threads of a warp, every thread getting the result

#ifndef TILE
#define TILE 256
#endif
constexpr int WARP = 32;
constexpr int MAX_THREADS = 256;
constexpr int KEYS = 4;     // keys that a warp works on at once, for one reading of q and v
constexpr int COLUMNS = 4;  // columns of the context per thread

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(MAX_THREADS)
#define THREADS(t) for (int t = threadIdx.x, once = 1; once; once = 0)
#define SYNC() __syncthreads()
#define SHARED(name, n) __shared__ Cell name[n]
#define EXP expf
#define TANH tanhf
#define MINUS_INFINITY __int_as_float(0xff800000)

using Cell = float;

template <typename V>
struct PerThread {
    V value;
    DEVICE V& operator[](int) { return value; }
};

DEVICE int block_row() { return blockIdx.x; }
DEVICE int block_threads() { return blockDim.x; }

DEVICE void warp_sum(PerThread<float>& x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x.value += __shfl_xor_sync(0xffffffffu, x.value, apart);
}

DEVICE void warp_max(PerThread<float>& x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2)
        x.value = fmaxf(x.value, __shfl_xor_sync(0xffffffffu, x.value, apart));
}

// A number in fp16, as its bits: converted by the instruction, so that no header is needed (NVRTC has none).
struct Half {
    unsigned short bits;
};

DEVICE float load(const float* from, long long at) { return __ldg(from + at); }
DEVICE float load(const Half* from, long long at) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(__ldg(&from[at].bits)));
    return result;
}
DEVICE void store(float* to, long long at, float x) { to[at] = x; }
DEVICE void store(Half* to, long long at, float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to[at].bits) : "f"(x));
}
#else
#include "block_on_cpu.h"
#endif

// The greatest x of the block, or the sum, for every thread of it. `scratch` holds one number per warp; it is free again
// after the next barrier.
DEVICE void block_max(PerThread<float>& x, Cell* scratch) {
    warp_max(x);
    THREADS(t) {
        if (t % WARP == 0) scratch[t / WARP] = x[t];
    }
    SYNC();
    THREADS(t) {
        x[t] = scratch[0];
        for (int warp = 1; warp < block_threads() / WARP; ++warp) x[t] = fmaxf(x[t], scratch[warp]);
    }
}

DEVICE void block_sum(PerThread<float>& x, Cell* scratch) {
    warp_sum(x);
    THREADS(t) {
        if (t % WARP == 0) scratch[t / WARP] = x[t];
    }
    SYNC();
    THREADS(t) {
        x[t] = scratch[0];
        for (int warp = 1; warp < block_threads() / WARP; ++warp) x[t] += scratch[warp];
    }
}

// One row's inputs: q (attn), keys (src, attn), values (src, value), mask (src), v (attn).
template <typename T>
struct Row {
    const T* query;
    const T* keys;
    const T* values;
    const unsigned char* mask;
    const T* v;
    int src, attn, value;
};

// energy[j] of the keys first, first + 1, ... below end: a warp takes KEYS keys, its threads share the sum over attn.
template <typename T>
DEVICE void energies(const Row<T>& row, int first, int end, Cell* energy) {
    for (int group = first; group < end; group += block_threads() / WARP * KEYS) {
        PerThread<float> sum[KEYS];
        THREADS(t) {
            const int key = group + t / WARP * KEYS;
            bool live[KEYS];
            bool any = false;
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                live[i] = key + i < end && row.mask[key + i] != 0;
                any = any || live[i];
                sum[i][t] = 0.0f;
            }
            if (!any) continue;
            for (int a = t % WARP; a < row.attn; a += WARP) {
                const float q = load(row.query, a);
                const float v = load(row.v, a);
#pragma unroll
                for (int i = 0; i < KEYS; ++i) {
                    if (live[i]) sum[i][t] += v * TANH(q + load(row.keys, (long long)(key + i) * row.attn + a));
                }
            }
        }
#pragma unroll
        for (int i = 0; i < KEYS; ++i) warp_sum(sum[i]);
        THREADS(t) {
            const int key = group + t / WARP * KEYS;
#pragma unroll
            for (int i = 0; i < KEYS; ++i) {
                if (t % WARP == i && key + i < end) energy[key + i - first] = sum[i][t];
            }
        }
    }
    SYNC();
}

// Adds a tile to the greatest energy so far and to the sum of exp(energy - greatest).
template <typename T>
DEVICE void include(const Row<T>& row, int first, int end, Cell* energy, Cell* scratch, PerThread<float>& top,
                    PerThread<float>& total) {
    PerThread<float> highest, powers;
    THREADS(t) {
        highest[t] = top[t];
        for (int j = first + t; j < end; j += block_threads()) {
            if (row.mask[j]) highest[t] = fmaxf(highest[t], energy[j - first]);
        }
    }
    block_max(highest, scratch);
    THREADS(t) {
        powers[t] = 0.0f;
        for (int j = first + t; j < end; j += block_threads()) {
            if (row.mask[j]) powers[t] += EXP(energy[j - first] - highest[t]);
        }
    }
    block_sum(powers, scratch + MAX_THREADS / WARP);
    THREADS(t) {
        const float shrink = top[t] == highest[t] ? 1.0f : EXP(top[t] - highest[t]);
        total[t] = total[t] * shrink + powers[t];
        top[t] = highest[t];
    }
}

template <typename T>
DEVICE void attend(const T* query, const T* keys, const T* values, const unsigned char* mask, const T* v, int tgt, int src,
                   int attn, int value, T* context, T* weights) {
    SHARED(energy, TILE);
    SHARED(scratch, 2 * MAX_THREADS / WARP);
    const long long at = block_row();
    const long long sentence = at / tgt;
    const Row<T> row = {query + at * attn, keys + sentence * src * attn, values + sentence * src * value,
                        mask + sentence * src, v, src, attn, value};
    const bool one_tile = src <= TILE;

    PerThread<float> top, total;
    THREADS(t) {
        top[t] = MINUS_INFINITY;
        total[t] = 0.0f;
    }
    for (int first = 0; first < src; first += TILE) {
        const int end = src < first + TILE ? src : first + TILE;
        energies(row, first, end, energy);
        include(row, first, end, energy, scratch, top, total);
    }

    const int wide = block_threads() * COLUMNS;
    for (int left = 0; left < value; left += wide) {
        PerThread<float> sum[COLUMNS];
        THREADS(t) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) sum[c][t] = 0.0f;
        }
        for (int first = 0; first < src; first += TILE) {
            const int end = src < first + TILE ? src : first + TILE;
            if (!one_tile) energies(row, first, end, energy);
            if (!one_tile || left == 0) {
                THREADS(t) {
                    for (int j = first + t; j < end; j += block_threads()) {
                        const bool live = row.mask[j] != 0;
                        const float weight = live ? EXP(energy[j - first] - top[t]) / total[t] : 0.0f;
                        energy[j - first] = weight;
                        if (left == 0) store(weights, at * src + j, weight);
                    }
                }
                SYNC();
            }
            THREADS(t) {
                for (int j = first; j < end; ++j) {
                    if (!row.mask[j]) continue;
                    const float weight = energy[j - first];
#pragma unroll
                    for (int c = 0; c < COLUMNS; ++c) {
                        const int column = left + c * block_threads() + t;
                        if (column < value) sum[c][t] += weight * load(row.values, (long long)j * value + column);
                    }
                }
            }
            SYNC();
        }
        THREADS(t) {
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const int column = left + c * block_threads() + t;
                if (column < value) store(context, at * value + column, sum[c][t]);
            }
        }
    }
}

// Arguments: the inputs, the sizes, the outputs, as TensorRT passes them to an ahead-of-time plugin.
KERNEL additive_attention_fp32(const float* query, const float* keys, const float* values, const unsigned char* mask,
                               const float* v, int tgt, int src, int attn, int value, float* context, float* weights) {
    attend(query, keys, values, mask, v, tgt, src, attn, value, context, weights);
}

KERNEL additive_attention_fp16(const Half* query, const Half* keys, const Half* values, const unsigned char* mask,
                               const Half* v, int tgt, int src, int attn, int value, Half* context, Half* weights) {
    attend(query, keys, values, mask, v, tgt, src, attn, value, context, weights);
}
