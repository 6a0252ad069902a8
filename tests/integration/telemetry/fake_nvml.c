/* An NVML library for tests: answers from a text file that it reads again in every call.
 *
 * $FAKE_NVML_CONTROL names the file. A line is "key value": "count 2", "driver 550.54.15", "0.power 70123". Keys that
 * begin with a number are about that GPU. A value "!15" makes the call return NVML error 15. A GPU's key that is missing
 * makes it return NOT_SUPPORTED. "0.lost 15" makes every call about GPU 0 return 15. "init !9" makes nvmlInit fail;
 * "broken 1" makes every other call fail with 1, "hang 1" makes it wait until the line is gone. "0.process.compute"
 * lists "pid:bytes" with spaces between.
 * FAKE_VERSION is the library's own version; when "kernel" is another, nvmlInit answers LIB_RM_VERSION_MISMATCH.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef FAKE_VERSION
#define FAKE_VERSION "1"
#endif

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, MISMATCH = 18, UNKNOWN = 999 };

/* A MIG instance is a device whose keys begin with "<gpu>.<place>", such as "0.mig0.uuid". */
typedef struct { int index, place; } Device;
static Device devices[16];
static Device instances[16][8];
static int initialized = 0;

/* The value of a key into `out`; returns 0, or -1 when the file or the key is missing. */
static int lookup(const char *key, char *out, size_t size) {
    const char *path = getenv("FAKE_NVML_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[1024];
    size_t length = strlen(key);
    int found = -1;
    if (!file) return -1;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && line[length] == ' ') {
            snprintf(out, size, "%s", line + length + 1);
            found = 0;
        }
    }
    fclose(file);
    return found;
}

static int error_in(const char *value) { return value[0] == '!' ? atoi(value + 1) : OK; }

static int alive(void) {
    char value[64];
    while (!lookup("hang", value, sizeof value)) usleep(10000);
    if (!initialized) return UNINITIALIZED;
    return lookup("broken", value, sizeof value) ? OK : atoi(value);
}

static int text_of(Device *device, const char *name, char *out, size_t size) {
    char key[64];
    int status = alive();
    if (status) return status;
    snprintf(key, sizeof key, "%d.lost", device->index);
    if (!lookup(key, out, size) && atoi(out)) return atoi(out);
    if (device->place < 0) snprintf(key, sizeof key, "%d.%s", device->index, name);
    else snprintf(key, sizeof key, "%d.mig%d.%s", device->index, device->place, name);
    if (lookup(key, out, size)) return NOT_SUPPORTED;
    return error_in(out);
}

static int number_of(Device *device, const char *name, unsigned long long *out) {
    char value[512];
    int status = text_of(device, name, value, sizeof value);
    if (!status) *out = strtoull(value, NULL, 0);
    return status;
}

static int uint_of(Device *device, const char *name, unsigned *out) {
    unsigned long long value = 0;
    int status = number_of(device, name, &value);
    if (!status) *out = (unsigned)value;
    return status;
}

#define UINT(function, name) \
    int function(Device *device, unsigned *out) { return uint_of(device, name, out); }
#define TEXT(function, name) \
    int function(Device *device, char *out, unsigned size) { return text_of(device, name, out, size); }

int nvmlInitWithFlags(unsigned flags) {
    char value[64];
    (void)flags;
    if (!lookup("kernel", value, sizeof value) && strcmp(value, FAKE_VERSION)) return MISMATCH;
    if (!lookup("init", value, sizeof value) && error_in(value)) return error_in(value);
    for (int i = 0; i < 16; i++) {
        devices[i] = (Device){i, -1};
        for (int j = 0; j < 8; j++) instances[i][j] = (Device){i, j};
    }
    initialized = 1;
    return OK;
}

int nvmlShutdown(void) {
    int status = alive();
    initialized = 0;
    return status;
}

const char *nvmlErrorString(int code) { static char text[32]; snprintf(text, sizeof text, "fake error %d", code); return text; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) { return lookup("driver", out, size) ? NOT_SUPPORTED : OK; }

int nvmlSystemGetCudaDriverVersion(int *out) {
    char value[64];
    if (lookup("cuda", value, sizeof value)) return NOT_SUPPORTED;
    *out = atoi(value);
    return OK;
}

int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
    char key[64];
    snprintf(key, sizeof key, "process.%u", pid);
    return lookup(key, out, size) ? NOT_FOUND : OK;
}

int nvmlDeviceGetCount_v2(unsigned *out) {
    char value[64];
    int status = alive();
    if (status) return status;
    *out = lookup("count", value, sizeof value) ? 0 : (unsigned)atoi(value);
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
    char value[64];
    int status;
    if (index >= 16) return INVALID;
    *out = &devices[index];
    status = text_of(*out, "handle", value, sizeof value);
    return status == NOT_SUPPORTED ? OK : status;
}

TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;

int nvmlDeviceGetPciInfo_v3(Device *device, Pci *out) {
    memset(out, 0, sizeof *out);
    return text_of(device, "pci", out->bus_id, sizeof out->bus_id);
}

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    char value[64];
    int status = text_of(device, "capability", value, sizeof value);
    if (!status) sscanf(value, "%d.%d", major, minor);
    return status;
}

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;

int nvmlDeviceGetMemoryInfo(Device *device, Memory *out) {
    unsigned long long reserved = 0;
    int status = number_of(device, "memory.total", &out->total);
    if (status) return status;
    if ((status = number_of(device, "memory.used", &out->used))) return status;
    number_of(device, "memory.reserved", &reserved);
    out->used += reserved;
    out->free = out->total - out->used;
    return OK;
}

#ifndef FAKE_OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(Device *device, Memory2 *out) {
    int status = number_of(device, "memory.total", &out->total);
    if (status) return status;
    if ((status = number_of(device, "memory.used", &out->used))) return status;
    if (number_of(device, "memory.reserved", &out->reserved)) out->reserved = 0;
    out->free = out->total - out->used - out->reserved;
    return OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *out) {
    return number_of(device, "reasons", out);
}
#endif

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *out) {
    return number_of(device, "reasons", out);
}

typedef struct { unsigned gpu, memory; } Rates;

int nvmlDeviceGetUtilizationRates(Device *device, Rates *out) {
    int status = uint_of(device, "utilization.gpu", &out->gpu);
    return status ? status : uint_of(device, "utilization.memory", &out->memory);
}

int nvmlDeviceGetEncoderUtilization(Device *device, unsigned *out, unsigned *period) {
    *period = 100000;
    return uint_of(device, "utilization.encoder", out);
}

int nvmlDeviceGetDecoderUtilization(Device *device, unsigned *out, unsigned *period) {
    *period = 100000;
    return uint_of(device, "utilization.decoder", out);
}

UINT(nvmlDeviceGetPerformanceState, "pstate")
UINT(nvmlDeviceGetPowerUsage, "power")
UINT(nvmlDeviceGetPowerManagementLimit, "power.limit")
UINT(nvmlDeviceGetEnforcedPowerLimit, "power.enforced")
UINT(nvmlDeviceGetPowerManagementDefaultLimit, "power.default")
UINT(nvmlDeviceGetCurrPcieLinkGeneration, "pcie.gen")
UINT(nvmlDeviceGetMaxPcieLinkGeneration, "pcie.gen.max")
UINT(nvmlDeviceGetCurrPcieLinkWidth, "pcie.width")
UINT(nvmlDeviceGetMaxPcieLinkWidth, "pcie.width.max")
UINT(nvmlDeviceGetPcieReplayCounter, "pcie.replays")
UINT(nvmlDeviceGetFanSpeed, "fan")
UINT(nvmlDeviceGetPersistenceMode, "persistence")
UINT(nvmlDeviceGetComputeMode, "compute_mode")

int nvmlDeviceGetPowerManagementLimitConstraints(Device *device, unsigned *low, unsigned *high) {
    int status = uint_of(device, "power.min", low);
    return status ? status : uint_of(device, "power.max", high);
}

int nvmlDeviceGetTemperature(Device *device, unsigned sensor, unsigned *out) {
    (void)sensor;
    return uint_of(device, "temperature", out);
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *out) {
    return number_of(device, "energy", out);
}

static int clock_of(Device *device, const char *what, unsigned kind, unsigned *out) {
    static const char *kinds[] = {"graphics", "sm", "memory", "video"};
    char name[64];
    snprintf(name, sizeof name, "%s.%s", what, kinds[kind & 3]);
    return uint_of(device, name, out);
}

int nvmlDeviceGetClockInfo(Device *device, unsigned kind, unsigned *out) { return clock_of(device, "clock", kind, out); }
int nvmlDeviceGetMaxClockInfo(Device *device, unsigned kind, unsigned *out) {
    return clock_of(device, "clock.max", kind, out);
}

int nvmlDeviceGetTotalEccErrors(Device *device, unsigned kind, unsigned span, unsigned long long *out) {
    char name[64];
    snprintf(name, sizeof name, "ecc.%s.%s", kind ? "uncorrected" : "corrected", span ? "aggregate" : "volatile");
    return number_of(device, name, out);
}

int nvmlDeviceGetEccMode(Device *device, unsigned *current, unsigned *pending) {
    int status = uint_of(device, "ecc", current);
    *pending = *current;
    return status;
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    int status = uint_of(device, "mig", current);
    *pending = *current;
    return status;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *out) {
    int status = uint_of(device, "mig", out);
    *out = 8;
    return status;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned place, Device **out) {
    char value[64];
    if (place >= 8) return INVALID;
    *out = &instances[device->index][place];
    return text_of(*out, "uuid", value, sizeof value) ? NOT_FOUND : OK;
}

int nvmlDeviceGetGpuInstanceId(Device *device, unsigned *out) { return uint_of(device, "gi", out); }
int nvmlDeviceGetComputeInstanceId(Device *device, unsigned *out) { return uint_of(device, "ci", out); }

int nvmlDeviceGetPcieThroughput(Device *device, unsigned counter, unsigned *out) {
    usleep(20000);
    return uint_of(device, counter ? "pcie.rx" : "pcie.tx", out);
}

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency;
    int type, status;
    union { double d; unsigned ui; unsigned long long ull; } value;
} FieldValue;

int nvmlDeviceGetFieldValues(Device *device, int count, FieldValue *values) {
    char value[64];
    int status = text_of(device, "handle", value, sizeof value);
    if (status && status != NOT_SUPPORTED) return status;
    for (int i = 0; i < count; i++) {
        const char *name = values[i].field == 82 ? "temperature.memory"
                           : values[i].field == 185 ? "power.average"
                           : values[i].field == 186 ? "power.instant" : "none";
        values[i].type = 1;
        values[i].status = uint_of(device, name, &values[i].value.ui);
    }
    return OK;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;

static int processes_of(Device *device, const char *name, unsigned *count, Process *out) {
    char value[512], *rest = value, *word;
    unsigned found = 0, room = *count;
    int status = text_of(device, name, value, sizeof value);
    if (status == NOT_SUPPORTED) { *count = 0; return OK; }
    if (status) return status;
    while ((word = strsep(&rest, " "))) {
        char *colon = strchr(word, ':');
        if (!colon) continue;
        if (out && found < room) {
            memset(&out[found], 0xff, sizeof *out);
            out[found].pid = (unsigned)atoi(word);
            out[found].memory = strtoull(colon + 1, NULL, 0);
        }
        found++;
    }
    *count = found;
    return found > room ? SMALL : OK;
}

#ifdef FAKE_OLD_DRIVER
#define COMPUTE nvmlDeviceGetComputeRunningProcesses_v2
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses_v2
#else
#define COMPUTE nvmlDeviceGetComputeRunningProcesses_v3
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses_v3
#endif

int COMPUTE(Device *device, unsigned *count, Process *out) {
    return processes_of(device, "process.compute", count, out);
}
int GRAPHICS(Device *device, unsigned *count, Process *out) {
    return processes_of(device, "process.graphics", count, out);
}
