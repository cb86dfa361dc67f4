/*
The GPU's energy meter, through NVML, which is opened at run time: a machine without it, or a GPU
without a meter, trains just the same and prints no energy.

C11 that also compiles as C++17.
*/
#ifndef LLMC_ENERGY_H
#define LLMC_ENERGY_H

#include <dlfcn.h>
#include <math.h>
#include "utils.h"

// NVML's C interface, as far as it is used here [NVML API Reference]: 0 is success everywhere.
typedef int (*NvmlInit)(void);
typedef int (*NvmlHandleByPciBusId)(const char* bus_id, void** device);
typedef int (*NvmlTotalEnergy)(void* device, unsigned long long* millijoules);

typedef struct {
    void* device;               // NULL: no meter
    NvmlTotalEnergy read;
} EnergyMeter;

// bus_id as cudaDeviceGetPCIBusId gives it, such as "0000:1b:00.0".
static inline EnergyMeter energy_open(const char* bus_id) {
    EnergyMeter meter = { NULL, NULL };
    void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (library == NULL) { return meter; }
    NvmlInit init;
    NvmlHandleByPciBusId handle;
    // dlsym returns an object pointer; ISO C knows no cast to a function pointer,
    // memory knows no types
    void* symbols[3] = { dlsym(library, "nvmlInit_v2"),
                         dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"),
                         dlsym(library, "nvmlDeviceGetTotalEnergyConsumption") };
    memcpy(&init, &symbols[0], sizeof(init));
    memcpy(&handle, &symbols[1], sizeof(handle));
    memcpy(&meter.read, &symbols[2], sizeof(meter.read));
    unsigned long long millijoules;
    if (init == NULL || handle == NULL || meter.read == NULL || init() != 0
        || handle(bus_id, &meter.device) != 0 || meter.read(meter.device, &millijoules) != 0) {
        meter.device = NULL;
    }
    return meter;
}

// Joules that the GPU has taken since its driver was loaded; NaN without a meter.
static inline double energy_joules(const EnergyMeter* meter) {
    unsigned long long millijoules;
    if (meter->device == NULL || meter->read(meter->device, &millijoules) != 0) { return NAN; }
    return 1e-3 * (double)millijoules;
}

#endif
