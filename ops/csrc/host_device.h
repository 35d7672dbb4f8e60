// Qualifiers of functions that are compiled for the CPU and, with nvcc, also for the GPU.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif
