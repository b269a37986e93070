/* Rows of a coded matrix: the format and its constants are in rwkv_embed/coding.py, which does the same in NumPy. */
#include "common.h"

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
} Coded;

typedef struct {
    const uint16_t *next, *end;
} Stream;

INLINE uint32_t next_word(Stream *stream) { return stream->next < stream->end ? *stream->next++ : 0; }

INLINE uint32_t first_state(Stream *stream) {
    const uint32_t upper = next_word(stream);
    return upper << 16 | next_word(stream);
}

static void decode_block(const Coded *m, int64_t block) {
    Stream stream = {m->words + m->starts[block], m->words + m->starts[block + 1]};
    uint32_t x = first_state(&stream), other = first_state(&stream);
    const int64_t end = (block + 1) * BLOCK < m->rows ? (block + 1) * BLOCK : m->rows;
    for (int64_t row = block * BLOCK; row < end; row++) {
        const int64_t class_ = m->classes[row] * m->n_groups;
        uint8_t *symbols = m->symbols + row * m->columns;
        for (int64_t column = 0; column < m->columns; column++) {
            const int64_t table = class_ + m->groups[column];
            const uint32_t slot = x & (TOTAL - 1), symbol = m->symbol_of[table * TOTAL + slot];
            const uint16_t *count = m->counts + table * SYMBOLS, *first = m->first + table * SYMBOLS;
            uint32_t state = count[symbol] * (x >> BITS) + slot - first[symbol];
            if (state < LOWEST) state = state << 16 | next_word(&stream);
            symbols[column] = (uint8_t)symbol;
            x = other;
            other = state;
        }
    }
}

/* out (T, C) = rows `tokens`. Threads may meet in a block: they write the same symbols there, and the flag after them. */
EXPORT FOR_EACH_CPU void rwkv_coded_rows(int64_t T, const int64_t *tokens, const Coded *m, float *out) {
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
        for (int64_t i = 0; i < m->columns; i++) out[i] = values[m->groups[i] * SYMBOLS + symbols[i]];
    }
}
