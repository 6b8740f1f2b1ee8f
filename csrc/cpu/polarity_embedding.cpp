#include "cpu/polarity_embedding.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>

namespace mixpol::cpu {

using torch::headeronly::ScalarType;

namespace {

constexpr int64_t GRAIN = 512;  // tokens a thread takes at a time
constexpr int64_t RUN =
    512;  // rows added in one go; longer segments are cut, so that one hot id is shared out

Layout read_ids_layout(const Tensor& ids, const OptionalTensor& offsets, const OptionalTensor& lengths,
                       const OptionalTensor& mask) {
    std::vector<int64_t> shape = sizes_of(ids);
    if (shape.empty() || shape.size() > 2)
        fail("ids has ", shape.size(), " dimensions; expected [N] or [B, L]");
    if (offsets && offsets->dim() != 1) fail("offsets has ", offsets->dim(), " dimensions; expected [B + 1]");
    if (shape.size() == 1 && !offsets) shape = {1, shape[0]};  // no layout: every position is kept
    int64_t users = offsets ? offsets->size(0) - 1 : shape[0];
    Layout layout = read_layout(users, shape, offsets, lengths, mask);
    layout.shape = sizes_of(ids);
    return layout;
}

// Calls body(position) for kept positions of a range of users, in order.
template <class Body>
void for_kept(const History& h, int64_t user_begin, int64_t user_end, const Body& body) {
    for (int64_t b = user_begin; b < user_end; b++) {
        int64_t begin = h.offsets ? h.offsets[b] : b * h.length;
        int64_t end = h.offsets ? h.offsets[b + 1] : begin + (h.lengths ? h.lengths[b] : h.length);
        for (int64_t p = begin; p < end; p++)
            if (!h.mask || h.mask[p]) body(p);
    }
}

// Kept positions, stably sorted by id: segment s holds order[start[s]] ... order[start[s + 1] - 1], all of id
// ids[s].
struct Segments {
    std::vector<int64_t> order, start, ids;
};

Segments sort_by_id(const Layout& layout, const int64_t* ids, int64_t rows) {
    Segments s;
    int64_t kept = 0;
    for (int64_t n : layout.counts) kept += n;
    std::vector<int64_t> positions;
    positions.reserve(kept);
    for_kept(layout.history, 0, layout.history.users, [&](int64_t p) { positions.push_back(p); });
    s.order.resize(kept);
    if (rows <= 4 * kept + 1024) {  // counting sort
        std::vector<int64_t> at(rows + 1);
        for (int64_t p : positions) at[ids[p] + 1]++;
        for (int64_t r = 0; r < rows; r++) {
            if (at[r + 1]) s.ids.push_back(r), s.start.push_back(at[r]);
            at[r + 1] += at[r];
        }
        for (int64_t p : positions) s.order[at[ids[p]]++] = p;
    } else {  // a table much larger than the batch: radix sort, 11 bits at a time
        std::vector<int64_t> other(kept);
        s.order = positions;
        for (int shift = 0; shift < 63 && rows >> shift; shift += 11) {
            int64_t at[2049] = {};
            for (int64_t p : s.order) at[((ids[p] >> shift) & 2047) + 1]++;
            for (int i = 0; i < 2048; i++) at[i + 1] += at[i];
            for (int64_t p : s.order) other[at[(ids[p] >> shift) & 2047]++] = p;
            s.order.swap(other);
        }
        for (int64_t i = 0; i < kept; i++)
            if (i == 0 || ids[s.order[i]] != s.ids.back())
                s.ids.push_back(ids[s.order[i]]), s.start.push_back(i);
    }
    s.start.push_back(kept);
    return s;
}

// The [rows, D] sums of the segments' gradient rows, to out(segment).
template <class Out>
void sum_segments(const Segments& s, const Tensor& grad_tokens, const Out& out) {
    const int width = static_cast<int>(grad_tokens.size(grad_tokens.dim() - 1));
    Tensor grads = float_rows(grad_tokens, "grad_tokens", width);
    const float* base = static_cast<const float*>(grads.const_data_ptr());
    const int64_t row_stride = grads.stride(grads.dim() - 2);
    const int64_t user_stride = grads.dim() == 3 ? grads.stride(0) : 0;
    const int64_t length = grads.dim() == 3 ? grads.size(1) : 1;
    auto row_at = [&](int64_t p) {
        return grads.dim() == 3 ? base + p / length * user_stride + p % length * row_stride
                                : base + p * row_stride;
    };
    // Long segments are cut into runs with sums of their own, which are then added in order.
    struct Part {
        int64_t segment, begin, end;
    };
    std::vector<Part> parts;
    const int64_t segments = static_cast<int64_t>(s.ids.size());
    std::vector<int64_t> first_part(segments + 1);
    for (int64_t i = 0; i < segments; i++) {
        first_part[i] = static_cast<int64_t>(parts.size());
        for (int64_t b = s.start[i]; b < s.start[i + 1]; b += RUN)
            parts.push_back({i, b, std::min(b + RUN, s.start[i + 1])});
    }
    first_part[segments] = static_cast<int64_t>(parts.size());
    const int64_t count = static_cast<int64_t>(parts.size());
    std::vector<int64_t> spill(count, -1);
    int64_t spilled = 0;
    for (int64_t i = 0; i < segments; i++)
        if (first_part[i + 1] - first_part[i] > 1)
            for (int64_t p = first_part[i]; p < first_part[i + 1]; p++) spill[p] = spilled++;
    Buffer memory = allocate(spilled * width);
    const Kernels& k = kernels();
    torch::stable::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
        const float* pointers[RUN];
        for (int64_t i = begin; i < end; i++) {
            const Part& part = parts[i];
            for (int64_t j = part.begin; j < part.end; j++) pointers[j - part.begin] = row_at(s.order[j]);
            float* to = spill[i] < 0 ? out(part.segment) : memory.get() + spill[i] * width;
            k.sum_rows(to, pointers, part.end - part.begin, width);
        }
    });
    for (int64_t i = 0; i < segments && spilled; i++) {
        if (first_part[i + 1] - first_part[i] < 2) continue;
        std::vector<const float*> pointers;
        for (int64_t p = first_part[i]; p < first_part[i + 1]; p++)
            pointers.push_back(memory.get() + spill[p] * width);
        k.sum_rows(out(i), pointers.data(), static_cast<int64_t>(pointers.size()), width);
    }
}

Segments read_segments(const Tensor& ids, const Tensor& grad_tokens, const OptionalTensor& offsets,
                       const OptionalTensor& lengths, const OptionalTensor& mask, int64_t table_rows,
                       Layout& layout) {
    if (table_rows < 0) fail("table_rows was ", table_rows, "; expected 0 or more, the rows of the table");
    layout = read_ids_layout(ids, offsets, lengths, mask);
    std::vector<int64_t> shape = sizes_of(grad_tokens);
    const int64_t width = shape.empty() ? 0 : shape.back();
    if (!shape.empty()) shape.pop_back();
    if (grad_tokens.dim() < 1 || shape != sizes_of(ids))
        fail("grad_tokens does not have the shape of ids and a last dimension");
    checked_size(width, "grad_tokens", "columns");
    Ids checked(ids, "ids", table_rows, layout);
    return sort_by_id(layout, checked.data(), table_rows);
}

}  // namespace

Tensor polarity_embedding_fwd(Tensor item_ids, Tensor polarity, Tensor item_table, Tensor polarity_table,
                              OptionalTensor extra_ids, OptionalTensor extra_table, OptionalTensor offsets,
                              OptionalTensor lengths, OptionalTensor mask) {
    if (extra_ids.has_value() != extra_table.has_value()) fail("extra_ids and extra_table come together");
    Layout layout = read_ids_layout(item_ids, offsets, lengths, mask);
    for (const auto& [table, name] :
         {std::pair{&item_table, "item_table"}, {&polarity_table, "polarity_table"}})
        if (table->dim() != 2) fail(name, " has ", table->dim(), " dimensions; expected [rows, D]");
    if (extra_table && extra_table->dim() != 2)
        fail("extra_table has ", extra_table->dim(), " dimensions; expected [R, D]");
    const int64_t width = checked_size(item_table.size(1), "item_table", "columns");
    Tensor items = float_rows(item_table, "item_table", width);
    Tensor polarities = float_rows(polarity_table, "polarity_table", width);
    Ids item(item_ids, "item_ids", items.size(0), layout),
        row(polarity, "polarity", polarities.size(0), layout);
    Tensor extras = extra_table ? float_rows(*extra_table, "extra_table", width) : polarities;
    Ids extra;
    if (extra_table) extra = Ids(*extra_ids, "extra_ids", extras.size(0), layout);
    std::vector<int64_t> shape = sizes_of(item_ids);
    shape.push_back(width);
    Tensor tokens = new_floats(shape);
    float* out = static_cast<float*>(tokens.mutable_data_ptr());
    const float *item_rows = static_cast<const float*>(items.const_data_ptr()),
                *polarity_rows = static_cast<const float*>(polarities.const_data_ptr()),
                *extra_rows = static_cast<const float*>(extras.const_data_ptr());
    const int64_t item_stride = items.stride(0), polarity_stride = polarities.stride(0),
                  extra_stride = extras.stride(0);
    const History& history = layout.history;
    const Kernels& k = kernels();
    const bool padded = history.lengths || history.mask;
    torch::stable::parallel_for(0, history.tokens, GRAIN, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; p++) {
            bool pad = padded && (history.mask ? !history.mask[p]
                                               : p % history.length >= history.lengths[p / history.length]);
            if (pad) {
                clear(out + p * width, sizeof(float) * width);
            } else {
                k.gather_sum(out + p * width, item_rows + item.data()[p] * item_stride,
                             polarity_rows + row.data()[p] * polarity_stride, static_cast<int>(width));
                if (extra_table) k.add(out + p * width, extra_rows + extra.data()[p] * extra_stride, width);
            }
        }
    });
    return tokens;
}

Tensor table_grad_dense(Tensor ids, Tensor grad_tokens, OptionalTensor offsets, OptionalTensor lengths,
                        OptionalTensor mask, int64_t table_rows) {
    Layout layout;
    Segments s = read_segments(ids, grad_tokens, offsets, lengths, mask, table_rows, layout);
    const int64_t width = grad_tokens.size(grad_tokens.dim() - 1);
    Tensor grad = new_floats({table_rows, width});
    float* out = static_cast<float*>(grad.mutable_data_ptr());
    torch::stable::parallel_for(0, table_rows, 4096, [&](int64_t begin, int64_t end) {
        clear(out + begin * width, sizeof(float) * (end - begin) * width);
    });
    sum_segments(s, grad_tokens, [&](int64_t segment) { return out + s.ids[segment] * width; });
    return grad;
}

std::tuple<Tensor, Tensor> table_grad_sparse(Tensor ids, Tensor grad_tokens, OptionalTensor offsets,
                                             OptionalTensor lengths, OptionalTensor mask,
                                             int64_t table_rows) {
    Layout layout;
    Segments s = read_segments(ids, grad_tokens, offsets, lengths, mask, table_rows, layout);
    const int64_t width = grad_tokens.size(grad_tokens.dim() - 1),
                  unique = static_cast<int64_t>(s.ids.size());
    Tensor index = new_tensor({unique}, ScalarType::Long), rows = new_floats({unique, width});
    copy(index.mutable_data_ptr(), s.ids.data(), sizeof(int64_t) * unique);
    float* out = static_cast<float*>(rows.mutable_data_ptr());
    sum_segments(s, grad_tokens, [&](int64_t segment) { return out + segment * width; });
    return {index, rows};
}

}  // namespace mixpol::cpu
