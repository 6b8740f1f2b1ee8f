// A program without Python that runs an exported model: host MODEL LIBRARY INPUTS OUTPUT
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iostream>
#include <iterator>

int main(int, char** arguments) {
    if (!dlopen(arguments[2], RTLD_NOW)) {
        std::cerr << dlerror() << "\n";
        return 1;
    }
    std::ifstream file(arguments[3], std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const c10::IValue list = torch::jit::pickle_load(bytes);
    std::vector<at::Tensor> inputs;
    for (const c10::IValue& value : list.toListRef()) inputs.push_back(value.toTensor());
    torch::inductor::AOTIModelPackageLoader model(arguments[1]);
    bytes = torch::jit::pickle_save(model.run(inputs)[0]);
    std::ofstream(arguments[4], std::ios::binary).write(bytes.data(), bytes.size());
}
