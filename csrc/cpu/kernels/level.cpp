// This level's kernels as one table.
#include "cpu/kernels/level.h"

#define MIXPOL_JOIN_(a, b) a##b
#define MIXPOL_JOIN(a, b) MIXPOL_JOIN_(a, b)

namespace mixpol::cpu {

extern const Kernels MIXPOL_JOIN(kernels_, MIXPOL_ISA);

const Kernels MIXPOL_JOIN(kernels_, MIXPOL_ISA) = {
    MIXPOL_ISA::pack_unit,
    MIXPOL_ISA::pack_fusion,
    MIXPOL_ISA::attention_scratch_floats,
    MIXPOL_ISA::fusion_scratch_floats,
    MIXPOL_ISA::attention_forward,
    MIXPOL_ISA::attention_backward,
    MIXPOL_ISA::normalised_sums,
    MIXPOL_ISA::statistics_scratch_floats,
    MIXPOL_ISA::statistics_forward,
    MIXPOL_ISA::statistics_backward,
    MIXPOL_ISA::fusion_forward,
    MIXPOL_ISA::fusion_backward,
    MIXPOL_ISA::unfold_unit,
    MIXPOL_ISA::unfold_fusion,
    MIXPOL_ISA::dot_scratch_floats,
    MIXPOL_ISA::dot_forward,
    MIXPOL_ISA::dot_backward,
    MIXPOL_ISA::dot_projected_scratch_floats,
    MIXPOL_ISA::dot_projected_forward,
    MIXPOL_ISA::dot_projected_backward,
    MIXPOL_ISA::project_rows,
    MIXPOL_ISA::absorb_rows,
    MIXPOL_ISA::add,
    MIXPOL_ISA::gather_sum,
    MIXPOL_ISA::sum_rows,
    MIXPOL_ISA::widen,
    MIXPOL_ISA::narrow,
};

}  // namespace mixpol::cpu
