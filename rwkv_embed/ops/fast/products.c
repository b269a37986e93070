/* Matrix products with weights packed once: float32, bfloat16 (sums in float32) and int8 (sums in int32).
 *
 * Packed weights and rows of x consist of words of 4 bytes: one float32, two bfloat16 or four int8 that follow each
 * other along K. A matrix is (N / PANEL, words of K, PANEL) words. One loop serves all three; they differ in the step,
 * which adds the product of a row's word and a panel's PANEL words to PANEL sums. float32 arrays are C order.
 *
 * A product's sums are added in an order that depends on K alone: what a row gives does not depend on how many rows
 * there are, so neither does a text's vector on its neighbours.
 */
#include <math.h>

#include "common.h"

#ifdef CHOOSES_CPU
#include <immintrin.h>
#endif

typedef int32_t Word __attribute__((may_alias));

/* The compiler does not foresee where the pointer is. Else it keeps a pointer for each row, which are more than there are
 * registers, and moves them through those that the products are made in: 12 % slower. */
#ifdef __GNUC__
#define UNFORESEEN(POINTER) __asm__("" : "+r"(POINTER))
#else
#define UNFORESEEN(POINTER)
#endif

/* out (rows, PANEL) = x (rows, K) @ panel (K, PANEL), or out += it: all sums stay in registers while k goes by.
 * Rows of out, x and panel are N, stride and width words apart; the next panel to be read begins `ahead` words on.
 * A sum is PARTS vectors; STEP adds to it. `third` points into every third row of x; two more are reached from it. */
#define DEFINE_TILE(NAME, LINKAGE, WORD, SUM, HEIGHT, PARTS, STEP)                                                   \
    LINKAGE void NAME(const int rows, int64_t K, int64_t N, const WORD *x, int64_t stride, const WORD *panel,       \
                      int64_t width, int64_t ahead, WORD *out, int add) {                                           \
        SUM sum[HEIGHT][PARTS];                                                                                     \
        const WORD *third[HEIGHT / 3];                                                                              \
        for (int i = 0; i < rows; i += 3) third[i / 3] = x + i * stride;                                            \
        for (int i = 0; i < rows; i++)                                                                              \
            for (int j = 0; j < PARTS; j++) sum[i][j] = add ? ((const SUM *)(out + i * N))[j] : (SUM){0};           \
        for (int64_t k = 0; k < K; k++) {                                                                           \
            const WORD *weights = panel + k * width;                                                                \
            PREFETCH(weights + ahead); /* few rows would wait for memory */                                         \
            for (int i = 0; i < rows; i++)                                                                          \
                for (int j = 0; j < PARTS; j++)                                                                     \
                    STEP(sum[i][j], third[i / 3][i % 3 * stride], weights + j * (PANEL / PARTS));                   \
            for (int i = 0; i < rows; i += 3) {                                                                     \
                third[i / 3]++;                                                                                     \
                UNFORESEEN(third[i / 3]);                                                                           \
            }                                                                                                       \
        }                                                                                                           \
        for (int i = 0; i < rows; i++)                                                                              \
            for (int j = 0; j < PARTS; j++) ((SUM *)(out + i * N))[j] = sum[i][j];                                  \
    }

#define DEPTH 384 /* words of a panel's columns used at a time: 24 KB, which stay in the first-level cache */

/* The loops around a tile of up to HEIGHT rows; CASES calls it with the constant number of rows that are left.
 * Rows of x are `stride` words apart. */
#define DEFINE_LOOPS(NAME, LINKAGE, WORD, HEIGHT, CASES)                                                             \
    LINKAGE void NAME(int64_t M, int64_t K, int64_t N, const WORD *x, int64_t stride, const WORD *packed,           \
                      WORD *out) {                                                                                  \
        for (int64_t k = 0; k < K; k += DEPTH)                                                                      \
            for (int64_t n = 0; n < N; n += PANEL) {                                                                \
                const int64_t depth = K - k < DEPTH ? K - k : DEPTH;                                                \
                const WORD *panel = packed + n * K + k * PANEL;                                                     \
                for (int64_t m = 0; m < M; m += HEIGHT) {                                                           \
                    const WORD *from = x + m * stride + k;                                                          \
                    WORD *to = out + m * N + n;                                                                     \
                    switch (M - m < HEIGHT ? M - m : HEIGHT) { CASES }                                              \
                }                                                                                                   \
            }                                                                                                       \
    }
#define CASE(TILE, ROWS)                                                                                             \
    case ROWS:                                                                                                      \
        TILE(ROWS, depth, N, from, stride, panel, PANEL, K *PANEL, to, k > 0);                                      \
        break;
#define SIX_CASES(TILE) CASE(TILE, 1) CASE(TILE, 2) CASE(TILE, 3) CASE(TILE, 4) CASE(TILE, 5) CASE(TILE, 6)
#define TWELVE_CASES(TILE) \
    SIX_CASES(TILE) CASE(TILE, 7) CASE(TILE, 8) CASE(TILE, 9) CASE(TILE, 10) CASE(TILE, 11) CASE(TILE, 12)

/* On every processor: 6 x 2 sums of 8, the 16 registers of AVX2. */
#define PORTABLE_PRODUCT(NAME, WORD, SUM, STEP)                                                                      \
    DEFINE_TILE(NAME##_tile, INLINE, WORD, SUM, 6, 2, STEP)                                                         \
    DEFINE_LOOPS(NAME, FOR_EACH_CPU static, WORD, 6, SIX_CASES(NAME##_tile))

/* With AVX-512 and what else the step needs: 12 sums of 16, of its 32 registers. */
#define WIDE_PRODUCT(NAME, TARGET, WORD, SUM, STEP)                                                                  \
    DEFINE_TILE(NAME##_tile, __attribute__((target(TARGET))) INLINE, WORD, SUM, 12, 1, STEP)                        \
    DEFINE_LOOPS(NAME, __attribute__((target(TARGET))) static, WORD, 12, TWELVE_CASES(NAME##_tile))

#define FLOAT_STEP(SUM, X, WEIGHTS) SUM += (X) * *(const __typeof__(SUM) *)(WEIGHTS)
PORTABLE_PRODUCT(portable_float32, float, Vector, FLOAT_STEP)

/* A bfloat16 is the upper half of a float32; the first of a pair is the word's lower half. */
INLINE float as_float(int32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
#define UPPER_HALF ((int32_t)0xFFFF0000)
#define BFLOAT16_STEP(SUM, X, WEIGHTS)                                                                               \
    do {                                                                                                            \
        const Integers pairs = *(const Integers *)(WEIGHTS);                                                        \
        SUM += as_float((int32_t)((uint32_t)(X) << 16)) * (Vector)(pairs << 16);                                   \
        SUM += as_float((X)&UPPER_HALF) * (Vector)(pairs & UPPER_HALF);                                            \
    } while (0)
PORTABLE_PRODUCT(portable_bfloat16, Word, Vector, BFLOAT16_STEP)

/* x in 0 ... 255, weights in -127 ... 127. */
#define INT8_STEP(SUM, X, WEIGHTS)                                                                                   \
    for (int byte = 0; byte < 4; byte++)                                                                            \
        SUM += ((X) >> 8 * byte & 255) * (*(const Integers *)(WEIGHTS) << (24 - 8 * byte) >> 24);
PORTABLE_PRODUCT(portable_int8, Word, Integers, INT8_STEP)

#ifdef CHOOSES_CPU
typedef float WideFloats __attribute__((vector_size(PANEL * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t WideIntegers __attribute__((vector_size(PANEL * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));
WIDE_PRODUCT(wide_float32, "arch=x86-64-v4", float, WideFloats, FLOAT_STEP)

#define DOT_BFLOAT16(SUM, X, WEIGHTS)                                                                                \
    SUM = (WideFloats)_mm512_dpbf16_ps((__m512)(SUM), (__m512bh)_mm512_set1_epi32(X),                               \
                                       (__m512bh)_mm512_loadu_si512(WEIGHTS))
WIDE_PRODUCT(wide_bfloat16, "arch=x86-64-v4,avx512bf16", Word, WideFloats, DOT_BFLOAT16)

#define DOT_INT8(SUM, X, WEIGHTS)                                                                                    \
    SUM = (WideIntegers)_mm512_dpbusd_epi32((__m512i)(SUM), _mm512_set1_epi32(X), _mm512_loadu_si512(WEIGHTS))
WIDE_PRODUCT(wide_int8, "arch=x86-64-v4,avx512vnni", Word, WideIntegers, DOT_INT8)
#endif

/* Whether this processor has the instructions that make a product of narrow words faster than one of float32. */
EXPORT int rwkv_has_bfloat16(void) {
#ifdef CHOOSES_CPU
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}

EXPORT int rwkv_has_int8(void) {
#ifdef CHOOSES_CPU
    return __builtin_cpu_supports("avx512vnni") != 0;
#else
    return 0;
#endif
}

#define SAME_LINES 1024 /* words: rows a multiple of them apart share the lines of a first-level cache, eight or so */

/* out (B, M, N) = x (B, M, K) @ w, B matrices (K, N); packed is w. */
EXPORT void rwkv_matmul(int64_t B, int64_t M, int64_t K, int64_t N, const float *x, const float *packed, float *out) {
    for (; B > 0; B--, x += M * K, packed += K * N, out += M * N) {
#ifdef CHOOSES_CPU
        if (__builtin_cpu_supports("avx512f") && K % SAME_LINES) { /* else twelve rows would push each other out */
            wide_float32(M, K, N, x, K, packed, out);
            continue;
        }
#endif
        portable_float32(M, K, N, x, K, packed, out);
    }
}

/* Narrow rows of x begin an odd number of lines apart (see SAME_LINES): at most 31 words are left unused. */
INLINE int64_t stride_of(int64_t words) { return ((words + 15) / 16 | 1) * 16; }

/* Rows of x in pairs, rounded to nearest even; an odd row ends with a zero. */
FOR_EACH_CPU static void round_rows(int64_t M, int64_t K, const float *x, Word *out, int64_t stride) {
    for (int64_t m = 0; m < M; m++, x += K, out += stride) {
        uint16_t *rounded = (uint16_t *)out;
        for (int64_t k = 0; k < K; k++) {
            uint32_t bits;
            memcpy(&bits, x + k, sizeof bits);
            rounded[k] = (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
        }
        if (K % 2) rounded[K] = 0;
    }
}

/* The same in bfloat16. scratch: M * (K / 2 + 32) words. With `wide` by the processor's instructions for it. */
EXPORT void rwkv_matmul_bfloat16(int64_t wide, int64_t B, int64_t M, int64_t K, int64_t N, const float *x,
                                 const Word *packed, Word *scratch, float *out) {
    const int64_t words = (K + 1) / 2, stride = stride_of(words);
    for (; B > 0; B--, x += M * K, packed += words * N, out += M * N) {
        round_rows(M, K, x, scratch, stride);
#ifdef CHOOSES_CPU
        if (wide) {
            wide_bfloat16(M, words, N, scratch, stride, packed, (Word *)out);
            continue;
        }
#endif
        portable_bfloat16(M, words, N, scratch, stride, packed, (Word *)out);
    }
}

typedef struct { /* a row of x in bytes: a byte is a number's distance from `zero`, in steps of `scale` */
    float scale;
    int32_t zero;
} Row;

/* Rows of x in bytes; filled up to whole words. A row's range, which always holds 0, takes 254 steps: those that
 * are left over keep rounding within a byte. Zeros are exact, and squares of relus use the whole byte. */
FOR_EACH_CPU static void quantize_rows(int64_t M, int64_t K, const float *x, Word *out, int64_t stride, Row *rows) {
    for (int64_t m = 0; m < M; m++, x += K, out += stride) {
        uint8_t *bytes = (uint8_t *)out;
        float least = 0.0f, largest = 0.0f;
#pragma omp simd reduction(min : least) reduction(max : largest)
        for (int64_t k = 0; k < K; k++) {
            least = x[k] < least ? x[k] : least;
            largest = x[k] > largest ? x[k] : largest;
        }
        const float range = largest - least, inverse = range > 0.0f ? 254.0f / range : 0.0f;
        const float zero = ceilf(-least * inverse);
        rows[m] = (Row){range / 254.0f, (int32_t)zero};
        for (int64_t k = 0; k < K; k++) {
            const float rounded = x[k] * inverse + (12582912.0f + zero); /* its lowest byte is the number rounded */
            uint32_t bits;
            memcpy(&bits, &rounded, sizeof bits);
            bytes[k] = (uint8_t)bits;
        }
        for (int64_t k = K; k % 4; k++) bytes[k] = 0; /* times weights of 0 */
    }
}

/* out = (sums - zero * totals) * scales, for sums (M, N) that are where out will be. */
FOR_EACH_CPU static void scale_sums(int64_t M, int64_t N, const Row *rows, const float *scale, const int32_t *totals,
                                    float *out) {
    for (int64_t m = 0; m < M; m++, out += N) {
        const Word *sums = (const Word *)out;
#pragma omp simd
        for (int64_t n = 0; n < N; n++) out[n] = (float)(sums[n] - rows[m].zero * totals[n]) * rows[m].scale * scale[n];
    }
}

/* The same in int8: weights of scale (B * N) each, whose columns sum up to totals (B * N).
 * scratch: M * (K / 4 + 34) words. K is at most 66,000, so that sums of 255 * 127 fit. */
EXPORT void rwkv_matmul_int8(int64_t wide, int64_t B, int64_t M, int64_t K, int64_t N, const float *x,
                             const Word *packed, const float *scale, const int32_t *totals, Word *scratch,
                             float *out) {
    const int64_t words = (K + 3) / 4, stride = stride_of(words);
    Row *rows = (Row *)(scratch + M * stride);
    for (; B > 0; B--, x += M * K, packed += words * N, scale += N, totals += N, out += M * N) {
        quantize_rows(M, K, x, scratch, stride, rows);
#ifdef CHOOSES_CPU
        if (wide) wide_int8(M, words, N, scratch, stride, packed, (Word *)out);
        else
#endif
            portable_int8(M, words, N, scratch, stride, packed, (Word *)out);
        scale_sums(M, N, rows, scale, totals, out);
    }
}

/* sums (H, rows, C) += the rows of x (T, C) weighted with c (see rwkv_backward), for each text, reading and head. */
EXPORT FOR_EACH_CPU void rwkv_weighted_sums(int64_t n, const int64_t *starts, const int64_t *row_starts, int64_t H,
                                            int64_t rows, int64_t C, const float *c, const float *x, float *sums) {
    const int64_t T = starts[n];
    for (int64_t s = 0; s < n; s++)
        for (int64_t row = row_starts[s]; row < row_starts[s + 1]; row++)
            for (int64_t h = 0; h < H; h += 6) {
                const float *weights = c + ((row - row_starts[s]) * H + h) * T + starts[s];
                const float *from = x + starts[s] * C;
                float *to = sums + (h * rows + row) * C;
                const int64_t length = starts[s + 1] - starts[s];
#define SUM(HEADS)                                                                                                   \
    case HEADS:                                                                                                     \
        for (int64_t i = 0; i < C; i += PANEL)                                                                      \
            portable_float32_tile(HEADS, length, rows *C, weights, T, from + i, C, PANEL, to + i, 1);               \
        break;
                switch (H - h < 6 ? H - h : 6) { SUM(1) SUM(2) SUM(3) SUM(4) SUM(5) SUM(6) }
#undef SUM
            }
}

