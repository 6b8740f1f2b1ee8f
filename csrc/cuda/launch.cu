#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/pack.cuh"

namespace mixpol::cuda {

namespace {

std::string shape_text(const Tensor& tensor) {
    std::ostringstream text;
    text << "[";
    for (int64_t i = 0; i < tensor.dim(); i++) text << (i ? ", " : "") << tensor.size(i);
    text << "]";
    return text.str();
}

int device_index(const Tensor& tensor, const char* name) {
    if (!tensor.is_cuda()) fail(name, " is not on a GPU; move it with .cuda()");
    return tensor.get_device_index();
}

cudaStream_t current_stream(int device) {
    void* stream = nullptr;
    if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS)
        fail("the current stream of device ", device, " could not be found; expected an initialised GPU");
    return static_cast<cudaStream_t>(stream);
}

}  // namespace

Device::Device(const Tensor& tensor, const char* name)
    : index_(device_index(tensor, name)), guard_(index_), stream_(current_stream(index_)) {}

int64_t Device::shared_limit() const {
    int bytes = 0;
    if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index_) != cudaSuccess)
        fail("device ", index_, " does not tell its shared memory; expected an initialised GPU");
    return bytes;
}

Tensor Device::tensor(const std::vector<int64_t>& sizes, ScalarType type) const {
    std::vector<int64_t> strides(sizes.size());
    int64_t stride = 1;
    for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) strides[i] = stride;
    AtenTensorHandle handle;
    if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                 torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                 aoti_torch_device_type_cuda(), index_, &handle) != AOTI_TORCH_SUCCESS)
        fail("a tensor of ", stride, " values could not be allocated; expected enough free memory on device ",
             index_);
    return Tensor(handle);
}

void Device::check_launches() const {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) fail("a kernel could not be started: ", cudaGetErrorString(error));
}

void Device::require(const Tensor& tensor, const char* name) const {
    if (device_index(tensor, name) != index_)
        fail(name, " is on device ", tensor.get_device_index(), "; expected ", index_,
             ", that of the other inputs");
}

Tensor Device::read_floats(const Tensor& tensor, const char* name,
                           std::initializer_list<int64_t> sizes) const {
    require(tensor, name);
    if (tensor.scalar_type() != ScalarType::Float) fail(name, " is not float32; convert it with .float()");
    bool same = tensor.dim() == static_cast<int64_t>(sizes.size());
    for (int64_t i = 0; same && i < tensor.dim(); i++)
        same = sizes.begin()[i] < 0 || tensor.size(i) == sizes.begin()[i];
    if (!same) {
        std::ostringstream expected;
        for (const int64_t* size = sizes.begin(); size != sizes.end(); size++)
            expected << (size != sizes.begin() ? ", " : "") << *size;
        fail(name, " has shape ", shape_text(tensor), "; expected [", expected.str(), "] (-1: any)");
    }
    return as_contiguous(tensor);
}

Tensor Device::read_rows(const Tensor& tensor, const char* name, int64_t width) const {
    require(tensor, name);
    if (tensor.scalar_type() != ScalarType::Float) fail(name, " is not float32; convert it with .float()");
    if (tensor.dim() < 2 || tensor.size(tensor.dim() - 1) != width)
        fail(name, " has shape ", shape_text(tensor), "; expected rows of ", width, " floats");
    return tensor.stride(tensor.dim() - 1) == 1 || width == 1 ? tensor : as_contiguous(tensor);
}

Tensor as_contiguous(const Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

std::vector<int64_t> sizes_of(const Tensor& tensor) {
    std::vector<int64_t> sizes(tensor.dim());
    for (int64_t i = 0; i < tensor.dim(); i++) sizes[i] = tensor.size(i);
    return sizes;
}

Rows rows_of(const Tensor& tensor) {
    Rows rows;
    rows.base = data_of(tensor);
    rows.row_stride = tensor.stride(tensor.dim() - 2);
    rows.user_stride = tensor.dim() == 3 ? tensor.stride(0) : 0;
    rows.vectors =
        whole_vectors(rows.base, tensor.size(tensor.dim() - 1), {rows.row_stride, rows.user_stride});
    return rows;
}

History read_history(const Device& device, int64_t users, const std::vector<int64_t>& token_shape,
                     const OptionalTensor& offsets, const OptionalTensor& lengths, const OptionalTensor& mask,
                     Alive& alive) {
    History history;
    history.users = users;
    auto index = [&](const Tensor& tensor, const char* name, int64_t size) {
        device.require(tensor, name);
        if (tensor.scalar_type() != ScalarType::Long)
            fail(name, " is not an int64 tensor; convert it with .long()");
        if (tensor.dim() != 1 || tensor.size(0) != size)
            fail(name, " has shape ", shape_text(tensor), "; expected [", size, "]");
        alive.push_back(as_contiguous(tensor));
        return static_cast<const int64_t*>(alive.back().const_data_ptr());
    };
    if (offsets) {
        if (token_shape.size() != 1)
            fail("offsets were given for a padded history; expected lengths or mask");
        history.tokens = token_shape[0];
        history.offsets = index(*offsets, "offsets", users + 1);
        return history;
    }
    if (token_shape.size() != 2 || token_shape[0] != users)
        fail("the history's leading dimensions do not match ", users, " users; expected [users, length]");
    history.length = token_shape[1];
    history.tokens = users * history.length;
    if (lengths) {
        history.lengths = index(*lengths, "lengths", users);
    } else if (mask) {
        device.require(*mask, "mask");
        if (mask->scalar_type() != ScalarType::Bool)
            fail("mask is not a bool tensor; convert it with .bool()");
        if (mask->dim() != 2 || mask->size(0) != users || mask->size(1) != history.length)
            fail("mask has shape ", shape_text(*mask), "; expected [", users, ", ", history.length, "]");
        alive.push_back(as_contiguous(*mask));
        history.mask = static_cast<const uint8_t*>(alive.back().const_data_ptr());
    }
    return history;
}

History read_ids_history(const Device& device, const Tensor& ids, const OptionalTensor& offsets,
                         const OptionalTensor& lengths, const OptionalTensor& mask, Alive& alive) {
    std::vector<int64_t> shape = sizes_of(ids);
    if (shape.empty() || shape.size() > 2)
        fail("ids has ", shape.size(), " dimensions; expected [N] or [B, L]");
    if (offsets && (offsets->dim() != 1 || offsets->size(0) < 1))
        fail("offsets has shape ", shape_text(*offsets), "; expected [B + 1], at least one entry");
    if (shape.size() == 1 && !offsets) shape = {1, shape[0]};
    return read_history(device, offsets ? offsets->size(0) - 1 : shape[0], shape, offsets, lengths, mask,
                        alive);
}

Ids read_ids(const Device& device, const Tensor& ids, const char* name, int64_t rows, Argument argument,
             Checks& checks, Alive& alive) {
    device.require(ids, name);
    if (rows < 0) fail("the table of ", name, " has ", rows, " rows; expected 0 or more");
    if (ids.numel() != checks.history.tokens)
        fail(name, " has shape ", shape_text(ids), "; expected one id for each of ", checks.history.tokens,
             " tokens");
    alive.push_back(as_contiguous(ids));
    Ids read;
    read.data = alive.back().const_data_ptr();
    switch (ids.scalar_type()) {
        case ScalarType::Byte:
            read.type = IdType::u8;
            break;
        case ScalarType::Char:
            read.type = IdType::i8;
            break;
        case ScalarType::Short:
            read.type = IdType::i16;
            break;
        case ScalarType::Int:
            read.type = IdType::i32;
            break;
        case ScalarType::Long:
            read.type = IdType::i64;
            break;
        default:
            fail(name, " is no integer tensor; expected uint8, int8, int16, int32 or int64");
    }
    checks.add(read, rows, argument);
    return read;
}

ActivationUnit read_unit(const Device& device, int64_t width, const std::vector<Tensor>& weights,
                         const std::vector<Tensor>& biases, const std::vector<Tensor>& slopes,
                         int64_t activation, int64_t normalize, double dropout, Alive& alive) {
    ActivationUnit unit;
    const int64_t given = static_cast<int64_t>(weights.size()), layers = given - 1;
    if (layers < 1 || layers > MAX_HIDDEN || static_cast<int64_t>(biases.size()) != given)
        fail("the activation unit has ", weights.size(), " weights and ", biases.size(),
             " biases; expected one to ", MAX_HIDDEN, " hidden layers and the output layer, each with both");
    if (activation < 0 || activation >= ACTIVATION_COUNT || normalize < 0 || normalize >= NORMALIZE_COUNT)
        fail("activation ", activation, " or normalize ", normalize, " is unknown");
    unit.activation = static_cast<Activation>(activation);
    if (row_wise(unit.activation))
        fail("activation is dice_row, which the CUDA kernels lack; expected another, or backend='reference'");
    if (dropout != 0) fail("dropout is ", dropout, "; expected 0: the CUDA kernels have none");
    unit.normalize = static_cast<Normalize>(normalize);
    const int64_t rows = parameter_rows(unit.activation);
    if (static_cast<int64_t>(slopes.size()) != (rows ? layers : 0))
        fail("slopes has ", slopes.size(), " entries; expected ", rows ? layers : 0,
             ": one per hidden layer for prelu and dice, else none");
    unit.width = static_cast<int>(width);
    unit.layers = static_cast<int>(layers);
    auto keep = [&](const Tensor& tensor, const char* name, std::initializer_list<int64_t> sizes) {
        alive.push_back(device.read_floats(tensor, name, sizes));
        return data_of(alive.back());
    };
    int64_t inputs = 4 * width;
    for (int64_t i = 0; i < given; i++) {
        const int64_t units = i == layers ? 1 : weights[i].dim() == 2 ? weights[i].size(0) : -1;
        unit.weight[i] = keep(weights[i], "a weight of the activation unit", {units, inputs});
        if (units == 0)
            fail("weights[", i, "] has shape ", shape_text(weights[i]),
                 "; expected at least one hidden unit");
        unit.bias[i] = keep(biases[i], "a bias of the activation unit", {units});
        inputs = units;
        if (i == layers) break;
        unit.units[i] = static_cast<int>(units);
        if (rows)
            unit.slope[i] =
                rows == 1 ? keep(slopes[i], "a slope", {units}) : keep(slopes[i], "a slope", {rows, units});
    }
    return unit;
}

PolarityFusion read_fusion(const Device& device, int64_t width, const OptionalTensor& polarity,
                           const OptionalTensor& table, const Tensor& sign, const std::vector<Tensor>& gate,
                           const OptionalTensor& extra_ids, const OptionalTensor& extra_table, Checks& checks,
                           Alive& alive) {
    PolarityFusion fusion;
    fusion.width = static_cast<int>(width);
    if (extra_ids.has_value() != extra_table.has_value() || (extra_table && !table))
        fail("extra_ids and extra_table come together, and need a polarity table");
    if (!table) return fusion;
    if (!polarity) fail("polarity is missing; a polarity table needs it");
    if (!gate.empty() && gate.size() != 3)
        fail("gate has ", gate.size(), " tensors; expected W_g, b_g and W_t");
    fusion.kind = gate.empty() ? Fusion::bias : Fusion::tapf;
    auto keep = [&](const Tensor& tensor, const char* name, std::initializer_list<int64_t> sizes) {
        alive.push_back(device.read_floats(tensor, name, sizes));
        return data_of(alive.back());
    };
    fusion.table = keep(*table, "polarity_table", {-1, width});
    fusion.rows = table->size(0);
    fusion.polarity = read_ids(device, *polarity, "polarity", fusion.rows, Argument::polarity, checks, alive);
    fusion.sign = keep(sign, "sign", {fusion.rows});
    if (extra_table) {
        fusion.extra_table = keep(*extra_table, "extra_table", {-1, width});
        fusion.extra_rows = extra_table->size(0);
        fusion.extra =
            read_ids(device, *extra_ids, "extra_ids", fusion.extra_rows, Argument::extra_ids, checks, alive);
    }
    if (fusion.kind == Fusion::tapf) {
        fusion.full_gate = gate[0].dim() == 2 && gate[0].size(1) == 3 * width;
        fusion.gate_weight = keep(gate[0], "gate[0] (W_g)", {width, fusion.full_gate ? 3 * width : width});
        fusion.gate_bias = keep(gate[1], "gate[1] (b_g)", {width});
        fusion.target_weight = keep(gate[2], "gate[2] (W_t)", {width, width});
    }
    return fusion;
}

void pack_parameters(const Device& device, Pass& pass, Alive& alive) {
    alive.push_back(device.floats({packed_floats(pass)}));
    pack(pass, mutable_data_of(alive.back()), device.stream());
}

}  // namespace mixpol::cuda
