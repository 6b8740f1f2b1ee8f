// The gradient of a looked-up table: rows of grad_tokens summed per id over sorted segments, without atomics.
// The launcher sorts (id, position) stably, pads last; here, groups of lanes take RUN sorted places each. A
// segment that lies within one run is summed there; of one that spans several, each run keeps its share,
// and the run where it begins adds them up in order. The sums depend on the inputs alone.
#pragma once

#include "cuda/args.cuh"
#include "cuda/polarity_embedding.cuh"

namespace mixpol::cuda {

constexpr int GRAD_THREADS = 256;
constexpr int RUN = 32;  // sorted places that one group of lanes takes

struct TableGrad {
    History history;
    Rows grads;               // of grad_tokens, by position
    const int64_t* ids;       // sorted [tokens]; `rows` at pads
    const int64_t* order;     // their positions [tokens]
    const int64_t* segments;  // number of the segment, from 1, by sorted place [tokens]; null: dense
    int64_t rows;             // of the table
    int width;                // D
    float* shares;            // [runs][2][D]: of the segment that a run begins in, and of the one it ends in
    float* out;               // dense [rows, D], zeroed, or sparse [segments, D]
    int64_t* unique;          // sparse: ids of the segments
};

__host__ __device__ inline int64_t grad_runs(int64_t tokens) { return ceil_div(tokens, RUN); }

// Ids of kept positions, and `rows` at pads, which sorts them last.
static __global__ void __launch_bounds__(GRAD_THREADS)
    sort_keys(const History history, const Ids ids, int64_t rows, int64_t* keys) {
    const int64_t step = static_cast<int64_t>(GRAD_THREADS) * gridDim.x;
    for (int64_t p = blockIdx.x * static_cast<int64_t>(GRAD_THREADS) + threadIdx.x; p < history.tokens;
         p += step)
        keys[p] = history.keeps(p) ? ids[p] : rows;
}

// 1 where a segment begins among sorted ids, 0 elsewhere and at pads.
static __global__ void __launch_bounds__(GRAD_THREADS)
    mark_segments(const int64_t* ids, int64_t tokens, int64_t rows, int64_t* marks) {
    const int64_t step = static_cast<int64_t>(GRAD_THREADS) * gridDim.x;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(GRAD_THREADS) + threadIdx.x; i < tokens; i += step)
        marks[i] = ids[i] < rows && (i == 0 || ids[i - 1] != ids[i]);
}

__device__ __forceinline__ float* segment_row(const TableGrad& a, int64_t place) {
    return a.out + (a.segments ? a.segments[place] - 1 : a.ids[place]) * a.width;
}

__device__ __forceinline__ const float* grad_row(const TableGrad& a, int64_t place) {
    const int64_t position = a.order[place];
    const int64_t user = a.history.offsets || !a.history.length ? 0 : position / a.history.length;
    return a.grads.base + a.grads.offset(a.history, user, position);
}

// Columns c ... c + 3 (V = float4) or c (V = float) of one run.
template <class V>
struct Columns;
template <>
struct Columns<float> {
    static constexpr int COUNT = 1;
    static __device__ __forceinline__ float zero() { return 0.0f; }
    static __device__ __forceinline__ float fetch(const float* p) { return __ldg(p); }
    static __device__ __forceinline__ float load(const float* p) { return *p; }
    static __device__ __forceinline__ void store(float* p, float v) { *p = v; }
    static __device__ __forceinline__ float sum(float a, float b) { return a + b; }
};
template <>
struct Columns<float4> {
    static constexpr int COUNT = 4;
    static __device__ __forceinline__ float4 zero() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }
    static __device__ __forceinline__ float4 fetch(const float* p) { return fetch4(p); }
    static __device__ __forceinline__ float4 load(const float* p) { return load4(p); }
    static __device__ __forceinline__ void store(float* p, float4 v) { store4(p, v); }
    static __device__ __forceinline__ float4 sum(float4 a, float4 b) { return add(a, b); }
};

// blockDim: (lanes of a run, runs of a block).
template <class V>
__global__ void __launch_bounds__(GRAD_THREADS, 4) sum_runs(const TableGrad a) {
    using C = Columns<V>;
    const int64_t run = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y;
    const int64_t begin = run * RUN, tokens = a.history.tokens;
    if (begin >= tokens) return;
    const int64_t end = begin + RUN < tokens ? begin + RUN : tokens;
    const bool continues = begin > 0 && a.ids[begin - 1] == a.ids[begin];
    const bool goes_on = end < tokens && a.ids[end] == a.ids[end - 1];
    for (int c = C::COUNT * threadIdx.x; c < a.width; c += C::COUNT * blockDim.x) {
        V sum = C::zero();
        bool first = true;  // still in the segment that the run begins in
        for (int64_t i = begin; i < end && a.ids[i] < a.rows; i++) {
            sum = C::sum(sum, C::fetch(grad_row(a, i) + c));
            const bool last = i + 1 == end;
            if (!last && a.ids[i + 1] == a.ids[i]) continue;
            float* to = segment_row(a, i) + c;
            if (first && continues) {
                to = a.shares + 2 * run * a.width + c;
            } else if (last && goes_on) {
                to = a.shares + (2 * run + 1) * a.width + c;
            }
            C::store(to, sum);
            sum = C::zero();
            first = false;
        }
    }
    if (!a.unique || threadIdx.x != 0) return;
    for (int64_t i = begin; i < end && a.ids[i] < a.rows; i++)
        if (i == 0 || a.ids[i - 1] != a.ids[i]) a.unique[a.segments[i] - 1] = a.ids[i];
}

// Adds up the segments that span runs, in the run where each begins.
template <class V>
__global__ void __launch_bounds__(GRAD_THREADS, 4) sum_shares(const TableGrad a) {
    using C = Columns<V>;
    const int64_t run = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y;
    const int64_t tokens = a.history.tokens, end = (run + 1) * RUN;
    if (end >= tokens) return;
    const int64_t id = a.ids[end - 1];
    if (id >= a.rows || a.ids[end] != id) return;       // nothing goes on
    if (run > 0 && a.ids[run * RUN - 1] == id) return;  // it began before
    for (int c = C::COUNT * threadIdx.x; c < a.width; c += C::COUNT * blockDim.x) {
        V sum = C::load(a.shares + (2 * run + 1) * a.width + c);
        for (int64_t next = run + 1; next * RUN < tokens && a.ids[next * RUN] == id; next++)
            sum = C::sum(sum, C::load(a.shares + 2 * next * a.width + c));
        C::store(segment_row(a, end - 1) + c, sum);
    }
}

inline dim3 grad_grid(int64_t items) {
    const int64_t blocks = ceil_div(items, GRAD_THREADS);
    return dim3(static_cast<unsigned>(blocks < LOOKUP_BLOCKS ? blocks : LOOKUP_BLOCKS));
}

inline void launch_sort_keys(const History& history, const Ids& ids, int64_t rows, int64_t* keys,
                             cudaStream_t stream) {
    if (history.tokens == 0) return;
    MIXPOL_LAUNCH(sort_keys, grad_grid(history.tokens), GRAD_THREADS, 0, stream, history, ids, rows, keys);
}

inline void launch_mark_segments(const int64_t* ids, int64_t tokens, int64_t rows, int64_t* marks,
                                 cudaStream_t stream) {
    if (tokens == 0) return;
    MIXPOL_LAUNCH(mark_segments, grad_grid(tokens), GRAD_THREADS, 0, stream, ids, tokens, rows, marks);
}

inline void launch_table_grad(const TableGrad& a, cudaStream_t stream) {
    if (a.history.tokens == 0 || a.width == 0) return;
    const int lanes = row_lanes(a.width, a.grads.vectors), runs = GRAD_THREADS / lanes;
    const dim3 grid(static_cast<unsigned>(ceil_div(grad_runs(a.history.tokens), runs))), block(lanes, runs);
    if (a.grads.vectors) {
        MIXPOL_LAUNCH(sum_runs<float4>, grid, block, 0, stream, a);
        MIXPOL_LAUNCH(sum_shares<float4>, grid, block, 0, stream, a);
    } else {
        MIXPOL_LAUNCH(sum_runs<float>, grid, block, 0, stream, a);
        MIXPOL_LAUNCH(sum_shares<float>, grid, block, 0, stream, a);
    }
}

}  // namespace mixpol::cuda
