/* RWKV-7 on a CPU: matrix products with weights packed once, layer norm + token shift, time mixing's recurrence.
 *
 * Texts are packed: one stream of T tokens, text s at positions starts[s] .. starts[s + 1] - 1, so there is no
 * padding and every loop below begins a new text by itself. All arrays are float32, C order; C = n_head * N.
 * The functions are called through ctypes (which releases the GIL); the module at the end of the file exists
 * so that setuptools builds and installs this file like any extension. kernels.py has the same functions in
 * NumPy, tests/model/test_fast.py compares the two.
 */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* One binary for every processor: the loader picks the clone (needs ifunc, that is glibc on x86). */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CHOOSES_CPU
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#if defined(__GNUC__)
#define PREFETCH(ADDRESS) __builtin_prefetch(ADDRESS, 0, 2)
#else
#define PREFETCH(ADDRESS)
#endif

#define MAX_HEAD 256       /* largest head size; kernels.py refuses more */
#define LANES 8            /* head sizes are multiples of this; kernels.py refuses others */
#define PANEL (2 * LANES)  /* columns of a matrix that are packed together; widths are multiples of it */

/* LANES and PANEL floats, as GCC and Clang have them on every processor; memory need not be aligned, and may alias floats. */
typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef float Wide __attribute__((vector_size(PANEL * sizeof(float)), aligned(sizeof(float)), may_alias));

/* e^x to about 2 units in the last place (Cephes' polynomial); written so that compilers vectorise it. */
INLINE float exp_(float x) {
    x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* round to nearest */
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

INLINE float sigmoid_(float x) { return 1.0f / (1.0f + exp_(-x)); }

/* e^x for the decay, -0.61 <= x <= 0: Taylor's series of e^(x/2), squared; the first term left out is below 1e-7. */
INLINE float exp_small(float x) {
    x *= 0.5f;
    float p = 1.0f / 720.0f;
    p = p * x + 1.0f / 120.0f;
    p = p * x + 1.0f / 24.0f;
    p = p * x + 1.0f / 6.0f;
    p = p * x + 0.5f;
    p = p * x + 1.0f;
    p = p * x + 1.0f;
    return p * p;
}

/* Mean and 1/sqrt(variance + eps) of n values; two passes, because one pass cancels. */
INLINE void moments(const float *x, int64_t n, float eps, float *mean, float *scale) {
    float sum = 0.0f, square = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i];
    const float m = sum / (float)n;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < n; i++) square += (x[i] - m) * (x[i] - m);
    *mean = m;
    *scale = 1.0f / sqrtf(square / (float)n + eps);
}

INLINE void add_to(float *x, const float *delta, int64_t n) {
    if (!delta) return;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] += delta[i];
}

/* out (rows, PANEL) = x (rows, K) @ panel (K, PANEL), or out += it: all sums stay in registers while k goes by.
 * Sums of a row do not depend on how many rows there are, so neither does a text's vector on its neighbours. */
#define DEFINE_TILE(NAME, TYPE, PARTS)                                                                               \
    INLINE void NAME(const int rows, int64_t K, int64_t N, const float *x, int64_t stride, const float *panel,      \
                     float *out, int add) {                                                                         \
        TYPE sum[PARTS == 1 ? 12 : 6][PARTS];                                                                       \
        for (int i = 0; i < rows; i++)                                                                              \
            for (int j = 0; j < PARTS; j++) sum[i][j] = add ? ((const TYPE *)(out + i * N))[j] : (TYPE){0};         \
        for (int64_t k = 0; k < K; k++) {                                                                           \
            const TYPE *weights = (const TYPE *)(panel + k * PANEL);                                                \
            PREFETCH(panel + (k + stride) * PANEL); /* the next panel: few rows would wait for memory */           \
            for (int i = 0; i < rows; i++)                                                                          \
                for (int j = 0; j < PARTS; j++) sum[i][j] += x[i * stride + k] * weights[j];                        \
        }                                                                                                           \
        for (int i = 0; i < rows; i++)                                                                              \
            for (int j = 0; j < PARTS; j++) ((TYPE *)(out + i * N))[j] = sum[i][j];                                 \
    }
DEFINE_TILE(tile, Vector, 2)    /* 6 x 2 sums of 8: the 16 registers of AVX2 */
DEFINE_TILE(wide_tile, Wide, 1) /* 12 sums of 16: the 32 registers of AVX-512 */

#define DEPTH 384 /* rows of a panel used at a time: 24 KB, which stay in the first-level cache */

/* The loops around a tile of up to HEIGHT rows; CASES calls it with the constant number of rows that are left. */
#define MATMUL_LOOPS(TILE, HEIGHT, CASES)                                                                            \
    for (int64_t k = 0; k < K; k += DEPTH)                                                                          \
        for (int64_t n = 0; n < N; n += PANEL) {                                                                    \
            const int64_t depth = K - k < DEPTH ? K - k : DEPTH;                                                    \
            const float *panel = packed + n * K + k * PANEL;                                                        \
            for (int64_t m = 0; m < M; m += HEIGHT) {                                                               \
                const float *from = x + m * K + k;                                                                  \
                float *to = out + m * N + n;                                                                        \
                switch (M - m < HEIGHT ? M - m : HEIGHT) { CASES }                                                  \
            }                                                                                                       \
        }
#define CASE(TILE, ROWS)                                                                                             \
    case ROWS:                                                                                                      \
        TILE(ROWS, depth, N, from, K, panel, to, k > 0);                                                            \
        break;
#define SIX_CASES(TILE) CASE(TILE, 1) CASE(TILE, 2) CASE(TILE, 3) CASE(TILE, 4) CASE(TILE, 5) CASE(TILE, 6)
#define TWELVE_CASES(TILE) \
    SIX_CASES(TILE) CASE(TILE, 7) CASE(TILE, 8) CASE(TILE, 9) CASE(TILE, 10) CASE(TILE, 11) CASE(TILE, 12)

#ifdef CHOOSES_CPU
__attribute__((target("arch=x86-64-v4"))) static void matmul_wide(int64_t M, int64_t K, int64_t N, const float *x,
                                                                  const float *packed, float *out) {
    MATMUL_LOOPS(wide_tile, 12, TWELVE_CASES(wide_tile))
}
#endif

FOR_EACH_CPU static void matmul(int64_t M, int64_t K, int64_t N, const float *x, const float *packed, float *out) {
    MATMUL_LOOPS(tile, 6, SIX_CASES(tile))
}

/* out (M, N) = x (M, K) @ w (K, N); packed (N / PANEL, K, PANEL) is w. */
EXPORT void rwkv_matmul(int64_t M, int64_t K, int64_t N, const float *x, const float *packed, float *out) {
#ifdef CHOOSES_CPU
    if (__builtin_cpu_supports("avx512f")) {
        matmul_wide(M, K, N, x, packed, out);
        return;
    }
#endif
    matmul(M, K, N, x, packed, out);
}

/* x += delta; out = layer_norm(x). x, out (rows, C); delta (rows, C) or NULL; weight, bias (C). */
EXPORT FOR_EACH_CPU void rwkv_norm(int64_t rows, int64_t C, float *x, const float *delta, const float *weight,
                                   const float *bias, float *out) {
    for (int64_t t = 0; t < rows; t++) {
        float mean, scale, *row = x + t * C, *to = out + t * C;
        add_to(row, delta ? delta + t * C : NULL, C);
        moments(row, C, 1e-5f, &mean, &scale);
#pragma omp simd
        for (int64_t i = 0; i < C; i++) to[i] = (row[i] - mean) * scale * weight[i] + bias[i];
    }
}

/* x += delta; y = layer_norm(x); out[m, t] = y[t] + (y[t - 1] - y[t]) * mix[m].
 * y[-1] of text s is shift[s], which becomes the text's last y. out (n_mix, T, C), mix (n_mix, C), shift (n, C). */
EXPORT FOR_EACH_CPU void rwkv_norm_shift(int64_t n, const int64_t *starts, int64_t C, int64_t n_mix, float *x,
                                         const float *delta, const float *weight, const float *bias,
                                         const float *mix, float *shift, float *out) {
    enum { BLOCK = 64 };
    const int64_t T = starts[n];
    float y[BLOCK];
    for (int64_t s = 0; s < n; s++) {
        float *previous = shift + s * C;
        for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
            float mean, scale, *row = x + t * C;
            add_to(row, delta ? delta + t * C : NULL, C);
            moments(row, C, 1e-5f, &mean, &scale);
            for (int64_t c = 0; c < C; c += BLOCK) {
                const int64_t width = C - c < BLOCK ? C - c : BLOCK;
#pragma omp simd
                for (int64_t i = 0; i < width; i++)
                    y[i] = (row[c + i] - mean) * scale * weight[c + i] + bias[c + i];
                for (int64_t m = 0; m < n_mix; m++) {
                    float *to = out + (m * T + t) * C + c;
                    const float *mu = mix + m * C + c;
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) to[i] = y[i] + (previous[c + i] - y[i]) * mu[i];
                }
                memcpy(previous + c, y, (size_t)width * sizeof(float));
            }
        }
    }
}

/* x = relu(x)^2, in place. */
EXPORT FOR_EACH_CPU void rwkv_relu_square(int64_t n, float *x) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const float positive = x[i] > 0.0f ? x[i] : 0.0f;
        x[i] = positive * positive;
    }
}

/* What the recurrence of one head reads at one token. */
typedef struct {
    float r[MAX_HEAD], w[MAX_HEAD], k[MAX_HEAD], v[MAX_HEAD], kk[MAX_HEAD], b[MAX_HEAD];
} Token;

/* S[j] = S[j] * w[j] - (S^T kk) b[j] + v k[j], a row of S per key, and y = S^T r when `read`.
 * Values (i) are independent of each other: `columns` vectors of them stay in registers while the keys (j) go by. */
INLINE void step_columns(float *S, int64_t N, const Token *token, int64_t i0, int columns, int read, float *y) {
    Vector removed[4] = {{0}}, odd[4] = {{0}}, sum[4] = {{0}}, v[4];
    for (int64_t j = 0; j < N; j += 2) { /* two chains, to hide the latency of the additions */
        const Vector *row = (const Vector *)(S + j * N + i0), *next = (const Vector *)(S + (j + 1) * N + i0);
        for (int i = 0; i < columns; i++) {
            removed[i] -= row[i] * token->kk[j];
            odd[i] -= next[i] * token->kk[j + 1];
        }
    }
    for (int i = 0; i < columns; i++) {
        removed[i] += odd[i];
        v[i] = ((const Vector *)(token->v + i0))[i];
    }
    for (int64_t j = 0; j < N; j++) {
        Vector *row = (Vector *)(S + j * N + i0);
        for (int i = 0; i < columns; i++) {
            const Vector cell = row[i] * token->w[j] + removed[i] * token->b[j] + v[i] * token->k[j];
            row[i] = cell;
            if (read) sum[i] += cell * token->r[j];
        }
    }
    if (read)
        for (int i = 0; i < columns; i++) ((Vector *)(y + i0))[i] = sum[i];
}

INLINE void step(float *S, int64_t N, const Token *token, int read, float *y) {
    int64_t i0 = 0;
    for (; i0 + 4 * LANES <= N; i0 += 4 * LANES) step_columns(S, N, token, i0, 4, read, y);
    for (; i0 < N; i0 += LANES) step_columns(S, N, token, i0, 1, read, y);
}

typedef struct { /* the time mixing of one layer, per channel; v0 is NULL in the first layer */
    const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *ln_weight, *ln_bias;
} Layer;

typedef struct { /* products of the token-shifted input: (T, C), but r, g and out only at the rows read */
    const float *r, *w, *k, *v, *a, *g, *v_gate, *v_first;
    float *out;
} Products;

/* Gates of head h at position t. Source: RWKV-7 "Goose", arXiv:2503.14456, and the PyPI package `rwkv`. */
INLINE void prepare(Token *token, const Layer *p, const Products *x, int64_t at, int64_t c0, int64_t N) {
    const float *w = x->w + at, *a = x->a + at, *k = x->k + at, *v = x->v + at;
    const float *w0 = p->w0 + c0, *a0 = p->a0 + c0, *k_k = p->k_k + c0, *k_a = p->k_a + c0;
    float square = 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < N; i++) /* 0.606531 = exp(-0.5), as in PyPI rwkv */
        token->w[i] = exp_small(-0.606531f * sigmoid_(w0[i] + w[i]));
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < N; i++) {
        const float rate = sigmoid_(a0[i] + a[i]), kk = k[i] * k_k[i];
        token->k[i] = k[i] * (1.0f + (rate - 1.0f) * k_a[i]);
        token->kk[i] = kk;
        token->b[i] = kk * rate;
        square += kk * kk;
    }
    const float norm = sqrtf(square), inverse = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
#pragma omp simd
    for (int64_t i = 0; i < N; i++) {
        token->kk[i] *= inverse;
        token->b[i] *= inverse;
    }
    if (x->v_gate) {
        const float *gate = x->v_gate + at, *first = x->v_first + at, *v0 = p->v0 + c0;
#pragma omp simd
        for (int64_t i = 0; i < N; i++) token->v[i] = v[i] + (first[i] - v[i]) * sigmoid_(v0[i] + gate[i]);
    } else {
        memcpy(token->v, v, (size_t)N * sizeof(float));
    }
}

/* out = (group_norm(y) + (r . k r_k) v) * g for one head at one position. */
INLINE void read_out(const Token *token, const Layer *p, const float *y, const float *g, float *out, int64_t c0,
                     int64_t N) {
    float mean, scale, bonus = 0.0f;
    moments(y, N, 64e-5f, &mean, &scale);
#pragma omp simd reduction(+ : bonus)
    for (int64_t i = 0; i < N; i++) bonus += token->r[i] * token->k[i] * p->r_k[c0 + i];
#pragma omp simd
    for (int64_t i = 0; i < N; i++)
        out[i] = ((y[i] - mean) * scale * p->ln_weight[c0 + i] + p->ln_bias[c0 + i] + bonus * token->v[i]) * g[i];
}

INLINE void transpose(float *to, const float *from, int64_t N) {
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) to[j * N + i] = from[i * N + j];
}

INLINE void one_head(int64_t first, int64_t last, int64_t row, int64_t rows, int64_t C, int64_t c0, int64_t N,
                     const Layer *p, const Products *x, float *S) {
    Token token;
    float y[MAX_HEAD];
    memset(token.r, 0, sizeof token.r);
    for (int64_t t = first; t < last; t++) {
        prepare(&token, p, x, t * C + c0, c0, N);
        if (last - t > rows) {
            step(S, N, &token, 0, y);
            continue;
        }
        memcpy(token.r, x->r + row * C + c0, (size_t)N * sizeof(float));
        step(S, N, &token, 1, y);
        read_out(&token, p, y, x->g + row * C + c0, x->out + row * C + c0, c0, N);
        row++;
    }
}

/* Time mixing between its products. Text s is read out at its last row_starts[s + 1] - row_starts[s] positions.
 * state (n, H, N, N), values x keys as in PyPI `rwkv`, is replaced by the state after the text; NULL: texts start
 * from zero and the state is dropped. scratch: N * N floats. */
EXPORT FOR_EACH_CPU void rwkv_wkv(int64_t n, const int64_t *starts, const int64_t *row_starts, int64_t H,
                                  int64_t N, const Layer *layer, const Products *products, float *state,
                                  float *scratch) {
    for (int64_t s = 0; s < n; s++)
        for (int64_t h = 0; h < H; h++) {
            float *kept = state ? state + (s * H + h) * N * N : NULL;
            const int64_t row = row_starts[s], rows = row_starts[s + 1] - row;
            if (kept) transpose(scratch, kept, N);
            else memset(scratch, 0, (size_t)(N * N) * sizeof(float));
            if (N == 64)
                one_head(starts[s], starts[s + 1], row, rows, H * 64, h * 64, 64, layer, products, scratch);
            else
                one_head(starts[s], starts[s + 1], row, rows, H * N, h * N, N, layer, products, scratch);
            if (kept) transpose(kept, scratch, N);
        }
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", "Functions for ctypes; see kernels.c", -1,
                                    NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
