// What NVIDIA's headers of the runtime want of a compiler; the real file is in a package of its own.
#pragma once
#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __specialization_static static
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __location__(place)
#define CUDARTAPI
#define CUDARTAPI_CDECL
