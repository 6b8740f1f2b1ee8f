// Softmax dot-product attention over raw tokens. A part of a user's rows takes the history in chunks under a
// running softmax; the forward leaves two numbers a row, from which the backward recomputes every weight.
#include <cmath>

#include "cpu/kernels/level.h"
#include "cpu/kernels/tokens.h"

namespace mixpol::cpu::MIXPOL_ISA {

namespace {

constexpr int QUERY_TILE = MAX_COLUMNS;  // by four tokens: 4 x 4 of 32 registers, or 2 x 4 of 16
static_assert(CHUNK % 4 == 0 && CHUNK % W == 0);

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
    float* queries;      // [DOT_ROWS][Dp]; in the backward behind the gradients of the pooled rows
    float* grad_pooled;  // [DOT_ROWS][Dp], and `queries` follows the last row in use
    float* sums;         // pooled vectors, or gradients of the queries [DOT_ROWS][Dp]
    float* tokens;       // staged rows [CHUNK][Dp]
    float* grad_tokens;  // [CHUNK][Dp], where they cannot be written in place
    float* scores;       // of each chunk: weights [rows][CHUNK]; in the backward then those of `grad`
    float highest[DOT_ROWS], totals[DOT_ROWS];
    double total[DOT_ROWS], mean[DOT_ROWS];
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
    s.tokens = arena.take(CHUNK * wide);
    if (backward) s.grad_tokens = arena.take(CHUNK * wide);
    const int64_t chunks = (a.longest + CHUNK - 1) / CHUNK;
    s.scores = arena.take((backward ? 2 * chunks : 1) * rows * CHUNK);
    return s;
}

// out[r][i] = queries[r] · tokens[i]. Tokens come in fours: up to three entries behind the last are written.
// Each product is one chain a lane and one order of adding the lanes, whatever tile it falls into.
__attribute__((noinline)) void dots(const float* queries, int rows, const float* const* tokens, int n,
                                    int wide, float* out) {
    for (int i = 0; i < n; i += 4) {
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

// out[rows][wide] += weights [rows][CHUNK] times the n tokens.
__attribute__((noinline)) void pool(const float* weights, int rows, const float* const* tokens, int n,
                                    int wide, float* out) {
    for_rows(rows, [&]<int R>(int r) __attribute__((always_inline)) {
        for_columns(wide, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            clear(acc);
            const float* w = weights + r * CHUNK;
            for (int i = 0; i < n; i++, w++) {
                vec column[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) column[v] = load(tokens[i] + c + v * W);
#pragma GCC unroll 6
                for (int k = 0; k < R; k++) {
                    vec weight = broadcast(w[k * CHUNK]);
#pragma GCC unroll 4
                    for (int v = 0; v < V; v++) acc.at[k][v] = fma(weight, column[v], acc.at[k][v]);
                }
            }
            add_tile(acc, out + r * int64_t{wide} + c, wide);
            store_tile(acc, out + r * int64_t{wide} + c, wide);
        });
    });
}

// out[i] (+)= Σ_k a[k][i] · b[k], for n tokens i; a is [depth][CHUNK].
__attribute__((noinline)) void combine(const float* a, int depth, const float* const* b, int n, int wide,
                                       float* const* out, bool add) {
    for_rows(n, [&]<int R>(int i) __attribute__((always_inline)) {
        for_columns(wide, [&]<int V>(int c) __attribute__((always_inline)) {
            Tile<R, V> acc;
            clear(acc);
            accumulate_tn(acc, a + i, CHUNK, b, c, depth);
#pragma GCC unroll 6
            for (int k = 0; k < R; k++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                    float* at = out[i + k] + c + v * W;
                    store(at, add ? load(at) + acc.at[k][v] : acc.at[k][v]);
                }
        });
    });
}

MIXPOL_INLINE int whole_vectors(int n) { return (n + W - 1) & ~(W - 1); }

// What a row's scores are shifted by: the largest, or 0 where all of them are -inf.
MIXPOL_INLINE float shift_of(float highest) { return highest == -INFINITY ? 0.0f : highest; }

// A chunk's scores [rows][CHUNK] to exp(score - largest so far), under a running softmax; rescales what was
// pooled.
__attribute__((noinline)) void weigh(Scratch& s, int rows, int n, int wide) {
    const int filled = whole_vectors(n);
    for (int r = 0; r < rows; r++) {
        float *p = s.scores + r * CHUNK, *pooled = s.sums + r * int64_t{wide};
        for (int i = n; i < filled; i++) p[i] = -INFINITY;
        vec largest = broadcast(s.highest[r]);
        for (int i = 0; i < filled; i += W) {
            vec score = load(p + i);
            largest = score > largest ? score : largest;  // a NaN is passed over here, and stays in the sum
        }
        float now = largest[0];
        for (int i = 1; i < W; i++) now = largest[i] > now ? largest[i] : now;
        if (now > s.highest[r]) {
            vec factor = exp(broadcast(s.highest[r] - now));
            s.total[r] *= factor[0];
            for (int c = 0; c < wide; c += W) store(pooled + c, load(pooled + c) * factor);
            s.highest[r] = now;
        }
        vec shift = broadcast(shift_of(s.highest[r])), total{};
        for (int i = 0; i < filled; i += W) {
            vec weight = exp(load(p + i) - shift);
            total += weight;
            store(p + i, weight);
        }
        s.total[r] += sum(total);
    }
}

// Scores to weights, with the finished statistics.
MIXPOL_INLINE void normalise(float* p, int n, float highest, float total) {
    vec shift = broadcast(shift_of(highest)), sum = broadcast(total);
    for (int i = 0; i < n; i += W) store(p + i, exp(load(p + i) - shift) / sum);
}

// The scores that were written on the way, to weights.
void finish(const DotForward& a, const Part& part, Scratch& s) {
    const int64_t stride = int64_t{a.candidates} * a.heads;
    Cursor cursor(a.history, part.user);
    while (int n = cursor.fill(s.positions))
        for (int r = 0; r < part.rows; r++) {
            float weights[CHUNK] = {}, *out = a.attention + part.row(r);
            for (int i = 0; i < n; i++) weights[i] = out[s.positions[i] * stride];
            normalise(weights, n, s.highest[r], s.totals[r]);
            for (int i = 0; i < n; i++) out[s.positions[i] * stride] = weights[i];
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
    tokens.base += part.column;
    return tokens;
}

void forward_part(const DotForward& a, const Part& part, int64_t user_end, Scratch& s) {
    const int width = a.query_width, wide = padded(width), rows = part.rows;
    const int64_t stride = int64_t{a.candidates} * a.heads;
    const TokenRows tokens = columns_of(a, part);
    for (int r = 0; r < rows; r++) {
        copy_padded(s.queries + r * wide, query_row(a, part, r), width, wide);
        s.highest[r] = -INFINITY;
        s.total[r] = 0;
    }
    zero(s.sums, int64_t{rows} * wide);
    Cursor cursor(a.history, part.user);
    bool any = false;
    while (int n = cursor.fill(s.positions)) {
        prefetch_next(tokens, a.history, cursor, part.user, user_end, width);
        stage_rows(tokens, a.history, part.user, s.positions, n, width, s.tokens, s.rows);
        dots(s.queries, rows, s.rows, n, wide, s.scores);
        for (int r = 0; a.attention && r < rows; r++)
            for (int i = 0; i < n; i++)
                a.attention[s.positions[i] * stride + part.row(r)] = s.scores[r * CHUNK + i];
        weigh(s, rows, n, wide);
        pool(s.scores, rows, s.rows, n, wide, s.sums);
        any = true;
    }
    for (int r = 0; r < rows; r++) {
        float* pooled = s.sums + r * int64_t{wide};
        s.totals[r] = static_cast<float>(s.total[r]);
        for (int c = 0; any && c < wide; c += W) store(pooled + c, load(pooled + c) / broadcast(s.totals[r]));
        const int64_t row = flat_row(a, part, r);
        std::memcpy(a.pooled + row * width, pooled, sizeof(float) * width);
        a.stats[2 * row] = s.highest[r], a.stats[2 * row + 1] = s.totals[r];
    }
    if (any && a.attention) finish(a, part, s);
}

double product(const float* a, const float* b, int n) {
    double lane[4] = {};
    int i = 0;
    for (; i + 4 <= n; i += 4)
        for (int l = 0; l < 4; l++) lane[l] += double{a[i + l]} * b[i + l];
    for (; i < n; i++) lane[0] += double{a[i]} * b[i];
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

// The weights and their gradients dw = grad_pooled · x of all chunks stay in scratch until Σ w · dw is known.
// That sum comes from the same products, not from the pooled vector: where one weight is nearly 1, dw minus
// it must cancel to the last bit.
void backward_part(const DotBackward& a, const Part& part, int64_t user_end, bool add, Scratch& s) {
    const int width = a.query_width, wide = padded(width), rows = part.rows;
    const bool direct = wide == width;  // gradients can be written where they belong
    const TokenRows tokens = columns_of(a, part);
    s.queries = s.grad_pooled + rows * wide;
    for (int r = 0; r < rows; r++) {
        const int64_t row = flat_row(a, part, r);
        copy_padded(s.queries + r * wide, query_row(a, part, r), width, wide);
        copy_padded(s.grad_pooled + r * wide, a.grad_pooled + row * width, width, wide);
        s.highest[r] = a.stats[2 * row], s.totals[r] = a.stats[2 * row + 1];
        s.mean[r] = 0;
    }
    for (int r = 0; r < 2 * rows; r++) s.pairs[r] = s.grad_pooled + r * wide;
    zero(s.sums, int64_t{rows} * wide);

    Cursor first(a.history, part.user);
    float* weights = s.scores;
    while (int n = first.fill(s.positions)) {
        prefetch_next(tokens, a.history, first, part.user, user_end, width);
        stage_rows(tokens, a.history, part.user, s.positions, n, width, s.tokens, s.rows);
        float* grads = weights + rows * CHUNK;
        dots(s.queries, rows, s.rows, n, wide, weights);
        dots(s.grad_pooled, rows, s.rows, n, wide, grads);
        for (int r = 0; r < rows; r++) {
            float* w = weights + r * CHUNK;
            for (int i = n; i < whole_vectors(n); i++) w[i] = grads[r * CHUNK + i] = 0;
            normalise(w, n, s.highest[r], s.totals[r]);
            s.mean[r] += product(w, grads + r * CHUNK, n);
        }
        weights = grads + rows * CHUNK;
    }

    Cursor cursor(a.history, part.user);
    weights = s.scores;
    while (int n = cursor.fill(s.positions)) {
        stage_rows(tokens, a.history, part.user, s.positions, n, width, s.tokens, s.rows);
        float* grads = weights + rows * CHUNK;
        for (int r = 0; r < rows; r++) {
            // In two parts, since the double itself does not fit into a float.
            const float high = static_cast<float>(s.mean[r]);
            const vec head = broadcast(high), tail = broadcast(static_cast<float>(s.mean[r] - high));
            for (int at = r * CHUNK; at < r * CHUNK + n; at += W)
                store(grads + at, load(weights + at) * ((load(grads + at) - head) - tail));
        }
        pool(grads, rows, s.rows, n, wide, s.sums);
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
            fill_pads(a.history, user, a.attention, int64_t{a.candidates} * a.heads, 0.0f);
        forward_part(a, part_of(a, user, index), user_end, s);
    }
}

void dot_backward(const DotBackward& a, int64_t user_begin, int64_t user_end, float* memory) {
    Arena arena(memory);
    Scratch s = carve(a, true, arena);
    const int64_t parts = user_parts(a), each = group_parts(a);
    for (int64_t user = user_begin; user < user_end; user++) {
        fill_pads(a.history, user, a.grad_tokens, a.width, 0.0f);
        for (int64_t index = 0; index < parts; index++)
            backward_part(a, part_of(a, user, index), user_end, index % each != 0, s);
    }
}

}  // namespace mixpol::cpu::MIXPOL_ISA
