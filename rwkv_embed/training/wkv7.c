/* Forward and backward of the RWKV-7 recurrence over packed sequences, for training on a CPU.

   Per sequence and head, with a 64x64 state S (rows i of the value, columns j of the key), from S = 0:
       sa_i = sum_j S_ij a_j;   S_ij = S_ij w_j + sa_i b_j + v_i k_j;   y_i = sum_j S_ij r_j
   Inputs are (tokens, H, 64) float32; `starts` holds the first token of each sequence and, last, the number
   of tokens. The backward pass keeps the state at every CHUNK-th token and recomputes the ones between.
   `readout` is for texts that are read at their ends alone: y = S r = sum_t v_t (k_t . u_t) with u = r at the
   end and, from a token to the one before it, u_j = u_j w_j + a_j (b . u). O(N) a token and head, not O(N^2).
   Checked against autograd in float64: tests/training/test_recurrence.py. */

#include <stdlib.h>
#include <string.h>

#define N 64
#define CHUNK 16
#define R restrict /* no two arrays overlap; without it the loops are not vectorised */

static void step(float *R S, const float *R w, const float *R k, const float *R v, const float *R a, const
                 float *R b, float *R sa_out) {
  for (int i = 0; i < N; i++) {
    float *row = S + i * N, sa = 0;
    for (int j = 0; j < N; j++) sa += row[j] * a[j];
    const float vi = v[i];
    for (int j = 0; j < N; j++) row[j] = row[j] * w[j] + sa * b[j] + vi * k[j];
    sa_out[i] = sa;
  }
}

void wkv7_forward(int sequences, int H, const long *starts, const float *R r, const float *R w, const
                  float *R k, const float *R v, const float *R a, const float *R b, float *y) {
#pragma omp parallel for collapse(2) schedule(dynamic, 4)
  for (int s = 0; s < sequences; s++)
    for (int h = 0; h < H; h++) {
      float S[N * N] = {0}, sa[N];
      for (long t = starts[s]; t < starts[s + 1]; t++) {
        const long at = (t * H + h) * N;
        step(S, w + at, k + at, v + at, a + at, b + at, sa);
        for (int i = 0; i < N; i++) {
          float sum = 0;
          for (int j = 0; j < N; j++) sum += S[i * N + j] * r[at + j];
          y[at + i] = sum;
        }
      }
    }
}

static void step_backward(float *R dS, const float *R S, const float *R before, const float *R r, const
                        float *R w, const float *R k, const float *R v, const float *R a, const float *R
                        b, const float *R sa, const float *R dy, float *R dr, float *R dw, float *dk,
                        float *dv, float *da, float *db) {
  float gr[N] = {0}, gw[N] = {0}, gk[N] = {0}, ga[N] = {0}, gb[N] = {0};
  for (int i = 0; i < N; i++) {
    float *R d = dS + i * N, dvi = 0, dsa = 0;
    const float *R now = S + i * N, *R old = before + i * N, g = dy[i], vi = v[i], sai = sa[i];
    for (int j = 0; j < N; j++) {
      d[j] += g * r[j];
      dvi += d[j] * k[j];
      dsa += d[j] * b[j];
    }
    for (int j = 0; j < N; j++) {
      gr[j] += now[j] * g;
      gw[j] += d[j] * old[j];
      gk[j] += d[j] * vi;
      gb[j] += d[j] * sai;
      ga[j] += old[j] * dsa;
      d[j] = d[j] * w[j] + dsa * a[j];
    }
    dv[i] = dvi;
  }
  memcpy(dr, gr, sizeof gr), memcpy(dw, gw, sizeof gw), memcpy(dk, gk, sizeof gk);
  memcpy(da, ga, sizeof ga), memcpy(db, gb, sizeof gb);
}

void wkv7_backward(int sequences, int H, const long *starts, const float *R r, const float *R w, const
                   float *R k, const float *R v, const float *R a, const float *R b, const float *R dy,
                   float *R dr, float *R dw, float *dk, float *dv, float *da, float *db) {
#pragma omp parallel for collapse(2) schedule(dynamic, 4)
  for (int s = 0; s < sequences; s++)
    for (int h = 0; h < H; h++) {
      const long begin = starts[s], length = starts[s + 1] - begin, chunks = (length + CHUNK - 1) / CHUNK;
      /* the states at the chunks' starts, then those inside one chunk */
      float *kept = malloc(sizeof(float) * N * N * (chunks + CHUNK + 1));
      float *states = kept + N * N * chunks, S[N * N] = {0}, dS[N * N] = {0}, sa[CHUNK][N];
      for (long t = 0; t < length; t++) {
        const long at = ((begin + t) * H + h) * N;
        if (t % CHUNK == 0) memcpy(kept + N * N * (t / CHUNK), S, sizeof S);
        step(S, w + at, k + at, v + at, a + at, b + at, sa[0]);
      }
      for (long c = chunks - 1; c >= 0; c--) {
        const long first = c * CHUNK, last = first + CHUNK < length ? first + CHUNK : length;
        memcpy(states, kept + N * N * c, sizeof S);
        for (long t = first; t < last; t++) {
          const long at = ((begin + t) * H + h) * N;
          float *next = states + N * N * (t - first + 1);
          memcpy(next, next - N * N, sizeof S);
          step(next, w + at, k + at, v + at, a + at, b + at, sa[t - first]);
        }
        for (long t = last - 1; t >= first; t--) {
          const long at = ((begin + t) * H + h) * N;
          const float *R now = states + N * N * (t - first + 1);
          step_backward(dS, now, now - N * N, r + at, w + at, k + at, v + at, a + at, b + at, sa[t - first],
                        dy + at, dr + at, dw + at, dk + at, dv + at, da + at, db + at);
        }
      }
      free(kept);
    }
}

static float dot(const float *R x, const float *R y) {
  float sum = 0;
  for (int i = 0; i < N; i++) sum += x[i] * y[i];
  return sum;
}

static void step_back(const float *R u, const float *R w, const float *R a, const float *R b, float *R next) {
  const float seen = dot(b, u);
  for (int i = 0; i < N; i++) next[i] = u[i] * w[i] + a[i] * seen;
}

/* weights (tokens, H) = k_t . u_t of sequences that end before `ends`; r (sequences, H, 64). */
void readout_forward(int sequences, int H, const long *starts, const long *ends, const float *R r, const
                     float *R w, const float *R k, const float *R a, const float *R b, float *R weights) {
#pragma omp parallel for collapse(2) schedule(dynamic, 4)
  for (int s = 0; s < sequences; s++)
    for (int h = 0; h < H; h++) {
      float u[2][N];
      memcpy(u[0], r + ((long)s * H + h) * N, sizeof u[0]);
      int now = 0;
      for (long t = ends[s] - 1; t >= starts[s]; t--, now = !now) {
        const long at = (t * H + h) * N;
        weights[t * H + h] = dot(k + at, u[now]);
        step_back(u[now], w + at, a + at, b + at, u[!now]);
      }
    }
}

void readout_backward(int sequences, int H, const long *starts, const long *ends, const float *R r, const
                      float *R w, const float *R k, const float *R a, const float *R b, const float *R dweights,
                      float *R dr, float *R dw, float *R dk, float *R da, float *R db) {
#pragma omp parallel for collapse(2) schedule(dynamic, 4)
  for (int s = 0; s < sequences; s++)
    for (int h = 0; h < H; h++) {
      const long begin = starts[s], length = ends[s] - begin;
      float *us = malloc(sizeof(float) * N * (length + 1)); /* u after each token, and the one before the first */
      memcpy(us + length * N, r + ((long)s * H + h) * N, sizeof(float) * N);
      for (long t = length - 1; t >= 0; t--) {
        const long at = ((begin + t) * H + h) * N;
        step_back(us + (t + 1) * N, w + at, a + at, b + at, us + t * N);
      }
      float d[N] = {0}; /* gradient of u, from the beginning of the text to its end */
      for (long t = 0; t < length; t++) {
        const long token = (begin + t) * H + h, at = token * N;
        const float *R u = us + (t + 1) * N;
        const float seen = dot(b + at, u), removed = dot(a + at, d), g = dweights[token];
        for (int i = 0; i < N; i++) {
          dw[at + i] = d[i] * u[i];
          da[at + i] = d[i] * seen;
          db[at + i] = removed * u[i];
          dk[at + i] = g * u[i];
          d[i] = d[i] * w[at + i] + removed * b[at + i] + g * k[at + i];
        }
      }
      memcpy(dr + ((long)s * H + h) * N, d, sizeof d);
      free(us);
    }
}
