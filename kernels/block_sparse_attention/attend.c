/* Block-sparse attention on the CPU in place: keys and values are read where they lie, each once a query block.

Maths: naive.py. A register holds one number of up to 15 queries, so logits, softmax and log-sum-exp need no sums across
its lanes, and a key is multiplied as it lies in memory. Lists of a long history lead all over it: the rows some
keys ahead are fetched while these are computed, so a longer history costs little more. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define KEYS 8
#elif defined(__AVX__)
#define LANES 8
#define KEYS 4
#else
#define LANES 4
#define KEYS 2
#endif
#define WIDTH 16 /* queries that are computed together ... */
#define MOST 15  /* ... of which as many are used: three times those whose output fits the registers */
#define ROWS 5
#define PARTS (WIDTH / LANES)
#define CHUNK 64 /* values that stay in the first cache while all outputs take them */
#define AHEAD 32 /* keys ahead of the ones computed */
#define LINE 16  /* numbers of a cache line */

typedef float Part __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES), aligned(4)));

static inline Part all(float x) { return x - (Part){0}; }

static inline Part larger(Part a, Part b) {
  Whole which = a > b;
  return (Part)(((Whole)a & which) | ((Whole)b & ~which));
}

/* 2^x for x <= 0, relative error below 2e-7; less than 2^-126 becomes that. */
static inline Part power(Part x) {
  x = larger(x, all(-126.0f));
  Whole whole = __builtin_convertvector(x - 0.5f, Whole); /* towards zero: the nearest */
  Part y = x - __builtin_convertvector(whole, Part);      /* -0.5 to 0.5 */
  Part p = all(1.5403530e-4f);
  p = p * y + 1.3333558e-3f;
  p = p * y + 9.6181291e-3f;
  p = p * y + 5.5504109e-2f;
  p = p * y + 2.4022651e-1f;
  p = p * y + 6.9314718e-1f;
  p = p * y + 1.0f;
  return p * (Part)((whole + 127) << 23);
}

/* Ask for a row of `dim` numbers, into the second cache: more requests can be under way than into the first. */
static inline void fetch(const float *row, int dim) {
  for (int d = 0; d < dim; d += LINE) __builtin_prefetch(row + d, 0, 2);
}

/* Logits [KEYS][WIDTH] of some keys: queries as [dim][WIDTH]. */
static void products(const float *queries, const float *const *keys, int dim, float *out) {
  Part held[KEYS][PARTS] = {{{0}}};
  for (int d = 0; d < dim; d++) {
    Part query[PARTS];
    for (int i = 0; i < PARTS; i++) query[i] = *(const Part *)(queries + d * WIDTH + i * LANES);
    for (int j = 0; j < KEYS; j++)
      for (int i = 0; i < PARTS; i++) held[j][i] += keys[j][d] * query[i];
  }
  for (int j = 0; j < KEYS; j++)
    for (int i = 0; i < PARTS; i++) *(Part *)(out + j * WIDTH + i * LANES) = held[j][i];
}

/* Add weights [count][WIDTH] (five of the lanes) times values, 2 LANES channels of them, to out [ROWS][dim]. */
static void mix(const float *weights, const float *const *values, int count, int channel, int dim, float *out) {
  Part held[ROWS][2];
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < 2; i++) held[r][i] = *(const Part *)(out + r * dim + channel + i * LANES);
  for (int j = 0; j < count; j++) {
    const Part *value = (const Part *)(values[j] + channel);
    Part one = value[0], two = value[1];
    for (int r = 0; r < ROWS; r++) {
      float weight = weights[j * WIDTH + r];
      held[r][0] += weight * one;
      held[r][1] += weight * two;
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < 2; i++) *(Part *)(out + r * dim + channel + i * LANES) = held[r][i];
}

/* Logits to weights, in place: their sum over the keys and the log-sum-exp of each query. */
static void softmax(float *weights, int count, int padded, float scale, float *sums, float *lse) {
  const float log2e = 1.44269504f, ln2 = 0.69314718f;
  for (int i = 0; i < PARTS; i++) {
    float *at = weights + i * LANES;
    Part top = all(-INFINITY), sum = {0};
    for (int j = 0; j < count; j++) {
      Part logit = *(Part *)(at + j * WIDTH) * (scale * log2e);
      *(Part *)(at + j * WIDTH) = logit;
      top = larger(top, logit);
    }
    for (int j = 0; j < count; j++) {
      Part weight = power(*(Part *)(at + j * WIDTH) - top);
      *(Part *)(at + j * WIDTH) = weight;
      sum += weight;
    }
    for (int j = count; j < padded; j++) *(Part *)(at + j * WIDTH) = (Part){0};
    for (int l = 0; l < LANES; l++) {
      sums[i * LANES + l] = sum[l];
      lse[i * LANES + l] = (top[l] + log2f(sum[l])) * ln2;
    }
  }
}

/* The tokens of a list. Returns how many. */
static int walk(const int32_t *list, int count, int kv_block, const int32_t *sizes, int64_t *rows) {
  int found = 0;
  for (int i = 0; i < count; i++) {
    int size = sizes ? sizes[list[i]] : kv_block;
    for (int j = 0; j < size && j < kv_block; j++) rows[found++] = (int64_t)list[i] * kv_block + j;
  }
  return found;
}

/* q, out fp32 [batch, heads, num_queries * q_block, dim]; keys and values fp32, strides (in numbers) of batch, head and
token; lists int32, strides of batch, head and query block; counts int32, strides of batch and head; sizes int32 or null;
lse fp32 [batch, heads, num_queries * q_block]. dim is a multiple of twice the lanes of a register (`channels`).
Returns 0, or 1 if memory is short. */
int attend(const float *q, const float *keys, const int64_t *key, const float *values, const int64_t *value,
           const int32_t *lists, const int64_t *list, const int32_t *counts, const int64_t *count, const int32_t *sizes,
           int batch, int heads, int num_queries, int q_block, int kv_block, int longest, int dim, float scale,
           float *out, float *lse, int threads) {
  int parts = (q_block + MOST - 1) / MOST, failed = 0;
  int64_t tasks = (int64_t)batch * heads * num_queries * parts;
  int room = (longest * kv_block + CHUNK) / CHUNK * CHUNK + CHUNK;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *turned = aligned_alloc(64, sizeof(float) * dim * WIDTH), *mixed = aligned_alloc(64, sizeof(float) * dim * WIDTH);
    float *weights = aligned_alloc(64, sizeof(float) * room * WIDTH);
    int64_t *rows = malloc(sizeof(int64_t) * room);
    if (!turned || !mixed || !weights || !rows) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic, 2)
      for (int64_t task = 0; task < tasks; task++) {
        int part = task % parts, n = task / parts % num_queries, h = task / parts / num_queries % heads;
        int64_t b = task / parts / num_queries / heads;
        int first = part * MOST, used = q_block - first < MOST ? q_block - first : MOST;
        int64_t token = ((b * heads + h) * num_queries + n) * q_block + first;
        const float *k = keys + b * key[0] + h * key[1], *v = values + b * value[0] + h * value[1];
        int found = walk(lists + b * list[0] + h * list[1] + n * list[2], counts[b * count[0] + h * count[1] + n],
                         kv_block, sizes, rows);
        if (!found) {
          memset(out + token * dim, 0, sizeof(float) * used * dim);
          for (int r = 0; r < used; r++) lse[token + r] = -INFINITY;
          continue;
        }
        int padded = (found + KEYS - 1) / KEYS * KEYS;
        for (int j = found; j < padded; j++) rows[j] = rows[0];
        for (int j = 0; j < AHEAD && j < found; j++) fetch(k + rows[j] * key[2], dim);
        for (int d = 0; d < dim; d++)
          for (int r = 0; r < WIDTH; r++) turned[d * WIDTH + r] = r < used ? q[(token + r) * dim + d] : 0.0f;
        for (int j = 0; j < padded; j += KEYS) {
          const float *some[KEYS];
          for (int i = 0; i < KEYS; i++) {
            some[i] = k + rows[j + i] * key[2];
            /* Behind the last keys come the first values. */
            int next = j + i + AHEAD;
            fetch(next < padded ? k + rows[next] * key[2] : v + rows[(next - padded) % found] * value[2], dim);
          }
          products(turned, some, dim, weights + j * WIDTH);
        }
        float sums[WIDTH], logs[WIDTH];
        softmax(weights, found, padded, scale, sums, logs);
        memset(mixed, 0, sizeof(float) * dim * WIDTH);
        for (int j = 0; j < found; j += CHUNK) {
          const float *some[CHUNK];
          int width = found - j < CHUNK ? found - j : CHUNK;
          for (int i = 0; i < width; i++) {
            some[i] = v + rows[j + i] * value[2];
            if (j + i + AHEAD < found) fetch(v + rows[j + i + AHEAD] * value[2], dim);
          }
          for (int channel = 0; channel < dim; channel += 2 * LANES)
            for (int r = 0; r < used; r += ROWS)
              mix(weights + j * WIDTH + r, some, width, channel, dim, mixed + r * dim);
        }
        for (int r = 0; r < used; r++) {
          float share = 1.0f / sums[r];
          for (int d = 0; d < dim; d++) out[(token + r) * dim + d] = mixed[r * dim + d] * share;
          lse[token + r] = logs[r];
        }
      }
    }
    free(turned), free(mixed), free(weights), free(rows);
  }
  return failed;
}

/* Head channels are a multiple of this. */
int channels(void) { return 2 * LANES; }
