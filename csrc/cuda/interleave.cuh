// Merging a positive and a negative list per user by time. Every kept event finds its own place: its place in
// its list plus the number of events of the other list that are older. At equal times the negative is the
// older one. A block takes a user.
#pragma once

#include "cuda/checks.cuh"

namespace mixpol::cuda {

constexpr int MERGE_THREADS = 128;
constexpr int64_t LARGEST_GRID = 1 << 16;  // blocks go on to further users

// The lists of one polarity: user b owns events at[b] ... at[b + 1] - 1.
template <class T>
struct EventLists {
    const T* times;
    const int64_t* at;
    int64_t events;
};

struct MergeRule {
    int64_t budget, n_negative;
    bool share;  // whether n_negative is a quota
};

template <class T>
struct Interleave {
    EventLists<T> positive, negative;
    int64_t users;
    MergeRule rule;
    const int64_t* offsets;  // of the merged lists [users + 1]
    int64_t* source;         // places in cat([positives, negatives])
    uint8_t* polarity;
};

static __device__ MIXPOL_NOINLINE void refuse_nan(Argument name, int64_t at) {
    MIXPOL_REFUSE("%s_times[%lld] is nan; expected a number\n", name_of(name), static_cast<long long>(at));
}

// Times of either kind fit: what a double loses of an int64 is in the last digits.
static __device__ MIXPOL_NOINLINE void refuse_time(Argument name, int64_t at, double here, double before) {
    MIXPOL_REFUSE(
        "%s_times[%lld] is %.17g, below %s_times[%lld] = %.17g of the same user; expected times that never "
        "fall within a user's list: sort them, oldest first\n",
        name_of(name), static_cast<long long>(at), here, name_of(name), static_cast<long long>(at - 1),
        before);
}

// Refuses offsets that do not rise, and times that are NaN or fall within a user's list. A warp takes a list.
template <class T>
__device__ __forceinline__ void check_events(const EventLists<T>& lists, int64_t users, Argument name,
                                             int64_t first, int64_t step) {
    check_offsets(lists.at, users, lists.events, name == Argument::positive ? "positive_" : "negative_",
                  first, step);
    for (int64_t b = first / WARP; b < users; b += step / WARP) {
        const int64_t begin = lists.at[b],
                      end = lists.at[b + 1] < lists.events ? lists.at[b + 1] : lists.events;
        for (int64_t i = begin + first % WARP; i < end; i += WARP) {
            const T now = lists.times[i];
            if (now != now) refuse_nan(name, i);
            if (i > begin && now < lists.times[i - 1])
                refuse_time(name, i, static_cast<double>(now), static_cast<double>(lists.times[i - 1]));
        }
    }
}

// Checks both lists and counts the events that every user keeps, which does not depend on times.
template <class T>
__global__ void __launch_bounds__(CHECK_THREADS) count_events(const Interleave<T> a, int64_t* counts) {
    const int64_t first = blockIdx.x * static_cast<int64_t>(CHECK_THREADS) + threadIdx.x;
    const int64_t step = static_cast<int64_t>(CHECK_THREADS) * gridDim.x;
    check_events(a.positive, a.users, Argument::positive, first, step);
    check_events(a.negative, a.users, Argument::negative, first, step);
    if (first == 0) counts[0] = 0;
    for (int64_t b = first; b < a.users; b += step) {
        const int64_t events =
            a.positive.at[b + 1] - a.positive.at[b] + a.negative.at[b + 1] - a.negative.at[b];
        counts[b + 1] = events < a.rule.budget ? events : a.rule.budget;
    }
}

// What a user keeps of either list: the newest `count` events from `begin` on.
struct Kept {
    int64_t begin, count;
};

__host__ __device__ inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
__device__ void keep_newest(const Interleave<T>& a, int64_t user, Kept& positive, Kept& negative) {
    const int64_t positive_end = a.positive.at[user + 1], negative_end = a.negative.at[user + 1];
    const int64_t positives = positive_end - a.positive.at[user],
                  negatives = negative_end - a.negative.at[user];
    const int64_t budget = a.rule.budget;
    int64_t take_positive = positives, take_negative = negatives;
    if (positives + negatives > budget) {
        if (a.rule.share) {
            take_positive = smaller(positives, budget - smaller(negatives, a.rule.n_negative));
        } else {
            // The fewest positives such that the next one is older than the oldest negative that is kept.
            int64_t low = budget > negatives ? budget - negatives : 0, high = smaller(positives, budget);
            while (low < high) {
                const int64_t middle = low + (high - low) / 2;
                if (a.positive.times[positive_end - 1 - middle] >=
                    a.negative.times[negative_end - (budget - middle)])
                    low = middle + 1;
                else
                    high = middle;
            }
            take_positive = low;
        }
        take_negative = budget - take_positive;
    }
    positive = {positive_end - take_positive, take_positive};
    negative = {negative_end - take_negative, take_negative};
}

// How many of `count` rising times are below `time`, or not above it.
template <class T>
__device__ __forceinline__ int64_t older(const T* times, int64_t count, T time, bool or_equal) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (or_equal ? times[middle] <= time : times[middle] < time)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

template <class T>
__global__ void __launch_bounds__(MERGE_THREADS) merge_events(const Interleave<T> a) {
    for (int64_t user = blockIdx.x; user < a.users; user += gridDim.x) {
        Kept positive, negative;
        keep_newest(a, user, positive, negative);
        const T *positives = a.positive.times + positive.begin,
                *negatives = a.negative.times + negative.begin;
        const int64_t to = a.offsets[user];
        for (int64_t i = threadIdx.x; i < positive.count; i += MERGE_THREADS) {
            const int64_t place = to + i + older(negatives, negative.count, positives[i], true);
            a.source[place] = positive.begin + i;
            a.polarity[place] = 1;
        }
        for (int64_t i = threadIdx.x; i < negative.count; i += MERGE_THREADS) {
            const int64_t place = to + i + older(positives, positive.count, negatives[i], false);
            a.source[place] = a.positive.events + negative.begin + i;
            a.polarity[place] = 0;
        }
    }
}

template <class T>
void launch_count_events(const Interleave<T>& a, int64_t* counts, cudaStream_t stream) {
    const int64_t blocks = ceil_div(WARP * (a.users + 1), CHECK_THREADS);
    MIXPOL_LAUNCH(count_events<T>, dim3(static_cast<unsigned>(smaller(blocks, LARGEST_GRID))), CHECK_THREADS,
                  0, stream, a, counts);
}

template <class T>
void launch_merge_events(const Interleave<T>& a, cudaStream_t stream) {
    if (a.users == 0) return;
    MIXPOL_LAUNCH(merge_events<T>, dim3(static_cast<unsigned>(smaller(a.users, LARGEST_GRID))), MERGE_THREADS,
                  0, stream, a);
}

}  // namespace mixpol::cuda
