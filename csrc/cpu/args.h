// What launchers (csrc/cpu/*.cpp, with torch) and kernels (csrc/cpu/kernels/*.cpp, without) tell each other.
// Functions here are static: they are compiled on every instruction set level.
#pragma once

#include <cstdint>

#include "math/activations.h"
#include "math/dropout.h"

namespace mixpol::cpu {

constexpr int MAX_HIDDEN = 3;  // hidden layers of an activation unit
constexpr int CHUNK =
    48;  // tokens that are worked on together: 48 x 64 floats and a 64 x 64 table share L1 and L2
constexpr int GROUP = 12;  // targets whose per-target products are batched

static inline int padded_columns(int n) { return (n + 15) & ~15; }

// Which tokens belong to which user. Positions are token indices: n in a jagged, b * length + l in a padded
// history.
struct History {
    int64_t users = 0;
    int64_t length = 0;                // L, padded only
    int64_t tokens = 0;                // pads included
    const int64_t* offsets = nullptr;  // jagged
    const int64_t* lengths = nullptr;  // padded on the right
    const uint8_t* mask = nullptr;     // padded anywhere; none of the three: every position is kept
};

// What a tensor stores; kernels compute in float32 whatever it is.
enum class Element : int { f32 = 0, bf16 = 1, f16 = 2 };

static inline int64_t element_bytes(Element element) { return element == Element::f32 ? 4 : 2; }

// Where token vectors come from: rows of a [B, L, D] or [N, D] tensor, or of a table by id.
struct TokenRows {
    const void* base = nullptr;
    Element element = Element::f32;
    int64_t user_stride = 0;       // elements; 0 when jagged
    int64_t row_stride = 0;        // elements
    const int64_t* ids = nullptr;  // by position; selects the row of the table `base`
};

// Of the hidden units, behind each activation.
struct Dropout {
    bool on;
    uint32_t call;  // math::dropout_call of the seed
    int threshold;  // p * 2^DROPOUT_BITS
    float scale;    // of what is kept: 1 / (1 - p)
};

struct ActivationUnit {
    Activation activation;
    Normalize normalize;
    int width;                            // D
    int layers;                           // hidden layers
    int units[MAX_HIDDEN];                // H_i
    const float* weight[MAX_HIDDEN + 1];  // contiguous [H_i, inputs], then the output layer [1, H_last]
    const float* bias[MAX_HIDDEN + 1];
    const float* slope[MAX_HIDDEN];  // [parameter_rows, H_i]
    Dropout dropout;
};

enum class Fusion : int { none = 0, bias = 1, tapf = 2 };

struct PolarityFusion {
    Fusion kind = Fusion::none;
    bool full_gate = false;  // gate from [x ; t ; x * t] instead of x * t alone
    int width = 0;
    int rows = 0;                          // polarity rows P
    int extra_rows = 0;                    // rows R of the extra additive table; 0 without one
    const int64_t* polarity = nullptr;     // by position
    const int64_t* extra = nullptr;        // by position
    const float* table = nullptr;          // [P, D]
    const float* extra_table = nullptr;    // [R, D]
    const float* sign = nullptr;           // [P]
    const float* gate_weight = nullptr;    // W_g [D, D], or blocks x, t, x * t [D, 3 D]
    const float* gate_bias = nullptr;      // b_g [D]
    const float* target_weight = nullptr;  // W_t [D, D]
};

// Hands out parts of one allocation; with base == nullptr it only counts.
class Arena {
 public:
    explicit Arena(float* base) : base_(base) {}
    float* take(int64_t floats) {
        int64_t at = used_;
        used_ += (floats + 15) & ~int64_t{15};
        return base_ ? base_ + at : nullptr;
    }
    int64_t used() const { return used_; }

 private:
    float* base_;
    int64_t used_ = 0;
};

// Parameters in the layouts that the register tiles read: _t is [inputs][padded units], _n is [units][padded
// inputs]; token and product lie in panels (cpu/gemm.h). When bits are kept, row h of the last hidden layer's
// _n is times w_o[h].
struct PackedUnit {
    float *token_t, *product_t, *target_t;  // Wk - Wd, Wp, Wq + Wd, each [D][H1p]
    float *token_n, *product_n, *target_n;  // the same, [H1][Dp]
    float* weight_t[MAX_HIDDEN];  // layers 1 ...: [H_(i-1)][H_i p] in panels, of rows or of pairs of rows
    float* weight_n[MAX_HIDDEN];  // layers 1 ...: [H_i][H_(i-1) p], so too
    float* bias[MAX_HIDDEN];      // [H_i p]
    float* slope[MAX_HIDDEN];     // [parameter_rows][H_i p]
    float* output;                // w_o [H_last p]
    float output_bias;
};

struct PackedFusion {
    float* table;   // P [rows][Dp]
    float* extra;   // [extra_rows][Dp]
    float* gate_t;  // the block of W_g that meets x * t, transposed [D][Dp], in panels
    float* gate_n;  // the same as it is [D][Dp], in panels
    // The blocks that meet x, in panels, and t: null unless full_gate.
    float *gate_token_t, *gate_constant_t;
    float *gate_token_n, *gate_constant_n;
    float* target_t;  // W_tᵀ [D][Dp]
    float* target_n;  // W_t [D][Dp]
    float* bias;      // b_g [Dp]
};

// Sums of one block of users. Of the first layer's weight the sums are kept in the form of the algebra:
// token: Σ z xᵀ, product: Σ z (t * x)ᵀ, target: Σ z tᵀ, and the weight gradient is unfolded once, at the end.
struct UnitSums {
    float *token, *product, *target;  // [H1][Dp], the first two in panels
    float* weight[MAX_HIDDEN];        // layers 1 ...: [H_i][H_(i-1) p] in panels
    float* bias[MAX_HIDDEN];          // [H_i p]
    float* slope[MAX_HIDDEN];         // [parameter_rows][H_i p]
    float* output;                    // [H_last p]
    float* output_bias;               // one float
};

struct FusionSums {
    float* table;                       // [rows][Dp]
    float* extra;                       // [extra_rows][Dp]
    float* gate;                        // of the product block [D][Dp], in panels
    float *gate_token, *gate_constant;  // of the blocks x, in panels, and t [D][Dp]; null unless full_gate
    float* bias;                        // [Dp]
    float* target;                      // [D][Dp]
};

// `forward`: what the first layers need to be computed; `backward`: what their gradients need.
static inline PackedUnit carve_packed(const ActivationUnit& unit, bool forward, bool backward, Arena& arena) {
    PackedUnit p{};
    int64_t d = unit.width, dp = padded_columns(unit.width);
    int64_t h = unit.units[0], hp = padded_columns(unit.units[0]);
    if (forward) {
        p.token_t = arena.take(d * hp);
        p.product_t = arena.take(d * hp);
        p.target_t = arena.take(d * hp);
    }
    if (backward) {
        p.token_n = arena.take(h * dp);
        p.product_n = arena.take(h * dp);
        p.target_n = arena.take(h * dp);
    }
    for (int i = 0; i < unit.layers; i++) {
        p.bias[i] = arena.take(padded_columns(unit.units[i]));
        p.slope[i] = arena.take(parameter_rows(unit.activation) * int64_t{padded_columns(unit.units[i])});
        if (i == 0) continue;
        p.weight_t[i] = arena.take(int64_t{unit.units[i - 1]} * padded_columns(unit.units[i]));
        if (backward) p.weight_n[i] = arena.take(int64_t{unit.units[i]} * padded_columns(unit.units[i - 1]));
    }
    p.output = arena.take(padded_columns(unit.units[unit.layers - 1]));
    return p;
}

static inline PackedFusion carve_packed(const PolarityFusion& fusion, bool backward, Arena& arena) {
    PackedFusion p{};
    int64_t d = fusion.width, dp = padded_columns(fusion.width);
    if (fusion.kind != Fusion::none) p.table = arena.take(fusion.rows * dp);
    if (fusion.extra_rows) p.extra = arena.take(fusion.extra_rows * dp);
    if (fusion.kind == Fusion::tapf) {
        p.gate_t = arena.take(d * dp);
        p.target_t = arena.take(d * dp);
        p.bias = arena.take(dp);
        if (fusion.full_gate) {
            p.gate_token_t = arena.take(d * dp);
            p.gate_constant_t = arena.take(d * dp);
        }
        if (backward) {
            p.gate_n = arena.take(d * dp);
            p.target_n = arena.take(d * dp);
        }
        if (backward && fusion.full_gate) {
            p.gate_token_n = arena.take(d * dp);
            p.gate_constant_n = arena.take(d * dp);
        }
    }
    return p;
}

static inline UnitSums carve_sums(const ActivationUnit& unit, Arena& arena) {
    UnitSums s{};
    int64_t dp = padded_columns(unit.width), h = unit.units[0];
    s.token = arena.take(h * dp);
    s.product = arena.take(h * dp);
    s.target = arena.take(h * dp);
    for (int i = 0; i < unit.layers; i++) {
        s.bias[i] = arena.take(padded_columns(unit.units[i]));
        s.slope[i] = arena.take(parameter_rows(unit.activation) * int64_t{padded_columns(unit.units[i])});
        if (i > 0) s.weight[i] = arena.take(int64_t{unit.units[i]} * padded_columns(unit.units[i - 1]));
    }
    s.output = arena.take(padded_columns(unit.units[unit.layers - 1]));
    s.output_bias = arena.take(1);
    return s;
}

static inline FusionSums carve_sums(const PolarityFusion& fusion, Arena& arena) {
    FusionSums s{};
    int64_t d = fusion.width, dp = padded_columns(fusion.width);
    if (fusion.kind != Fusion::none) s.table = arena.take(fusion.rows * dp);
    if (fusion.extra_rows) s.extra = arena.take(fusion.extra_rows * dp);
    if (fusion.kind == Fusion::tapf) {
        s.gate = arena.take(d * dp);
        s.bias = arena.take(dp);
        s.target = arena.take(d * dp);
        if (fusion.full_gate) {
            s.gate_token = arena.take(d * dp);
            s.gate_constant = arena.take(d * dp);
        }
    }
    return s;
}

// Arguments common to a forward and a backward over histories.
struct Pass {
    History history;
    TokenRows tokens;
    PolarityFusion fusion;
    ActivationUnit unit;
    int width;            // D
    int candidates;       // M
    const float* target;  // contiguous [B * M, D]
    PackedUnit packed_unit;
    PackedFusion packed_fusion;
    bool keep_bits;  // a bit per unit of the last hidden layer stands in for that layer in the backward
    bool halves;     // products with a target's table in bfloat16 pairs (cpu/kernels/pairs.h)
};

// How many layers a backward computes again.
static inline int layers_again(const Pass& pass) { return pass.unit.layers - pass.keep_bits; }

struct AttentionForward : Pass {
    float* pooled;     // [B * M, D]
    float* attention;  // weights [tokens, M] or null
    uint8_t* bits;     // [tokens, M, ceil(H_last / 8)] or null
};

struct AttentionBackward : Pass {
    const float* grad_pooled;     // [B * M, D]
    const float* grad_attention;  // [tokens, M] or null
    const float* attention;
    const uint8_t* bits;
    float* grad_target;    // [B * M, D]
    void* grad_tokens;     // [tokens, D]
    Element grad_element;  // of grad_tokens; float32 unless M is 1, since candidates add up in it
    // A unit of one layer that is normalised by the statistics of its own batch: their gradients, or null. As
    // in StatisticsBackward.
    int64_t pad_to;
    const float *mean, *grad_mean, *grad_square;
    // Its pre-activations are needed twice: from the first time on they wait where the tokens' gradients go.
    bool stash;
};

constexpr int NORMALISED_SUMS = 3;

// Statistics of pre-activations: count, mean, what float32 rounds away of it, and Σ (x - mean)² of one block
// of users; [H_last p] floats.
struct Moments {
    double count;
    float *mean, *rest, *squares;
};

struct StatisticsPass : Pass {
    int64_t pad_to;  // every history counts as padded with zero tokens to this length; -1: no pads
};

struct StatisticsBackward : StatisticsPass {
    const float* mean;         // [H_last p]
    const float* grad_mean;    // d mean / count
    const float* grad_square;  // 2 d variance / count
    float* grad_target;        // [B * M, D]
    float* grad_tokens;        // [tokens, D]
};

struct FusionForward : Pass {
    float* fused;  // [tokens, D]
};

struct FusionBackward : Pass {
    TokenRows grad_fused;
    float* grad_target;  // [B, D]
    float* grad_tokens;  // [tokens, D]
};

// Where the finished parameter gradients go; contiguous, in the parameters' own shapes.
struct UnitGradients {
    float* weight[MAX_HIDDEN + 1];
    float* bias[MAX_HIDDEN + 1];
    float* slope[MAX_HIDDEN];
};

struct FusionGradients {
    float *table, *extra, *gate_weight, *gate_bias, *target_weight;
};

constexpr int DOT_ROWS = 24;  // query rows that are worked on together: with a chunk of tokens they share L1

// What the forward keeps for a row: the largest score, the sum of exp(score - largest), and with top_k the
// bits of the key of the last score that is chosen and how many scores with that key are.
constexpr int DOT_STATS = 4;

// Softmax dot-product attention: rows of queries, one per candidate and head, against raw tokens. Without
// `sliced` every row reads whole tokens; with it, head h reads the columns h * query_width ... only.
struct DotPass {
    History history;
    TokenRows tokens;
    int width;        // D
    int query_width;  // D, or D / heads when sliced
    int candidates;   // M
    int heads;        // H
    bool sliced;
    const float* queries;                                // [B, M, H, query_width] at these strides, scaled
    int64_t user_stride, candidate_stride, head_stride;  // floats
    int64_t longest;                                     // tokens of the longest history
    int64_t top_k;  // a row attends to its best so many tokens; 0: to all
};

// Rows that read the same columns, and the parts of at most DOT_ROWS rows that a user's rows are cut into.
static inline int64_t group_rows(const DotPass& a) {
    return a.sliced ? a.candidates : int64_t{a.candidates} * a.heads;
}
static inline int64_t group_parts(const DotPass& a) { return (group_rows(a) + DOT_ROWS - 1) / DOT_ROWS; }
static inline int64_t user_parts(const DotPass& a) { return (a.sliced ? a.heads : 1) * group_parts(a); }

struct DotForward : DotPass {
    float* pooled;     // [B, M, H, query_width]
    float* stats;      // [B, M, H, DOT_STATS]
    float* attention;  // weights [tokens, M, H] or null
};

struct DotBackward : DotPass {
    const float* grad_pooled;  // [B, M, H, query_width]
    const float* stats;
    float* grad_queries;  // [B, M, H, query_width]
    float* grad_tokens;   // [tokens, D]
};

// The same attention with projected tokens, which costs less when many candidates share a history. Widths are
// those of one head; K is the keys' width padded, V the values'.
struct DotProjected {
    History history;
    TokenRows tokens;
    int width;  // D
    int key_width, value_width;
    int candidates, heads;
    const float* queries;                                // [B, M, H, key_width] at these strides, scaled
    int64_t user_stride, candidate_stride, head_stride;  // floats
    const float *keys_t, *values_t;                      // transposed projections [H][D][K] and [H][D][V]
    int64_t longest;                                     // tokens of the longest history
};

// What its forward keeps for a row: the first two of DOT_STATS.
constexpr int DOT_PROJECTED_STATS = 2;

struct DotProjectedForward : DotProjected {
    float* pooled;  // [B, M, H, value_width]
    float* stats;   // [B, M, H, DOT_PROJECTED_STATS]
};

struct DotProjectedBackward : DotProjected {
    const float *w_k, *w_v;    // the projections [H * key_width][D p] and [H * value_width][D p]
    const float* grad_pooled;  // [B, M, H, value_width]
    const float* stats;
    float* grad_queries;  // [B, M, H, key_width]
    float* grad_tokens;   // [tokens, D]
};

// The kernels of one instruction set level.
struct Kernels {
#define MIXPOL_KERNEL(result, name, parameters) result(*name) parameters;
#include "cpu/kernels.inc"
#undef MIXPOL_KERNEL
};

}  // namespace mixpol::cpu
