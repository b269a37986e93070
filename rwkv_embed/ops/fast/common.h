/* What kernels.c and products.c share: one binary for every processor, and vectors as GCC and Clang have them. */
#ifndef RWKV_COMMON_H
#define RWKV_COMMON_H

#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* The loader picks the clone (needs ifunc, that is glibc on x86). */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CHOOSES_CPU
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define PREFETCH(ADDRESS) __builtin_prefetch(ADDRESS, 0, 2)
#else
#define INLINE static inline
#define PREFETCH(ADDRESS)
#endif

#define LANES 8           /* head sizes are multiples of this; choice.py refuses others */
#define PANEL (2 * LANES) /* columns of a matrix that are packed together; widths are multiples of it */

/* LANES numbers; memory need not be aligned, and may alias other types. */
typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t Integers __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));

#endif
