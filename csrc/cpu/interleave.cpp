#include "cpu/interleave.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <iomanip>
#include <limits>

namespace mixpol::cpu {

using torch::headeronly::ScalarType;

namespace {

constexpr int64_t MAX_BLOCKS = 256;

// The lists of one polarity: user b owns events at[b] ... at[b + 1] - 1.
struct Lists {
    std::string polarity;
    Tensor times, offsets;  // contiguous
    const int64_t* at;
    int64_t users, events;

    int64_t count(int64_t user) const { return at[user + 1] - at[user]; }
};

Lists read_lists(const char* polarity, const Tensor& times, const Tensor& offsets) {
    const std::string times_name = std::string(polarity) + "_times",
                      name = std::string(polarity) + "_offsets";
    if (!times.is_cpu() || times.dim() != 1) fail(times_name, " is not a [N] tensor on the CPU");
    if (!offsets.is_cpu() || offsets.scalar_type() != ScalarType::Long || offsets.dim() != 1 ||
        offsets.size(0) < 1)
        fail(name, " is not a [B + 1] int64 tensor on the CPU; convert it with .cpu().long()");
    Lists lists{polarity,
                torch::stable::contiguous(times),
                torch::stable::contiguous(offsets),
                nullptr,
                offsets.size(0) - 1,
                times.size(0)};
    const int64_t* at = lists.at = static_cast<const int64_t*>(lists.offsets.const_data_ptr());
    if (at[0] != 0 || at[lists.users] != lists.events)
        fail(name, " run from ", at[0], " to ", at[lists.users], "; expected 0 to ", lists.events,
             ", the number of ", times_name);
    for (int64_t b = 0; b < lists.users; b++)
        if (at[b + 1] < at[b])
            fail(name, "[", b + 1, "] is ", at[b + 1], ", below ", name, "[", b, "] = ", at[b],
                 "; expected offsets that never fall");
    return lists;
}

// Whether no time falls and none is NaN.
template <class T>
bool rises(const T* times, int64_t n) {
    bool good = n == 0 || times[0] == times[0];
    for (int64_t i = 1; i < n; i++) good &= times[i - 1] <= times[i];
    return good;
}

// Names the first time that falls or is NaN, if there is one.
template <class T>
void refuse_falls(const Lists& lists) {
    const T* times = static_cast<const T*>(lists.times.const_data_ptr());
    const std::string name = lists.polarity + "_times";
    for (int64_t b = 0; b < lists.users; b++)
        for (int64_t i = lists.at[b]; i < lists.at[b + 1]; i++) {
            if (times[i] != times[i]) fail(name, "[", i, "] is nan; expected a number");
            if (i > lists.at[b] && times[i] < times[i - 1])
                fail(std::setprecision(std::numeric_limits<T>::max_digits10), name, "[", i, "] is ", times[i],
                     ", below ", name, "[", i - 1, "] = ", times[i - 1],
                     " of the same user; expected times that never fall within a user's list: sort them, "
                     "oldest first");
        }
}

// Which events of a user stay: places begin ... end - 1 of either list, and of these the newest `kept`.
struct Range {
    int64_t positive_begin, positive_end, negative_begin, negative_end, kept;
};

struct Rule {
    int64_t budget, n_negative;
    bool share;

    Range of(const Lists& positive, const Lists& negative, int64_t user) const {
        Range r{positive.at[user], positive.at[user + 1], negative.at[user], negative.at[user + 1], 0};
        const int64_t p = positive.count(user), n = negative.count(user);
        if (share) {
            int64_t take_negative = std::min(n, n_negative);
            const int64_t take_positive = std::min(p, budget - take_negative);
            take_negative = std::min(n, budget - take_positive);
            r.positive_begin = r.positive_end - take_positive;
            r.negative_begin = r.negative_end - take_negative;
        }
        r.kept = std::min(budget, r.positive_end - r.positive_begin + r.negative_end - r.negative_begin);
        return r;
    }
};

// Writes the newest r.kept events, from the last to the first: a budget ends the walk early. At equal times
// the positive is the newer. No branch depends on which list an event comes from.
template <class T>
void merge(const T* positive, const T* negative, const Range& r, int64_t n_positive, int64_t* source,
           uint8_t* polarity) {
    int64_t i = r.positive_end, j = r.negative_end, at = r.kept;
    while (at > 0 && i > r.positive_begin && j > r.negative_begin) {
        const bool from_positive = positive[i - 1] >= negative[j - 1];
        i -= from_positive;
        j -= !from_positive;
        at--;
        source[at] = from_positive ? i : n_positive + j;
        polarity[at] = from_positive;
    }
    const bool rest = i > r.positive_begin;
    const int64_t first = (rest ? i : n_positive + j) - at;
    for (int64_t k = 0; k < at; k++) source[k] = first + k, polarity[k] = rest;
}

template <class T>
void merge_all(const Lists& positive, const Lists& negative, const Rule& rule, const int64_t* offsets,
               const std::vector<int64_t>& bounds, int64_t* source, uint8_t* polarity) {
    const T *positives = static_cast<const T*>(positive.times.const_data_ptr()),
            *negatives = static_cast<const T*>(negative.times.const_data_ptr());
    std::atomic<bool> good{true};
    run_blocks(static_cast<int64_t>(bounds.size()) - 1, 0, [&](int64_t block, float*) {
        bool fine = true;
        for (int64_t b = bounds[block]; b < bounds[block + 1]; b++) {
            fine &= rises(positives + positive.at[b], positive.count(b));
            fine &= rises(negatives + negative.at[b], negative.count(b));
            merge(positives, negatives, rule.of(positive, negative, b), positive.events, source + offsets[b],
                  polarity + offsets[b]);
        }
        if (!fine) good = false;
    });
    if (good) return;
    refuse_falls<T>(positive);
    refuse_falls<T>(negative);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> interleave(Tensor positive_times, Tensor positive_offsets,
                                              Tensor negative_times, Tensor negative_offsets,
                                              std::optional<int64_t> budget,
                                              std::optional<int64_t> n_negative) {
    const Lists positive = read_lists("positive", positive_times, positive_offsets),
                negative = read_lists("negative", negative_times, negative_offsets);
    const int64_t users = positive.users;
    if (negative.users != users)
        fail("negative_offsets lists ", negative.users, " users and positive_offsets ", users,
             "; expected the same users");
    if (negative_times.scalar_type() != positive_times.scalar_type())
        fail("negative_times does not have the dtype of positive_times");
    const Rule rule{budget.value_or(std::numeric_limits<int64_t>::max()), n_negative.value_or(0),
                    n_negative.has_value()};
    if (rule.budget < 0 || rule.n_negative < 0 || rule.n_negative > rule.budget)
        fail("budget is ", rule.budget, " and n_negative ", rule.n_negative,
             "; expected 0 <= n_negative <= budget");
    Tensor offsets = torch::stable::empty({users + 1}, ScalarType::Long);
    int64_t* to = static_cast<int64_t*>(offsets.mutable_data_ptr());
    Layout cost;
    cost.history.users = users;
    cost.counts.resize(users);
    to[0] = 0;
    for (int64_t b = 0; b < users; b++) {
        to[b + 1] = to[b] + rule.of(positive, negative, b).kept;
        cost.counts[b] = positive.count(b) + negative.count(b);
    }
    Tensor source = torch::stable::empty({to[users]}, ScalarType::Long),
           polarity = torch::stable::empty({to[users]}, ScalarType::Byte);
    int64_t* places = static_cast<int64_t*>(source.mutable_data_ptr());
    uint8_t* rows = static_cast<uint8_t*>(polarity.mutable_data_ptr());
    const std::vector<int64_t> bounds = cut_blocks(cost, 1, MAX_BLOCKS);
    switch (positive_times.scalar_type()) {
        case ScalarType::Long:
            merge_all<int64_t>(positive, negative, rule, to, bounds, places, rows);
            break;
        case ScalarType::Int:
            merge_all<int32_t>(positive, negative, rule, to, bounds, places, rows);
            break;
        case ScalarType::Float:
            merge_all<float>(positive, negative, rule, to, bounds, places, rows);
            break;
        case ScalarType::Double:
            merge_all<double>(positive, negative, rule, to, bounds, places, rows);
            break;
        default:
            fail("positive_times is neither int64, int32, float32 nor float64");
    }
    return {source, polarity, offsets};
}

}  // namespace mixpol::cpu
