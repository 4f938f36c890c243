// Two devices. Every operation is the CPU's, on the same memory; but as on GPUs, tensors of two devices do not
// mix, and new memory holds no zeros. Counts operations and copies from and to the host.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <string>

namespace {

constexpr auto kind = c10::DeviceType::PrivateUse1;
bool doubles = true;  // Apple's GPUs have none.
std::mutex mutex;
std::map<std::string, long> counts;
thread_local bool quiet = false;
thread_local c10::DeviceIndex current = 0;

void count(const std::string& what) {
  std::lock_guard<std::mutex> guard(mutex);
  if (!quiet) counts[what]++;
}

struct Memory final : public c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* place = size ? std::malloc(size) : nullptr;
    if (size) memset(place, 0x7f, size);
    return {place, place, &std::free, c10::Device(kind, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t size) const override { memcpy(to, from, size); }
};
Memory memory;
REGISTER_ALLOCATOR(kind, &memory);

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kind; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kind, current}; }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 2; }
  void synchronizeDevice(c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : public at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  at::Allocator* getPinnedMemoryAllocator() const override { return at::getCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
  void init() const override {}
};

void check(c10::ScalarType type) {
  TORCH_CHECK(doubles || type != at::kDouble, "the second device has no float64");
}

// The same memory, as a tensor of the CPU.
at::Tensor here(const at::Tensor& given) {
  if (!given.defined() || given.device().is_cpu()) return given;
  auto numbers = static_cast<int64_t>(given.storage().nbytes() / given.element_size());
  auto flat = at::from_blob(given.storage().mutable_data(), {numbers}, given.options().device(at::kCPU));
  return flat.as_strided(given.sizes(), given.strides(), given.storage_offset());
}

at::Tensor empty(at::IntArrayRef sizes, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  check(c10::dtype_or_default(type));
  c10::OptionalDeviceGuard guard(device);
  c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(sizes, &memory, keys, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  check(c10::dtype_or_default(type));
  c10::OptionalDeviceGuard guard(device);
  c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(sizes, strides, &memory, keys, c10::dtype_or_default(type));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (from.device().is_cpu() != to.device().is_cpu()) {
    count(from.device().is_cpu() ? "to the device" : "to the host");
  } else if (from.device() != to.device()) {
    count("between devices");
  }
  here(to).copy_(here(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar number_of(const at::Tensor& given) {
  count("to the host");
  return here(given).item();
}

const at::Tensor& resize_(const at::Tensor& given, c10::SymIntArrayRef wanted, std::optional<at::MemoryFormat>) {
  auto sizes = C10_AS_INTARRAYREF_SLOW(wanted);
  given.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  auto size = at::detail::computeStorageNbytesContiguous(sizes, given.element_size(), given.storage_offset());
  auto before = given.storage().nbytes();
  if (before < size) {
    c10::DeviceGuard guard(given.device());
    auto larger = memory.allocate(size);
    if (before) memcpy(larger.get(), given.storage().data(), before);
    given.storage().set_data_ptr(std::move(larger));
    given.storage().set_nbytes(size);
  }
  return given;
}

at::Tensor as_strided(const at::Tensor& given, at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<int64_t> start) {
  return at::native::as_strided_tensorimpl(given, sizes, strides, start);
}

at::Tensor view(const at::Tensor& given, c10::SymIntArrayRef sizes) {
  return at::native::view(given, C10_AS_INTARRAYREF_SLOW(sizes));
}

at::Tensor alias(const at::Tensor& given, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides) {
  return at::native::_reshape_alias(given, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

at::Tensor& set_(at::Tensor& given, at::Storage from, c10::SymInt start, c10::SymIntArrayRef sizes, c10::SymIntArrayRef strides) {
  return at::cpu::set_(given, from, start.expect_int(), C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       bool transposed, c10::SymIntArrayRef more, c10::SymInt groups) {
  auto added = bias && bias->defined() ? std::optional(here(*bias)) : std::nullopt;
  TORCH_CHECK(input.device() == weight.device(), "a convolution mixes devices");
  return at::convolution(here(input), here(weight), added, C10_AS_INTARRAYREF_SLOW(stride),
                         C10_AS_INTARRAYREF_SLOW(padding), C10_AS_INTARRAYREF_SLOW(dilation), transposed,
                         C10_AS_INTARRAYREF_SLOW(more), groups.expect_int()).to(input.device());
}

// All else: by the CPU, on copies. A lone number of the host's may take part, and so may indices.
void by_the_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  auto name = c10::toString(operation.operator_name());
  auto picks = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index_put", 0) == 0;
  auto arguments = operation.schema().arguments().size();
  std::optional<c10::Device> seen;
  auto look = [&](const at::Tensor& one, size_t place) {
    if (!one.defined() || (one.device().is_cpu() && (one.dim() == 0 || (picks && place == 1)))) return;
    check(one.scalar_type());
    if (!seen) seen = one.device();
    auto same = *seen == one.device() && !one.device().is_cpu();
    TORCH_CHECK(same, name, " mixes devices: argument ", place, " is on ", one.device());
  };
  for (size_t place = 0; place < arguments; place++) {
    const auto& given = (*stack)[stack->size() - arguments + place];
    if (given.isTensor()) look(given.toTensor(), place);
    else if (given.isList())
      for (const auto& one : given.toListRef()) if (one.isTensor()) look(one.toTensor(), place);
  }
  count("operations");
  auto was = std::exchange(quiet, true);
  try {
    at::native::cpu_fallback(operation, stack);
  } catch (...) {
    quiet = was;
    throw;
  }
  quiet = was;
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &number_of);
  library.impl("resize_", &resize_);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("unfold", &at::native::unfold);
  library.impl("_reshape_alias", &alias);
  library.impl("set_.source_Storage_storage_offset", &set_);
  library.impl("convolution_overrideable", &convolution);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("has_doubles", [](bool has) { doubles = has; });
  module.def("be_quiet", [](bool be) { quiet = be; });
  module.def("counts", [] {
    std::lock_guard<std::mutex> guard(mutex);
    return std::exchange(counts, {});
  });
}
