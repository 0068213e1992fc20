// A CUDA driver over the CPU's memory, whose only module contains the kernels of additive_attention.cu: the functions that
// tests/support/cuda_kernels.py calls, with its arguments. Blocks run one after the other (block_on_cpu.h). Memory is counted and its
// edges are watched: a write beyond an allocation is CUDA_ERROR_ILLEGAL_ADDRESS at the next free.

#include <cstdio>
#include <cstring>
#include <map>
#include <vector>

#include "additive_attention.cu"

using Pointer = unsigned long long;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NO_FUNCTION = 500, ILLEGAL_ADDRESS = 700, INVALID_CONTEXT = 201 };
static const size_t EDGE = 8192;
static std::map<Pointer, std::vector<unsigned char>> memory;
static int contexts = 0, modules = 0, events = 0;
static bool current = false, backwards = false;
static long races = 0;

extern "C" {

int cuInit(unsigned flags) { return flags == 0 ? OK : INVALID_VALUE; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? OK : INVALID_VALUE; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
    return *value < 0 ? INVALID_VALUE : OK;
}
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "a fake GPU"), OK; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &contexts, ++contexts, OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return --contexts, OK; }
int cuCtxSetCurrent(void* context) { return current = context != nullptr, OK; }
int cuCtxSynchronize() { return current ? OK : INVALID_CONTEXT; }
int cuModuleLoadData(void** module, const void* image) {
    if (!current) return INVALID_CONTEXT;
    if (!std::strstr(static_cast<const char*>(image), ".version")) return INVALID_IMAGE;
    return *module = &modules, ++modules, OK;
}
int cuModuleUnload(void*) { return --modules, OK; }
int cuModuleGetFunction(void** function, void*, const char* name) {
    *function = !std::strcmp(name, "additive_attention_fp32")   ? reinterpret_cast<void*>(additive_attention_fp32)
                : !std::strcmp(name, "additive_attention_fp16") ? reinterpret_cast<void*>(additive_attention_fp16)
                                                                : nullptr;
    return *function ? OK : NO_FUNCTION;
}
int cuMemAlloc_v2(Pointer* pointer, size_t bytes) {
    if (!current) return INVALID_CONTEXT;
    if (bytes == 0 || bytes > (size_t(1) << 30)) return bytes ? OUT_OF_MEMORY : INVALID_VALUE;
    std::vector<unsigned char> room(bytes + 2 * EDGE, 0xff);  // NaN in fp32 and fp16
    *pointer = reinterpret_cast<Pointer>(room.data()) + EDGE;
    memory[*pointer] = std::move(room);
    return OK;
}
int cuMemFree_v2(Pointer at) {
    if (!memory.count(at)) return INVALID_VALUE;
    const std::vector<unsigned char> room = std::move(memory[at]);
    memory.erase(at);
    for (size_t i = 0; i < EDGE; ++i)
        if (room[i] != 0xff || room[room.size() - 1 - i] != 0xff) return ILLEGAL_ADDRESS;
    return OK;
}
int cuMemcpyHtoD_v2(Pointer to, const void* from, size_t bytes) {
    if (!memory.count(to) || bytes > memory[to].size() - 2 * EDGE) return INVALID_VALUE;
    return std::memcpy(reinterpret_cast<void*>(to), from, bytes), OK;
}
int cuMemcpyDtoH_v2(void* to, Pointer from, size_t bytes) {
    if (!memory.count(from) || bytes > memory[from].size() - 2 * EDGE) return INVALID_VALUE;
    return std::memcpy(to, reinterpret_cast<void*>(from), bytes), OK;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned ty, unsigned tz,
                   unsigned shared, void*, void** arguments, void** extra) {
    if (!current) return INVALID_CONTEXT;
    if (x < 1 || y != 1 || z != 1 || threads < WARP || threads > MAX_THREADS || threads % WARP || ty != 1 || tz != 1 || shared || extra)
        return INVALID_VALUE;
    void* pointer[5];
    int size[4];
    void* output[2];
    for (int i = 0; i < 5; ++i) pointer[i] = *static_cast<void**>(arguments[i]);
    for (int i = 0; i < 4; ++i) size[i] = *static_cast<int*>(arguments[5 + i]);
    for (int i = 0; i < 2; ++i) output[i] = *static_cast<void**>(arguments[9 + i]);
    using Kernel = void (*)(void*, void*, void*, void*, void*, int, int, int, int, void*, void*);
    const auto kernel = reinterpret_cast<Kernel>(function);
    races += run_grid(int(x), int(threads), backwards, [&] {
        kernel(pointer[0], pointer[1], pointer[2], pointer[3], pointer[4], size[0], size[1], size[2], size[3], output[0],
               output[1]);
    });
    return OK;
}
int cuEventCreate(void** event, unsigned) { return *event = &events, ++events, OK; }
int cuEventDestroy_v2(void*) { return --events, OK; }
int cuEventRecord(void*, void*) { return current ? OK : INVALID_CONTEXT; }
int cuEventSynchronize(void*) { return OK; }
int cuEventElapsedTime(float* milliseconds, void*, void*) { return *milliseconds = 1.0f, OK; }
int cuGetErrorString(int code, const char** text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == INVALID_IMAGE ? "device kernel image is invalid" : "a fault";
    return OK;
}

// For the tests.
void fake_backwards(int yes) { backwards = yes != 0; }
long fake_races() { return races; }
int fake_leaks() { return int(memory.size()) + contexts + modules + events; }
}
