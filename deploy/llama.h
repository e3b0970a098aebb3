/*
 * Included before all else of llama.cpp where that is compiled (deploy/setup.sh). Mends what goes wrong on processors
 * with AVX512-FP16 and AMX, Intel's since 2023; all others compile as they would without it.
 */

/* llama.cpp takes 128 half-precision numbers at a time there, and the rest one by one without the processor's help:
   all of it, where a head of attention has 64. Without this it takes 64, as with AVX-512 alone. */
#undef __AVX512FP16__

/* GCC 12.2, which is Debian 12's, believes that loading a tile configuration reads its first 8 of 64 bytes only (GCC
   bug 114098). It leaves out the writing of the rest, and the next AMX instruction ends the process by SIGILL. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#endif
