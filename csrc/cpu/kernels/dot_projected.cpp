// Softmax dot-product attention over projected tokens, a user and head at a time: less than raw tokens cost
// where many candidates share a history. Keys and values are made anew in the backward.
#include "cpu/kernels/dot_rows.h"
#include "cpu/kernels/level.h"

namespace mixpol::cpu::MIXPOL_ISA {

namespace {

struct Scratch {
    float* tokens;         // staged rows [CHUNK][Dp]
    float* scores;         // [DOT_ROWS][CHUNK]; in the backward of each chunk weights, then their gradients
    float* sums;           // pooled vectors [DOT_ROWS][V], or gradients of the queries [DOT_ROWS][K]
    float* spare;          // [2] of the same; of LongSums
    float* weight_spare;   // backward: [2][H * (key_width + value_width)][Dp], so too
    float* keys_t;         // of each chunk, transposed [key_width][CHUNK]
    float* values_t;       // backward: likewise [value_width][CHUNK]
    float *keys, *values;  // [tokens][K] and [tokens][V]; what is read transposed only: one chunk
    float *grad_keys, *grad_values;  // [tokens][K] and [tokens][V]
    float *queries, *grad_pooled;    // backward: padded rows [DOT_ROWS][K] and [DOT_ROWS][V]
    float* grad_tokens;              // [CHUNK][Dp]
    Softmax softmax;
    int64_t unprojected = 0;  // chunks so far, of all heads
    int64_t positions[CHUNK];
    const float *rows[CHUNK], *query_rows[DOT_ROWS], *pooled_rows[DOT_ROWS];
    float* outputs[CHUNK];
};

int64_t weight_floats(const DotProjected& a) {
    return a.heads * (int64_t{a.key_width} + a.value_width) * padded(a.width);
}

Scratch carve(const DotProjected& a, bool backward, Arena& arena) {
    Scratch s{};
    const int64_t chunks = (a.longest + CHUNK - 1) / CHUNK, tokens = chunks * CHUNK, wide = padded(a.width);
    const int64_t key = padded(a.key_width), value = padded(a.value_width);
    s.tokens = arena.take(CHUNK * wide);
    s.keys_t = arena.take(tokens * a.key_width);
    if (!backward) {
        s.scores = arena.take(DOT_ROWS * CHUNK);
        s.sums = arena.take(DOT_ROWS * value);
        s.spare = arena.take(2 * DOT_ROWS * value);
        s.keys = arena.take(CHUNK * key);
        s.values = arena.take(tokens * value);
        return s;
    }
    s.scores = arena.take(2 * tokens * DOT_ROWS);
    s.sums = arena.take(DOT_ROWS * key);
    s.spare = arena.take(2 * DOT_ROWS * key);
    s.weight_spare = arena.take(2 * weight_floats(a));
    s.values_t = arena.take(tokens * a.value_width);
    s.keys = arena.take(tokens * key);
    s.values = arena.take(CHUNK * value);
    s.grad_keys = arena.take(tokens * key);
    s.grad_values = arena.take(tokens * value);
    s.queries = arena.take(DOT_ROWS * key);
    s.grad_pooled = arena.take(DOT_ROWS * value);
    s.grad_tokens = arena.take(CHUNK * wide);
    return s;
}

// [n][ld] to [width][CHUNK], zeros behind the n.
void transpose(const float* rows, int n, int width, int ld, float* out) {
    for (int j = 0; j < width; j++)
        for (int i = 0; i < CHUNK; i++) out[j * CHUNK + i] = i < n ? rows[i * ld + j] : 0;
}

// Keys and values of one head, for all tokens of a user; returns how many there are.
int64_t project(const DotProjected& a, int64_t user, int head, bool backward, Scratch& s) {
    const int key = padded(a.key_width), value = padded(a.value_width);
    const float* keys_t = a.keys_t + head * int64_t{a.width} * key;
    const float* values_t = a.values_t + head * int64_t{a.width} * value;
    int64_t total = 0;
    Cursor cursor(a.history, user);
    while (int n = cursor.fill(s.positions)) {
        stage_rows(a.tokens, a.history, user, s.positions, n, a.width, s.tokens, s.rows);
        float* keys = s.keys + (backward ? total * key : 0);
        float* values = s.values + (backward ? 0 : total * value);
        multiply(s.rows, n, a.width, keys_t, key, key, nullptr, 0, keys, key);
        transpose(keys, n, a.key_width, key, s.keys_t + total * a.key_width);
        multiply(s.rows, n, a.width, values_t, value, value, nullptr, 0, values, value);
        if (backward) transpose(values, n, a.value_width, value, s.values_t + total * a.value_width);
        total += n;
    }
    return total;
}

// Rows first ... first + rows - 1 of a user's candidates, at one head.
struct Part {
    int64_t user;
    int head, first, rows;

    int64_t row(const DotProjected& a, int r) const {
        return (user * a.candidates + first + r) * a.heads + head;
    }
    const float* query(const DotProjected& a, int r) const {
        return a.queries + user * a.user_stride + (first + r) * a.candidate_stride + head * a.head_stride;
    }
};

template <class Work>
void for_parts(const DotProjected& a, int64_t user, int head, const Work& work) {
    for (int first = 0; first < a.candidates; first += DOT_ROWS) {
        const int left = a.candidates - first;
        work(Part{user, head, first, left < DOT_ROWS ? left : DOT_ROWS});
    }
}

int chunk_tokens(int64_t total, int64_t at) {
    return static_cast<int>(total - at < CHUNK ? total - at : CHUNK);
}

void forward_part(const DotProjectedForward& a, const Part& part, int64_t total, Scratch& s) {
    const int rows = part.rows, value = padded(a.value_width);
    Softmax& softmax = s.softmax;
    for (int r = 0; r < rows; r++) {
        s.query_rows[r] = part.query(a, r);
        softmax.highest[r] = -INFINITY;
        softmax.total[r] = 0;
    }
    zero(s.sums, int64_t{rows} * value);
    LongSums sums(s.sums, int64_t{rows} * value, s.spare);
    for (int64_t at = 0; at < total; at += CHUNK) {
        const int n = chunk_tokens(total, at);
        multiply(s.query_rows, rows, a.key_width, s.keys_t + at * a.key_width, CHUNK, CHUNK, nullptr, 0,
                 s.scores, CHUNK);
        weigh(softmax, s.scores, rows, n, value, sums);
        for (int i = 0; i < n; i++) s.rows[i] = s.values + (at + i) * value;
        pool(s.scores, rows, s.rows, n, value, s.sums);
        sums.step();
    }
    sums.finish();
    for (int r = 0; r < rows; r++) {
        float *pooled = s.sums + r * int64_t{value}, *stats = a.stats + DOT_PROJECTED_STATS * part.row(a, r);
        stats[0] = softmax.highest[r], stats[1] = static_cast<float>(softmax.total[r]);
        for (int i = 0; total && i < value; i += W) store(pooled + i, load(pooled + i) / broadcast(stats[1]));
        std::memcpy(a.pooled + part.row(a, r) * a.value_width, pooled, sizeof(float) * a.value_width);
    }
}

// Adds to the gradients of the user's keys and values, or writes them.
void backward_part(const DotProjectedBackward& a, const Part& part, int64_t total, Scratch& s) {
    const int rows = part.rows, key = padded(a.key_width), value = padded(a.value_width);
    Softmax& softmax = s.softmax;
    for (int r = 0; r < rows; r++) {
        const int64_t row = part.row(a, r);
        copy_padded(s.queries + r * key, part.query(a, r), a.key_width, key);
        copy_padded(s.grad_pooled + r * value, a.grad_pooled + row * a.value_width, a.value_width, value);
        s.query_rows[r] = s.queries + r * key;
        s.pooled_rows[r] = s.grad_pooled + r * value;
        softmax.highest[r] = a.stats[DOT_PROJECTED_STATS * row];
        softmax.totals[r] = a.stats[DOT_PROJECTED_STATS * row + 1];
        softmax.mean[r] = softmax.total[r] = 0;
    }
    zero(s.sums, int64_t{rows} * key);
    LongSums sums(s.sums, int64_t{rows} * key, s.spare);
    float* weights = s.scores;
    for (int64_t at = 0; at < total; at += CHUNK, weights += 2 * DOT_ROWS * CHUNK) {
        float* grads = weights + DOT_ROWS * CHUNK;
        multiply(s.query_rows, rows, a.key_width, s.keys_t + at * a.key_width, CHUNK, CHUNK, nullptr, 0,
                 weights, CHUNK);
        multiply(s.pooled_rows, rows, a.value_width, s.values_t + at * a.value_width, CHUNK, CHUNK, nullptr,
                 0, grads, CHUNK);
        weigh_again(softmax, weights, grads, rows, chunk_tokens(total, at));
    }
    weights = s.scores;
    const bool add = part.first != 0;
    for (int64_t at = 0; at < total; at += CHUNK, weights += 2 * DOT_ROWS * CHUNK) {
        const int n = chunk_tokens(total, at);
        float* grads = weights + DOT_ROWS * CHUNK;
        to_score_grads(softmax, weights, grads, rows, n);
        for (int i = 0; i < n; i++) s.rows[i] = s.keys + (at + i) * key;
        pool(grads, rows, s.rows, n, key, s.sums);
        sums.step();
        for (int i = 0; i < n; i++) s.outputs[i] = s.grad_keys + (at + i) * key;
        combine(grads, rows, s.query_rows, n, key, s.outputs, add);
        for (int i = 0; i < n; i++) s.outputs[i] = s.grad_values + (at + i) * value;
        combine(weights, rows, s.pooled_rows, n, value, s.outputs, add);
    }
    sums.finish();
    for (int r = 0; r < rows; r++)
        std::memcpy(a.grad_queries + part.row(a, r) * a.key_width, s.sums + r * key,
                    sizeof(float) * a.key_width);
}

// The gradients of a head's keys and values to those of the tokens and the projections.
void unproject(const DotProjectedBackward& a, int64_t user, int head, Scratch& s, float* sums,
               LongSums& long_sums) {
    const int width = a.width, wide = padded(width), key = padded(a.key_width), value = padded(a.value_width);
    const int64_t first_key = head * int64_t{a.key_width}, first_value = head * int64_t{a.value_width};
    float* key_sums = sums + first_key * wide;
    float* value_sums = sums + (a.heads * int64_t{a.key_width} + first_value) * wide;
    const float *grad_keys = s.grad_keys, *grad_values = s.grad_values, *grads[CHUNK];
    Cursor cursor(a.history, user);
    while (int n = cursor.fill(s.positions)) {
        stage_rows(a.tokens, a.history, user, s.positions, n, width, s.tokens, s.rows);
        add_transposed(grad_keys, key, a.key_width, s.rows, n, wide, key_sums, wide);
        add_transposed(grad_values, value, a.value_width, s.rows, n, wide, value_sums, wide);
        for (int i = 0; i < n; i++) grads[i] = grad_keys + i * key;
        multiply(grads, n, a.key_width, a.w_k + first_key * wide, wide, wide, nullptr, 0, s.grad_tokens,
                 wide);
        for (int i = 0; i < n; i++) grads[i] = grad_values + i * value;
        multiply(grads, n, a.value_width, a.w_v + first_value * wide, wide, wide, s.grad_tokens, wide,
                 s.grad_tokens, wide);
        for (int i = 0; i < n; i++) {
            float* out = a.grad_tokens + s.positions[i] * width;
            const float* from = s.grad_tokens + i * wide;
            for (int c = 0; c < width; c++) out[c] = head ? out[c] + from[c] : from[c];
        }
        grad_keys += CHUNK * key, grad_values += CHUNK * value;
        if (++s.unprojected % a.heads == 0) long_sums.step();  // a chunk adds to one head's sums only
    }
}

}  // namespace

int64_t dot_projected_scratch_floats(const DotProjected& a, bool backward) {
    Arena arena(nullptr);
    carve(a, backward, arena);
    return arena.used();
}

void dot_projected_forward(const DotProjectedForward& a, int64_t head_begin, int64_t head_end,
                           float* memory) {
    Arena arena(memory);
    Scratch s = carve(a, false, arena);
    for (int64_t at = head_begin; at < head_end; at++) {
        const int64_t user = at / a.heads;
        const int head = static_cast<int>(at % a.heads);
        const int64_t total = project(a, user, head, false, s);
        for_parts(a, user, head, [&](const Part& part) { forward_part(a, part, total, s); });
    }
}

void dot_projected_backward(const DotProjectedBackward& a, int64_t user_begin, int64_t user_end,
                            float* memory, float* sums) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    LongSums long_sums(sums, weight_floats(a), s.weight_spare);
    for (int64_t user = user_begin; user < user_end; user++) {
        zero_pads(a.history, user, a.grad_tokens, a.width);
        for (int head = 0; head < a.heads; head++) {
            const int64_t total = project(a, user, head, true, s);
            for_parts(a, user, head, [&](const Part& part) { backward_part(a, part, total, s); });
            unproject(a, user, head, s, sums, long_sums);
        }
    }
    long_sums.finish();
}

}  // namespace mixpol::cpu::MIXPOL_ISA
