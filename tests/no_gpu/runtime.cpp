// A CUDA runtime and driver without a GPU, preloaded to torch: see stand_in.py.
//
// The device's memory is the host's, and kernels do nothing, so all numbers are nonsense: what is copied back to the
// host is 0, and a single byte is 1 (true); all is done at once, and every time is a millisecond. As NVIDIA documents it
// are, for one capture at a time: what may not be called during a capture, by which thread, and that it ends the
// capture; which streams belong to it, and that they must have joined when it ends. What torch links to and is not here
// returns 0, which mostly is success.

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace {

using Lock = std::lock_guard<std::mutex>;
std::mutex mutex;

// Of each thread: the last error, its device, how careful it asked to be, and whether it began a capture.
thread_local cudaError_t last = cudaSuccess;
thread_local int device = 0;
thread_local cudaStreamCaptureMode care = cudaStreamCaptureModeGlobal;
thread_local bool began_capture = false;

cudaError_t failed(cudaError_t error) { return last = error; }

// One capture at a time: its streams, those of them that its first one has not waited for, whether a forbidden call
// has spoilt it, its number, the stream it began on, and its mode.
std::set<cudaStream_t> captured, unjoined;
bool spoilt = false;
unsigned long long capture = 0;
cudaStream_t origin = nullptr;
cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

cudaError_t spoil(cudaError_t error) {
  spoilt = true;
  return failed(error);
}

// Whether a call that may disturb a capture (allocations, waiting) is an error in this thread now.
bool disturbs() {
  Lock lock(mutex);
  bool global = capture_mode == cudaStreamCaptureModeGlobal && care == cudaStreamCaptureModeGlobal;
  if (captured.empty() || care == cudaStreamCaptureModeRelaxed || !(began_capture || global)) return false;
  return spoilt = true;
}

struct Event {
  unsigned long long capture;  // 0: recorded outside of one
  cudaStream_t stream;
};

constexpr size_t kTotal = 140ull << 30, kAddresses = 16 * kTotal;  // blocks are used again for the same size only
char* memory = nullptr;  // addresses of the device, touched only where something is written
size_t used = 0, in_use = 0;
std::map<void*, size_t> blocks;
std::multimap<size_t, void*> freed;
std::map<const char*, size_t> pinned;

bool on_device(const void* place) {
  return memory && static_cast<const char*>(place) >= memory && static_cast<const char*>(place) < memory + kAddresses;
}

bool is_pinned(const void* place) {
  Lock lock(mutex);
  auto next = pinned.upper_bound(static_cast<const char*>(place));
  if (next == pinned.begin()) return false;
  --next;
  return static_cast<const char*>(place) < next->first + next->second;
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
  if (on_device(to) || !on_device(from)) {
    memmove(to, from, bytes);
  } else {
    memset(to, bytes == 1, bytes);
  }
  return cudaSuccess;
}

cudaError_t made(void** handle) {
  *handle = calloc(1, 4096);
  return cudaSuccess;
}

template <class T>
cudaError_t given(T* place, T value) {
  *place = value;
  return cudaSuccess;
}

struct Launch {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
thread_local std::vector<Launch> launches;

}  // namespace

extern "C" {

// The device.

cudaError_t cudaGetDeviceCount(int* number) { return given(number, 1); }
cudaError_t cudaGetDevice(int* number) { return given(number, device); }
cudaError_t cudaSetDevice(int number) { return given(&device, number); }
cudaError_t cudaDriverGetVersion(int* version) { return given(version, CUDART_VERSION); }
cudaError_t cudaRuntimeGetVersion(int* version) { return given(version, CUDART_VERSION); }
cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
  Lock lock(mutex);
  *total = kTotal;
  return given(left, kTotal - in_use);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  cudaDeviceProp found = {};
  strcpy(found.name, "no GPU");
  found.major = 9;
  found.totalGlobalMem = kTotal;
  found.multiProcessorCount = 132;
  found.warpSize = 32;
  found.maxThreadsPerBlock = 1024;
  found.maxThreadsPerMultiProcessor = 2048;
  found.sharedMemPerBlock = 48 << 10;
  found.sharedMemPerBlockOptin = found.sharedMemPerMultiprocessor = 227 << 10;
  found.regsPerBlock = found.regsPerMultiprocessor = 1 << 16;
  found.l2CacheSize = 50 << 20;
  found.maxThreadsDim[0] = found.maxThreadsDim[1] = 1024;
  found.maxThreadsDim[2] = 64;
  found.maxGridSize[0] = 2147483647;
  found.maxGridSize[1] = found.maxGridSize[2] = 65535;
  return given(properties, found);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  static const std::map<cudaDeviceAttr, int> known = {
      {cudaDevAttrMultiProcessorCount, 132},       {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxThreadsPerBlock, 1024},       {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrMaxSharedMemoryPerBlock, 49152}, {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
      {cudaDevAttrMaxGridDimX, 2147483647},        {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535}};
  auto found = known.find(which);
  return given(value, found == known.end() ? 1 : found->second);  // 1: the device can do it
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* place) {
  cudaPointerAttributes found = {};
  found.type = on_device(place)   ? cudaMemoryTypeDevice
               : is_pinned(place) ? cudaMemoryTypeHost
                                  : cudaMemoryTypeUnregistered;
  found.devicePointer = found.hostPointer = const_cast<void*>(place);
  return given(attributes, found);
}

// Memory.

cudaError_t cudaMalloc(void** place, size_t bytes) {
  if (disturbs()) return failed(cudaErrorStreamCaptureUnsupported);
  Lock lock(mutex);
  if (!memory) {
    int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* mapped = mmap(nullptr, kAddresses, PROT_READ | PROT_WRITE, how, -1, 0);
    if (mapped == MAP_FAILED) return failed(cudaErrorMemoryAllocation);
    memory = static_cast<char*>(mapped);
  }
  bytes = (bytes + 511) / 512 * 512;
  if (in_use + bytes > kTotal) return failed(cudaErrorMemoryAllocation);
  auto kept = freed.find(bytes);
  if (kept != freed.end()) {
    *place = kept->second;
    freed.erase(kept);
  } else if (used + bytes <= kAddresses) {
    *place = memory + used;
    used += bytes;
  } else {
    return failed(cudaErrorMemoryAllocation);
  }
  in_use += blocks[*place] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFree(void* place) {
  if (disturbs()) return failed(cudaErrorStreamCaptureUnsupported);
  Lock lock(mutex);
  auto block = blocks.find(place);
  if (block == blocks.end()) return place ? failed(cudaErrorInvalidValue) : cudaSuccess;
  freed.insert({block->second, place});
  in_use -= block->second;
  blocks.erase(block);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** place, size_t bytes, unsigned) {
  if (disturbs()) return failed(cudaErrorStreamCaptureUnsupported);
  *place = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  Lock lock(mutex);
  pinned[static_cast<char*>(*place)] = bytes;
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* place) {
  if (disturbs()) return failed(cudaErrorStreamCaptureUnsupported);
  Lock lock(mutex);
  pinned.erase(static_cast<char*>(place));
  free(place);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return disturbs() ? failed(cudaErrorStreamCaptureUnsupported) : copy(to, from, bytes);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  return copy(to, from, bytes);
}

cudaError_t cudaMemset(void* place, int value, size_t bytes) {
  if (disturbs()) return failed(cudaErrorStreamCaptureUnsupported);
  memset(place, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* place, int value, size_t bytes, cudaStream_t) {
  memset(place, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void** place, const void*) {
  static char constant[1 << 16];
  return given<void*>(place, constant);
}

// Streams and events. A stream that waits for an event of the capture belongs to it from then on.

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return made(reinterpret_cast<void**>(stream));
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Lock lock(mutex);
  return captured.count(stream) ? spoil(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaDeviceSynchronize() {
  Lock lock(mutex);
  return captured.empty() ? cudaSuccess : spoil(cudaErrorStreamCaptureUnsupported);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return made(reinterpret_cast<void**>(event)); }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Lock lock(mutex);
  *reinterpret_cast<Event*>(event) = {captured.count(stream) ? capture : 0, stream};
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (disturbs()) return failed(cudaErrorStreamCaptureUnsupported);
  return reinterpret_cast<Event*>(event)->capture ? failed(cudaErrorCapturedEvent) : cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaEventQuery(event); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) { return given(milliseconds, 1.0f); }

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Lock lock(mutex);
  const Event& waited_for = *reinterpret_cast<Event*>(event);
  if (!captured.empty() && waited_for.capture == capture) {
    if (captured.insert(stream).second) unjoined.insert(stream);
    if (stream == origin) unjoined.erase(waited_for.stream);
  } else if (captured.count(stream)) {
    return spoil(cudaErrorStreamCaptureIsolation);
  }
  return cudaSuccess;
}

// Captures, and what is made of them.

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Lock lock(mutex);
  if (!stream) return failed(cudaErrorStreamCaptureUnsupported);
  if (!captured.empty()) return failed(cudaErrorIllegalState);
  captured = {stream};
  unjoined.clear();
  spoilt = false;
  origin = stream;
  capture_mode = mode;
  capture++;
  began_capture = mode != cudaStreamCaptureModeRelaxed;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Lock lock(mutex);
  if (captured.empty()) return failed(cudaErrorIllegalState);
  if (stream != origin) return spoil(cudaErrorStreamCaptureUnmatched);
  if (capture_mode != cudaStreamCaptureModeRelaxed && !began_capture) return failed(cudaErrorStreamCaptureWrongThread);
  captured.clear();
  began_capture = false;
  *graph = nullptr;
  if (spoilt) return failed(cudaErrorStreamCaptureInvalidated);
  if (!unjoined.empty()) return failed(cudaErrorStreamCaptureUnjoined);
  return made(reinterpret_cast<void**>(graph));
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Lock lock(mutex);
  auto active = spoilt ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
  return given(status, captured.count(stream) ? active : cudaStreamCaptureStatusNone);
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* number) {
  if (id) *id = capture;
  if (graph) *graph = nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (number) *number = 0;
  return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, care);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made_of, cudaGraph_t, unsigned long long) {
  return made(reinterpret_cast<void**>(made_of));
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made_of, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(made_of, graph, flags);
}

cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* number) { return given<size_t>(number, 1); }

// Kernels.

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  cudaFuncAttributes found = {};
  found.maxThreadsPerBlock = 1024;
  found.numRegs = 32;
  found.ptxVersion = found.binaryVersion = 90;
  found.maxDynamicSharedSizeBytes = 48 << 10;
  return given(attributes, found);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* number, const void*, int, size_t) {
  return given(number, 2);
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* number, const void*, int, size_t, unsigned) {
  return given(number, 2);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  launches.push_back({grid, block, shared, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = launches.back().grid;
  *block = launches.back().block;
  *shared = launches.back().shared;
  *static_cast<void**>(stream) = launches.back().stream;
  launches.pop_back();
  return cudaSuccess;
}

void** __cudaRegisterFatBinary(void*) {
  static void* handle[4];
  return handle;
}

cudaError_t __cudaGetKernel(void** kernel, const void* function) { return given(kernel, const_cast<void*>(function)); }

// Errors.

cudaError_t cudaGetLastError() {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last; }

const char* cudaGetErrorName(cudaError_t error) {
  static thread_local char name[32];
  snprintf(name, sizeof name, "cudaError %d", error);
  return name;
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorStreamCaptureUnsupported) return "operation not permitted when stream is capturing";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return cudaGetErrorName(error);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  if (result) *result = cudaDriverEntryPointSymbolNotFound;
  return given<void*>(function, nullptr);
}

// The driver, as far as torch and gantool ask it.

int cuDriverGetVersion(int* version) { return given(version, CUDART_VERSION); }

int cuCtxGetCurrent(void** context) {
  static int only;
  return given<void*>(context, &only);
}

int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  return given(active, 1);
}

// cuBLAS: handles, and descriptions of products.

int cublasCreate_v2(void** handle) { return made(handle); }
int cublasGetMathMode(void*, int* mode) { return given(mode, 0); }
int cublasGetPointerMode_v2(void*, int* mode) { return given(mode, 0); }
size_t cublasLtGetVersion() { return 130400; }
int cublasLtMatmulDescCreate(void** description, int, int) { return made(description); }
int cublasLtMatmulPreferenceCreate(void** preference) { return made(preference); }
int cublasLtMatrixLayoutCreate(void** layout, int, unsigned long long, unsigned long long, long long) {
  return made(layout);
}
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int* number) {
  return given(number, 1);
}

// cuDNN: only its handle; sitecustomize.py has torch compute convolutions without it.

size_t cudnnGetVersion() { return 99999; }
int cudnnCreate(void** handle) { return made(handle); }

}  // extern "C"
