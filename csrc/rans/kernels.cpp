#include "kernels.hpp"

namespace lora_comp::rans {
namespace {

std::vector<const Kernel*> running_here() {
  std::vector<const Kernel*> found;
#ifdef __x86_64__
  for (const Kernel* kernel : {&avx512, &avx2})
    if (kernel->target <= simd::best()) found.push_back(kernel);
#endif
  return found;
}

}  // namespace

std::vector<std::string> kernels() {
  std::vector<std::string> names;
  for (const Kernel* kernel : running_here()) names.emplace_back(kernel->name);
  names.emplace_back("scalar");
  return names;
}

const Kernel* choose(const std::string& name) {
  static const std::vector<const Kernel*> found = running_here();
  if (name == "scalar") return nullptr;
  for (const Kernel* kernel : found)
    if (name.empty() || name == kernel->name) return kernel;
  if (name.empty()) return nullptr;
  throw std::invalid_argument("kernel " + name + " does not run on this machine");
}

}  // namespace lora_comp::rans
