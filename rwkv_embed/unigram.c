/* Segmentation by a unigram vocabulary (Kudo 2018, arXiv:1804.10959), as Hugging Face `tokenizers` does it
 * (models/unigram/model.rs, pre_tokenizers/metaspace.rs), over a trie that is built once and kept in a file.
 *
 * The trie: nodes in breadth-first order, node 0 the root. The children of node i are the nodes children[i] ...
 * children[i + 1] - 1, in ascending order of the byte that leads to them. Texts are UTF-8, in NFKC already.
 * Called through ctypes (which releases the GIL) from unigram.py; tests/model/test_unigram.py compares the tokens
 * with those of `tokenizers`.
 */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define NONE (-1)
static const uint8_t SPACE[3] = {0xE2, 0x96, 0x81}; /* U+2581, which stands for a space and begins a word */

typedef struct {
    const uint8_t *bytes;     /* (nodes,) */
    const int32_t *children;  /* (nodes + 1,) */
    const int32_t *tokens;    /* (nodes,) id of the piece that ends here, or NONE */
    const double *scores;     /* (V,) by id */
    const int32_t *of_byte;   /* (256,) ids that spell what no piece has */
    double unknown;           /* score of a character that no piece has */
} Vocabulary;

/* The best way to each place of a word: its score, where its last piece begins and which one that is. */
typedef struct {
    double *score;
    int32_t *start, *token;
} Ways;

/* Trie of n distinct pieces sorted by bytes; piece i is pieces[ends[i - 1]] ... pieces[ends[i] - 1], id ids[i].
 * The arrays have place for one node more than the pieces have bytes. first, last, depth are scratch of that size.
 * Returns the number of nodes. */
EXPORT int64_t unigram_build(int64_t n, const uint8_t *pieces, const int64_t *ends, const int32_t *ids, uint8_t *bytes,
                             int32_t *children, int32_t *tokens, int32_t *first, int32_t *last, int32_t *depth) {
    int64_t nodes = 1;
    bytes[0] = 0, first[0] = 0, last[0] = (int32_t)n, depth[0] = 0;
    for (int64_t node = 0; node < nodes; node++) {
        int32_t row = first[node];
        const int32_t end = last[node], d = depth[node];
        children[node] = (int32_t)nodes;
        tokens[node] = NONE;
        if (row < end && ends[row] - (row ? ends[row - 1] : 0) == d) tokens[node] = d ? ids[row] : NONE, row++;
        while (row < end) {
            const uint8_t byte = pieces[(row ? ends[row - 1] : 0) + d];
            bytes[nodes] = byte, first[nodes] = row, depth[nodes] = d + 1;
            while (row < end && pieces[(row ? ends[row - 1] : 0) + d] == byte) row++;
            last[nodes++] = row;
        }
    }
    children[nodes] = (int32_t)nodes;
    return nodes;
}

static int32_t child(const Vocabulary *v, int32_t node, uint8_t byte) {
    int32_t low = v->children[node], high = v->children[node + 1];
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        if (v->bytes[middle] < byte) low = middle + 1;
        else high = middle;
    }
    return low < v->children[node + 1] && v->bytes[low] == byte ? low : NONE;
}

static int64_t character(const uint8_t *text, int64_t at, int64_t end) {
    int64_t next = at + 1;
    while (next < end && (text[next] & 0xC0) == 0x80) next++;
    return next;
}

static void offer(const Ways *ways, int64_t end, double score, int64_t start, int32_t token) {
    if (ways->start[end] == NONE || score > ways->score[end]) {
        ways->score[end] = score;
        ways->start[end] = (int32_t)start;
        ways->token[end] = token;
    }
}

/* Tokens of one word, written to out; their number. */
static int64_t segment(const Vocabulary *v, const uint8_t *word, int64_t length, const Ways *ways, int32_t *out) {
    for (int64_t i = 0; i <= length; i++) ways->start[i] = NONE;
    ways->score[0] = 0.0;
    for (int64_t start = 0, next; start < length; start = next) {
        const double score = ways->score[start]; /* every character can at least be spelled in bytes */
        int known = 0;
        next = character(word, start, length);
        for (int64_t end = start, node = 0; end < length && (node = child(v, (int32_t)node, word[end])) != NONE;) {
            end++;
            if (v->tokens[node] == NONE) continue;
            known |= end == next;
            offer(ways, end, v->scores[v->tokens[node]] + score, start, v->tokens[node]);
        }
        if (!known) offer(ways, next, v->unknown + score, start, NONE);
    }
    int64_t count = 0;
    for (int64_t end = length; end > 0; end = ways->start[end]) {
        if (ways->token[end] != NONE) out[count++] = ways->token[end];
        else
            for (int64_t i = end; i > ways->start[end]; i--) out[count++] = v->of_byte[word[i - 1]];
    }
    for (int64_t i = 0; i < count / 2; i++) {
        const int32_t swapped = out[i];
        out[i] = out[count - 1 - i], out[count - 1 - i] = swapped;
    }
    return count;
}

/* Bytes of the white space at a place, 0 if there is none: what is left of it after NFKC. */
static int64_t white_space(const uint8_t *text, int64_t at, int64_t end) {
    const uint8_t byte = text[at];
    if (byte == ' ' || (byte >= '\t' && byte <= '\r')) return 1;
    if (byte == 0xC2 && at + 1 < end && text[at + 1] == 0x85) return 2; /* U+0085 */
    if (at + 2 >= end) return 0;
    if (byte == 0xE1 && text[at + 1] == 0x9A && text[at + 2] == 0x80) return 3;                          /* U+1680 */
    if (byte == 0xE2 && text[at + 1] == 0x80 && (text[at + 2] == 0xA8 || text[at + 2] == 0xA9)) return 3; /* U+2028 */
    return 0;
}

/* The text with every run of white space as one SPACE, and a SPACE before it; its length. */
static int64_t respaced(const uint8_t *text, int64_t length, uint8_t *out) {
    int64_t size = 0;
    const int begins = length >= 3 && !memcmp(text, SPACE, 3);
    if (length && !begins && !white_space(text, 0, length)) memcpy(out, SPACE, 3), size = 3;
    for (int64_t at = 0; at < length;) {
        int64_t white = white_space(text, at, length);
        if (!white) {
            out[size++] = text[at++];
            continue;
        }
        for (; white; white = at < length ? white_space(text, at, length) : 0) at += white;
        memcpy(out + size, SPACE, 3);
        size += 3;
    }
    return size;
}

/* Tokens of n texts one after another in out, and how many each has in counts. Text i is text[starts[i]] ...
 * text[starts[i + 1] - 1]. With L the length of the longest text: spaced, start and token have place for 3 L + 4,
 * score as well; out for 3 tokens a byte and 3 a text. */
EXPORT void unigram_encode(const Vocabulary *v, int64_t n, const uint8_t *text, const int64_t *starts, int32_t *out,
                           int64_t *counts, uint8_t *spaced, double *score, int32_t *start, int32_t *token) {
    const Ways ways = {score, start, token};
    for (int64_t i = 0; i < n; i++) {
        const int64_t length = respaced(text + starts[i], starts[i + 1] - starts[i], spaced);
        int64_t total = 0;
        for (int64_t word = 0, end; word < length; word = end) {
            for (end = word + 3; end < length && (end + 3 > length || memcmp(spaced + end, SPACE, 3)); end++) {}
            total += segment(v, spaced + word, end - word, &ways, out + total);
        }
        out += total;
        counts[i] = total;
    }
}

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_unigram", "Functions for ctypes; see unigram.c", -1,
                                    NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__unigram(void) { return PyModule_Create(&module); }
