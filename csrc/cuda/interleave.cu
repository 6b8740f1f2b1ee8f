#include <limits>

#include "cuda/dispatch.h"
#include "cuda/interleave.cuh"
#include "cuda/interleave.h"

namespace mixpol::cuda {

namespace {

struct Lists {
    Tensor times, offsets;  // contiguous
};

Lists read_lists(const Device& device, const std::string& polarity, const Tensor& times,
                 const Tensor& offsets) {
    const std::string times_name = polarity + "_times", name = polarity + "_offsets";
    device.require(times, times_name.c_str());
    device.require(offsets, name.c_str());
    if (times.dim() != 1) fail(times_name, " has ", times.dim(), " dimensions; expected [N]");
    if (offsets.scalar_type() != ScalarType::Long || offsets.dim() != 1 || offsets.size(0) < 1)
        fail(name, " is not a [B + 1] int64 tensor; convert it with .long()");
    return {as_contiguous(times), as_contiguous(offsets)};
}

template <class T>
EventLists<T> lists_of(const Lists& lists) {
    return {static_cast<const T*>(lists.times.const_data_ptr()),
            static_cast<const int64_t*>(lists.offsets.const_data_ptr()), lists.times.size(0)};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> merge(const Device& device, const Lists& positive, const Lists& negative,
                                         const MergeRule& rule, bool limited) {
    Interleave<T> args{};
    args.positive = lists_of<T>(positive), args.negative = lists_of<T>(negative);
    args.users = positive.offsets.size(0) - 1;
    args.rule = rule;
    Tensor counts = device.tensor(std::vector<int64_t>{args.users + 1}, ScalarType::Long);
    launch_count_events(args, static_cast<int64_t*>(counts.mutable_data_ptr()), device.stream());
    Tensor offsets = running_sum(counts);
    args.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
    const int64_t events = limited ? read_back(args.offsets + args.users, device.stream())
                                   : args.positive.events + args.negative.events;
    const std::vector<int64_t> shape{events};
    Tensor source = device.tensor(shape, ScalarType::Long), polarity = device.tensor(shape, ScalarType::Byte);
    args.source = static_cast<int64_t*>(source.mutable_data_ptr());
    args.polarity = static_cast<uint8_t*>(polarity.mutable_data_ptr());
    launch_merge_events(args, device.stream());
    device.check_launches();
    return {source, polarity, offsets};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> interleave(Tensor positive_times, Tensor positive_offsets,
                                              Tensor negative_times, Tensor negative_offsets,
                                              std::optional<int64_t> budget,
                                              std::optional<int64_t> n_negative) {
    const Device device(positive_times, "positive_times");
    const Lists positive = read_lists(device, "positive", positive_times, positive_offsets),
                negative = read_lists(device, "negative", negative_times, negative_offsets);
    if (negative.offsets.size(0) != positive.offsets.size(0))
        fail("negative_offsets lists ", negative.offsets.size(0) - 1, " users and positive_offsets ",
             positive.offsets.size(0) - 1, "; expected the same users");
    if (negative_times.scalar_type() != positive_times.scalar_type())
        fail("negative_times does not have the dtype of positive_times");
    const MergeRule rule{budget.value_or(std::numeric_limits<int64_t>::max()), n_negative.value_or(0),
                         n_negative.has_value()};
    if (rule.budget < 0 || rule.n_negative < 0 || rule.n_negative > rule.budget)
        fail("budget is ", rule.budget, " and n_negative ", rule.n_negative,
             "; expected 0 <= n_negative <= budget");
    switch (positive_times.scalar_type()) {
        case ScalarType::Long:
            return merge<int64_t>(device, positive, negative, rule, budget.has_value());
        case ScalarType::Int:
            return merge<int32_t>(device, positive, negative, rule, budget.has_value());
        case ScalarType::Float:
            return merge<float>(device, positive, negative, rule, budget.has_value());
        case ScalarType::Double:
            return merge<double>(device, positive, negative, rule, budget.has_value());
        default:
            fail("positive_times is neither int64, int32, float32 nor float64");
    }
}

}  // namespace mixpol::cuda
