/* A libcudart in host memory, for the ctypes calls of runtimes/trt/cudart.py. fake_fail(NAME, CODE) lets the function
   NAME return CODE from then on. fake_live() returns the number of allocations and handles that were not freed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_MEMORY = 2, BAD_HANDLE = 400, NO_CAPTURE = 900, UNKNOWN = 999 };
enum { TOTAL = 1 << 20 };

static char failing[64];
static int failure, live, in_capture, last;
static size_t used;
static int handles[4096], next_handle;

void fake_fail(const char *name, int code) { snprintf(failing, sizeof failing, "%s", name); failure = code; }
int fake_live(void) { return live; }
int fake_last(void) { return last; }

#define ENTER if (failure && !strcmp(failing, __func__)) return last = failure

static void *create(int kind) { handles[++next_handle] = kind; live++; return (void *)(size_t)next_handle; }
static int is(void *handle, int kind) { return (size_t)handle < 4096 && handles[(size_t)handle] == kind; }
static int drop(void *handle, int kind) {
    if (!is(handle, kind)) return last = BAD_HANDLE;
    handles[(size_t)handle] = 0; live--;
    return 0;
}

const char *cudaGetErrorName(int code) {
    return code == 2 ? "cudaErrorMemoryAllocation" : code == 400 ? "cudaErrorInvalidResourceHandle"
         : code == 700 ? "cudaErrorIllegalAddress" : "cudaErrorUnknown";
}
const char *cudaGetErrorString(int code) {
    return code == 2 ? "out of memory" : code == 400 ? "invalid resource handle"
         : code == 700 ? "an illegal memory access was encountered" : "unknown error";
}
int cudaGetLastError(void) { int code = last; last = 0; return code; }

int cudaGetDeviceCount(int *count) { ENTER; *count = 1; return 0; }
int cudaGetDeviceProperties(void *properties, int device) {
    ENTER;
    memset(properties, 0x7f, 1024);  /* members after the name are not read */
    strcpy(properties, "Orin");
    return 0;
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER;
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 16 ? 8 : attribute == 18 ? 1 : -1;
    return 0;
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { ENTER; *total = TOTAL; *free_bytes = TOTAL - used; return 0; }
int cudaMalloc(void **pointer, size_t size) {
    ENTER;
    if (used + size > TOTAL) return last = OUT_OF_MEMORY;
    size_t *block = malloc(size + 256);
    *block = size; used += size; live++;
    *pointer = (char *)block + 256;
    return 0;
}
int cudaFree(void *pointer) {
    ENTER;
    size_t *block = (size_t *)((char *)pointer - 256);
    used -= *block; live--;
    free(block);
    return 0;
}
int cudaMallocHost(void **pointer, size_t size) { ENTER; *pointer = malloc(size); live++; return 0; }
int cudaFreeHost(void *pointer) { ENTER; free(pointer); live--; return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    ENTER;
    if (!is(stream, 1)) return last = BAD_HANDLE;
    if (!in_capture) memcpy(to, from, size);
    return 0;
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { ENTER; *stream = create(1); return flags == 1 ? 0 : UNKNOWN; }
int cudaStreamSynchronize(void *stream) { ENTER; return is(stream, 1) ? in_capture ? (last = NO_CAPTURE) : 0 : BAD_HANDLE; }
int cudaStreamDestroy(void *stream) { ENTER; return drop(stream, 1); }
int cudaStreamBeginCapture(void *stream, int mode) { ENTER; in_capture = 1; return mode == 1 ? 0 : UNKNOWN; }
int cudaStreamEndCapture(void *stream, void **graph) {
    in_capture = 0;
    ENTER;
    *graph = create(2);
    return 0;
}
int cudaGraphInstantiateWithFlags(void **ready, void *graph, unsigned long long flags) {
    ENTER;
    if (!is(graph, 2)) return last = BAD_HANDLE;
    *ready = create(3);
    return 0;
}
int cudaGraphLaunch(void *ready, void *stream) { ENTER; return is(ready, 3) && is(stream, 1) ? 0 : (last = BAD_HANDLE); }
int cudaGraphDestroy(void *graph) { ENTER; return drop(graph, 2); }
int cudaGraphExecDestroy(void *ready) { ENTER; return drop(ready, 3); }
