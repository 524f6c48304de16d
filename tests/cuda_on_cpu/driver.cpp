// A CUDA driver and NVRTC that run on the processor, for tests on machines without a GPU: what mixd asks of libcuda.so.1 and of libnvrtc,
// with the properties that its correctness hangs on. Streams run in threads of their own, late on purpose; addresses on the device cannot
// be used on the processor; kernels may read main memory only where it is pinned; shareable memory is a file in memory, which outlives the
// process that made it as CUDA's does; what CUDA forbids is an error here. It says nothing about speed.
//
// Variables: CUDA_ON_CPU_DEVICES (1), CUDA_VISIBLE_DEVICES, CUDA_ON_CPU_MEMORY (bytes a device, 1 GiB), CUDA_ON_CPU_DELAY_US (of every
// operation in a stream, 0). HERE is the folder of on_cpu.h.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <regex>
#include <sstream>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

typedef int Result;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600, ALREADY_REGISTERED = 712, NOT_REGISTERED = 713, NOT_SUPPORTED = 801 };
typedef unsigned long long Address;
static const Address BIAS = 1ull << 47;
static const size_t GRANULE = 2 << 20;

struct dim3 { unsigned x, y, z; };

static size_t number(const char *name, size_t otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

// --- devices and contexts

struct Context { int device; int retained = 0; };
static std::mutex lock_all;
// What is static is never destroyed, as threads may outlive statics: calls at a process's end find it as it was.
static auto &contexts = *new std::map<int, Context>;
static thread_local std::vector<Context *> current;
static auto &taken = *new std::map<int, size_t>; // bytes of this process's on each device

static std::vector<int> visible() {
  std::vector<int> list;
  int devices = (int)number("CUDA_ON_CPU_DEVICES", 1);
  const char *text = getenv("CUDA_VISIBLE_DEVICES");
  if (!text) {
    for (int i = 0; i < devices; i++) list.push_back(i);
    return list;
  }
  std::stringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    int device = item.empty() ? -1 : atoi(item.c_str());
    if (device < 0 || device >= devices) break;
    list.push_back(device);
  }
  return list;
}

static Context *context() { return current.empty() ? nullptr : current.back(); }
#define NEEDS_CONTEXT if (!context()) return INVALID_CONTEXT

extern "C" {
Result cuInit(unsigned) { return visible().empty() ? 100 : OK; }
Result cuDriverGetVersion(int *version) { return *version = 13000, OK; }
Result cuDeviceGetCount(int *count) { return *count = (int)visible().size(), OK; }
Result cuDeviceGet(int *device, int ordinal) {
  if (ordinal < 0 || ordinal >= (int)visible().size()) return INVALID_DEVICE;
  return *device = ordinal, OK;
}
Result cuDeviceGetName(char *name, int bytes, int device) { return snprintf(name, bytes, "CUDA on the CPU %d", visible()[device]), OK; }
Result cuDeviceGetUuid_v2(char *uuid, int device) { return memset(uuid, 0x40 + visible()[device], 16), OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int) {
  // Compute capability 9.0; shareable descriptors and virtual memory are there.
  return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1, OK;
}
Result cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = number("CUDA_ON_CPU_MEMORY", 1 << 30), OK; }
Result cuDevicePrimaryCtxRetain(Context **out, int device) {
  std::lock_guard<std::mutex> guard(lock_all);
  Context &found = contexts[device];
  found.device = device, found.retained++;
  return *out = &found, OK;
}
Result cuDevicePrimaryCtxRelease_v2(int device) {
  std::lock_guard<std::mutex> guard(lock_all);
  return contexts[device].retained-- > 0 ? OK : INVALID_CONTEXT;
}
Result cuCtxPushCurrent_v2(Context *context) { return current.push_back(context), OK; }
Result cuCtxPopCurrent_v2(Context **out) {
  if (current.empty()) return INVALID_CONTEXT;
  return *out = current.back(), current.pop_back(), OK;
}
Result cuCtxSynchronize();
static thread_local int capture_mode;
Result cuThreadExchangeStreamCaptureMode(int *mode) { return std::swap(*mode, capture_mode), OK; }
Result cuCtxGetCurrent(Context **out) { return *out = context(), OK; }
Result cuCtxSetCurrent(Context *context) {
  current.clear();
  if (context) current.push_back(context);
  return OK;
}
Result cuMemGetInfo_v2(size_t *free, size_t *total) {
  NEEDS_CONTEXT;
  std::lock_guard<std::mutex> guard(lock_all);
  *total = number("CUDA_ON_CPU_MEMORY", 1 << 30);
  return *free = *total - taken[context()->device], OK;
}
Result cuGetErrorName(Result error, const char **text) { return *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR", OK; }
Result cuGetErrorString(Result error, const char **text) { return *text = error == OUT_OF_MEMORY ? "out of memory" : "an error of the driver on the CPU", OK; }
}

static bool take(size_t bytes) {
  std::lock_guard<std::mutex> guard(lock_all);
  size_t &all = taken[context()->device];
  if (all + bytes > number("CUDA_ON_CPU_MEMORY", 1 << 30)) return false;
  return all += bytes, true;
}
static void give(int device, size_t bytes) {
  std::lock_guard<std::mutex> guard(lock_all);
  taken[device] -= bytes;
}

// --- streams and events

struct Queue {
  std::mutex lock;
  std::condition_variable changed;
  std::deque<std::function<void()>> work;
  bool busy = false, ended = false;
  std::thread thread;
  Queue() : thread([this] { run(); }) {}
  ~Queue() {
    { std::lock_guard<std::mutex> guard(lock); ended = true; }
    changed.notify_all();
    thread.join();
  }
  void run() {
    auto delay = std::chrono::microseconds(number("CUDA_ON_CPU_DELAY_US", 0));
    for (std::unique_lock<std::mutex> guard(lock);;) {
      changed.wait(guard, [this] { return ended || !work.empty(); });
      if (work.empty()) return;
      auto next = std::move(work.front());
      work.pop_front();
      busy = true;
      guard.unlock();
      if (delay.count()) std::this_thread::sleep_for(delay);
      next();
      guard.lock();
      busy = false;
      changed.notify_all();
    }
  }
  void add(std::function<void()> next) {
    { std::lock_guard<std::mutex> guard(lock); work.push_back(std::move(next)); }
    changed.notify_all();
  }
  void finish() {
    std::unique_lock<std::mutex> guard(lock);
    changed.wait(guard, [this] { return work.empty() && !busy; });
  }
};
// Legacy default stream.
static Queue &queue(Queue *stream) {
  static Queue *legacy = new Queue;
  return stream && (uintptr_t)stream > 2 ? *stream : *legacy;
}

struct Event {
  std::mutex lock;
  std::condition_variable changed;
  uint64_t recorded = 0, done = 0;
  void wait(uint64_t count) {
    std::unique_lock<std::mutex> guard(lock);
    changed.wait(guard, [&] { return done >= count; });
  }
};
typedef std::shared_ptr<Event> *EventHandle;

extern "C" {
static auto &streams = *new std::vector<Queue *>;
Result cuStreamCreate(Queue **out, unsigned) {
  NEEDS_CONTEXT;
  std::lock_guard<std::mutex> guard(lock_all);
  return streams.push_back(*out = new Queue), OK;
}
Result cuStreamDestroy_v2(Queue *stream) {
  { std::lock_guard<std::mutex> guard(lock_all); streams.erase(std::remove(streams.begin(), streams.end(), stream), streams.end()); }
  return delete stream, OK;
}
Result cuCtxSynchronize() {
  std::lock_guard<std::mutex> guard(lock_all);
  for (Queue *stream : streams) stream->finish();
  return queue(nullptr).finish(), OK;
}
// There are no graphs.
Result cuStreamIsCapturing(Queue *, int *status) { return *status = 0, OK; }
Result cuStreamSynchronize(Queue *stream) { return queue(stream).finish(), OK; }
Result cuEventCreate(EventHandle *out, unsigned) { NEEDS_CONTEXT; return *out = new std::shared_ptr<Event>(new Event), OK; }
Result cuEventDestroy_v2(EventHandle event) { return delete event, OK; }
Result cuEventRecord(EventHandle handle, Queue *stream) {
  auto event = *handle;
  uint64_t count;
  { std::lock_guard<std::mutex> guard(event->lock); count = ++event->recorded; }
  queue(stream).add([event, count] {
    { std::lock_guard<std::mutex> guard(event->lock); event->done = std::max(event->done, count); }
    event->changed.notify_all();
  });
  return OK;
}
Result cuEventQuery(EventHandle event) {
  std::lock_guard<std::mutex> guard((*event)->lock);
  return (*event)->done >= (*event)->recorded ? OK : NOT_READY;
}
Result cuEventSynchronize(EventHandle handle) {
  auto event = *handle;
  uint64_t count;
  { std::lock_guard<std::mutex> guard(event->lock); count = event->recorded; }
  return event->wait(count), OK;
}
Result cuStreamWaitEvent(Queue *stream, EventHandle handle, unsigned) {
  auto event = *handle;
  uint64_t count;
  { std::lock_guard<std::mutex> guard(event->lock); count = event->recorded; }
  return queue(stream).add([event, count] { event->wait(count); }), OK;
}
}

// --- memory

static auto &pinned = *new std::map<Address, size_t>;                // main memory that kernels may read
static auto &plain = *new std::map<Address, std::pair<int, size_t>>; // device memory by biased address

static bool find_pinned(Address address, Address *from, Address *to) {
  std::lock_guard<std::mutex> guard(lock_all);
  auto after = pinned.upper_bound(address);
  if (after == pinned.begin()) return false;
  // Ranges that touch are one to a kernel.
  auto first = std::prev(after);
  Address end = first->first + first->second;
  for (; after != pinned.end() && after->first == end; ++after) end = after->first + after->second;
  *from = first->first, *to = end;
  return address < end;
}
static void *real(Address address) { return (void *)(address >> 47 ? address - BIAS : address); }

extern "C" {
Result cuMemAlloc_v2(Address *out, size_t bytes) {
  NEEDS_CONTEXT;
  if (!bytes) return INVALID_VALUE;
  if (!take(bytes)) return OUT_OF_MEMORY;
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return OUT_OF_MEMORY;
  // Not zeros, as on a device.
  memset(memory, 0xCD, std::min<size_t>(bytes, 64 << 20));
  std::lock_guard<std::mutex> guard(lock_all);
  *out = (Address)memory + BIAS;
  return plain[*out] = {context()->device, bytes}, OK;
}
Result cuMemFree_v2(Address address) {
  std::unique_lock<std::mutex> guard(lock_all);
  auto found = plain.find(address);
  if (found == plain.end()) return INVALID_VALUE;
  auto [device, bytes] = found->second;
  plain.erase(found);
  guard.unlock();
  give(device, bytes);
  return munmap(real(address), bytes), OK;
}
Result cuMemHostAlloc(void **out, size_t bytes, unsigned) {
  NEEDS_CONTEXT;
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return OUT_OF_MEMORY;
  std::lock_guard<std::mutex> guard(lock_all);
  return pinned[(Address)memory] = bytes, *out = memory, OK;
}
Result cuMemFreeHost(void *memory) {
  std::lock_guard<std::mutex> guard(lock_all);
  auto found = pinned.find((Address)memory);
  if (found == pinned.end()) return INVALID_VALUE;
  munmap(memory, found->second);
  return pinned.erase(found), OK;
}
Result cuMemHostRegister_v2(void *memory, size_t bytes, unsigned) {
  NEEDS_CONTEXT;
  // Every page must be there, as pinning them would need.
  std::vector<unsigned char> pages((bytes + 4095) / 4096);
  if ((Address)memory % 4096 || mincore(memory, bytes, pages.data())) return INVALID_VALUE;
  std::lock_guard<std::mutex> guard(lock_all);
  auto after = pinned.lower_bound((Address)memory + bytes);
  if (after != pinned.begin() && std::prev(after)->first + std::prev(after)->second > (Address)memory) return ALREADY_REGISTERED;
  return pinned[(Address)memory] = bytes, OK;
}
Result cuMemHostUnregister(void *memory) {
  std::lock_guard<std::mutex> guard(lock_all);
  return pinned.erase((Address)memory) ? OK : NOT_REGISTERED;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Queue *stream) {
  NEEDS_CONTEXT;
  return queue(stream).add([=] { memcpy(real(to), from, bytes); }), OK;
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Queue *stream) {
  NEEDS_CONTEXT;
  return queue(stream).add([=] { memcpy(to, real(from), bytes); }), OK;
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Queue *stream) {
  NEEDS_CONTEXT;
  return queue(stream).add([=] { memcpy(real(to), real(from), bytes); }), OK;
}
Result cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) { return memcpy(to, real(from), bytes), OK; }

struct Copy2D {
  size_t from_x, from_y; int from_kind; const void *from_host; Address from_device; void *from_array; size_t from_pitch;
  size_t to_x, to_y; int to_kind; void *to_host; Address to_device; void *to_array; size_t to_pitch;
  size_t width, height;
};
Result cuMemcpy2DAsync_v2(const Copy2D *copy, Queue *stream) {
  NEEDS_CONTEXT;
  Copy2D c = *copy;
  return queue(stream).add([=] {
    const char *from = (const char *)(c.from_kind == 1 ? c.from_host : real(c.from_device));
    char *to = (char *)(c.to_kind == 1 ? c.to_host : real(c.to_device));
    for (size_t line = 0; line < c.height; line++) memcpy(to + line * c.to_pitch, from + line * c.from_pitch, c.width);
  }), OK;
}

// --- memory that processes share: a handle is a descriptor of a file in memory

struct Handle { int file, device; size_t bytes; bool own; std::atomic<int> users; };
static auto &mapped = *new std::map<Address, std::pair<Handle *, size_t>>;
static void release(Handle *handle) {
  if (--handle->users) return;
  if (handle->own) give(handle->device, handle->bytes);
  close(handle->file);
  delete handle;
}
struct Properties { int type, handle_types; struct { int type, id; } location; void *meta; unsigned char flags[8]; };
Result cuMemGetAllocationGranularity(size_t *bytes, const Properties *, int) { return *bytes = GRANULE, OK; }
Result cuMemCreate(Handle **out, size_t bytes, const Properties *properties, Address) {
  NEEDS_CONTEXT;
  if (bytes % GRANULE || properties->type != 1 || properties->handle_types != 1 || properties->location.type != 1) return INVALID_VALUE;
  if (!take(bytes)) return OUT_OF_MEMORY;
  int file = memfd_create("cuda-on-cpu", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, bytes)) return OUT_OF_MEMORY;
  return *out = new Handle{file, properties->location.id, bytes, true, {1}}, OK;
}
Result cuMemExportToShareableHandle(void *out, Handle *handle, int type, Address) {
  if (type != 1) return INVALID_VALUE;
  return *(int *)out = fcntl(handle->file, F_DUPFD_CLOEXEC, 0), OK;
}
Result cuMemImportFromShareableHandle(Handle **out, void *file, int type) {
  NEEDS_CONTEXT;
  struct stat info;
  int own = fcntl((int)(intptr_t)file, F_DUPFD_CLOEXEC, 0);
  if (type != 1 || own < 0 || fstat(own, &info)) return INVALID_VALUE;
  return *out = new Handle{own, context()->device, (size_t)info.st_size, false, {1}}, OK;
}
Result cuMemRelease(Handle *handle) { return release(handle), OK; }
Result cuMemAddressReserve(Address *out, size_t bytes, size_t, Address, Address) {
  NEEDS_CONTEXT;
  if (bytes % GRANULE) return INVALID_VALUE;
  void *memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return OUT_OF_MEMORY;
  return *out = (Address)memory + BIAS, OK;
}
Result cuMemAddressFree(Address address, size_t bytes) { return munmap(real(address), bytes), OK; }
Result cuMemMap(Address address, size_t bytes, size_t offset, Handle *handle, Address) {
  if (bytes + offset > handle->bytes) return INVALID_VALUE;
  if (mmap(real(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, handle->file, offset) == MAP_FAILED) return INVALID_VALUE;
  handle->users++;
  std::lock_guard<std::mutex> guard(lock_all);
  return mapped[address] = {handle, bytes}, OK;
}
struct Access { struct { int type, id; } location; int flags; };
Result cuMemSetAccess(Address address, size_t bytes, const Access *access, size_t count) {
  if (count != 1) return INVALID_VALUE;
  int how = access->flags == 3 ? PROT_READ | PROT_WRITE : access->flags == 1 ? PROT_READ : PROT_NONE;
  return mprotect(real(address), bytes, how) ? INVALID_VALUE : OK;
}
Result cuMemUnmap(Address address, size_t bytes) {
  std::unique_lock<std::mutex> guard(lock_all);
  auto found = mapped.find(address);
  if (found == mapped.end() || found->second.second != bytes) return INVALID_VALUE;
  Handle *handle = found->second.first;
  mapped.erase(found);
  guard.unlock();
  mmap(real(address), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  return release(handle), OK;
}

// --- modules and kernels: a module is a library; its image is the library's path

struct Function { void *library; void (*kernel)(const void *); size_t bytes; };
Result cuModuleLoadData(void **out, const char *image) {
  *out = dlopen(image, RTLD_NOW | RTLD_LOCAL);
  if (!*out) fprintf(stderr, "cuda on cpu: %s\n", dlerror());
  return *out ? OK : NOT_FOUND;
}
Result cuModuleUnload(void *) { return OK; }
Result cuModuleGetFunction(Function **out, void *module, const char *name) {
  auto kernel = (void (*)(const void *))dlsym(module, (std::string(name) + "_on_cpu").c_str());
  auto bytes = (const size_t *)dlsym(module, (std::string(name) + "_bytes").c_str());
  if (!kernel || !bytes) return NOT_FOUND;
  return *out = new Function{module, kernel, *bytes}, OK;
}
Result cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned block, unsigned block_y, unsigned block_z, unsigned, Queue *stream, void **parameters, void **) {
  NEEDS_CONTEXT;
  if (!x || !y || !z || y > 65535 || block > 1024 || block_y != 1 || block_z != 1) return INVALID_VALUE;
  std::vector<uint64_t> copy((function->bytes + 7) / 8);
  memcpy(copy.data(), parameters[0], function->bytes);
  typedef void Launch(void (*)(const void *), const void *, dim3, dim3, bool (*)(Address, Address *, Address *));
  auto launch = (Launch *)dlsym(function->library, "on_cpu_launch");
  Function f = *function;
  return queue(stream).add([=] { launch(f.kernel, copy.data(), {x, y, z}, {block, 1, 1}, find_pinned); }), OK;
}

// --- NVRTC

struct Program { std::string source, image, log; };
const char *nvrtcGetErrorString(Result) { return "NVRTC on the CPU"; }
Result nvrtcCreateProgram(Program **out, const char *source, const char *, int, const char *const *, const char *const *) {
  return *out = new Program{source, "", ""}, OK;
}
Result nvrtcDestroyProgram(Program **program) { return delete *program, OK; }
Result nvrtcCompileProgram(Program *program, int options, const char *const *option) {
  std::string source = program->source, defined;
  for (int i = 0; i < options; i++)
    if (!strncmp(option[i], "-D", 2)) defined += std::string(" ") + option[i];
  std::regex kernel("__global__ void (\\w+)\\((\\w+) \\w+\\)");
  for (std::sregex_iterator found(program->source.begin(), program->source.end(), kernel), end; found != end; ++found) {
    std::string name = (*found)[1], type = (*found)[2];
    source += "\nextern \"C\" void " + name + "_on_cpu(const void *p) { " + name + "(*(const " + type + " *)p); }";
    source += "\nextern \"C\" { extern const size_t " + name + "_bytes; const size_t " + name + "_bytes = sizeof(" + type + "); }\n";
  }
  // Beside this library, once for all processes.
  Dl_info own;
  dladdr((void *)cuInit, &own);
  std::string folder = std::string(own.dli_fname);
  folder = folder.substr(0, folder.rfind('/'));
  std::stringstream base;
  base << folder << "/kernels-" << std::hex << std::hash<std::string>{}(source + defined);
  program->image = base.str() + ".so";
  if (access(program->image.c_str(), R_OK) == 0) return OK;
  std::string partial = base.str() + "." + std::to_string(getpid());
  std::ofstream(partial + ".cpp") << source;
  std::string command = "c++ -std=c++17 -O2 -fPIC -shared -ffp-contract=off -fno-strict-aliasing -w" + defined + " -I'" HERE "' -o '" + partial + ".so' '" + partial + ".cpp' >'" + partial + ".log' 2>&1";
  bool compiled = system(command.c_str()) == 0 && rename((partial + ".so").c_str(), program->image.c_str()) == 0;
  std::stringstream log;
  log << std::ifstream(partial + ".log").rdbuf();
  program->log = log.str();
  for (const char *kind : {".cpp", ".log"}) unlink((partial + kind).c_str());
  return compiled ? OK : 6;
}
Result nvrtcGetPTXSize(Program *program, size_t *bytes) { return *bytes = program->image.size() + 1, OK; }
Result nvrtcGetPTX(Program *program, char *image) { return strcpy(image, program->image.c_str()), OK; }
Result nvrtcGetCUBINSize(Program *program, size_t *bytes) { return nvrtcGetPTXSize(program, bytes); }
Result nvrtcGetCUBIN(Program *program, char *image) { return nvrtcGetPTX(program, image); }
Result nvrtcGetProgramLogSize(Program *program, size_t *bytes) { return *bytes = program->log.size() + 1, OK; }
Result nvrtcGetProgramLog(Program *program, char *log) { return strcpy(log, program->log.c_str()), OK; }
}
