/* Block-sparse attention on the CPU in place: keys and values are read where they lie, each once a query block.

Maths: naive.py. A register holds one number of up to 15 queries, so logits, softmax and log-sum-exp need no sums across
its lanes, and a key is multiplied as it lies in memory. Lists of a long history lead all over it: the pages of a
task's blocks are looked up at once, and the rows some keys ahead are fetched while these are computed, so a longer
history costs little more. Keys and values may be stored in 16 bits, half the traffic; they are widened in the first
cache, and all is computed in fp32. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

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
#define RUN 6    /* tasks that a thread takes at once: all but the first find their first keys fetched */
#define LINE 64  /* bytes of the cache */
#define PAGE 4096

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

/* Keys or values of a head, [rows][dim]. */
typedef struct {
  const char *start;
  int64_t stride; /* of rows, in bytes */
  int dim, half;  /* half: fp16, else fp32 */
} Table;

static Table table(const void *x, int half, int dim, int64_t offset, int64_t stride) {
  int64_t size = half ? sizeof(uint16_t) : sizeof(float);
  return (Table){(const char *)x + offset * size, stride * size, dim, half};
}

/* Ask for a row, into the second cache: more requests can be under way than into the first. */
static inline void fetch(Table from, int64_t row) {
  const char *at = from.start + row * from.stride;
  int bytes = from.dim * (from.half ? sizeof(uint16_t) : sizeof(float));
  for (int i = 0; i < bytes; i += LINE) __builtin_prefetch(at + i, 0, 2);
}

/* fp16 to fp32, exactly; dim is a multiple of 8. */
static inline void widen(const uint16_t *x, int dim, float *out) {
#if defined(__AVX512F__)
  for (int d = 0; d < dim; d += 16) _mm512_storeu_ps(out + d, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(x + d))));
#elif defined(__F16C__)
  for (int d = 0; d < dim; d += 8) _mm256_storeu_ps(out + d, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(x + d))));
#else
  for (int d = 0; d < dim; d++) {
    /* The exponent moves to where fp32 has it, and a factor corrects its bias, of subnormal numbers too. */
    union {
      uint32_t bits;
      float number;
    } as = {(uint32_t)(x[d] & 0x7fff) << 13}, factor = {0x77800000};
    as.number *= factor.number;
    as.bits |= (x[d] & 0x7c00) == 0x7c00 ? 0x7f800000 : 0; /* infinity, NaN */
    as.bits |= (uint32_t)(x[d] & 0x8000) << 16;
    out[d] = as.number;
  }
#endif
}

/* A row in fp32: where it lies, or widened into `room`. */
static inline const float *numbers(Table from, int64_t row, float *room) {
  const char *at = from.start + row * from.stride;
  if (!from.half) return (const float *)at;
  widen((const uint16_t *)at, from.dim, room);
  return room;
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

/* What `attend` is asked. */
typedef struct {
  const float *q;
  const void *keys, *values;
  const int64_t *key, *value, *list, *count;
  const int32_t *lists, *counts, *sizes;
  int half, heads, num_queries, q_block, kv_block, dim;
  float scale;
  float *out, *lse;
} Call;

/* Up to MOST queries of a block, and the keys that they see. */
typedef struct {
  Table keys, values;
  int64_t query, *rows;
  int used, found;
} Task;

/* Memory of a thread. */
typedef struct {
  float *turned, *mixed, *weights, *wide;
  int64_t *rows[2];
} Room;

/* Ask for the first and the last line of every block. A line whose page is unknown holds up what comes after it, however
far ahead it is fetched; pages asked for at once are looked up side by side. Compilers drop calls that only fetch, so it
is always inlined. */
static inline __attribute__((always_inline)) void visit(Table from, const int32_t *blocks, int count, int size) {
  int64_t row = from.dim * (from.half ? sizeof(uint16_t) : sizeof(float)), last = (size - 1) * from.stride + row - 1;
  for (int i = 0; i < count; i++) {
    const char *at = from.start + (int64_t)blocks[i] * size * from.stride;
    __builtin_prefetch(at, 0, 2);
    if (((uintptr_t)at ^ (uintptr_t)(at + last)) >= PAGE) __builtin_prefetch(at + last, 0, 2);
  }
}

static Task look(const Call *call, int64_t number, int64_t *rows) {
  int parts = (call->q_block + MOST - 1) / MOST;
  int64_t part = number % parts, n = number / parts % call->num_queries;
  int64_t plane = number / parts / call->num_queries, h = plane % call->heads, b = plane / call->heads;
  int64_t first = part * MOST, left = call->q_block - first;
  const int64_t *key = call->key, *value = call->value, *list = call->list, *count = call->count;
  Task task = {table(call->keys, call->half, call->dim, b * key[0] + h * key[1], key[2]),
               table(call->values, call->half, call->dim, b * value[0] + h * value[1], value[2]),
               (plane * call->num_queries + n) * call->q_block + first, rows, left < MOST ? left : MOST, 0};
  const int32_t *listed = call->lists + b * list[0] + h * list[1] + n * list[2];
  int length = call->counts[b * count[0] + h * count[1] + n], size = call->kv_block;
  for (int i = 0; i < length; i++) {
    int real = call->sizes && call->sizes[listed[i]] < size ? call->sizes[listed[i]] : size;
    for (int j = 0; j < real; j++) rows[task.found++] = (int64_t)listed[i] * size + j;
  }
  visit(task.keys, listed, length, size), visit(task.values, listed, length, size);
  return task;
}

/* One task; AHEAD of its keys have been asked for. Those of the next one are, in the end. */
static void work(const Call *call, const Task *task, const Task *next, const Room *room) {
  int dim = call->dim, used = task->used, found = task->found;
  int64_t token = task->query, *rows = task->rows;
  if (!found) {
    memset(call->out + token * dim, 0, sizeof(float) * used * dim);
    for (int r = 0; r < used; r++) call->lse[token + r] = -INFINITY;
    for (int j = 0; next && j < AHEAD && j < next->found; j++) fetch(next->keys, next->rows[j]);
    return;
  }
  int padded = (found + KEYS - 1) / KEYS * KEYS;
  for (int j = found; j < padded; j++) rows[j] = rows[0];
  for (int d = 0; d < dim; d++)
    for (int r = 0; r < WIDTH; r++) room->turned[d * WIDTH + r] = r < used ? call->q[(token + r) * dim + d] : 0.0f;
  for (int j = 0; j < padded; j += KEYS) {
    const float *some[KEYS];
    for (int i = 0; i < KEYS; i++) {
      some[i] = numbers(task->keys, rows[j + i], room->wide + i * dim);
      /* Behind the last keys come the first values. */
      int later = j + i + AHEAD;
      if (later < padded)
        fetch(task->keys, rows[later]);
      else if (later - padded < found)
        fetch(task->values, rows[later - padded]);
    }
    products(room->turned, some, dim, room->weights + j * WIDTH);
  }
  float sums[WIDTH], logs[WIDTH];
  softmax(room->weights, found, padded, call->scale, sums, logs);
  memset(room->mixed, 0, sizeof(float) * dim * WIDTH);
  for (int j = 0; j < found; j += CHUNK) {
    const float *some[CHUNK];
    int width = found - j < CHUNK ? found - j : CHUNK;
    for (int i = 0; i < width; i++) {
      some[i] = numbers(task->values, rows[j + i], room->wide + i * dim);
      /* Behind the last values come the next task's first keys. */
      int later = j + i + AHEAD;
      if (later < found)
        fetch(task->values, rows[later]);
      else if (next && later - found < next->found)
        fetch(next->keys, next->rows[later - found]);
    }
    for (int channel = 0; channel < dim; channel += 2 * LANES)
      for (int r = 0; r < used; r += ROWS)
        mix(room->weights + j * WIDTH + r, some, width, channel, dim, room->mixed + r * dim);
  }
  for (int r = 0; r < used; r++) {
    float share = 1.0f / sums[r];
    for (int d = 0; d < dim; d++) call->out[(token + r) * dim + d] = room->mixed[r * dim + d] * share;
    call->lse[token + r] = logs[r];
  }
}

/* q, out fp32 [batch, heads, num_queries * q_block, dim]; keys and values fp32 (fp16 if `half`), strides (in numbers) of
batch, head and token; lists int32, strides of batch, head and query block; counts int32, strides of batch and head;
sizes int32 or null; lse fp32 [batch, heads, num_queries * q_block]. dim is a multiple of twice the lanes of a register
(`channels`). Returns 0, or 1 if memory is short. */
int attend(const float *q, const void *keys, const int64_t *key, const void *values, const int64_t *value, int half,
           const int32_t *lists, const int64_t *list, const int32_t *counts, const int64_t *count, const int32_t *sizes,
           int batch, int heads, int num_queries, int q_block, int kv_block, int longest, int dim, float scale,
           float *out, float *lse, int threads) {
  Call call = {q,    keys,  values,      key,     value,    list, count, lists, counts, sizes,
               half, heads, num_queries, q_block, kv_block, dim,  scale, out,   lse};
  int64_t tasks = (int64_t)batch * heads * num_queries * ((q_block + MOST - 1) / MOST);
  int failed = 0, most = (longest * kv_block + CHUNK) / CHUNK * CHUNK + CHUNK;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Room room = {aligned_alloc(64, sizeof(float) * dim * WIDTH),
                 aligned_alloc(64, sizeof(float) * dim * WIDTH),
                 aligned_alloc(64, sizeof(float) * most * WIDTH),
                 aligned_alloc(64, sizeof(float) * dim * CHUNK),
                 {malloc(sizeof(int64_t) * most), malloc(sizeof(int64_t) * most)}};
    if (!room.turned || !room.mixed || !room.weights || !room.wide || !room.rows[0] || !room.rows[1]) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic)
      for (int64_t first = 0; first < tasks; first += RUN) {
        int64_t stop = first + RUN < tasks ? first + RUN : tasks;
        Task now = look(&call, first, room.rows[0]), next;
        for (int j = 0; j < AHEAD && j < now.found; j++) fetch(now.keys, now.rows[j]);
        for (int64_t number = first; number < stop; number++, now = next) {
          int more = number + 1 < stop;
          if (more) next = look(&call, number + 1, room.rows[(number + 1 - first) % 2]);
          work(&call, &now, more ? &next : NULL, &room);
        }
      }
    }
    free(room.turned), free(room.mixed), free(room.weights), free(room.wide), free(room.rows[0]), free(room.rows[1]);
  }
  return failed;
}

/* Head channels are a multiple of this. */
int channels(void) { return 2 * LANES; }
