// Packing of parameters into the layouts of the register tiles, and the way back for their gradients.
#include "cpu/kernels/level.h"
#include "cpu/kernels/pairs.h"
#include "cpu/kernels/tokens.h"

namespace mixpol::cpu::MIXPOL_ISA {

namespace {

// How many of `width` columns from c on are there, of d.
int columns_there(int d, int c, int width) {
    const int rest = d > c ? d - c : 0;
    return rest < width ? rest : width;
}

// to[columns][padded(rows)] = fromᵀ, with from [rows][ld].
void transpose(float* to, const float* from, int rows, int columns, int64_t ld) {
    int wide = padded(rows);
    for (int c = 0; c < columns; c++) {
        float* out = to + c * int64_t{wide};
        for (int r = 0; r < rows; r++) out[r] = from[r * ld + c];
        for (int r = rows; r < wide; r++) out[r] = 0;
    }
}

// Units j ... j + 3 and inputs k ... k + 3 of the blocks of W_1, transposed.
void transpose_blocks(const float* w, int d, int h, int hp, int j, int k, PackedUnit& p) {
    const int ld = panel_width(hp, j);
    const int64_t at = in_panels(d, hp, k, j);
    const float* row = w + j * int64_t{4} * d + k;
    float *token = p.token_t + at, *product = p.product_t + at, *target = p.target_t + k * int64_t{hp} + j;
    if (j + 4 > h || k + 4 > d) {
        for (int b = 0; b < 4 && k + b < d; b++)
            for (int a = 0; a < 4; a++) {
                const float* x = row + a * int64_t{4} * d + b;
                token[b * int64_t{ld} + a] = j + a < h ? x[d] - x[2 * d] : 0;
                product[b * int64_t{ld} + a] = j + a < h ? x[3 * d] : 0;
                target[b * int64_t{hp} + a] = j + a < h ? x[0] + x[2 * d] : 0;
            }
        return;
    }
    quad x[4], y[4], z[4];
    for (int a = 0; a < 4; a++, row += int64_t{4} * d) {
        const quad difference = load_quad(row + 2 * d);
        x[a] = load_quad(row + d) - difference;
        y[a] = load_quad(row + 3 * d);
        z[a] = load_quad(row) + difference;
    }
    store_transposed(x, token, ld);
    store_transposed(y, product, ld);
    store_transposed(z, target, hp);
}

// to[columns][padded(rows)] = fromᵀ in panels.
void transpose_panels(float* to, const float* from, int rows, int columns, int64_t ld) {
    const int wide = padded(rows);
    for (int r0 = 0; r0 < wide; r0 += PANEL) {
        const int width = panel_width(wide, r0), there = columns_there(rows, r0, width);
        for (int c = 0; c < columns; c++, to += width) {
            for (int r = 0; r < there; r++) to[r] = from[(r0 + r) * ld + c];
            for (int r = there; r < width; r++) to[r] = 0;
        }
    }
}

// to[rows][padded(columns)] in panels.
void copy_panels(float* to, const float* from, int rows, int columns, int64_t ld) {
    const int wide = padded(columns);
    for (int c = 0; c < wide; c += PANEL) {
        const int width = panel_width(wide, c), there = columns_there(columns, c, width);
        for (int r = 0; r < rows; r++)
            copy_padded(to + in_panels(rows, wide, r, c), from + r * ld + c, there, width);
    }
}

void copy_rows(float* to, const float* from, int rows, int columns, int64_t ld) {
    int wide = padded(columns);
    for (int r = 0; r < rows; r++) copy_padded(to + r * int64_t{wide}, from + r * ld, columns, wide);
}

}  // namespace

void pack_unit(const ActivationUnit& unit, bool scaled, bool halves, PackedUnit& p) {
    const int d = unit.width, h = unit.units[0], hp = padded(h), wide = padded(d);
    const float* w = unit.weight[0];
    // Sixteen inputs at a time: whole lines are read, and the lines written stay in L1.
    for (int k0 = 0; p.token_t && k0 < d; k0 += 16)
        for (int j = 0; j < hp; j += 4)
            for (int k = k0; k < k0 + 16 && k < d; k += 4) transpose_blocks(w, d, h, hp, j, k, p);
    for (int j = 0; p.token_n && j < h; j++)
        for (int c = 0; c < wide; c += PANEL) {
            const int ld = panel_width(wide, c), columns = columns_there(d, c, ld);
            const int64_t at = in_panels(h, wide, j, c);
            const float* __restrict__ row = w + j * int64_t{4} * d + c;
            float* __restrict__ token = p.token_n + at;
            float* __restrict__ product = p.product_n + at;
            float* __restrict__ target = p.target_n + j * int64_t{wide} + c;
            const float scale = scaled && unit.layers == 1 ? unit.weight[1][j] : 1.0f;
            for (int k = 0; k < columns; k++) {
                token[k] = scale * (row[d + k] - row[2 * d + k]);
                product[k] = scale * row[3 * d + k];
                target[k] = scale * (row[k] + row[2 * d + k]);
            }
            for (int k = columns; k < ld; k++) token[k] = product[k] = target[k] = 0;
        }
    for (int i = 0; i < unit.layers; i++) {
        int units = unit.units[i];
        copy_padded(p.bias[i], unit.bias[i], units, padded(units));
        if (unit.slope[i])
            copy_rows(p.slope[i], unit.slope[i], parameter_rows(unit.activation), units, units);
        if (i == 0) continue;
        transpose_panels(p.weight_t[i], unit.weight[i], units, unit.units[i - 1], unit.units[i - 1]);
        if (p.weight_n[i]) {
            const int below = unit.units[i - 1];
            copy_panels(p.weight_n[i], unit.weight[i], units, below, below);
            for (int j = 0; scaled && i + 1 == unit.layers && j < units; j++)
                for (int k = 0; k < below; k++)
                    p.weight_n[i][in_panels(units, padded(below), j, k)] *= unit.weight[i + 1][j];
        }
        if (!halves) continue;
        pair_in_place(p.weight_t[i], unit.units[i - 1], padded(units));
        if (p.weight_n[i]) pair_in_place(p.weight_n[i], units, padded(unit.units[i - 1]));
    }
    if (!unit.weight[unit.layers]) return;  // hidden layers alone
    int last = unit.units[unit.layers - 1];
    copy_padded(p.output, unit.weight[unit.layers], last, padded(last));
    p.output_bias = unit.bias[unit.layers][0];
}

void pack_fusion(const PolarityFusion& fusion, bool backward, PackedFusion& p) {
    int d = fusion.width;
    if (fusion.kind == Fusion::none) return;
    copy_rows(p.table, fusion.table, fusion.rows, d, d);
    if (fusion.extra_rows) copy_rows(p.extra, fusion.extra_table, fusion.extra_rows, d, d);
    if (fusion.kind != Fusion::tapf) return;
    const int64_t ld = fusion.full_gate ? 3 * d : d;
    const float *token = fusion.gate_weight, *constant = token + d, *product = token + ld - d;
    transpose_panels(p.gate_t, product, d, d, ld);
    transpose(p.target_t, fusion.target_weight, d, d, d);
    copy_padded(p.bias, fusion.gate_bias, d, padded(d));
    if (fusion.full_gate) {
        transpose_panels(p.gate_token_t, token, d, d, ld);
        transpose(p.gate_constant_t, constant, d, d, ld);
    }
    if (!backward) return;
    copy_panels(p.gate_n, product, d, d, ld);
    copy_rows(p.target_n, fusion.target_weight, d, d, d);
    if (!fusion.full_gate) return;
    copy_panels(p.gate_token_n, token, d, d, ld);
    copy_rows(p.gate_constant_n, constant, d, d, ld);
}

namespace {

// Σ a · b over d floats, where a(k) tells where a lies; with an addend, Σ a · (b + sign * addend).
template <class Where>
float dot_sum(Where&& a, const float* b, const float* addend, float sign, int d) {
    vec total{};
    int k = 0;
    for (; k + W <= d; k += W) {
        vec factor = addend ? fma(broadcast(sign), load(addend + k), load(b + k)) : load(b + k);
        total = fma(load(a(k)), factor, total);
    }
    float rest = sum(total);
    for (; k < d; k++) rest += *a(k) * (addend ? b[k] + sign * addend[k] : b[k]);
    return rest;
}

}  // namespace

// Scaled sums of the last hidden layer lack the factor w_o per unit (bits stood in for the layer); its own
// gradient follows from them. Of the first layer: Σ ds · h = Σ z (x · G + c), with the sums of z x, z (t *
// x), z t and z; of a later one: Σ z (W h' + b), with those of z h' and z.
void unfold_unit(const ActivationUnit& unit, const UnitSums& sums, bool scaled, const UnitGradients& grads) {
    const int d = unit.width, h = unit.units[0], wide = padded(d), last = unit.layers - 1;
    const bool first_scaled = scaled && last == 0;
    for (int j = 0; j < h; j++) {
        const float scale = first_scaled ? unit.weight[1][j] : 1.0f, *w = unit.weight[0] + j * int64_t{4} * d;
        for (int c = 0; c < d; c += PANEL) {
            const int columns = columns_there(d, c, PANEL);
            float* __restrict__ out = grads.weight[0] + j * int64_t{4} * d + c;
            const float* __restrict__ token = sums.token + in_panels(h, wide, j, c);
            const float* __restrict__ product = sums.product + in_panels(h, wide, j, c);
            const float* __restrict__ target = sums.target + j * int64_t{wide} + c;
            for (int k = 0; k < columns; k++) {
                out[k] = scale * target[k];
                out[d + k] = scale * token[k];
                out[2 * d + k] = scale * (target[k] - token[k]);
                out[3 * d + k] = scale * product[k];
            }
        }
        grads.bias[0][j] = scale * sums.bias[0][j];
        if (!first_scaled) continue;
        auto token = [&](int k) { return sums.token + in_panels(h, wide, j, k); };
        auto product = [&](int k) { return sums.product + in_panels(h, wide, j, k); };
        auto target = [&](int k) { return sums.target + j * int64_t{wide} + k; };
        grads.weight[1][j] = dot_sum(token, w + d, w + 2 * d, -1, d) +
                             dot_sum(product, w + 3 * d, nullptr, 0, d) +
                             dot_sum(target, w, w + 2 * d, 1, d) + unit.bias[0][j] * sums.bias[0][j];
    }
    for (int i = 1; i <= last; i++) {
        const int below = unit.units[i - 1], ld = padded(below), units = unit.units[i];
        for (int j = 0; j < unit.units[i]; j++) {
            const float scale = scaled && i == last ? unit.weight[i + 1][j] : 1.0f;
            const int64_t row = j * int64_t{below};
            auto sum = [&](int k) { return sums.weight[i] + in_panels(units, ld, j, k); };
            for (int k = 0; k < below; k++) grads.weight[i][row + k] = scale * *sum(k);
            grads.bias[i][j] = scale * sums.bias[i][j];
            if (!scaled || i < last) continue;
            grads.weight[i + 1][j] =
                dot_sum(sum, unit.weight[i] + row, nullptr, 0, below) + unit.bias[i][j] * sums.bias[i][j];
        }
    }
    if (unit.weight[last + 1]) {
        if (!scaled) std::memcpy(grads.weight[last + 1], sums.output, sizeof(float) * unit.units[last]);
        grads.bias[last + 1][0] = sums.output_bias[0];
    }
    for (int i = 0; i <= last; i++)
        for (int r = 0; unit.slope[i] && r < parameter_rows(unit.activation); r++)
            std::memcpy(grads.slope[i] + r * unit.units[i], sums.slope[i] + r * padded(unit.units[i]),
                        sizeof(float) * unit.units[i]);
}

void unfold_fusion(const PolarityFusion& fusion, const FusionSums& sums, const FusionGradients& grads) {
    int d = fusion.width;
    size_t bytes = sizeof(float) * d;
    int64_t wide = padded(d);
    if (fusion.kind == Fusion::none) return;
    auto copy = [&](float* to, int64_t ld, const float* from, int rows) {
        for (int r = 0; r < rows; r++) std::memcpy(to + r * ld, from + r * wide, bytes);
    };
    copy(grads.table, d, sums.table, fusion.rows);
    if (fusion.extra_rows) copy(grads.extra, d, sums.extra, fusion.extra_rows);
    if (fusion.kind != Fusion::tapf) return;
    auto from_panels = [&](float* to, int64_t ld, const float* from) {
        for (int c = 0; c < d; c += PANEL)
            for (int r = 0; r < d; r++)
                std::memcpy(to + r * ld + c, from + in_panels(d, padded(d), r, c),
                            sizeof(float) * columns_there(d, c, PANEL));
    };
    const int64_t ld = fusion.full_gate ? 3 * d : d;
    from_panels(grads.gate_weight + ld - d, ld, sums.gate);
    copy(grads.target_weight, d, sums.target, d);
    if (fusion.full_gate) {
        from_panels(grads.gate_weight, ld, sums.gate_token);
        copy(grads.gate_weight + d, ld, sums.gate_constant, d);
    }
    std::memcpy(grads.gate_bias, sums.bias, bytes);
}

void add(float* to, const float* from, int64_t floats) {
    int64_t i = 0;
    for (; i + W <= floats; i += W) store(to + i, load(to + i) + load(from + i));
    for (; i < floats; i++) to[i] += from[i];
}

void gather_sum(float* out, const float* a, const float* b, int width) {
    int i = 0;
    for (; i + W <= width; i += W) store(out + i, load(a + i) + load(b + i));
    for (; i < width; i++) out[i] = a[i] + b[i];
}

namespace {

constexpr int64_t SUM_RUN = 16;

// Σ rows from column c on, in short runs whose sums lose nothing; T is a vector or one float.
template <class T, class Load>
MIXPOL_INLINE T sum_column(const float* const* rows, int64_t count, Load&& at) {
    T total{}, compensation{};
    for (int64_t r = 0; r < count;) {
        T run = at(rows[r++]);
        for (int64_t end = r + SUM_RUN - 1; r < end && r < count; r++) run += at(rows[r]);
        const T after = total + run, added = after - total;
        compensation += (total - (after - added)) + (run - added);
        total = after;
    }
    return compensation - compensation == T{} ? total + compensation : total;
}

}  // namespace

// Column by column in registers: the order of rows, and so the rounding, is the same for every column and
// level.
void sum_rows(float* out, const float* const* rows, int64_t count, int width) {
    int c = 0;
    for (; c + W <= width; c += W)
        store(out + c, sum_column<vec>(rows, count, [c](const float* row) { return load(row + c); }));
    for (; c < width; c++) out[c] = sum_column<float>(rows, count, [c](const float* row) { return row[c]; });
}

void widen(float* to, const void* from, int64_t count, Element from_element) {
    widen_half(to, static_cast<const uint16_t*>(from), count, from_element);
}

void narrow(void* to, const float* from, int64_t count, Element to_element) {
    narrow_half(static_cast<uint16_t*>(to), from, count, to_element);
}

}  // namespace mixpol::cpu::MIXPOL_ISA
