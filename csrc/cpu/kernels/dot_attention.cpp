// Softmax dot-product attention over raw tokens. A part of a user's rows takes the history in chunks under a
// running softmax; the forward leaves two numbers a row, from which the backward recomputes every weight.
#include "cpu/kernels/dot_rows.h"
#include "cpu/kernels/level.h"

namespace mixpol::cpu::MIXPOL_ISA {

namespace {

constexpr int QUERY_TILE = MAX_COLUMNS;  // by four tokens: 4 x 4 of 32 registers, or 2 x 4 of 16

// At most DOT_ROWS rows of one user that read the same columns.
struct Part {
    int64_t user;
    int column;  // the first one that the rows read
    int rows;
    int64_t first, step;  // rows are first, first + step, ... among the user's M * H

    int64_t row(int i) const { return first + i * step; }
};

Part part_of(const DotPass& a, int64_t user, int64_t index) {
    const int64_t each = group_parts(a), group = index / each, row0 = index % each * DOT_ROWS;
    const int64_t left = group_rows(a) - row0;
    Part part;
    part.user = user;
    part.column = static_cast<int>(group) * (a.sliced ? a.query_width : 0);
    part.rows = static_cast<int>(left < DOT_ROWS ? left : DOT_ROWS);
    part.step = a.sliced ? a.heads : 1;
    part.first = group + row0 * part.step;
    return part;
}

struct Scratch {
    float* queries;          // [DOT_ROWS][Dp]; in the backward behind the gradients of the pooled rows
    float* grad_pooled;      // [DOT_ROWS][Dp], and `queries` follows the last row in use
    float* sums;             // pooled vectors, or gradients of the queries [DOT_ROWS][Dp]
    float* spare;            // [2][DOT_ROWS][Dp]; of LongSums
    float* tokens;           // staged rows [CHUNK][Dp]
    float* grad_tokens;      // [CHUNK][Dp], where they cannot be written in place
    float* scores;           // of each chunk: weights [rows][CHUNK]; in the backward then those of `grad`
    int32_t* keys;           // top_k: of one row's scores
    int32_t last[DOT_ROWS];  // top_k: the key of the last score that is chosen,
    int64_t ties[DOT_ROWS];  // and how many with that key are still to be chosen
    float kept[DOT_ROWS];
    Softmax softmax;
    int64_t positions[CHUNK];
    const float* rows[CHUNK];
    float* grads[CHUNK];
    const float* pairs[2 * DOT_ROWS];
};

Scratch carve(const DotPass& a, bool backward, Arena& arena) {
    Scratch s{};
    const int64_t wide = padded(a.query_width);
    const int64_t rows = group_rows(a) < DOT_ROWS ? group_rows(a) : DOT_ROWS;
    if (backward) s.grad_pooled = arena.take(2 * rows * wide);
    if (!backward) s.queries = arena.take(rows * wide);
    s.sums = arena.take(rows * wide);
    s.spare = arena.take(2 * rows * wide);
    s.tokens = arena.take(CHUNK * wide);
    if (backward) s.grad_tokens = arena.take(CHUNK * wide);
    const int64_t chunks = (a.longest + CHUNK - 1) / CHUNK;
    s.scores = arena.take((backward ? 2 * chunks : a.top_k ? chunks : 1) * rows * CHUNK);
    if (a.top_k && !backward) s.keys = reinterpret_cast<int32_t*>(arena.take(chunks * CHUNK));
    return s;
}

// out[r][i] = queries[r] · tokens[i]. Tokens come in fours: up to three entries behind the last are written.
// Each product is one chain a lane and one order of adding the lanes, whatever tile it falls into. `next` is
// asked for on the way.
__attribute__((noinline)) void dots(const float* queries, int rows, const float* const* tokens, int n,
                                    int wide, float* out, const Prefetch* next = nullptr) {
    for (int i = 0; i < n; i += 4) {
        if (next) next->ask(i, i + 4, 0);
        const float* x[4];
        for (int t = 0; t < 4; t++) x[t] = tokens[i + t < n ? i + t : n - 1];
        auto tile = [&]<int R>(int r) __attribute__((always_inline)) {
            const float* q = queries + r * int64_t{wide};
            vec acc[R][4];
#pragma GCC unroll 4
            for (int k = 0; k < R; k++)
#pragma GCC unroll 4
                for (int t = 0; t < 4; t++) acc[k][t] = vec{};
            for (int c = 0; c < wide; c += W) {
                vec token[4];
#pragma GCC unroll 4
                for (int t = 0; t < 4; t++) token[t] = load(x[t] + c);
#pragma GCC unroll 4
                for (int k = 0; k < R; k++) {
                    vec query = load(q + k * int64_t{wide} + c);
#pragma GCC unroll 4
                    for (int t = 0; t < 4; t++) acc[k][t] = fma(query, token[t], acc[k][t]);
                }
            }
#pragma GCC unroll 4
            for (int k = 0; k < R; k++) {
                quad four = MIXPOL_ISA::sums(acc[k][0], acc[k][1], acc[k][2], acc[k][3]);
                std::memcpy(out + (r + k) * CHUNK + i, &four, sizeof four);
            }
        };
        int r = 0;
        for (; r + QUERY_TILE <= rows; r += QUERY_TILE) tile.template operator()<QUERY_TILE>(r);
        for (; r < rows; r++) tile.template operator()<1>(r);
    }
}

// The scores that were written on the way, to weights.
void finish(const DotForward& a, const Part& part, Scratch& s) {
    const int64_t stride = int64_t{a.candidates} * a.heads;
    Cursor cursor(a.history, part.user);
    while (int n = cursor.fill(s.positions))
        for (int r = 0; r < part.rows; r++) {
            float weights[CHUNK] = {}, *out = a.attention + part.row(r);
            for (int i = 0; i < n; i++) weights[i] = out[s.positions[i] * stride];
            normalise(weights, n, s.softmax.highest[r], s.softmax.totals[r]);
            for (int i = 0; i < n; i++) out[s.positions[i] * stride] = weights[i];
        }
}

// A whole number that orders scores as they compare; NaN counts as the largest, and -0 as 0.
MIXPOL_INLINE int32_t key_of(float score) {
    score = score == score ? score + 0.0f : INFINITY;
    int32_t bits;
    std::memcpy(&bits, &score, sizeof bits);
    return bits < 0 ? bits ^ 0x7fffffff : bits;
}

MIXPOL_INLINE int64_t count_from(const int32_t* keys, int64_t padded_n, int32_t least) {
    ivec count{}, limit = least - ivec{};
    for (int64_t i = 0; i < padded_n; i += W) {
        ivec key;
        std::memcpy(&key, keys + i, sizeof key);
        count -= key >= limit;
    }
    int64_t total = 0;
    for (int i = 0; i < W; i++) total += count[i];
    return total;
}

// The k-th largest of a row's n scores, which lie `step` floats apart from chunk to chunk: its key, bit by
// bit, and how many of those that equal it belong to the best k. With k >= n: a key below all others.
__attribute__((noinline)) void choose(Scratch& s, int r, const float* scores, int64_t step, int64_t n,
                                      int64_t k) {
    for (int64_t i = 0; i < n; i++) s.keys[i] = key_of(scores[i / CHUNK * step + i % CHUNK]);
    const int64_t whole = (n + W - 1) / W * W;
    for (int64_t i = n; i < whole; i++) s.keys[i] = INT32_MIN;
    uint32_t found = 0;
    for (uint32_t bit = 1u << 31; bit && k < n; bit >>= 1) {
        const uint32_t trial = found | bit;
        if (count_from(s.keys, whole, static_cast<int32_t>(trial ^ 0x80000000u)) >= k) found = trial;
    }
    s.last[r] = static_cast<int32_t>(found ^ 0x80000000u);
    s.ties[r] = found ? k - count_from(s.keys, whole, s.last[r] + 1) : 0;
}

// Scores that a row does not attend to become -inf. Of equal scores the earlier are chosen.
__attribute__((noinline)) void mask_rest(Scratch& s, float* scores, int rows, int n) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < n; i++) {
            float& score = scores[r * CHUNK + i];
            const int32_t key = key_of(score);
            if (key < s.last[r] || (key == s.last[r] && s.ties[r]-- <= 0)) score = -INFINITY;
        }
}

MIXPOL_INLINE const float* query_row(const DotPass& a, const Part& part, int r) {
    const int64_t row = part.row(r);
    return a.queries + part.user * a.user_stride + row / a.heads * a.candidate_stride +
           row % a.heads * a.head_stride;
}

MIXPOL_INLINE int64_t flat_row(const DotPass& a, const Part& part, int r) {
    return part.user * a.candidates * a.heads + part.row(r);
}

MIXPOL_INLINE TokenRows columns_of(const DotPass& a, const Part& part) {
    TokenRows tokens = a.tokens;
    tokens.base = static_cast<const float*>(tokens.base) + part.column;
    return tokens;
}

// The scores of all chunks, and what is chosen of them for each row.
void choose_all(const DotForward& a, const Part& part, const TokenRows& tokens, Scratch& s) {
    const int width = a.query_width, wide = padded(width), rows = part.rows;
    int64_t total = 0;
    float* scores = s.scores;
    Cursor cursor(a.history, part.user);
    while (int n = cursor.fill(s.positions)) {
        stage_rows(tokens, a.history, part.user, s.positions, n, width, s.tokens, s.rows);
        dots(s.queries, rows, s.rows, n, wide, scores);
        scores += rows * CHUNK;
        total += n;
    }
    for (int r = 0; r < rows; r++) {
        choose(s, r, s.scores + r * CHUNK, rows * CHUNK, total, a.top_k);
        s.kept[r] = static_cast<float>(s.ties[r]);
    }
}

void forward_part(const DotForward& a, const Part& part, int64_t user_end, Scratch& s) {
    const int width = a.query_width, wide = padded(width), rows = part.rows;
    const int64_t stride = int64_t{a.candidates} * a.heads;
    const TokenRows tokens = columns_of(a, part);
    for (int r = 0; r < rows; r++) {
        copy_padded(s.queries + r * wide, query_row(a, part, r), width, wide);
        s.softmax.highest[r] = -INFINITY;
        s.softmax.total[r] = 0;
    }
    zero(s.sums, int64_t{rows} * wide);
    LongSums sums(s.sums, int64_t{rows} * wide, s.spare);
    float* scores = s.scores;
    if (a.top_k) choose_all(a, part, tokens, s);
    const int64_t soon = part.user + 2 < user_end ? part.user + 2 : user_end;
    Cursor cursor(a.history, part.user);
    Prefetch next;
    bool any = false;
    while (int n = cursor.fill(s.positions)) {
        next.find(tokens, a.history, cursor, part.user, soon, width);
        next.ask(a.top_k ? 0 : n, CHUNK, 0);  // with top_k there are no products to ask among
        stage_rows(tokens, a.history, part.user, s.positions, n, width, s.tokens, s.rows);
        if (a.top_k) {
            mask_rest(s, scores, rows, n);
        } else {
            dots(s.queries, rows, s.rows, n, wide, scores, &next);
        }
        for (int r = 0; a.attention && r < rows; r++)
            for (int i = 0; i < n; i++)
                a.attention[s.positions[i] * stride + part.row(r)] = scores[r * CHUNK + i];
        weigh(s.softmax, scores, rows, n, wide, sums);
        pool(scores, rows, s.rows, n, wide, s.sums);
        sums.step();
        if (a.top_k) scores += rows * CHUNK;
        any = true;
    }
    sums.finish();
    for (int r = 0; r < rows; r++) {
        float* pooled = s.sums + r * int64_t{wide};
        s.softmax.totals[r] = static_cast<float>(s.softmax.total[r]);
        const vec total = broadcast(s.softmax.totals[r]);
        for (int c = 0; any && c < wide; c += W) store(pooled + c, load(pooled + c) / total);
        const int64_t row = flat_row(a, part, r);
        std::memcpy(a.pooled + row * width, pooled, sizeof(float) * width);
        float* stats = a.stats + DOT_STATS * row;
        stats[0] = s.softmax.highest[r], stats[1] = s.softmax.totals[r], stats[2] = stats[3] = 0;
        if (a.top_k) std::memcpy(stats + 2, &s.last[r], sizeof(float)), stats[3] = s.kept[r];
    }
    if (any && a.attention) finish(a, part, s);
}

// The weights and their gradients dw = grad_pooled · x of all chunks stay in scratch until Σ w · dw is known.
void backward_part(const DotBackward& a, const Part& part, int64_t user_end, bool add, Scratch& s) {
    const int width = a.query_width, wide = padded(width), rows = part.rows;
    const bool direct = wide == width;  // gradients can be written where they belong
    const TokenRows tokens = columns_of(a, part);
    s.queries = s.grad_pooled + rows * wide;
    for (int r = 0; r < rows; r++) {
        const int64_t row = flat_row(a, part, r);
        copy_padded(s.queries + r * wide, query_row(a, part, r), width, wide);
        copy_padded(s.grad_pooled + r * wide, a.grad_pooled + row * width, width, wide);
        const float* stats = a.stats + DOT_STATS * row;
        s.softmax.highest[r] = stats[0], s.softmax.totals[r] = stats[1];
        std::memcpy(&s.last[r], stats + 2, sizeof(float));
        s.ties[r] = static_cast<int64_t>(stats[3]);
        s.softmax.mean[r] = s.softmax.total[r] = 0;
    }
    for (int r = 0; r < 2 * rows; r++) s.pairs[r] = s.grad_pooled + r * wide;
    zero(s.sums, int64_t{rows} * wide);
    LongSums sums(s.sums, int64_t{rows} * wide, s.spare);

    const int64_t soon = part.user + 2 < user_end ? part.user + 2 : user_end;
    Cursor first(a.history, part.user);
    Prefetch next;
    float* weights = s.scores;
    while (int n = first.fill(s.positions)) {
        next.find(tokens, a.history, first, part.user, soon, width);
        next.ask(n, CHUNK, 0);
        stage_rows(tokens, a.history, part.user, s.positions, n, width, s.tokens, s.rows);
        float* grads = weights + rows * CHUNK;
        dots(s.queries, rows, s.rows, n, wide, weights, &next);
        dots(s.grad_pooled, rows, s.rows, n, wide, grads);
        if (a.top_k) mask_rest(s, weights, rows, n);
        weigh_again(s.softmax, weights, grads, rows, n);
        weights = grads + rows * CHUNK;
    }

    Cursor cursor(a.history, part.user);
    weights = s.scores;
    while (int n = cursor.fill(s.positions)) {
        stage_rows(tokens, a.history, part.user, s.positions, n, width, s.tokens, s.rows);
        float* grads = weights + rows * CHUNK;
        to_score_grads(s.softmax, weights, grads, rows, n);
        pool(grads, rows, s.rows, n, wide, s.sums);
        sums.step();
        for (int i = 0; i < n; i++)
            s.grads[i] =
                direct ? a.grad_tokens + s.positions[i] * a.width + part.column : s.grad_tokens + i * wide;
        combine(weights, 2 * rows, s.pairs, n, wide, s.grads, direct && add);
        for (int i = 0; i < n && !direct; i++) {
            float* out = a.grad_tokens + s.positions[i] * a.width + part.column;
            for (int c = 0; c < width; c++) out[c] = add ? out[c] + s.grads[i][c] : s.grads[i][c];
        }
        weights = grads + rows * CHUNK;
    }
    sums.finish();
    for (int r = 0; r < rows; r++)
        std::memcpy(a.grad_queries + flat_row(a, part, r) * width, s.sums + r * wide, sizeof(float) * width);
}

}  // namespace

int64_t dot_scratch_floats(const DotPass& a, bool backward) {
    Arena arena(nullptr);
    carve(a, backward, arena);
    return arena.used();
}

void dot_forward(const DotForward& a, int64_t part_begin, int64_t part_end, float* memory) {
    Arena arena(memory);
    Scratch s = carve(a, false, arena);
    const int64_t parts = user_parts(a), user_end = (part_end + parts - 1) / parts;
    for (int64_t at = part_begin; at < part_end; at++) {
        const int64_t user = at / parts, index = at % parts;
        if (index == 0 && a.attention)
            zero_pads(a.history, user, a.attention, int64_t{a.candidates} * a.heads);
        forward_part(a, part_of(a, user, index), user_end, s);
    }
}

void dot_backward(const DotBackward& a, int64_t user_begin, int64_t user_end, float* memory) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    const int64_t parts = user_parts(a), each = group_parts(a);
    for (int64_t user = user_begin; user < user_end; user++) {
        zero_pads(a.history, user, a.grad_tokens, a.width);
        for (int64_t index = 0; index < parts; index++)
            backward_part(a, part_of(a, user, index), user_end, index % each != 0, s);
    }
}

}  // namespace mixpol::cpu::MIXPOL_ISA
