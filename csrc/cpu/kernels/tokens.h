// Walking a user's tokens in chunks, whatever the layout.
#pragma once

#include "cpu/args.h"
#include "cpu/gemm.h"
#include "cpu/half.h"

namespace mixpol::cpu::MIXPOL_ISA {

// Yields the positions of a user's kept tokens in order.
class Cursor {
 public:
    Cursor(const History& history, int64_t user) : mask_(nullptr) {
        if (history.offsets) {
            next_ = history.offsets[user];
            end_ = history.offsets[user + 1];
            return;
        }
        next_ = user * history.length;
        end_ = next_ + (history.lengths ? history.lengths[user] : history.length);
        mask_ = history.mask;
    }

    // Fills at most `room` positions; 0 at the end.
    inline __attribute__((always_inline)) int fill(int64_t* positions, int room = CHUNK) {
        int n = 0;
        if (!mask_) {
            while (next_ < end_ && n < room) positions[n++] = next_++;
            return n;
        }
        for (; next_ < end_ && n < room; next_++)
            if (mask_[next_]) positions[n++] = next_;
        return n;
    }

    // After fill: whether nothing is left.
    inline __attribute__((always_inline)) bool done() {
        if (mask_)
            while (next_ < end_ && !mask_[next_]) next_++;
        return next_ >= end_;
    }

 private:
    int64_t next_, end_;
    const uint8_t* mask_;
};

// Where a token's row begins, in elements.
MIXPOL_INLINE int64_t token_offset(const TokenRows& tokens, const History& history, int64_t user,
                                   int64_t position) {
    if (tokens.ids) return tokens.ids[position] * tokens.row_stride;
    if (history.offsets) return position * tokens.row_stride;
    return user * tokens.user_stride + (position - user * history.length) * tokens.row_stride;
}

// The row itself, of tokens in float32.
MIXPOL_INLINE const float* token_row(const TokenRows& tokens, const History& history, int64_t user,
                                     int64_t position) {
    return static_cast<const float*>(tokens.base) + token_offset(tokens, history, user, position);
}

MIXPOL_INLINE void copy_padded(float* to, const float* from, int width, int padded_width) {
    std::memcpy(to, from, sizeof(float) * width);
    for (int i = width; i < padded_width; i++) to[i] = 0;
}

// Asks for the rows behind `cursor`, as many as a chunk holds: histories start at scattered places, and the
// hardware sees a stream only once it is under way.
MIXPOL_INLINE void prefetch_next(const TokenRows& tokens, const History& history, Cursor cursor, int64_t user,
                                 int64_t user_end, int width) {
    const int64_t size = element_bytes(tokens.element);
    for (int room = CHUNK; room > 0; cursor = Cursor(history, user)) {
        int64_t positions[CHUNK];
        const int n = cursor.fill(positions, room);
        for (int i = 0; i < n; i++) {
            const char* row = static_cast<const char*>(tokens.base) +
                              token_offset(tokens, history, user, positions[i]) * size;
            for (int64_t c = 0; c < width * size; c += 64) __builtin_prefetch(row + c, 0, 2);
        }
        room -= n;
        if (++user >= user_end) return;
    }
}

// Writes `value` to the `width` elements of every position that is no token of the user.
template <class T>
MIXPOL_INLINE void fill_pads(const History& history, int64_t user, T* out, int64_t width, T value) {
    if (history.offsets || !(history.lengths || history.mask)) return;
    int64_t begin = user * history.length, end = begin + history.length;
    if (history.lengths) begin += history.lengths[user];
    while (begin < end) {
        if (history.mask && history.mask[begin]) {
            begin++;
            continue;
        }
        int64_t stop = begin + 1;
        while (stop < end && !(history.mask && history.mask[stop])) stop++;
        for (int64_t i = begin * width; i < stop * width; i++) out[i] = value;
        begin = stop;
    }
}

// Padded copies of the targets that are worked on together.
struct Group {
    float* targets;  // [GROUP][Dp]
    const float* rows[GROUP];
};

// The tokens of a chunk that one target looks at.
struct Span {
    int64_t user;
    int candidate, in_group;  // row in the group
    const float* target;      // padded
    int64_t seen;             // its tokens in earlier chunks
    int begin, n;             // rows of the chunk
    bool last;                // no chunk behind this one has more of them

    bool first() const { return seen == 0; }
    bool whole() const { return first() && last; }
};

// Tokens that are worked on together: a part of one target's history, or the histories of several.
struct Chunk {
    int n = 0, count = 0;
    Span spans[GROUP];
    int64_t positions[CHUNK];
};

// The same for the users that the chunk begins.
template <class T>
MIXPOL_INLINE void fill_pads(const History& history, const Chunk& chunk, T* out, int64_t width, T value) {
    for (int i = 0; i < chunk.count; i++) {
        const Span& span = chunk.spans[i];
        if (span.candidate == 0 && span.first()) fill_pads(history, span.user, out, width, value);
    }
}

// Pointers to a chunk's token vectors in float32, readable up to the padded width: the rows themselves, or
// copies in `stage`.
MIXPOL_INLINE void stage_rows(const TokenRows& tokens, const History& history, int64_t user,
                              const int64_t* positions, int n, int width, float* stage, const float** rows) {
    int wide = padded(width);
    if (tokens.element != Element::f32) {
        for (int i = 0; i < n; i++) {
            float* row = stage + i * wide;
            widen_half(
                row,
                static_cast<const uint16_t*>(tokens.base) + token_offset(tokens, history, user, positions[i]),
                width, tokens.element);
            for (int c = width; c < wide; c++) row[c] = 0;
            rows[i] = row;
        }
        return;
    }
    for (int i = 0; i < n; i++) {
        const float* row = token_row(tokens, history, user, positions[i]);
        if (wide != width) {
            copy_padded(stage + i * wide, row, width, wide);
            row = stage + i * wide;
        }
        rows[i] = row;
    }
}

MIXPOL_INLINE void stage_rows(const TokenRows& tokens, const History& history, const Chunk& chunk, int width,
                              float* stage, const float** rows) {
    for (int i = 0; i < chunk.count; i++) {
        const Span& span = chunk.spans[i];
        stage_rows(tokens, history, span.user, chunk.positions + span.begin, span.n, width,
                   stage + span.begin * int64_t{padded(width)}, rows + span.begin);
    }
}

// Calls work(chunk) for a range of targets, row user * candidates + candidate, after before(first row, n) for
// each group of them, and then after(first row, n).
template <class Before, class Work, class After>
MIXPOL_INLINE void for_chunks(const Pass& pass, int64_t begin, int64_t end, Group& group, Before&& before,
                              Work&& work, After&& after) {
    if (begin >= end) return;
    const int wide = padded(pass.width), candidates = pass.candidates;
    const int64_t user_end = (end + candidates - 1) / candidates;
    Chunk chunk;
    auto flush = [&](const Cursor& next, int64_t user) {
        const int64_t soon = user + GROUP < user_end ? user + GROUP : user_end;  // many may be empty
        if (chunk.spans[chunk.count - 1].candidate + 1 == candidates)
            prefetch_next(pass.tokens, pass.history, next, user, soon, pass.width);
        work(chunk);
        chunk.n = chunk.count = 0;
    };
    for (int64_t row0 = begin; row0 < end; row0 += GROUP) {
        const int n = static_cast<int>(end - row0 < GROUP ? end - row0 : GROUP);
        for (int i = 0; i < n; i++) {
            copy_padded(group.targets + i * wide, pass.target + (row0 + i) * pass.width, pass.width, wide);
            group.rows[i] = group.targets + i * wide;
        }
        before(row0, n);
        for (int i = 0; i < n; i++) {
            const int64_t row = row0 + i, user = row / candidates;
            Span span{user, static_cast<int>(row % candidates), i, group.rows[i], 0, 0, 0, false};
            Cursor cursor(pass.history, user);
            while (!span.last) {
                Cursor ahead = cursor;
                span.n = ahead.fill(chunk.positions + chunk.n, CHUNK - chunk.n);
                span.last = ahead.done();
                if (!span.last && chunk.count) {  // only whole histories share a chunk
                    flush(cursor, user);
                    span.last = false;
                    continue;
                }
                cursor = ahead;
                span.begin = chunk.n;
                chunk.n += span.n;
                chunk.spans[chunk.count++] = span;
                if (!span.whole() || i + 1 == n) flush(cursor, user);
                span.seen += span.n;
            }
        }
        after(row0, n);
    }
}

// The same for all targets of a range of users.
template <class Before, class Work, class After>
MIXPOL_INLINE void for_user_chunks(const Pass& pass, int64_t user_begin, int64_t user_end, Group& group,
                                   Before&& before, Work&& work, After&& after) {
    for_chunks(pass, user_begin * pass.candidates, user_end * pass.candidates, group, before, work, after);
}

// How many zero tokens bring a user's history to the length `pad_to`; 0 where that is negative.
MIXPOL_INLINE int64_t pads_of(const History& history, int64_t user, int64_t pad_to) {
    if (pad_to < 0) return 0;
    Cursor cursor(history, user);
    int64_t positions[CHUNK], kept = 0;
    while (int n = cursor.fill(positions)) kept += n;
    return pad_to - kept;
}

// Row i of a table that may be absent.
template <class T>
MIXPOL_INLINE T* row_of(T* table, int64_t i, int64_t width) {
    return table ? table + i * width : nullptr;
}

MIXPOL_INLINE float dot(const float* a, const float* b, int padded_width) {
    vec s{};
    for (int i = 0; i < padded_width; i += W) s = fma(load(a + i), load(b + i), s);
    return sum(s);
}

// out += a * x
MIXPOL_INLINE void axpy(float* out, float a, const float* x, int padded_width) {
    for (int i = 0; i < padded_width; i += W) store(out + i, fma(broadcast(a), load(x + i), load(out + i)));
}

// out += the sum of n rows. Sums over a history go chunk by chunk: one long chain would lose its low bits.
MIXPOL_INLINE void add_rows(float* out, const float* rows, int64_t ld, int n, int padded_width) {
    for (int c = 0; c < padded_width; c += W) {
        vec total{};
        for (int r = 0; r < n; r++) total += load(rows + r * ld + c);
        store(out + c, load(out + c) + total);
    }
}

// out += x, compensated (Kahan): `lost` holds what earlier additions rounded away.
MIXPOL_INLINE void add_compensated(float* out, float* lost, vec x) {
    vec before = load(out), addend = x - load(lost), after = before + addend;
    store(lost, (after - before) - addend);
    store(out, after);
}

MIXPOL_INLINE void add_rows(float* out, float* lost, const float* rows, int64_t ld, int n, int padded_width) {
    for (int c = 0; c < padded_width; c += W) {
        vec total{};
        for (int r = 0; r < n; r++) total += load(rows + r * ld + c);
        add_compensated(out + c, lost + c, total);
    }
}

MIXPOL_INLINE void zero(float* out, int64_t floats) { std::memset(out, 0, sizeof(float) * floats); }

}  // namespace mixpol::cpu::MIXPOL_ISA
