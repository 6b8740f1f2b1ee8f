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
    if (times.dim() != 1) fail(times_name, " is not [N]; it has ", times.dim(), " dimensions");
    if (offsets.scalar_type() != ScalarType::Long || offsets.dim() != 1 || offsets.size(0) < 1)
        fail(name, " is not a [B + 1] int64 tensor on the CPU; convert it with .cpu().long()");
    Lists lists{polarity, as_contiguous(times), as_contiguous(offsets),
                nullptr,  offsets.size(0) - 1,  times.size(0)};
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

// What a user keeps: places begin ... end - 1 of either list.
struct Range {
    int64_t positive_begin, positive_end, negative_begin, negative_end;

    int64_t positives() const { return positive_end - positive_begin; }
    int64_t negatives() const { return negative_end - negative_begin; }
    int64_t events() const { return positives() + negatives(); }
    void keep(int64_t positives, int64_t negatives) {
        positive_begin = positive_end - positives;
        negative_begin = negative_end - negatives;
    }
};

struct Rule {
    int64_t budget, n_negative;
    bool share;

    // How many events stay, which does not depend on the times.
    int64_t events(int64_t positives, int64_t negatives) const {
        return std::min(budget, positives + negatives);
    }

    template <class T>
    Range of(const Lists& positive, const Lists& negative, const T* positives, const T* negatives,
             int64_t user) const {
        Range r{positive.at[user], positive.at[user + 1], negative.at[user], negative.at[user + 1]};
        if (r.events() <= budget) return r;
        if (share) {
            const int64_t take_negative = std::min(r.negatives(), n_negative),
                          take_positive = std::min(r.positives(), budget - take_negative);
            r.keep(take_positive, budget - take_positive);
            return r;
        }
        // The fewest positives such that the next one is older than the oldest negative that is kept.
        int64_t low = std::max<int64_t>(0, budget - r.negatives()), high = std::min(r.positives(), budget);
        while (low < high) {
            const int64_t middle = low + (high - low) / 2;
            if (positives[r.positive_end - 1 - middle] >= negatives[r.negative_end - (budget - middle)])
                low = middle + 1;
            else
                high = middle;
        }
        r.keep(low, budget - low);
        return r;
    }
};

// a where `yes` is 1, b where it is 0. A branch on the times would be guessed wrong every third time.
int64_t select(int64_t yes, int64_t a, int64_t b) { return b + (-yes & (a - b)); }

// Merges two lists whose first events have the given places. It works from both ends at once: that is two
// chains of dependent steps. At equal times the negative is the older. Not inlined, for the registers.
template <class T>
[[gnu::noinline]] void merge(const T* positive, const T* negative, int64_t positives, int64_t negatives,
                             int64_t positive_place, int64_t negative_place, int64_t* source,
                             uint8_t* polarity) {
    int64_t first = 0, last = positives + negatives;  // still to be written
    int64_t begin = 0, end = positives;               // positives among them
    auto oldest = [&] {
        const int64_t j = first - begin, yes = positive[begin] < negative[j];
        source[first] = select(yes, positive_place + begin, negative_place + j);
        polarity[first++] = static_cast<uint8_t>(yes);
        begin += yes;
    };
    auto newest = [&] {
        const int64_t i = end - 1, j = --last - end, yes = positive[i] >= negative[j];
        source[last] = select(yes, positive_place + i, negative_place + j);
        polarity[last] = static_cast<uint8_t>(yes);
        end -= yes;
    };
    auto left = [&] { return std::min(end - begin, last - first - (end - begin)); };
    // So many steps at either end cannot use up a list.
    while (const int64_t steps = left() / 2)
        for (int64_t s = 0; s < steps; s++) oldest(), newest();
    while (left()) oldest();
    const bool rest = end > begin;
    const int64_t place = rest ? positive_place + begin - first : negative_place - begin;
    for (int64_t at = first; at < last; at++) source[at] = place + at, polarity[at] = rest;
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
            const Range r = rule.of(positive, negative, positives, negatives, b);
            merge(positives + r.positive_begin, negatives + r.negative_begin, r.positives(), r.negatives(),
                  r.positive_begin, positive.events + r.negative_begin, source + offsets[b],
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
    Tensor offsets = new_tensor({users + 1}, ScalarType::Long);
    int64_t* to = static_cast<int64_t*>(offsets.mutable_data_ptr());
    Layout cost;
    cost.history.users = users;
    cost.counts.resize(users);
    to[0] = 0;
    for (int64_t b = 0; b < users; b++) {
        to[b + 1] = to[b] + rule.events(positive.count(b), negative.count(b));
        cost.counts[b] = positive.count(b) + negative.count(b);
    }
    Tensor source = new_tensor({to[users]}, ScalarType::Long),
           polarity = new_tensor({to[users]}, ScalarType::Byte);
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
