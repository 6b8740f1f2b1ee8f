// A thin vector header: one source per kernel, compiled once per instruction set (MIXPOL_ISA_<level>).
// `vec` has the compiler's own + - * /; here is what it lacks. Everything is static, so that no symbol of a
// wide build can stand in for one of a narrow build.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(MIXPOL_ISA_avx2) || defined(MIXPOL_ISA_avx512)
#include <immintrin.h>
#endif

#define MIXPOL_INLINE static inline __attribute__((always_inline))

namespace mixpol::cpu::MIXPOL_ISA {

#if defined(MIXPOL_ISA_avx512)
constexpr int W = 16;           // floats a vector
constexpr int MAX_COLUMNS = 4;  // vectors a register tile is wide: 6 x 4 of 32 registers
#elif defined(MIXPOL_ISA_avx2)
constexpr int W = 8;
constexpr int MAX_COLUMNS = 2;  // 6 x 2 of 16 registers
#else
constexpr int W = 4;
constexpr int MAX_COLUMNS = 2;
#endif
constexpr int MAX_ROWS = 6;

typedef float vec __attribute__((vector_size(W * 4)));
typedef float quad __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef uint32_t uvec __attribute__((vector_size(W * 4)));

MIXPOL_INLINE vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

MIXPOL_INLINE void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

MIXPOL_INLINE vec broadcast(float x) { return x - vec{}; }

#if defined(MIXPOL_ISA_avx512)

MIXPOL_INLINE vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
MIXPOL_INLINE float sum(vec v) { return _mm512_reduce_add_ps(v); }
// Operand order, here and in clamp: a NaN in x comes through.
MIXPOL_INLINE vec relu(vec x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }
MIXPOL_INLINE vec clamp(vec x, float low, float high) {
    return _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), x));
}
MIXPOL_INLINE uint32_t positive_bits(vec x) {
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLE_UQ);
}
MIXPOL_INLINE vec spread(uint32_t bits, float x) {
    return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), _mm512_set1_ps(x));
}

#elif defined(MIXPOL_ISA_avx2)

MIXPOL_INLINE vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
MIXPOL_INLINE float sum(vec v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
MIXPOL_INLINE vec relu(vec x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }
MIXPOL_INLINE vec clamp(vec x, float low, float high) {
    return _mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), x));
}
MIXPOL_INLINE uint32_t positive_bits(vec x) {
    return _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NLE_UQ));
}

#else

MIXPOL_INLINE vec fma(vec a, vec b, vec c) { return a * b + c; }
MIXPOL_INLINE float sum(vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
MIXPOL_INLINE vec relu(vec x) { return x <= vec{} ? vec{} : x; }
MIXPOL_INLINE vec clamp(vec x, float low, float high) {
    x = x < broadcast(low) ? broadcast(low) : x;
    return x > broadcast(high) ? broadcast(high) : x;
}
MIXPOL_INLINE uint32_t positive_bits(vec x) {
    ivec low = x <= vec{};
    return 15u & ~((low[0] & 1) | (low[1] & 2) | (low[2] & 4) | (low[3] & 8));
}

#endif

#if !defined(MIXPOL_ISA_avx512)
// x in the lanes whose bit is set, 0 in the others.
MIXPOL_INLINE vec spread(uint32_t bits, float x) {
    ivec lane;
    for (int i = 0; i < W; i++) lane[i] = 1 << i;
    ivec on = ((static_cast<int32_t>(bits) - ivec{}) & lane) == lane;
    return on ? broadcast(x) : vec{};
}
#endif

// Zeros by non-temporal stores, which are weakly ordered until store_fence().
MIXPOL_INLINE void stream_zeros(void* to, int64_t bytes) {
#if defined(MIXPOL_ISA_avx512) || defined(MIXPOL_ISA_avx2)
    char *p = static_cast<char*>(to), *const end = p + bytes;
    const int64_t head = -reinterpret_cast<intptr_t>(p) & 31;
    if (bytes < head + 32) {
        std::memset(p, 0, bytes);
        return;
    }
    std::memset(p, 0, head);
    for (p += head; p + 32 <= end; p += 32)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm256_setzero_si256());
    std::memset(p, 0, end - p);
#else
    std::memset(to, 0, bytes);
#endif
}

MIXPOL_INLINE void store_fence() {
#if defined(MIXPOL_ISA_avx512) || defined(MIXPOL_ISA_avx2)
    _mm_sfence();
#endif
}

MIXPOL_INLINE quad load_quad(const float* p) {
    quad v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// to[i * ld + j] = rows[j][i].
MIXPOL_INLINE void store_transposed(const quad rows[4], float* to, int64_t ld) {
    const quad low = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5),
               low2 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5),
               high = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7),
               high2 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
    const quad columns[4] = {
        __builtin_shufflevector(low, low2, 0, 1, 4, 5), __builtin_shufflevector(low, low2, 2, 3, 6, 7),
        __builtin_shufflevector(high, high2, 0, 1, 4, 5), __builtin_shufflevector(high, high2, 2, 3, 6, 7)};
    for (int i = 0; i < 4; i++) std::memcpy(to + i * ld, &columns[i], sizeof(quad));
}

// Four lanes whose sum is that of all lanes.
MIXPOL_INLINE quad fold(vec v) {
#if defined(MIXPOL_ISA_avx512)
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(MIXPOL_ISA_avx2)
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#else
    return v;
#endif
}

// The sums of four vectors.
MIXPOL_INLINE quad sums(vec a, vec b, vec c, vec d) {
    quad p = fold(a), q = fold(b), r = fold(c), s = fold(d);
    quad pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
    quad rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
    return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}

MIXPOL_INLINE vec where_positive(vec x, vec a, vec b) { return x <= vec{} ? b : a; }

// x in the first `lanes` lanes, 0 in the others.
MIXPOL_INLINE vec first_lanes(vec x, int lanes) {
    ivec lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    return lane < lanes - ivec{} ? x : vec{};
}

// exp to about 1 ulp; overflows to inf, flushes results below 2^-126 to 0, and NaN stays NaN.
MIXPOL_INLINE vec exp(vec x) {
    ivec over = x > broadcast(88.72283f), under = x < broadcast(-87.33654f);
    vec y = (over | under) ? vec{} : x;
    vec shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vec n = fma(y, broadcast(1.44269504088896f), shifter) - shifter;
    vec r = fma(n, broadcast(-0.693359375f), y);
    r = fma(n, broadcast(2.12194440e-4f), r);
    vec p = broadcast(1.9875691500e-4f);  // Cephes expf
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r + 1.0f);
    // 2^n in two factors, since n may be 128.
    ivec whole = __builtin_convertvector(n, ivec);
    ivec half = whole >> 1;
    vec a, b;
    ivec abits = (half + 127) << 23, bbits = (whole - half + 127) << 23;
    std::memcpy(&a, &abits, sizeof a);
    std::memcpy(&b, &bbits, sizeof b);
    p = p * a * b;
    return over ? broadcast(INFINITY) : under ? vec{} : p;
}

// exp for sums with 1: inf from exp(88.4) on, and 2^-126 below exp(-87.3). Half the work of the above.
MIXPOL_INLINE vec exp_between(vec x) {
    vec y = clamp(x, -87.3f, 89.0f);
    vec shifter = broadcast(12582912.0f);
    vec shifted = fma(y, broadcast(1.44269504088896f), shifter), n = shifted - shifter;
    vec r = fma(n, broadcast(-0.693359375f), y);
    r = fma(n, broadcast(2.12194440e-4f), r);
    vec p = broadcast(1.9875691500e-4f);
    p = fma(p, r, broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r + 1.0f);
    ivec bits;  // n sits in the low bits of the shifted value
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    vec power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

// For the templates of csrc/math.
struct Simd {
    static inline __attribute__((always_inline)) vec exp(vec x) { return MIXPOL_ISA::exp(x); }
    static inline __attribute__((always_inline)) vec exp_between(vec x) { return MIXPOL_ISA::exp_between(x); }
    static inline __attribute__((always_inline)) vec relu(vec x) { return MIXPOL_ISA::relu(x); }
    static inline __attribute__((always_inline)) vec where_positive(vec x, vec a, vec b) {
        return MIXPOL_ISA::where_positive(x, a, b);
    }
    static inline __attribute__((always_inline)) vec where_below(vec x, float limit, vec a, vec b) {
        return x < broadcast(limit) ? a : b;
    }
    static inline __attribute__((always_inline)) vec abs(vec x) { return with_sign(x, vec{}); }
    static inline __attribute__((always_inline)) vec copysign(vec size, vec sign) {
        return with_sign(size, sign);
    }

 private:
    static inline __attribute__((always_inline)) vec with_sign(vec size, vec sign) {
        ivec a, b;
        std::memcpy(&a, &size, sizeof a);
        std::memcpy(&b, &sign, sizeof b);
        a = (a & 0x7fffffff) | (b & static_cast<int32_t>(0x80000000u));
        std::memcpy(&size, &a, sizeof a);
        return size;
    }
};

}  // namespace mixpol::cpu::MIXPOL_ISA
