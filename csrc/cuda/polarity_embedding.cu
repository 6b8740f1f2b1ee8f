#include "cuda/dispatch.h"
#include "cuda/polarity_embedding.cuh"
#include "cuda/polarity_embedding.h"
#include "cuda/table_grad.cuh"

namespace mixpol::cuda {

namespace {

// Ids sorted with their positions, and what the segments' sums need.
struct Segments {
    Device device;
    TableGrad args;
    Alive alive;

    Segments(const Tensor& ids, const Tensor& grad_tokens, const OptionalTensor& offsets,
             const OptionalTensor& lengths, const OptionalTensor& mask, int64_t table_rows)
        : device(ids, "ids"), args{} {
        Checks checks;
        checks.history = args.history = read_ids_history(device, ids, offsets, lengths, mask, alive);
        if (table_rows < 0)
            fail("table_rows was ", table_rows, "; expected 0 or more, the rows of the table");
        std::vector<int64_t> shape = sizes_of(grad_tokens);
        if (!shape.empty()) shape.pop_back();
        if (grad_tokens.dim() < 1 || shape != sizes_of(ids))
            fail("grad_tokens does not have the shape of ids and a last dimension");
        args.width = static_cast<int>(grad_tokens.size(ids.dim()));
        args.rows = table_rows;
        const Tensor grads = device.read_rows(grad_tokens, "grad_tokens", args.width);
        alive.push_back(grads);
        args.grads = rows_of(grads);
        const Ids read = read_ids(device, ids, "ids", table_rows, Argument::ids, checks, alive);
        launch_checks(checks, device.stream());
        const int64_t n = args.history.tokens;
        Tensor keys = device.tensor({n}, ScalarType::Long);
        launch_sort_keys(args.history, read, table_rows, static_cast<int64_t*>(keys.mutable_data_ptr()),
                         device.stream());
        auto [sorted, order] = sort_stably(keys);
        args.ids = static_cast<const int64_t*>(sorted.const_data_ptr());
        args.order = static_cast<const int64_t*>(order.const_data_ptr());
        Tensor shares = device.floats({2 * grad_runs(n) * args.width});
        args.shares = mutable_data_of(shares);
        alive.insert(alive.end(), {keys, sorted, order, shares});
    }

    void sum(Tensor& out) {
        args.out = mutable_data_of(out);
        launch_table_grad(args, device.stream());
        device.check_launches();
    }
};

}  // namespace

Tensor polarity_embedding_fwd(Tensor item_ids, Tensor polarity, Tensor item_table, Tensor polarity_table,
                              OptionalTensor extra_ids, OptionalTensor extra_table, OptionalTensor offsets,
                              OptionalTensor lengths, OptionalTensor mask) {
    if (extra_ids.has_value() != extra_table.has_value()) fail("extra_ids and extra_table come together");
    const Device device(item_table, "item_table");
    EmbeddingForward args{};
    Checks checks;
    Alive alive;
    checks.history = args.history = read_ids_history(device, item_ids, offsets, lengths, mask, alive);
    const int64_t width = item_table.dim() == 2 ? item_table.size(1) : -1;
    args.width = static_cast<int>(width);
    args.vectors = true;
    auto table = [&](const Tensor& given, const char* name, const float*& base, int64_t& stride) {
        const Tensor rows = device.read_rows(given, name, width);
        alive.push_back(rows);
        const Rows read = rows_of(rows);
        base = read.base, stride = read.row_stride;
        args.vectors = args.vectors && read.vectors;
        return rows.size(0);
    };
    const int64_t items = table(item_table, "item_table", args.item_table, args.item_stride),
                  polarities =
                      table(polarity_table, "polarity_table", args.polarity_table, args.polarity_stride);
    args.items = read_ids(device, item_ids, "item_ids", items, Argument::item_ids, checks, alive);
    args.polarity = read_ids(device, polarity, "polarity", polarities, Argument::polarity, checks, alive);
    if (extra_table) {
        const int64_t extras = table(*extra_table, "extra_table", args.extra_table, args.extra_stride);
        args.extra = read_ids(device, *extra_ids, "extra_ids", extras, Argument::extra_ids, checks, alive);
    }
    std::vector<int64_t> shape = sizes_of(item_ids);
    shape.push_back(width);
    Tensor tokens = device.floats(shape);
    args.tokens = mutable_data_of(tokens);
    launch_checks(checks, device.stream());
    launch_polarity_embedding(args, device.stream());
    device.check_launches();
    return tokens;
}

Tensor table_grad_dense(Tensor ids, Tensor grad_tokens, OptionalTensor offsets, OptionalTensor lengths,
                        OptionalTensor mask, int64_t table_rows) {
    Segments segments(ids, grad_tokens, offsets, lengths, mask, table_rows);
    Tensor grad = segments.device.floats({table_rows, segments.args.width});
    torch::stable::zero_(grad);
    segments.sum(grad);
    return grad;
}

std::tuple<Tensor, Tensor> table_grad_sparse(Tensor ids, Tensor grad_tokens, OptionalTensor offsets,
                                             OptionalTensor lengths, OptionalTensor mask,
                                             int64_t table_rows) {
    Segments segments(ids, grad_tokens, offsets, lengths, mask, table_rows);
    const Device& device = segments.device;
    const int64_t n = segments.args.history.tokens;
    Tensor marks = device.tensor({n}, ScalarType::Long);
    launch_mark_segments(segments.args.ids, n, table_rows, static_cast<int64_t*>(marks.mutable_data_ptr()),
                         device.stream());
    const Tensor numbers = running_sum(marks);
    segments.args.segments = static_cast<const int64_t*>(numbers.const_data_ptr());
    const int64_t unique = n ? read_back(segments.args.segments + n - 1, device.stream()) : 0;
    Tensor index = device.tensor({unique}, ScalarType::Long),
           rows = device.floats({unique, segments.args.width});
    segments.args.unique = static_cast<int64_t*>(index.mutable_data_ptr());
    segments.sum(rows);
    return {index, rows};
}

}  // namespace mixpol::cuda
