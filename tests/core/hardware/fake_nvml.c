/* A libnvidia-ml.so.1 with two cards, or eight, so that the real Python bindings can be tested without one.
 *
 * FAKE_NVML: "" (all is well), "mismatch" (error 18), "unloaded" (9), "none" (no cards), "lost" (the second card has fallen
 * off the bus), "hang" (a reading never returns), "old" (no event reasons, no v2 memory, no temperature structure, no
 * UUIDs), "eight" (eight cards, of which the third is the fastest and the sixth is divided into two MIG instances),
 * "12.4" (a driver for CUDA 12.4 at most).
 * Card 0 is like Ada: its slowdown is a distance. Card 1 reports little, like a virtual one.
 *
 * FAKE_NVML_FILE: a file of lines "key=value" that a test rewrites while the library is in use; each is read when it is
 * asked for, so a process sees a card get hot, fall off the bus and come back:
 *   temperature, margin, memory_temperature, power (mW), energy (mJ), used (bytes): values of card 0
 *   lost=1      card 0 has fallen off the bus
 *   hang=1      a reading of memory waits until the line is gone
 *   driver=CODE every call fails with that error, opening the library too; the cards are others to it afterwards
 *   xid=N:CODE  an event of card 0, delivered once for each new N
 *   process=PID:BYTES
 *   denied=1    nobody may set the power limit
 */
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <unistd.h>

enum { OK = 0, UNSUPPORTED = 3, SMALL = 7, NOT_LOADED = 9, ARGUMENT = 2, FUNCTION = 13, LOST = 15, MISMATCH = 18 };

typedef struct { int index; } card;
static card cards[8] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
/* Of the sixth card. */
static card instances[2] = {{5}, {5}};
static unsigned long long energy = 1000000;

static int mode(const char *name)
{
    const char *value = getenv("FAKE_NVML");
    return value && !strcmp(value, name);
}

static const char *said(const char *key);
static int gone(card *device)
{
    return (mode("lost") && device->index == 1) || (device->index == 0 && said("lost"));
}

static unsigned number(void) { return mode("none") ? 0 : mode("eight") ? 8 : 2; }

/* The value of a key of the scenario's file; NULL where there is none. */
static const char *said(const char *key)
{
    static char line[256];
    const char *path = getenv("FAKE_NVML_FILE");
    size_t length = strlen(key);
    FILE *file = path ? fopen(path, "r") : NULL;
    const char *found = NULL;
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, key, length) && line[length] == '=') found = line + length + 1;
    }
    if (file) fclose(file);
    return found;
}
static long long value_of(const char *key, long long otherwise)
{
    const char *text = said(key);
    return text ? atoll(text) : otherwise;
}
/* The error of all calls while the driver is away, and whether this handle is of an earlier driver. */
static int opened;
static int away(void) { int code = (int)value_of("driver", 0); if (code) opened = 0; return code ? code : opened ? 0 : 1; }

#define NEED(device) do { int code = away(); if (code) return code; if (gone(device)) return LOST; } while (0)
#define ONLY_FIRST(device) do { NEED(device); if (device->index) return UNSUPPORTED; } while (0)

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    int code = (int)value_of("driver", 0);
    opened = code ? 0 : opened + 1; /* counted, as the driver library does */
    return mode("mismatch") ? MISMATCH : mode("unloaded") ? NOT_LOADED : code;
}
int nvmlShutdown(void) { if (opened) opened--; return OK; }
const char *nvmlErrorString(int code) { (void)code; return "a fake error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, mode("12.4") ? "550.54.14" : "580.95.05"); return OK; }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = mode("12.4") ? 12040 : 13000; return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number(); return away(); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, card **device)
{
    if (away()) return away();
    if (index >= number()) return ARGUMENT;
    if (gone(&cards[index])) return LOST;
    *device = &cards[index];
    return OK;
}
static int is_instance(card *device) { return device >= instances && device < instances + 2; }
static void uuid_of(card *device, char *text, unsigned length)
{
    const char *rest = "1111-2222-3333-444455556666";
    if (is_instance(device)) snprintf(text, length, "MIG-%08x-%s", (unsigned)(0xa0 + (device - instances)), rest);
    else snprintf(text, length, "GPU-%08x-%s", 0x10 + device->index, rest);
}
int nvmlDeviceGetUUID(card *device, char *text, unsigned length)
{
    NEED(device);
    if (mode("old")) return UNSUPPORTED;
    uuid_of(device, text, length);
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, card **device)
{
    char text[96];
    for (int i = 0; i < 10; i++) {
        card *tried = i < 8 ? &cards[i] : &instances[i - 8];
        uuid_of(tried, text, sizeof text);
        if (!strcmp(text, uuid)) { *device = tried; return OK; }
    }
    return ARGUMENT;
}
int nvmlDeviceGetNumGpuCores(card *device, unsigned *value) { NEED(device); *value = device->index == 2 ? 16384 : 10496; return OK; }
int nvmlDeviceGetMaxClockInfo(card *device, unsigned kind, unsigned *value) { (void)kind; NEED(device); *value = 2000; return OK; }
int nvmlDeviceGetMigMode(card *device, unsigned *current, unsigned *pending)
{
    NEED(device);
    if (!mode("eight")) return UNSUPPORTED;
    *current = *pending = device->index == 5;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(card *device, unsigned *count) { NEED(device); *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(card *device, unsigned index, card **instance)
{
    NEED(device);
    /* The first place is empty. */
    if (index < 1 || index > 2) return 6; /* not found */
    *instance = &instances[index - 1];
    return OK;
}
int nvmlDeviceGetName(card *device, char *text, unsigned length)
{
    NEED(device);
    if (mode("eight")) snprintf(text, length, "NVIDIA card %d", device->index);
    else snprintf(text, length, device->index ? "GRID \033[31mV100" : "NVIDIA GeForce RTX 4090");
    return OK;
}
typedef struct { unsigned long long total, free, used; } memory1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory2;
int nvmlDeviceGetMemoryInfo(card *device, memory1 *memory)
{
    NEED(device);
    if (mode("hang")) for (;;) pause();
    while (said("hang")) usleep(2000);
    memory->total = 24000000000ULL; memory->used = 6000000000ULL; memory->free = 18000000000ULL;
    return OK;
}
int nvmlDeviceGetMemoryInfo_v2(card *device, memory2 *memory)
{
    NEED(device);
    if (mode("old")) return FUNCTION;
    if (memory->version != 0x02000028) return ARGUMENT;
    if (is_instance(device)) {
        memory->total = 5000000000ULL; memory->reserved = 100000000ULL; memory->used = 400000000ULL;
        memory->free = 4500000000ULL;
        return OK;
    }
    memory->total = 24000000000ULL; memory->reserved = 500000000ULL;
    memory->used = device->index ? 5500000000ULL : (unsigned long long)value_of("used", 5500000000LL); memory->free = 18000000000ULL;
    return OK;
}
typedef struct { unsigned version, sensor; int temperature; } temperature1;
int nvmlDeviceGetTemperatureV(card *device, temperature1 *value)
{
    NEED(device);
    if (mode("old")) return FUNCTION;
    value->temperature = device->index ? 41 : (int)value_of("temperature", 71);
    return OK;
}
int nvmlDeviceGetTemperature(card *device, unsigned sensor, unsigned *value)
{
    (void)sensor;
    NEED(device);
    *value = device->index ? 40 : 70;
    return OK;
}
int nvmlDeviceGetTemperatureThreshold(card *device, unsigned kind, unsigned *value)
{
    NEED(device);
    static const unsigned degrees[] = {98, 95, 110, 93}; /* shutdown, slowdown, memory, processor */
    /* The placeholder that a card reports which has distances; card 1 has real degrees. */
    *value = device->index && kind < 4 ? degrees[kind] : 0;
    return OK;
}
typedef struct { unsigned version; int margin; } margin1;
int nvmlDeviceGetMarginTemperature(card *device, margin1 *value) { ONLY_FIRST(device); value->margin = (int)value_of("margin", 16); return OK; }
typedef struct {
    unsigned field, scope; long long timestamp, latency; unsigned type; int status;
    union { double d; int si; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; unsigned short us; } value;
} field;
int nvmlDeviceGetFieldValues(card *device, int count, field *values)
{
    NEED(device);
    for (int i = 0; i < count; i++) {
        unsigned asked = values[i].field;
        values[i].status = device->index || (asked != 193 && asked != 194 && asked != 82) ? UNSUPPORTED : OK;
        values[i].type = asked == 82 ? 1 : 5; /* unsigned and signed int */
        values[i].value.si = asked == 193 ? -7 : -2; /* shutdown, slowdown */
        if (asked == 82) values[i].value.ui = (unsigned)value_of("memory_temperature", 84);
    }
    return OK;
}
typedef struct { unsigned gpu, memory; } utilization;
int nvmlDeviceGetUtilizationRates(card *device, utilization *value) { ONLY_FIRST(device); value->gpu = 98; return OK; }
int nvmlDeviceGetPowerUsage(card *device, unsigned *value) { ONLY_FIRST(device); *value = (unsigned)value_of("power", 312400); return OK; }
static unsigned power_limit = 450000;
int nvmlDeviceGetEnforcedPowerLimit(card *device, unsigned *value) { ONLY_FIRST(device); *value = power_limit; return OK; }
int nvmlDeviceGetPowerManagementLimit(card *device, unsigned *value) { ONLY_FIRST(device); *value = power_limit; return OK; }
int nvmlDeviceGetPowerManagementLimitConstraints(card *device, unsigned *low, unsigned *high)
{
    ONLY_FIRST(device);
    *low = 150000; *high = 480000;
    return OK;
}
int nvmlDeviceSetPowerManagementLimit(card *device, unsigned value)
{
    ONLY_FIRST(device);
    if (said("denied")) return 4; /* no permission */
    power_limit = value;
    return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(card *device, unsigned long long *value)
{
    ONLY_FIRST(device);
    if (said("energy")) { *value = (unsigned long long)value_of("energy", 0); return OK; }
    *value = energy;
    energy += 3600000; /* one Wh a reading */
    return OK;
}
int nvmlDeviceGetNumFans(card *device, unsigned *count)
{
    ONLY_FIRST(device);
    if (mode("old")) return FUNCTION;
    *count = 2;
    return OK;
}
int nvmlDeviceGetFanSpeed_v2(card *device, unsigned fan, unsigned *value) { ONLY_FIRST(device); *value = 54 - fan; return OK; }
int nvmlDeviceGetCurrPcieLinkGeneration(card *device, unsigned *value) { ONLY_FIRST(device); *value = 1; return OK; }
int nvmlDeviceGetCurrPcieLinkWidth(card *device, unsigned *value) { ONLY_FIRST(device); *value = 8; return OK; }
int nvmlDeviceGetMaxPcieLinkGeneration(card *device, unsigned *value) { ONLY_FIRST(device); *value = 4; return OK; }
int nvmlDeviceGetMaxPcieLinkWidth(card *device, unsigned *value) { ONLY_FIRST(device); *value = 16; return OK; }
int nvmlDeviceGetPcieThroughput(card *device, unsigned counter, unsigned *value)
{
    ONLY_FIRST(device);
    *value = counter ? 2500000 : 100; /* kB/s, received and sent */
    return OK;
}
int nvmlDeviceGetIndex(card *device, unsigned *index) { *index = (unsigned)device->index; return OK; }
int nvmlEventSetCreate(void **set) { *set = &cards; return mode("old") ? FUNCTION : away(); }
int nvmlDeviceRegisterEvents(card *device, unsigned long long kinds, void *set)
{
    (void)set;
    NEED(device);
    return kinds == 8 ? OK : ARGUMENT; /* critical Xid errors */
}
typedef struct { card *device; unsigned long long kind, data; unsigned instance, compute; } event;
int nvmlEventSetWait_v2(void *set, event *found, unsigned milliseconds)
{
    static int delivered;
    (void)set; (void)milliseconds;
    const char *text = said("xid");
    int number = text ? atoi(text) : 0;
    if (!text || number == delivered || !strchr(text, ':')) return 10; /* timeout */
    delivered = number;
    found->device = &cards[0]; found->kind = 8; found->data = strtoull(strchr(text, ':') + 1, NULL, 10);
    return OK;
}
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceGetFanSpeed(card *device, unsigned *value) { ONLY_FIRST(device); *value = 54; return OK; }
int nvmlDeviceGetClockInfo(card *device, unsigned kind, unsigned *value)
{
    ONLY_FIRST(device);
    *value = kind == 1 ? 2520 : kind == 2 ? 10501 : 0;
    return OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(card *device, unsigned long long *value)
{
    NEED(device);
    if (mode("old")) return FUNCTION;
    *value = device->index ? 0x1 : 0x4 | 0x20 | 0x1;
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(card *device, unsigned long long *value)
{
    NEED(device);
    *value = 0x40;
    return OK;
}
int nvmlDeviceGetCudaComputeCapability(card *device, int *major, int *minor)
{
    NEED(device);
    *major = device->index ? 7 : 8; *minor = device->index ? 0 : 9;
    return OK;
}
typedef struct { unsigned pid; unsigned long long memory; unsigned instance, compute; } process;
int nvmlDeviceGetComputeRunningProcesses_v3(card *device, unsigned *count, process *found)
{
    ONLY_FIRST(device);
    const char *text = said("process");
    unsigned there = text ? 1 : 2;
    if (!found || *count < there) { *count = there; return SMALL; }
    *count = there;
    if (text) {
        found[0].pid = (unsigned)atoi(text); found[0].memory = strtoull(strchr(text, ':') + 1, NULL, 10);
        return OK;
    }
    found[0].pid = getpid(); found[0].memory = 1000000000ULL;
    found[1].pid = 4194300; found[1].memory = 4500000000ULL;
    return OK;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(card *device, unsigned *count, process *found)
{
    (void)found;
    NEED(device);
    *count = 0;
    return OK;
}
