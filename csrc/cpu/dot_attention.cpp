#include "cpu/dot_attention.h"

#include <algorithm>
#include <cstring>

namespace mixpol::cpu {

namespace {

constexpr int64_t BLOCKS = 128;            // for load balance only: no result depends on its block
constexpr int64_t MIN_BLOCK_COST = 4096;   // tokens times rows
constexpr int64_t ROW_COST = 6;            // what a row costs beyond its tokens, in tokens
constexpr int64_t MIN_PRODUCTS = 1 << 17;  // multiplications that are worth a thread

struct Inputs {
    DotPass pass{};
    Layout layout;
    std::vector<Tensor> alive;
    std::vector<int64_t> token_shape, row_shape;
};

// [B, M, H, width]
void check_rows(const std::vector<int64_t>& shape) {
    if (shape[2] < 1) fail("queries has ", shape[2], " heads; expected at least 1");
    for (int i = 1; i < 4; i++)
        checked_size(shape[i], "queries", i == 1 ? "candidates" : i == 2 ? "heads" : "columns");
    checked_size(shape[2] * shape[3], "queries", "columns of all heads");
    checked_size(shape[1] * shape[2], "queries", "candidates times heads");
}

Inputs read(const Tensor& queries, const Tensor& history, const OptionalTensor& offsets,
            const OptionalTensor& lengths, const OptionalTensor& mask, bool sliced, int64_t top_k) {
    Inputs in;
    DotPass& pass = in.pass;
    if (queries.dim() != 4) fail("queries has ", queries.dim(), " dimensions; expected [B, M, H, D]");
    in.row_shape = sizes_of(queries);
    const int64_t users = in.row_shape[0], heads = in.row_shape[2], query_width = in.row_shape[3];
    check_rows(in.row_shape);
    const int64_t width = sliced ? heads * query_width : query_width;
    Tensor rows = float_rows(queries, "queries", query_width);
    Tensor tokens = float_rows(history, "history", width);
    in.token_shape = sizes_of(tokens);
    in.token_shape.pop_back();
    in.layout = read_layout(users, in.token_shape, offsets, lengths, mask);
    in.alive = {rows, tokens};
    pass.history = in.layout.history;
    pass.tokens.base = static_cast<const float*>(tokens.const_data_ptr());
    pass.tokens.row_stride = tokens.stride(tokens.dim() - 2);
    pass.tokens.user_stride = tokens.dim() == 3 ? tokens.stride(0) : 0;
    pass.width = static_cast<int>(width);
    pass.query_width = static_cast<int>(query_width);
    pass.candidates = static_cast<int>(in.row_shape[1]);
    pass.heads = static_cast<int>(heads);
    pass.sliced = sliced;
    if (top_k < 0) fail("top_k was ", top_k, "; expected at least 1, or 0 for all tokens");
    pass.top_k = top_k;
    pass.queries = static_cast<const float*>(rows.const_data_ptr());
    pass.user_stride = rows.stride(0), pass.candidate_stride = rows.stride(1),
    pass.head_stride = rows.stride(2);
    for (int64_t count : in.layout.counts) pass.longest = std::max(pass.longest, count);
    return in;
}

// Contiguous ranges of items, of which every user has `parts` of `rows` rows, of about equal cost.
std::vector<int64_t> cut(const Layout& layout, int64_t parts, int64_t rows, int64_t max_blocks = BLOCKS) {
    int64_t total = 0;
    for (int64_t n : layout.counts) total += (n + ROW_COST) * parts;
    const int64_t blocks = std::clamp<int64_t>(total * rows / MIN_BLOCK_COST, 1, max_blocks);
    std::vector<int64_t> bounds{0};
    int64_t cost = 0, item = 0;
    for (int64_t n : layout.counts)
        for (int64_t part = 0; part < parts; part++) {
            cost += n + ROW_COST, item++;
            if (cost * blocks >= total * static_cast<int64_t>(bounds.size())) bounds.push_back(item);
        }
    return bounds;
}

// A projection [H * width, D] as [H][D][padded width].
Buffer transposed_heads(const Tensor& weight, int64_t heads) {
    const int64_t each = weight.size(0) / heads, inputs = weight.size(1), wide = padded_columns(int(each));
    const float* from = static_cast<const float*>(weight.const_data_ptr());
    Buffer buffer = allocate(heads * inputs * wide);
    for (int64_t h = 0; h < heads; h++)
        for (int64_t d = 0; d < inputs; d++) {
            float* to = buffer.get() + (h * inputs + d) * wide;
            for (int64_t j = 0; j < wide; j++) to[j] = j < each ? from[(h * each + j) * inputs + d] : 0;
        }
    return buffer;
}

// Rows with zeros behind them, [rows][padded width].
Buffer padded_rows(const Tensor& weight) {
    const int64_t rows = weight.size(0), width = weight.size(1), wide = padded_columns(int(width));
    const float* from = static_cast<const float*>(weight.const_data_ptr());
    Buffer buffer = allocate(rows * wide);
    clear(buffer.get(), sizeof(float) * rows * wide);
    for (int64_t r = 0; r < rows; r++) copy(buffer.get() + r * wide, from + r * width, sizeof(float) * width);
    return buffer;
}

struct ProjectedInputs {
    DotProjected pass{};
    Layout layout;
    Tensor keys, values;
    std::vector<Tensor> alive;
    Buffer keys_t, values_t;
    std::vector<int64_t> row_shape, token_shape;

    std::vector<int64_t> rows_of(int64_t width) const {
        return {row_shape[0], row_shape[1], row_shape[2], width};
    }
};

ProjectedInputs read_projected(const Tensor& queries, const Tensor& history, const OptionalTensor& offsets,
                               const OptionalTensor& lengths, const OptionalTensor& mask, const Tensor& w_k,
                               const Tensor& w_v) {
    if (queries.dim() != 4) fail("queries has ", queries.dim(), " dimensions; expected [B, M, H, width]");
    if (history.dim() < 2) fail("history has ", history.dim(), " dimensions; expected [N, D] or [B, L, D]");
    const std::vector<int64_t> shape = sizes_of(queries);
    const int64_t users = shape[0], heads = shape[2],
                  width = checked_size(history.size(history.dim() - 1), "history", "columns");
    check_rows(shape);
    if (shape[3] == 0) fail("queries are 0 wide; expected at least 1");
    Tensor rows = float_rows(queries, "queries", shape[3]);
    Tensor tokens = float_rows(history, "history", width);
    Tensor keys = floats(w_k, "w_k", {heads * shape[3], width}), values = floats(w_v, "w_v", {-1, width});
    if (values.size(0) == 0 || values.size(0) % heads)
        fail("w_v has ", values.size(0), " rows; expected a multiple of ", heads,
             " heads, at least one each");
    checked_size(values.size(0), "w_v", "rows");
    std::vector<int64_t> token_shape = sizes_of(tokens);
    token_shape.pop_back();
    ProjectedInputs in{{},
                       read_layout(users, token_shape, offsets, lengths, mask),
                       keys,
                       values,
                       {rows, tokens},
                       {},
                       {},
                       shape,
                       token_shape};
    DotProjected& pass = in.pass;
    pass.history = in.layout.history;
    pass.tokens.base = static_cast<const float*>(tokens.const_data_ptr());
    pass.tokens.row_stride = tokens.stride(tokens.dim() - 2);
    pass.tokens.user_stride = tokens.dim() == 3 ? tokens.stride(0) : 0;
    pass.width = static_cast<int>(width);
    pass.key_width = static_cast<int>(shape[3]);
    pass.value_width = static_cast<int>(values.size(0) / heads);
    pass.candidates = static_cast<int>(shape[1]);
    pass.heads = static_cast<int>(heads);
    pass.queries = static_cast<const float*>(rows.const_data_ptr());
    pass.user_stride = rows.stride(0), pass.candidate_stride = rows.stride(1),
    pass.head_stride = rows.stride(2);
    for (int64_t count : in.layout.counts) pass.longest = std::max(pass.longest, count);
    in.keys_t = transposed_heads(keys, heads), in.values_t = transposed_heads(values, heads);
    pass.keys_t = in.keys_t.get(), pass.values_t = in.values_t.get();
    return in;
}

// Pooled rows, what their backward needs, and the attention weights if they are saved.
std::tuple<Tensor, Tensor, Tensor> attend(const Inputs& in, bool save_attention) {
    DotForward args{in.pass, nullptr, nullptr, nullptr};
    Tensor pooled = new_floats(in.row_shape);
    std::vector<int64_t> shape = in.row_shape;
    shape.back() = DOT_STATS;
    Tensor stats = new_floats(shape);
    shape = in.token_shape;
    shape.insert(shape.end(), {in.row_shape[1], in.row_shape[2]});
    Tensor attention = save_attention ? new_floats(shape) : new_floats({0});
    args.pooled = static_cast<float*>(pooled.mutable_data_ptr());
    args.stats = static_cast<float*>(stats.mutable_data_ptr());
    args.attention = save_attention ? static_cast<float*>(attention.mutable_data_ptr()) : nullptr;
    const std::vector<int64_t> bounds =
        cut(in.layout, user_parts(args), std::min<int64_t>(group_rows(args), DOT_ROWS));
    const Kernels& k = kernels();
    run_blocks(static_cast<int64_t>(bounds.size()) - 1, k.dot_scratch_floats(args, false),
               [&](int64_t block, float* scratch) {
                   k.dot_forward(args, bounds[block], bounds[block + 1], scratch);
               });
    return {pooled, stats, attention};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> dot_attention_fwd(Tensor queries, Tensor history, OptionalTensor offsets,
                                                     OptionalTensor lengths, OptionalTensor mask, bool sliced,
                                                     int64_t top_k, bool save_attention) {
    return attend(read(queries, history, offsets, lengths, mask, sliced, top_k), save_attention);
}

std::tuple<Tensor, Tensor> dot_attention_bwd(Tensor grad_pooled, Tensor stats, Tensor queries, Tensor history,
                                             OptionalTensor offsets, OptionalTensor lengths,
                                             OptionalTensor mask, bool sliced, int64_t top_k) {
    Inputs in = read(queries, history, offsets, lengths, mask, sliced, top_k);
    DotBackward args{in.pass, nullptr, nullptr, nullptr, nullptr};
    const std::vector<int64_t>& rows = in.row_shape;
    Tensor grad = floats(grad_pooled, "grad_pooled", {rows[0], rows[1], rows[2], rows[3]});
    Tensor saved = floats(stats, "stats", {rows[0], rows[1], rows[2], DOT_STATS});
    Tensor grad_queries = new_floats(rows);
    std::vector<int64_t> shape = in.token_shape;
    shape.push_back(args.width);
    Tensor grad_tokens = new_floats(shape);
    args.grad_pooled = static_cast<const float*>(grad.const_data_ptr());
    args.stats = static_cast<const float*>(saved.const_data_ptr());
    args.grad_queries = static_cast<float*>(grad_queries.mutable_data_ptr());
    args.grad_tokens = static_cast<float*>(grad_tokens.mutable_data_ptr());
    // Tokens without a query have no gradient, and no kernel visits them.
    if (user_parts(args) == 0) {
        clear(args.grad_tokens, sizeof(float) * grad_tokens.numel());
        return {grad_queries, grad_tokens};
    }
    const std::vector<int64_t> bounds = cut(in.layout, 1, rows[1] * rows[2]);
    const Kernels& k = kernels();
    run_blocks(static_cast<int64_t>(bounds.size()) - 1, k.dot_scratch_floats(args, true),
               [&](int64_t block, float* scratch) {
                   k.dot_backward(args, bounds[block], bounds[block + 1], scratch);
               });
    return {grad_queries, grad_tokens};
}

Tensor dot_attention_infer(Tensor target, Tensor history, OptionalTensor offsets, OptionalTensor lengths,
                           OptionalTensor mask, OptionalTensor w_q, OptionalTensor w_k, OptionalTensor w_v,
                           OptionalTensor w_o, int64_t num_heads, double scale, int64_t top_k) {
    std::vector<int64_t> shape = sizes_of(target);
    if (shape.size() != 2 && shape.size() != 3)
        fail("target has ", shape.size(), " dimensions; expected [B, D] or [B, M, D]");
    const int64_t users = shape[0], candidates = shape.size() == 3 ? shape[1] : 1, width = shape.back(),
                  rows = users * candidates, heads = num_heads;
    auto projection = [](const OptionalTensor& weight, const char* name, int64_t inputs) {
        return weight ? OptionalTensor(floats(*weight, name, {-1, inputs})) : OptionalTensor();
    };
    const OptionalTensor query_weight = projection(w_q, "w_q", width), keys = projection(w_k, "w_k", width),
                         values = projection(w_v, "w_v", width);
    const int64_t inner = keys ? keys->size(0) : width, outer = values ? values->size(0) : width;
    if ((query_weight ? query_weight->size(0) : width) != inner)
        fail("queries are ", query_weight ? query_weight->size(0) : width, " wide and keys ", inner,
             "; expected the same");
    if (heads < 1 || inner < 1 || outer < 1 || inner % heads || outer % heads ||
        (heads > 1 && !keys != !values))
        fail("num_heads was ", heads, "; expected a divisor of ", inner, " and ", outer,
             ", with both w_k and w_v or neither");
    for (int64_t size : {width, inner, outer}) checked_size(size, "target, w_k or w_v", "columns or rows");
    checked_size(candidates, "target", "candidates");
    const OptionalTensor outputs = projection(w_o, "w_o", outer);
    if (outputs) checked_size(outputs->size(0), "w_o", "rows");
    Tensor given = shape.size() == 3 ? floats(target, "target", {users, candidates, width})
                                     : floats(target, "target", {users, width});
    const Kernels& k = kernels();
    const auto read = [](const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); };
    // Threads share rows, of which no result depends on its neighbours.
    const auto for_rows = [&](int64_t cost, auto&& work) {
        torch::stable::parallel_for(0, rows, std::max<int64_t>(1, MIN_PRODUCTS / std::max<int64_t>(cost, 1)),
                                    work);
    };

    const bool sliced = heads > 1 && !keys;
    const int64_t query_width = keys ? width : inner / heads, each = inner / heads;
    Tensor queries = new_floats({users, candidates, heads, query_width});
    float* to = static_cast<float*>(queries.mutable_data_ptr());
    Buffer projected = allocate(keys ? std::max<int64_t>(rows * inner, 1) : 1);
    float* first = keys ? projected.get() : to;
    for_rows(inner * width * 2, [&](int64_t begin, int64_t end) {
        const float* x = read(given) + begin * width;
        float* q = first + begin * inner;
        if (query_weight) {
            k.project_rows(x, end - begin, width, read(*query_weight), int(inner), int(width), q, inner);
        } else {
            copy(q, x, sizeof(float) * (end - begin) * width);
        }
        const float factor = static_cast<float>(scale);
        for (int64_t i = 0; i < (end - begin) * inner; i++) q[i] *= factor;
        for (int64_t h = 0; keys && h < heads; h++)
            k.absorb_rows(q + h * each, end - begin, inner, read(*keys) + h * each * width, int(each),
                          int(width), to + (begin * heads + h) * width, heads * width);
    });
    const Inputs in = mixpol::cpu::read(queries, history, offsets, lengths, mask, sliced, top_k);
    const Tensor pooled = std::get<0>(attend(in, false));
    shape.back() = outputs ? outputs->size(0) : outer;
    Tensor out = new_floats(shape);
    float* result = static_cast<float*>(out.mutable_data_ptr());
    Buffer between = allocate(values && outputs ? std::max<int64_t>(rows * outer, 1) : 1);
    const int64_t head_outer = outer / heads;
    for_rows(outer * (width + shape.back()), [&](int64_t begin, int64_t end) {
        const float* x = read(pooled) + begin * heads * query_width;
        if (values) {
            float* v = (outputs ? between.get() : result) + begin * outer;
            for (int64_t h = 0; h < heads; h++)
                k.project_rows(x + h * query_width, end - begin, heads * query_width,
                               read(*values) + h * head_outer * width, int(head_outer), int(width),
                               v + h * head_outer, outer);
            x = v;
        }
        if (!values && !outputs) copy(result + begin * outer, x, sizeof(float) * (end - begin) * outer);
        if (outputs)
            k.project_rows(x, end - begin, outer, read(*outputs), int(shape.back()), int(outer),
                           result + begin * shape.back(), shape.back());
    });
    clear_empty(result, in.layout, sizeof(float) * candidates * shape.back());  // whatever the weights hold
    return out;
}

std::tuple<Tensor, Tensor> dot_attention_projected_fwd(Tensor queries, Tensor history, OptionalTensor offsets,
                                                       OptionalTensor lengths, OptionalTensor mask,
                                                       Tensor w_k, Tensor w_v) {
    ProjectedInputs in = read_projected(queries, history, offsets, lengths, mask, w_k, w_v);
    DotProjectedForward args{in.pass, nullptr, nullptr};
    Tensor pooled = new_floats(in.rows_of(args.value_width));
    Tensor stats = new_floats(in.rows_of(DOT_PROJECTED_STATS));
    args.pooled = static_cast<float*>(pooled.mutable_data_ptr());
    args.stats = static_cast<float*>(stats.mutable_data_ptr());
    const std::vector<int64_t> bounds = cut(in.layout, args.heads, std::max<int64_t>(args.candidates, 1));
    const Kernels& k = kernels();
    run_blocks(static_cast<int64_t>(bounds.size()) - 1, k.dot_projected_scratch_floats(args, false),
               [&](int64_t block, float* scratch) {
                   k.dot_projected_forward(args, bounds[block], bounds[block + 1], scratch);
               });
    return {pooled, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dot_attention_projected_bwd(
    Tensor grad_pooled, Tensor stats, Tensor queries, Tensor history, OptionalTensor offsets,
    OptionalTensor lengths, OptionalTensor mask, Tensor w_k, Tensor w_v) {
    ProjectedInputs in = read_projected(queries, history, offsets, lengths, mask, w_k, w_v);
    DotProjectedBackward args{in.pass, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    const std::vector<int64_t>& rows = in.row_shape;
    Tensor grad = floats(grad_pooled, "grad_pooled", {rows[0], rows[1], rows[2], args.value_width});
    Tensor saved = floats(stats, "stats", {rows[0], rows[1], rows[2], DOT_PROJECTED_STATS});
    Tensor grad_queries = new_floats(rows), grad_w_k = new_floats(sizes_of(in.keys)),
           grad_w_v = new_floats(sizes_of(in.values));
    std::vector<int64_t> shape = in.token_shape;
    shape.push_back(args.width);
    Tensor grad_tokens = new_floats(shape);
    args.grad_pooled = static_cast<const float*>(grad.const_data_ptr());
    args.stats = static_cast<const float*>(saved.const_data_ptr());
    args.grad_queries = static_cast<float*>(grad_queries.mutable_data_ptr());
    args.grad_tokens = static_cast<float*>(grad_tokens.mutable_data_ptr());
    Buffer w_k_rows = padded_rows(in.keys), w_v_rows = padded_rows(in.values);
    args.w_k = w_k_rows.get(), args.w_v = w_v_rows.get();

    const bool nothing = args.candidates == 0;  // no kernel visits tokens without a query
    if (nothing) clear(args.grad_tokens, sizeof(float) * grad_tokens.numel());
    const int64_t key_rows = in.keys.size(0), value_rows = in.values.size(0);
    const int64_t wide = padded_columns(args.width), each = (key_rows + value_rows) * wide;
    const std::vector<int64_t> bounds =
        nothing ? std::vector<int64_t>{0}
                : cut(in.layout, 1, int64_t{args.candidates} * args.heads, backward_blocks(each));
    const int64_t blocks = static_cast<int64_t>(bounds.size()) - 1;
    Buffer sums = allocate(each * std::max<int64_t>(blocks, 1));
    clear(sums.get(), sizeof(float) * each * std::max<int64_t>(blocks, 1));
    const Kernels& k = kernels();
    run_blocks(blocks, k.dot_projected_scratch_floats(args, true), [&](int64_t block, float* scratch) {
        k.dot_projected_backward(args, bounds[block], bounds[block + 1], scratch, sums.get() + block * each);
    });
    add_blocks(sums.get(), blocks, each);
    auto take = [&](Tensor& out, int64_t count, int64_t first) {
        float* to = static_cast<float*>(out.mutable_data_ptr());
        for (int64_t r = 0; r < count; r++)
            copy(to + r * args.width, sums.get() + (first + r) * wide, sizeof(float) * args.width);
    };
    take(grad_w_k, key_rows, 0);
    take(grad_w_v, value_rows, key_rows);
    return {grad_queries, grad_tokens, grad_w_k, grad_w_v};
}

}  // namespace mixpol::cpu
