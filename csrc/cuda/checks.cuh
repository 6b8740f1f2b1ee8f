// The checks of values that the CPU launchers make on the host, made on the device: no kernel waits for the
// CPU. What is wrong is printed, and the kernel ends as by a failed assertion, before any other kernel of the
// op has run: nothing is written.
#pragma once

#include "cuda/args.cuh"

namespace mixpol::cuda {

constexpr int CHECK_THREADS = 256, CHECK_BLOCKS = 256;

// Arguments that messages name: a device cannot read the host's strings.
enum class Argument : int { item_ids, polarity, extra_ids, ids, positive, negative };

struct CheckedIds {
    Ids ids;
    int64_t rows;  // of the table
    Argument name;
};

constexpr int MAX_CHECKED = 3;
struct Checks {
    History history;
    CheckedIds checked[MAX_CHECKED];
    int count = 0;

    void add(const Ids& ids, int64_t rows, Argument name) { checked[count++] = {ids, rows, name}; }
};

__device__ inline const char* name_of(Argument name) {
    switch (name) {
        case Argument::item_ids:
            return "item_ids";
        case Argument::polarity:
            return "polarity";
        case Argument::extra_ids:
            return "extra_ids";
        case Argument::positive:
            return "positive";
        case Argument::negative:
            return "negative";
        default:
            return "ids";
    }
}

// The messages are functions of their own, which spares the loops their registers.
static __device__ MIXPOL_NOINLINE void refuse_range(const char* prefix, int64_t first, int64_t last,
                                                    int64_t total) {
    MIXPOL_REFUSE("%soffsets run from %lld to %lld; expected 0 to %lld\n", prefix,
                  static_cast<long long>(first), static_cast<long long>(last), static_cast<long long>(total));
}

static __device__ MIXPOL_NOINLINE void refuse_fall(const char* prefix, int64_t at, int64_t here,
                                                   int64_t before) {
    MIXPOL_REFUSE("%soffsets[%lld] is %lld, below %soffsets[%lld] = %lld; expected offsets that never fall\n",
                  prefix, static_cast<long long>(at), static_cast<long long>(here), prefix,
                  static_cast<long long>(at - 1), static_cast<long long>(before));
}

static __device__ MIXPOL_NOINLINE void refuse_length(int64_t user, int64_t got, int64_t most) {
    MIXPOL_REFUSE("lengths[%lld] is %lld; expected 0 ... %lld, the padded length of the history\n",
                  static_cast<long long>(user), static_cast<long long>(got), static_cast<long long>(most));
}

static __device__ MIXPOL_NOINLINE void refuse_id(Argument name, int64_t id, int64_t position, int64_t rows) {
    MIXPOL_REFUSE("%s has %lld at position %lld; expected 0 ... %lld, a row of the table\n", name_of(name),
                  static_cast<long long>(id), static_cast<long long>(position),
                  static_cast<long long>(rows - 1));
}

// Offsets [lists + 1] of a jagged tensor of `total` entries, called `prefix` and then "offsets".
__device__ inline void check_offsets(const int64_t* offsets, int64_t lists, int64_t total, const char* prefix,
                                     int64_t first, int64_t step) {
    if (first == 0 && (offsets[0] != 0 || offsets[lists] != total))
        refuse_range(prefix, offsets[0], offsets[lists], total);
    for (int64_t b = first; b < lists; b += step)
        if (offsets[b + 1] < offsets[b]) refuse_fall(prefix, b + 1, offsets[b + 1], offsets[b]);
}

static __global__ void __launch_bounds__(CHECK_THREADS) check_values(const Checks checks) {
    const History& history = checks.history;
    const int64_t first = blockIdx.x * static_cast<int64_t>(CHECK_THREADS) + threadIdx.x;
    const int64_t step = static_cast<int64_t>(CHECK_THREADS) * gridDim.x;
    if (history.offsets) check_offsets(history.offsets, history.users, history.tokens, "", first, step);
    if (history.lengths)
        for (int64_t b = first; b < history.users; b += step)
            if (history.lengths[b] < 0 || history.lengths[b] > history.length)
                refuse_length(b, history.lengths[b], history.length);
    for (int i = 0; i < checks.count; i++) {
        const CheckedIds& c = checks.checked[i];
        for (int64_t p = first; p < history.tokens; p += step)
            if (static_cast<uint64_t>(c.ids[p]) >= static_cast<uint64_t>(c.rows) && history.keeps(p))
                refuse_id(c.name, c.ids[p], p, c.rows);
    }
}

inline void launch_checks(const Checks& checks, cudaStream_t stream) {
    const History& history = checks.history;
    if (!history.offsets && !history.lengths && !checks.count) return;
    int64_t work = history.users + 1;
    if (checks.count && history.tokens > work) work = history.tokens;
    const int64_t blocks = ceil_div(work, CHECK_THREADS);
    MIXPOL_LAUNCH(check_values, dim3(static_cast<unsigned>(blocks < CHECK_BLOCKS ? blocks : CHECK_BLOCKS)),
                  CHECK_THREADS, 0, stream, checks);
}

}  // namespace mixpol::cuda
