/* RWKV-7 on a CPU: layer norm + token shift, time mixing's recurrence and its gates. Products are in products.c,
 * the token table is in coding.c.
 *
 * Texts are packed: one stream of T tokens, text s at positions starts[s] .. starts[s + 1] - 1, so there is no
 * padding and every loop below begins a new text by itself. All arrays are float32, C order; C = n_head * N.
 * The functions are called through ctypes (which releases the GIL); the module at the end of the file exists
 * so that setuptools builds and installs this file like any extension. plain.py has the same functions in
 * NumPy, tests/model compares the two.
 */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <math.h>

#include "common.h"

#define MAX_HEAD 256 /* largest head size; choice.py refuses more */

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

INLINE float lanes_sum(Vector v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

INLINE void add_power(Vector *sum, const float *x, float m, int power) {
    const Vector value = *(const Vector *)x - m;
    if (power == 2) *sum += value * value;
    else *sum += value;
}

/* Sum of (x - m)^power over n values, a multiple of LANES. Four chains of additions hide their latency. */
INLINE float sum_of_powers(const float *x, int64_t n, float m, int power) {
    Vector sums[4] = {{0}};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int j = 0; j < 4; j++) add_power(sums + j, x + i + j * LANES, m, power);
    for (; i < n; i += LANES) add_power(sums, x + i, m, power);
    return lanes_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* Mean and 1/sqrt(variance + eps) of n values; two passes, because one pass cancels. */
INLINE void moments(const float *x, int64_t n, float eps, float *mean, float *scale) {
    *mean = sum_of_powers(x, n, 0.0f, 1) / (float)n;
    *scale = 1.0f / sqrtf(sum_of_powers(x, n, *mean, 2) / (float)n + eps);
}

INLINE void add_to(float *x, const float *delta, int64_t n) {
    if (!delta) return;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) x[i] += delta[i];
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
    const int64_t T = starts[n];
    for (int64_t s = 0; s < n; s++) {
        for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
            float mean, scale, *row = x + t * C;
            add_to(row, delta ? delta + t * C : NULL, C);
            moments(row, C, 1e-5f, &mean, &scale);
            for (int64_t c = 0; c < C; c += LANES) {
                Vector *previous = (Vector *)(shift + s * C + c);
                const Vector y = (*(Vector *)(row + c) - mean) * scale * *(const Vector *)(weight + c) +
                                 *(const Vector *)(bias + c);
                for (int64_t m = 0; m < n_mix; m++)
                    *(Vector *)(out + (m * T + t) * C + c) = y + (*previous - y) * *(const Vector *)(mix + m * C + c);
                *previous = y;
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

/* v += (first - v) * sigmoid(v0 + gate), all (T, C): values of a later layer, with those of the first one mixed in.
 * gate may be NULL: zero. */
EXPORT FOR_EACH_CPU void rwkv_mix_values(int64_t T, int64_t C, const float *v0, const float *gate, const float *first,
                                         float *v) {
    for (int64_t t = 0; t < T; t++, v += C, first += C) {
#pragma omp simd
        for (int64_t i = 0; i < C; i++) v[i] += (first[i] - v[i]) * sigmoid_(v0[i] + (gate ? gate[t * C + i] : 0.0f));
    }
}

typedef struct { /* the time mixing of one layer, per channel */
    const float *w0, *a0, *k_k, *k_a, *r_k, *ln_weight, *ln_bias;
} Layer;

typedef struct { /* products of the token-shifted input, (T, C); w and a may be NULL: zero */
    const float *w, *k, *v, *a;
} Products;

/* Gates of N channels from c0 on, at the position whose products begin at `at`: the decay, the rate at which the old
 * value is removed, and the strength of the new key. Those without products are the same at every position: they are
 * found at the first one that is gone through. Source: RWKV-7 "Goose", arXiv:2503.14456, and the PyPI package `rwkv`. */
INLINE void gates(const Layer *p, const Products *x, int is_first, int64_t at, int64_t c0, int64_t N, float *w,
                  float *rate, float *strength) {
    if (is_first || x->w)
#pragma omp simd
        for (int64_t i = 0; i < N; i++) /* 0.606531 = exp(-0.5), as in PyPI rwkv */
            w[i] = exp_small(-0.606531f * sigmoid_(p->w0[c0 + i] + (x->w ? x->w[at + i] : 0.0f)));
    if (is_first || x->a)
#pragma omp simd
        for (int64_t i = 0; i < N; i++) {
            rate[i] = sigmoid_(p->a0[c0 + i] + (x->a ? x->a[at + i] : 0.0f));
            strength[i] = 1.0f + (rate[i] - 1.0f) * p->k_a[c0 + i];
        }
}

#define LEAST_SQUARE 1e-24f /* of a removal key's length, which is divided by */

/* What the recurrence of one head reads at one token. */
typedef struct {
    float r[MAX_HEAD], w[MAX_HEAD], k[MAX_HEAD], v[MAX_HEAD], kk[MAX_HEAD], b[MAX_HEAD], rate[MAX_HEAD],
        strength[MAX_HEAD];
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

/* One head at the position whose products begin at `at`. */
INLINE void prepare(Token *token, const Layer *p, const Products *x, int is_first, int64_t at, int64_t c0, int64_t N) {
    const float *k = x->k + at, *k_k = p->k_k + c0;
    float square = 0.0f;
    gates(p, x, is_first, at, c0, N, token->w, token->rate, token->strength);
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < N; i++) {
        const float kk = k[i] * k_k[i];
        token->k[i] = k[i] * token->strength[i];
        token->kk[i] = kk;
        token->b[i] = kk * token->rate[i];
        square += kk * kk;
    }
    const float inverse = 1.0f / sqrtf(square > LEAST_SQUARE ? square : LEAST_SQUARE);
#pragma omp simd
    for (int64_t i = 0; i < N; i++) {
        token->kk[i] *= inverse;
        token->b[i] *= inverse;
    }
    memcpy(token->v, x->v + at, (size_t)N * sizeof(float));
}

/* sum of r k r_k over a head: the weight that a token's own value has beside what is read from the state. */
INLINE float own_weight(const float *r, const float *k, const float *strength, const float *r_k, int64_t N) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < N; i++) sum += r[i] * k[i] * strength[i] * r_k[i];
    return sum;
}

/* out = (group_norm(y) + own v) * g for one head at one position. */
INLINE void close_head(const Layer *p, const float *y, float own, const float *v, const float *g, float *out,
                       int64_t c0, int64_t N) {
    float mean, scale;
    moments(y, N, 64e-5f, &mean, &scale);
#pragma omp simd
    for (int64_t i = 0; i < N; i++)
        out[i] = ((y[i] - mean) * scale * p->ln_weight[c0 + i] + p->ln_bias[c0 + i] + own * v[i]) * g[i];
}

INLINE void transpose(float *to, const float *from, int64_t N) {
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) to[j * N + i] = from[i * N + j];
}

INLINE void one_head(int64_t first, int64_t last, int64_t row, int64_t rows, int64_t C, int64_t c0, int64_t N,
                     const Layer *p, const Products *x, const float *r, const float *g, float *S, float *out) {
    Token token;
    float y[MAX_HEAD];
    memset(token.r, 0, sizeof token.r);
    for (int64_t t = first; t < last; t++) {
        prepare(&token, p, x, t == first, t * C + c0, c0, N);
        if (last - t > rows) {
            step(S, N, &token, 0, y);
            continue;
        }
        const int64_t at = row * C + c0;
        memcpy(token.r, r + at, (size_t)N * sizeof(float));
        step(S, N, &token, 1, y);
        const float own = own_weight(token.r, x->k + t * C + c0, token.strength, p->r_k + c0, N);
        close_head(p, y, own, token.v, g + at, out + at, c0, N);
        row++;
    }
}

/* Time mixing between its products. Text s is read out at its last row_starts[s + 1] - row_starts[s] positions: r, g
 * and out are (rows, C). state (n, H, N, N), values x keys as in PyPI `rwkv`, is replaced by the state after the text;
 * NULL: texts start from zero and the state is dropped. scratch: N * N floats. */
EXPORT FOR_EACH_CPU void rwkv_wkv(int64_t n, const int64_t *starts, const int64_t *row_starts, int64_t H, int64_t N,
                                  const Layer *layer, const Products *products, const float *r, const float *g,
                                  float *state, float *scratch, float *out) {
    for (int64_t s = 0; s < n; s++)
        for (int64_t h = 0; h < H; h++) {
            float *kept = state ? state + (s * H + h) * N * N : NULL;
            const int64_t first = starts[s], last = starts[s + 1], row = row_starts[s], rows = row_starts[s + 1] - row;
            if (kept) transpose(scratch, kept, N);
            else memset(scratch, 0, (size_t)(N * N) * sizeof(float));
            if (N == 64)
                one_head(first, last, row, rows, H * 64, h * 64, 64, layer, products, r, g, scratch, out);
            else
                one_head(first, last, row, rows, H * N, h * N, N, layer, products, r, g, scratch, out);
            if (kept) transpose(kept, scratch, N);
        }
}

/* The recurrence backwards, for one head, one token and one reading vector u (see rwkv_backward):
 * u = u w - kk (b . u), and what this token's value counts for, k . u with the u before that. */
INLINE float step_back(const float *k, const float *k_k, const float *w, const float *rate, const float *strength,
                       float *u, int64_t N) {
    Vector squares = {0}, seen = {0}, removes = {0};
    for (int64_t i = 0; i < N; i += LANES) {
        const Vector key = *(const Vector *)(k + i), kk = key * *(const Vector *)(k_k + i);
        const Vector vector = *(const Vector *)(u + i);
        squares += kk * kk;
        seen += key * *(const Vector *)(strength + i) * vector;
        removes += kk * *(const Vector *)(rate + i) * vector;
    }
    const float square = lanes_sum(squares);
    const float removed = lanes_sum(removes) / (square > LEAST_SQUARE ? square : LEAST_SQUARE);
    for (int64_t i = 0; i < N; i++) u[i] = u[i] * w[i] - k[i] * k_k[i] * removed; /* kk is to be of length 1 */
    return lanes_sum(seen);
}

/* One token of a text for its reading vectors `row` ... `row + rows - 1`; offset: of the token among the T. */
INLINE void token_back(int64_t t, int64_t T, int64_t row, int64_t rows, int64_t joining, int64_t H, int64_t N,
                       const Layer *p, const Products *x, const float *w, const float *rate, const float *strength,
                       float *u, float *own, float *c, float *y) {
    for (int64_t h = 0; h < H; h++) {
        const int64_t c0 = h * N, at = t * H * N + c0;
        for (int64_t j = joining < 0 ? 0 : joining; j < rows; j++) {
            float *vector = u + (row + j) * H * N + c0;
            if (j == joining)
                own[(row + j) * H + h] = own_weight(vector, x->k + at, strength + c0, p->r_k + c0, N);
            const float seen = step_back(x->k + at, p->k_k + c0, w + c0, rate + c0, strength + c0, vector, N);
            if (!x->v) {
                c[(j * H + h) * T + t] = seen;
                continue;
            }
            float *sum = y + (row + j) * H * N + c0;
#pragma omp simd
            for (int64_t i = 0; i < N; i++) sum[i] += seen * x->v[at + i];
        }
    }
}

/* What texts read at their last positions, without the states: S_T r = sum of v_t (k_t . u_t) + S_0 u_0 with u_T = r
 * and u_{t-1} = u_t w_t - kk_t (b_t . u_t), N steps a token and head instead of N * N.
 *
 * Text s reads at its last row_starts[s + 1] - row_starts[s] positions. u (rows, C) holds the r of each and becomes u_0.
 * With v, the sum is added to y (rows, C); without, the weights k_t . u_t are written to c (rows of a text, H, T), for
 * values that are products of something linear. own (rows, H) becomes the sums of r k r_k. `after` positions of each
 * text follow those given here, which are then a piece of one text, and its u is that of the piece after it.
 * scratch: 3 * C floats. */
EXPORT FOR_EACH_CPU void rwkv_backward(int64_t n, const int64_t *starts, const int64_t *row_starts, int64_t H,
                                       int64_t N, const Layer *p, const Products *x, int64_t after, float *scratch,
                                       float *u, float *own, float *c, float *y) {
    const int64_t T = starts[n], C = H * N;
    float *w = scratch, *rate = scratch + C, *strength = scratch + 2 * C;
    int is_first = 1;
    for (int64_t s = 0; s < n; s++) {
        const int64_t row = row_starts[s], rows = row_starts[s + 1] - row;
        for (int64_t t = starts[s + 1] - 1; t >= starts[s]; t--) {
            const int64_t joining = rows - (starts[s + 1] - t + after); /* the vector that begins here, if any */
            gates(p, x, is_first, t * C, 0, C, w, rate, strength);
            is_first = 0;
            if (N == 64) token_back(t, T, row, rows, joining, H, 64, p, x, w, rate, strength, u, own, c, y);
            else token_back(t, T, row, rows, joining, H, N, p, x, w, rate, strength, u, own, c, y);
        }
    }
}

/* y (rows, C) += S u for each reading vector, state (n, H, N, N) as in rwkv_wkv. */
EXPORT FOR_EACH_CPU void rwkv_read_state(int64_t n, const int64_t *row_starts, int64_t H, int64_t N,
                                         const float *state, const float *u, float *y) {
    for (int64_t s = 0; s < n; s++)
        for (int64_t row = row_starts[s]; row < row_starts[s + 1]; row++)
            for (int64_t i = 0; i < H * N; i++) {
                const float *keys = state + (s * H * N + i) * N, *vector = u + (row * H + i / N) * N;
                float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
                for (int64_t j = 0; j < N; j++) sum += keys[j] * vector[j];
                y[row * H * N + i] += sum;
            }
}

/* out = (group_norm(y) + own v) * g; y, g, out (rows, C), own (rows, H), v (rows, C) or NULL where own is zero. */
EXPORT FOR_EACH_CPU void rwkv_close(int64_t rows, int64_t H, int64_t N, const Layer *p, const float *y,
                                    const float *own, const float *v, const float *g, float *out) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t h = 0; h < H; h++) {
            const int64_t at = (row * H + h) * N;
            close_head(p, y + at, v ? own[row * H + h] : 0.0f, v ? v + at : y + at, g + at, out + at, h * N, N);
        }
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", "Functions for ctypes; see kernels.c", -1,
                                    NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
