/* Rows of a coded matrix: the format and its constants are in rwkv_embed/coding.py, which does the same in NumPy. */
#include "common.h"

#ifdef CHOOSES_CPU
#include <immintrin.h>
#endif

enum { BLOCK = 16, SYMBOLS = 64, BITS = 12, TOTAL = 1 << BITS, LOWEST = 1 << 16 };

typedef struct { /* what is not said here is as in coding.py */
    const uint16_t *words;
    const uint32_t *starts;
    const uint8_t *classes, *groups;
    const uint16_t *counts, *first;
    const uint8_t *symbol_of;
    const float *values;
    uint8_t *symbols; /* (rows, columns), of the blocks that are decoded */
    uint8_t *decoded; /* (blocks,), whether one is */
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
/* A row, by an instruction that looks 16 values up among 32. */
__attribute__((target("arch=x86-64-v4"))) static void wide_row(const Coded *m, const float *values,
                                                               const uint8_t *symbols, float *out) {
    for (int64_t i = 0; i < m->columns; i += PANEL) {
        const float *table = values + m->groups[i] * SYMBOLS;
        const __m512i symbol = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(symbols + i)));
        const __mmask16 is_upper = _mm512_test_epi32_mask(symbol, _mm512_set1_epi32(SYMBOLS / 2));
        const __m512 lower = _mm512_permutex2var_ps(_mm512_loadu_ps(table), symbol, _mm512_loadu_ps(table + 16));
        const __m512 upper = _mm512_permutex2var_ps(_mm512_loadu_ps(table + 32), symbol, _mm512_loadu_ps(table + 48));
        _mm512_storeu_ps(out + i, _mm512_mask_blend_ps(is_upper, lower, upper));
    }
}
#endif

/* A row; `together` columns have the same group. */
INLINE void look_up_row(const Coded *m, int together, const float *values, const uint8_t *symbols, float *out) {
    for (int64_t i = 0; i < m->columns; i += together) {
        const float *table = values + m->groups[i] * SYMBOLS;
        for (int j = 0; j < together; j++) out[i + j] = table[symbols[i + j]];
    }
}

/* out (T, C) = rows `tokens`. Threads may meet in a block: each writes the same symbols there, and then the flag. */
EXPORT void rwkv_coded_rows(int64_t T, const int64_t *tokens, const Coded *m, float *out) {
    enum { AHEAD = 8, LINE = 64 };
    for (int64_t t = 0; t < T; t++, out += m->columns) {
        if (t + AHEAD < T) /* rows are anywhere in memory */
            for (int64_t i = 0; i < m->columns; i += LINE) PREFETCH(m->symbols + tokens[t + AHEAD] * m->columns + i);
        const int64_t block = tokens[t] / BLOCK;
        if (!__atomic_load_n(m->decoded + block, __ATOMIC_ACQUIRE)) {
            decode_block(m, block);
            __atomic_store_n(m->decoded + block, 1, __ATOMIC_RELEASE);
        }
        const uint8_t *symbols = m->symbols + tokens[t] * m->columns;
        const float *values = m->values + m->classes[tokens[t]] * m->n_groups * SYMBOLS;
#ifdef CHOOSES_CPU
        if (m->in_panels && __builtin_cpu_supports("avx512f")) {
            wide_row(m, values, symbols, out);
            continue;
        }
#endif
        if (m->in_panels) look_up_row(m, PANEL, values, symbols, out);
        else look_up_row(m, 1, values, symbols, out);
    }
}
