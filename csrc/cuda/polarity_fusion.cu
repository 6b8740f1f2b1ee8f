#include "cuda/polarity_fusion.cuh"
#include "cuda/polarity_fusion.h"

namespace mixpol::cuda {

Tensor polarity_fusion_fwd(Tensor target, Tensor tokens, Tensor polarity, Tensor polarity_table, Tensor sign,
                           OptionalTensors gate, OptionalTensor extra_ids, OptionalTensor extra_table,
                           OptionalTensor offsets, OptionalTensor lengths, OptionalTensor mask) {
    const Device device(target, "target");
    FusionForward args;
    Checks checks;
    Alive alive;
    alive.push_back(device.read_floats(target, "target", {-1, -1}));
    args.target = data_of(alive.back());
    args.width = static_cast<int>(target.size(1));
    const Tensor rows = device.read_rows(tokens, "tokens", args.width);
    alive.push_back(rows);
    std::vector<int64_t> shape = sizes_of(rows);
    shape.pop_back();
    checks.history = args.history =
        read_history(device, target.size(0), shape, offsets, lengths, mask, alive);
    args.tokens = rows_of(rows);
    args.fusion = read_fusion(device, args.width, polarity, polarity_table, sign, list_of(gate), extra_ids,
                              extra_table, checks, alive);
    const Tables tables = plan_tables(args, device.shared_limit());
    if (args.fusion.kind == Fusion::tapf && !tables.gate_columns)
        fail("tokens of width ", args.width, " need more than the ", device.shared_limit(),
             " bytes of shared memory that a block of this GPU can have; expected less");
    Tensor fused = device.floats(sizes_of(rows));
    args.fused = mutable_data_of(fused);
    launch_checks(checks, device.stream());
    pack_parameters(device, args, alive);
    launch_polarity_fusion(args, tables, device.stream());
    device.check_launches();
    return fused;
}

}  // namespace mixpol::cuda
