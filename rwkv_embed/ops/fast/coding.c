/* Rows of a coded matrix, and sums of them: the formats and their constants are in rwkv_embed/coding.py and sums.py,
 * which do the same in NumPy. */
#include "common.h"

#ifdef CHOOSES_CPU
#include <immintrin.h>
#endif

enum { BLOCK = 2, SYMBOLS = 64, BITS = 12, TOTAL = 1 << BITS, LOWEST = 1 << 16 };
enum { SHARES = 16 }; /* ONE of sums.py */

typedef struct { /* what is not said here is as in coding.py */
    const uint16_t *words;
    const uint32_t *starts;
    const uint8_t *classes, *groups;
    const uint16_t *counts, *first;
    const uint8_t *symbol_of;
    const float *values;
    uint8_t *symbols; /* (rows, columns), of the blocks that are decoded */
    uint8_t *decoded; /* (blocks,), whether one is */
    const uint16_t *parts; /* of sums.py, as are shares and sum_starts */
    const uint8_t *shares;
    const int64_t *sum_starts;
    int64_t rows, columns, n_groups;
    int64_t in_panels; /* whether each PANEL columns have one group */
} Coded;

static void decode_block(const Coded *m, int64_t block) {
    const uint16_t *words = m->words + m->starts[block], *end_of_words = m->words + m->starts[block + 1];
    const int64_t end = (block + 1) * BLOCK < m->rows ? (block + 1) * BLOCK : m->rows;
    uint32_t x = 0, other = 0; /* the state whose turn it is, and the one that is next */
    for (int i = 0; i < 4; i++) {
        x = x << 16 | other >> 16;
        other = other << 16 | (words < end_of_words ? *words++ : 0);
    }
    for (int64_t row = block * BLOCK; row < end; row++) {
        const int64_t class_ = m->classes[row] * m->n_groups;
        uint8_t *symbols = m->symbols + row * m->columns;
        for (int64_t column = 0; column < m->columns; column++) {
            const int64_t table = class_ + m->groups[column];
            const uint32_t slot = x & (TOTAL - 1), symbol = m->symbol_of[table * TOTAL + slot];
            const uint16_t *count = m->counts + table * SYMBOLS, *first = m->first + table * SYMBOLS;
            uint32_t state = count[symbol] * (x >> BITS) + slot - first[symbol];
            const uint32_t word = words < end_of_words ? *words : 0; /* no branch: no one could predict it */
            const int is_low = state < LOWEST;
            state = is_low ? state << 16 | word : state;
            words += is_low & (words < end_of_words);
            symbols[column] = (uint8_t)symbol;
            x = other;
            other = state;
        }
    }
}

#ifdef CHOOSES_CPU
/* out = share x a row, or += it, by an instruction that looks 16 values up among 32. */
__attribute__((target("arch=x86-64-v4"))) static void wide_row(const Coded *m, const float *values,
                                                               const uint8_t *symbols, float share, int adds, float *out) {
    const __m512 shares = _mm512_set1_ps(share);
    for (int64_t i = 0; i < m->columns; i += PANEL) {
        const float *table = values + m->groups[i] * SYMBOLS;
        const __m512i symbol = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(symbols + i)));
        const __mmask16 is_upper = _mm512_test_epi32_mask(symbol, _mm512_set1_epi32(SYMBOLS / 2));
        const __m512 lower = _mm512_permutex2var_ps(_mm512_loadu_ps(table), symbol, _mm512_loadu_ps(table + 16));
        const __m512 upper = _mm512_permutex2var_ps(_mm512_loadu_ps(table + 32), symbol, _mm512_loadu_ps(table + 48));
        const __m512 before = adds ? _mm512_loadu_ps(out + i) : _mm512_setzero_ps();
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(shares, _mm512_mask_blend_ps(is_upper, lower, upper), before));
    }
}
#endif

/* The same; `together` columns have the same group. */
INLINE void look_up_row(const Coded *m, int together, const float *values, const uint8_t *symbols, float share, int adds,
                        float *out) {
    for (int64_t i = 0; i < m->columns; i += together) {
        const float *table = values + m->groups[i] * SYMBOLS;
        for (int j = 0; j < together; j++) out[i + j] = (adds ? out[i + j] : 0) + share * table[symbols[i + j]];
    }
}

/* out = share x row, or += it. Threads may meet in a block: each writes the same symbols there, and then the flag. */
static void add_row(const Coded *m, int64_t row, float share, int adds, float *out) {
    const int64_t block = row / BLOCK;
    if (!__atomic_load_n(m->decoded + block, __ATOMIC_ACQUIRE)) {
        decode_block(m, block);
        __atomic_store_n(m->decoded + block, 1, __ATOMIC_RELEASE);
    }
    const uint8_t *symbols = m->symbols + row * m->columns;
    const float *values = m->values + m->classes[row] * m->n_groups * SYMBOLS;
#ifdef CHOOSES_CPU
    if (m->in_panels && __builtin_cpu_supports("avx512f")) {
        wide_row(m, values, symbols, share, adds, out);
        return;
    }
#endif
    if (m->in_panels) look_up_row(m, PANEL, values, symbols, share, adds, out);
    else look_up_row(m, 1, values, symbols, share, adds, out);
}

static void prefetch_row(const Coded *m, int64_t row) { /* rows are anywhere in memory */
    enum { LINE = 64 };
    for (int64_t i = 0; i < m->columns; i += LINE) PREFETCH(m->symbols + row * m->columns + i);
}

/* out (T, C) = rows `tokens`; those past the last row are sums of rows. */
EXPORT void rwkv_coded_rows(int64_t T, const int64_t *tokens, const Coded *m, float *out) {
    enum { AHEAD = 8 };
    for (int64_t t = 0; t < T; t++, out += m->columns) {
        if (t + AHEAD < T) {
            const int64_t next = tokens[t + AHEAD] - m->rows;
            if (next < 0) prefetch_row(m, tokens[t + AHEAD]);
            else
                for (int64_t i = m->sum_starts[next]; i < m->sum_starts[next + 1]; i++) prefetch_row(m, m->parts[i]);
        }
        const int64_t sum = tokens[t] - m->rows;
        if (sum < 0) {
            add_row(m, tokens[t], 1, 0, out);
            continue;
        }
        for (int64_t i = m->sum_starts[sum]; i < m->sum_starts[sum + 1]; i++)
            add_row(m, m->parts[i], (float)m->shares[i] / SHARES, i > m->sum_starts[sum], out);
    }
}
