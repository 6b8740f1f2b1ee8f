// One launch of a kernel with barriers, for one target, over chunks, layers and fused tokens, for
// ThreadSanitizer: `races attention|fusion resident|rebuilt [BARRIER]`. The last leaves a barrier out
// ("file.cuh:line").
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cuda/attention.cuh"
#include "cuda/polarity_fusion.cuh"

using namespace mixpol::cuda;
using mixpol::Activation;
using mixpol::Normalize;

namespace {

std::vector<float> numbers(int64_t count) {
    std::vector<float> values(count);
    for (int64_t i = 0; i < count; i++) values[i] = static_cast<float>(i * 37 % 64 - 31) / 64.0f;
    return values;
}

// Any parameters will do: the kernel that packs them has no barriers.
std::vector<float> packed_numbers(Pass& pass) {
    std::vector<float> packed = numbers(packed_floats(pass));
    Packer packer(packed.data());
    pack_into(packer, pass);
    return packed;
}

}  // namespace

int main(int count, char** arguments) try {
    const std::string kernel = count > 1 ? arguments[1] : "attention",
                      tables_are = count > 2 ? arguments[2] : "";
    if (count > 3) cuda_host::left_out = arguments[3];
    const int width = 8, units = 68, length = 80;
    const std::vector<float> target = numbers(width), table = numbers(50 * width);
    const std::vector<float> polarity = numbers(2 * width), sign = {-1.0f, 1.0f}, bias = numbers(1);
    std::vector<int64_t> ids(length);
    std::vector<uint8_t> rows(length), mask(length, 1);
    for (int i = 0; i < length; i++) ids[i] = i % 50, rows[i] = i % 2;
    mask[3] = mask[35] = 0;
    std::vector<float> result;
    auto read = [&](Pass& pass) {
        pass.width = width;
        pass.history.users = 1, pass.history.length = pass.history.tokens = length;
        pass.history.mask = mask.data();
        pass.target = target.data();
        pass.items = {ids.data(), IdType::i64};
        pass.tokens.base = table.data(), pass.tokens.row_stride = width;
        pass.tokens.vectors = whole_vectors(table.data(), width, {width});
        pass.fusion.kind = Fusion::tapf, pass.fusion.width = width, pass.fusion.rows = 2;
        pass.fusion.polarity = {rows.data(), IdType::u8};
        pass.fusion.table = polarity.data(), pass.fusion.sign = sign.data();
    };
    auto plan = [&](const Pass& pass) {
        return tables_are == "rebuilt" ? Tables{false, 32, TILE, width * 32} : plan_tables(pass, 1 << 20);
    };
    if (kernel == "attention") {
        AttentionForward a;
        read(a);
        a.unit.normalize = Normalize::softmax, a.unit.width = width, a.unit.layers = 2;
        a.unit.units[0] = a.unit.units[1] = units;
        a.unit.bias[2] = bias.data();
        const std::vector<float> packed = packed_numbers(a);
        std::vector<float> weights(length);
        result.resize(width);
        a.pooled = result.data(), a.attention = weights.data();
        const Tables tables = plan(a);
        MIXPOL_LAUNCH((attention_forward<Activation::relu, true>), dim3(1), THREADS, shared_bytes(a, tables),
                      nullptr, a, tables);
    } else {
        FusionForward a;
        read(a);
        const std::vector<float> packed = packed_numbers(a);
        result.resize(length * width);
        a.fused = result.data();
        const Tables tables = plan(a);
        MIXPOL_LAUNCH(polarity_fusion_forward, dim3(1), THREADS, shared_bytes(a, tables), nullptr, a, tables);
    }
    for (const float x : result)
        if (!(x == x)) return 3;
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
}
