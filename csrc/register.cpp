// Every schema-to-kernel binding; the schemas are declared in Python (mixpol_kernels/ops/*/autograd.py).
#include <torch/csrc/stable/library.h>

#include "cpu/attention.h"
#include "cpu/dot_attention.h"
#include "cpu/interleave.h"
#include "cpu/polarity_embedding.h"
#include "cpu/polarity_fusion.h"
#include "cpu/unit_statistics.h"

namespace {

int64_t cpu_isa() { return static_cast<int64_t>(mixpol::cpu::isa()); }

}  // namespace

// The signatures that this file was compiled for, one a line: the loader compares them with its own, since a
// kernel that is called by another signature reads garbage.
extern "C" __attribute__((visibility("default"))) const char* mixpol_signatures() {
#define MIXPOL_SCHEMA(signature) signature "\n"
    return
#include "schemas.inc"
        ;
#undef MIXPOL_SCHEMA
}

STABLE_TORCH_LIBRARY_IMPL(mixpol, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }

STABLE_TORCH_LIBRARY_IMPL(mixpol, CPU, m) {
    m.impl("interleave", TORCH_BOX(&mixpol::cpu::interleave));
    m.impl("polarity_embedding_fwd", TORCH_BOX(&mixpol::cpu::polarity_embedding_fwd));
    m.impl("table_grad_dense", TORCH_BOX(&mixpol::cpu::table_grad_dense));
    m.impl("table_grad_sparse", TORCH_BOX(&mixpol::cpu::table_grad_sparse));
    m.impl("polarity_fusion_fwd", TORCH_BOX(&mixpol::cpu::polarity_fusion_fwd));
    m.impl("polarity_fusion_bwd", TORCH_BOX(&mixpol::cpu::polarity_fusion_bwd));
    m.impl("target_attention_fwd", TORCH_BOX(&mixpol::cpu::target_attention_fwd));
    m.impl("target_attention_bwd", TORCH_BOX(&mixpol::cpu::target_attention_bwd));
    m.impl("unit_statistics_fwd", TORCH_BOX(&mixpol::cpu::unit_statistics_fwd));
    m.impl("unit_statistics_bwd", TORCH_BOX(&mixpol::cpu::unit_statistics_bwd));
    m.impl("dice_attention_fwd", TORCH_BOX(&mixpol::cpu::dice_attention_fwd));
    m.impl("dice_attention_bwd", TORCH_BOX(&mixpol::cpu::dice_attention_bwd));
    m.impl("mixed_polarity_attention_fwd", TORCH_BOX(&mixpol::cpu::mixed_polarity_attention_fwd));
    m.impl("mixed_polarity_attention_bwd", TORCH_BOX(&mixpol::cpu::mixed_polarity_attention_bwd));
    m.impl("dot_attention_fwd", TORCH_BOX(&mixpol::cpu::dot_attention_fwd));
    m.impl("dot_attention_bwd", TORCH_BOX(&mixpol::cpu::dot_attention_bwd));
    m.impl("dot_attention_infer", TORCH_BOX(&mixpol::cpu::dot_attention_infer));
    m.impl("dot_attention_projected_fwd", TORCH_BOX(&mixpol::cpu::dot_attention_projected_fwd));
    m.impl("dot_attention_projected_bwd", TORCH_BOX(&mixpol::cpu::dot_attention_projected_bwd));
}
