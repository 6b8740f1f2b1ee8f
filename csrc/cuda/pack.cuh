// Packing of parameters into the layout that the kernels read: one launch for all of them.
#pragma once

#include "cuda/args.cuh"

namespace mixpol::cuda {

// to[c][padded(rows)] = a[r, c] + factor * b[r, c], for c < padded(columns), and zeros beyond rows and
// columns.
struct PackJob {
    float* to;
    const float *a, *b;  // b may be null
    float factor;
    int rows, columns;
    int64_t row_stride, column_stride;  // of a and b
    bool pad_columns;
};

constexpr int MAX_PACK_JOBS = 20;
struct PackJobs {
    PackJob job[MAX_PACK_JOBS];
    int count = 0;
};

constexpr int PACK_THREADS = 256, PACK_BLOCKS = 64;

static __global__ void __launch_bounds__(PACK_THREADS) pack_parameters(const PackJobs jobs) {
    const PackJob& job = jobs.job[blockIdx.y];
    const int wide = padded(job.rows), columns = job.pad_columns ? padded(job.columns) : job.columns;
    const int64_t size = static_cast<int64_t>(columns) * wide;
    for (int64_t i = blockIdx.x * static_cast<int64_t>(PACK_THREADS) + threadIdx.x; i < size;
         i += static_cast<int64_t>(PACK_THREADS) * gridDim.x) {
        const int64_t c = i / wide, r = i % wide;
        float value = 0.0f;
        if (r < job.rows && c < job.columns) {
            const int64_t at = r * job.row_stride + c * job.column_stride;
            value = job.a[at];
            if (job.b) value += job.factor * job.b[at];
        }
        job.to[i] = value;
    }
}

// Hands out parts of the packed parameters' memory, and notes what goes there; without memory it only counts.
class Packer {
 public:
    explicit Packer(float* memory) : memory_(memory) {}

    int64_t floats() const { return used_; }

    void unit(const ActivationUnit& unit, PackedUnit& p) {
        const int d = unit.width, h = unit.units[0];
        const float* w = unit.weight[0];
        p.token = matrix(block(w, d), block(w, 2 * d), -1.0f, h, d, 4 * d);
        p.product = matrix(block(w, 3 * d), nullptr, 0.0f, h, d, 4 * d);
        p.target = matrix(block(w, 0), block(w, 2 * d), 1.0f, h, d, 4 * d);
        for (int i = 0; i < unit.layers; i++) {
            const int units = unit.units[i], below = i ? unit.units[i - 1] : 0;
            if (i) p.weight[i] = matrix(unit.weight[i], nullptr, 0.0f, units, below, below);
            p.bias[i] = rows(unit.bias[i], units, 1);
            if (const int parameters = parameter_rows(unit.activation))
                p.slope[i] = rows(unit.slope[i], units, parameters);
        }
        p.output = rows(unit.weight[unit.layers], unit.units[unit.layers - 1], 1);
    }

    void fusion(const PolarityFusion& fusion, PackedFusion& p) {
        if (fusion.kind != Fusion::tapf) return;
        const int d = fusion.width, ld = fusion.full_gate ? 3 * d : d;
        const float* w = fusion.gate_weight;
        p.gate = matrix(block(w, ld - d), nullptr, 0.0f, d, d, ld);
        p.target = matrix(fusion.target_weight, nullptr, 0.0f, d, d, d);
        p.bias = rows(fusion.gate_bias, d, 1);
        if (!fusion.full_gate) return;
        p.gate_token = matrix(block(w, 0), nullptr, 0.0f, d, d, ld);
        p.gate_constant = matrix(block(w, d), nullptr, 0.0f, d, d, ld);
    }

    void launch(cudaStream_t stream) const {
        if (!jobs_.count) return;
        const int64_t blocks = ceil_div(largest_, PACK_THREADS);
        const dim3 grid(static_cast<unsigned>(blocks < PACK_BLOCKS ? blocks : PACK_BLOCKS), jobs_.count);
        MIXPOL_LAUNCH(pack_parameters, grid, PACK_THREADS, 0, stream, jobs_);
    }

 private:
    static const float* block(const float* w, int64_t at) { return w ? w + at : nullptr; }

    float* take(const PackJob& job) {
        const int64_t columns = job.pad_columns ? padded(job.columns) : job.columns, at = used_;
        const int64_t size = columns * padded(job.rows);
        used_ += size;
        if (!memory_) return nullptr;
        if (size > largest_) largest_ = size;
        jobs_.job[jobs_.count] = job;
        return jobs_.job[jobs_.count++].to = memory_ + at;
    }

    // The transpose of [units, inputs] at this distance of rows.
    float* matrix(const float* a, const float* b, float factor, int units, int inputs, int64_t ld) {
        return take({nullptr, a, b, factor, units, inputs, ld, 1, true});
    }

    // `count` rows of `columns` floats, each padded.
    float* rows(const float* a, int columns, int count) {
        return take({nullptr, a, nullptr, 0.0f, columns, count, 1, columns, false});
    }

    float* memory_;
    int64_t used_ = 0, largest_ = 1;
    PackJobs jobs_ = {};
};

__host__ inline int64_t pack_into(Packer& packer, Pass& pass) {
    if (pass.unit.layers) packer.unit(pass.unit, pass.packed_unit);
    packer.fusion(pass.fusion, pass.packed_fusion);
    return packer.floats();
}

// How much memory the packed parameters of a pass take.
__host__ inline int64_t packed_floats(Pass pass) {
    Packer packer(nullptr);
    return pack_into(packer, pass);
}

// Packs the parameters into `memory` on the stream, and notes in `pass` where they are.
__host__ inline void pack(Pass& pass, float* memory, cudaStream_t stream) {
    Packer packer(memory);
    pack_into(packer, pass);
    packer.launch(stream);
}

}  // namespace mixpol::cuda
