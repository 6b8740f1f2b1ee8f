// Walking a user's tokens in chunks, whatever the layout.
#pragma once

#include "cpu/args.h"
#include "cpu/gemm.h"
#include "cpu/half.h"
#include "cpu/kernels/sums.h"

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
            const int64_t rest = end_ - next_;
            n = rest < room ? static_cast<int>(rest) : room;
            for (int i = 0; i < n; i++) positions[i] = next_ + i;
            next_ += n;
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

// Where the rows of a user's tokens begin.
class UserRows {
 public:
    inline __attribute__((always_inline)) UserRows(const TokenRows& tokens, const History& history,
                                                   int64_t user)
        : base_(static_cast<const char*>(tokens.base)), ids_(tokens.ids) {
        const int64_t size = element_bytes(tokens.element);
        stride_ = tokens.row_stride * size;
        if (!ids_ && !history.offsets) start_ = user * (tokens.user_stride * size - history.length * stride_);
    }

    inline __attribute__((always_inline)) const char* at(int64_t position) const {
        return base_ + (start_ + (ids_ ? ids_[position] : position) * stride_);
    }
    inline __attribute__((always_inline)) const float* floats(int64_t position) const {
        return reinterpret_cast<const float*>(at(position));
    }

 private:
    const char* base_;
    const int64_t* ids_;
    int64_t start_ = 0, stride_;  // in bytes
};

MIXPOL_INLINE void copy_padded(float* to, const float* from, int width, int padded_width) {
    std::memcpy(to, from, sizeof(float) * width);
    for (int i = width; i < padded_width; i++) to[i] = 0;
}

// Prefetches upcoming rows: histories start at scattered places, and the hardware sees a stream only
// once it is under way.
struct Prefetch {
    int n = 0;
    int64_t bytes = 0;                   // of a row
    const char* rows[CHUNK + MAX_ROWS];  // the last one repeated, so that a tile need not look where they end

    // Those behind `cursor`, as many as a chunk holds.
    inline __attribute__((always_inline)) void find(const TokenRows& tokens, const History& history,
                                                    Cursor cursor, int64_t user, int64_t user_end,
                                                    int width) {
        bytes = width * element_bytes(tokens.element);
        for (n = 0;; cursor = Cursor(history, user)) {
            int64_t positions[CHUNK];
            const int found = cursor.fill(positions, CHUNK - n);
            const UserRows at(tokens, history, user);
            for (int i = 0; i < found; i++) rows[n + i] = at.at(positions[i]);
            n += found;
            if (n == CHUNK || ++user >= user_end) break;
        }
        for (int i = 0; n > 0 && i < MAX_ROWS; i++) rows[n + i] = rows[n - 1];
    }

    // Some rows, from a byte on. Where that is more than can be under way the core waits.
    inline __attribute__((always_inline)) void ask(int begin, int end, int64_t byte) const {
        for (int i = begin; i < end && i < n; i++)
            for (int64_t at = byte; at < bytes; at += 64) __builtin_prefetch(rows[i] + at, 0, 2);
    }
};

// A tile's share of them: R rows, and of those what lies under V vectors.
template <int R, int V>
MIXPOL_INLINE void prefetch_under(const char* const* rows, int64_t byte, int64_t bytes) {
#pragma GCC unroll 4
    for (int64_t at = byte; at < byte + V * W * 4; at += 64) {
        if (at >= bytes) return;
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) __builtin_prefetch(rows[r] + at, 0, 2);
    }
}

// From how many bytes of a tensor and of a run on zeros go past the caches: what does not stay in L2 need not
// push others out, or be read first.
constexpr int64_t PAST_CACHES = int64_t{2} << 20, PAST_CACHES_RUN = 1024;

// Zeros for the `width` elements of every position that is no token of the user.
template <class T>
MIXPOL_INLINE void zero_pads(const History& history, int64_t user, T* out, int64_t width) {
    if (history.offsets || !(history.lengths || history.mask)) return;
    int64_t begin = user * history.length, end = begin + history.length;
    if (history.lengths) begin += history.lengths[user];
    const int64_t bytes = width * static_cast<int64_t>(sizeof(T));
    const bool past = history.tokens * bytes >= PAST_CACHES;
    while (begin < end) {
        if (history.mask && history.mask[begin]) {
            begin++;
            continue;
        }
        int64_t stop = begin + 1;
        while (stop < end && !(history.mask && history.mask[stop])) stop++;
        if (past && (stop - begin) * bytes >= PAST_CACHES_RUN) {
            stream_zeros(out + begin * width, (stop - begin) * bytes);
        } else {
            std::memset(out + begin * width, 0, (stop - begin) * bytes);
        }
        begin = stop;
    }
    if (past) store_fence();
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
    Prefetch next;  // asked for among the tiles of the chunk's products
};

// The same for the users that the chunk begins.
template <class T>
MIXPOL_INLINE void zero_pads(const History& history, const Chunk& chunk, T* out, int64_t width) {
    for (int i = 0; i < chunk.count; i++) {
        const Span& span = chunk.spans[i];
        if (span.candidate == 0 && span.first()) zero_pads(history, span.user, out, width);
    }
}

// Pointers to a chunk's token vectors in float32, readable up to the padded width: the rows themselves, or
// copies in `stage`.
MIXPOL_INLINE void stage_rows(const TokenRows& tokens, const History& history, int64_t user,
                              const int64_t* positions, int n, int width, float* stage, const float** rows) {
    int wide = padded(width);
    const UserRows at(tokens, history, user);
    if (tokens.element != Element::f32) {
        for (int i = 0; i < n; i++) {
            float* row = stage + i * wide;
            widen_half(row, reinterpret_cast<const uint16_t*>(at.at(positions[i])), width, tokens.element);
            for (int c = width; c < wide; c++) row[c] = 0;
            rows[i] = row;
        }
        return;
    }
    for (int i = 0; i < n; i++) {
        const float* row = at.floats(positions[i]);
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
            chunk.next.find(pass.tokens, pass.history, next, user, soon, pass.width);
        chunk.next.ask(chunk.n, CHUNK, 0);
        work(chunk);
        chunk.n = chunk.count = chunk.next.n = 0;
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

}  // namespace mixpol::cpu::MIXPOL_ISA
