/* Block selection on the CPU in one scan of the pooled keys: scores and top-k together, no matrix of scores.

Maths: naive.py. Keys are read once, in tiles of 16, as they lie: a register holds one number of up to 16 queries. Every
query holds its best candidates in a short buffer, in ascending order of index; a score enters if
it beats the k-th best so far, which soon almost none does. Long histories are cut into segments for the threads. Of
equal scores the lowest index wins, so results do not depend on the segments. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 16
#define GROUP 16 /* queries that share a pass over a tile */
#define SHORTEST 1024

typedef struct {
  float *score;
  int32_t *index;
  int count;
  float bar; /* scores up to this one cannot be among the best k */
} Best;

/* The k-th largest of n numbers (no NaN), 1 <= k <= n, by bisection on integers of the same order: counting has no
branches to mispredict. `room` holds n integers. */
static float kth_largest(const float *x, int n, int k, int32_t *room) {
  union {
    float number;
    int32_t bits;
  } as;
  int32_t low = INT32_MAX, high = INT32_MIN;
  for (int i = 0; i < n; i++) {
    as.number = x[i] + 0.0f; /* -0 is 0 */
    room[i] = as.bits ^ ((as.bits >> 31) & INT32_MAX);
    low = room[i] < low ? room[i] : low;
    high = room[i] > high ? room[i] : high;
  }
  while (low < high) {
    int32_t middle = (int32_t)(((int64_t)low + high + 1) >> 1);
    int reached = 0;
    for (int i = 0; i < n; i++) reached += room[i] >= middle;
    if (reached >= k)
      low = middle;
    else
      high = middle - 1;
  }
  as.bits = low ^ ((low >> 31) & INT32_MAX);
  return as.number;
}

/* Keep the k best candidates; `room` holds as many numbers as there are candidates. */
static void shrink(Best *best, int k, int32_t *room) {
  if (best->count <= k) return;
  float bar = kth_largest(best->score, best->count, k, room);
  int above = 0, kept = 0;
  for (int i = 0; i < best->count; i++) above += best->score[i] > bar;
  int ties = k - above;
  for (int i = 0; i < best->count; i++) {
    int take = best->score[i] > bar;
    if (!take && best->score[i] == bar && ties > 0) ties--, take = 1;
    best->score[kept] = best->score[i];
    best->index[kept] = best->index[i];
    kept += take;
  }
  best->count = kept;
  best->bar = bar;
}

#ifdef __AVX512F__
#define LANES 16
#define KEYS 8 /* keys whose scores fit the registers */
#elif defined(__AVX__)
#define LANES 8
#define KEYS 4
#else
#define LANES 4
#define KEYS 2
#endif
#define PARTS (GROUP / LANES)
typedef float Part __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES), aligned(4)));

/* Scores [16][16] of 16 keys against 16 queries, queries as [dim][16]; `best` is the highest of each query, or -inf. */
static void scores(const float *const *keys, const float *queries, int dim, float *out, float *best) {
  Part high[PARTS];
  for (int i = 0; i < PARTS; i++) high[i] = (Part){0} - INFINITY;
  for (int j = 0; j < TILE; j += KEYS) {
    Part held[KEYS][PARTS] = {{{0}}};
    for (int d = 0; d < dim; d++) {
      Part query[PARTS];
      for (int i = 0; i < PARTS; i++) query[i] = *(const Part *)(queries + d * GROUP + i * LANES);
      for (int l = 0; l < KEYS; l++)
        for (int i = 0; i < PARTS; i++) held[l][i] += keys[j + l][d] * query[i];
    }
    for (int l = 0; l < KEYS; l++)
      for (int i = 0; i < PARTS; i++) {
        *(Part *)(out + (j + l) * GROUP + i * LANES) = held[l][i];
        Whole above = held[l][i] > high[i]; /* never NaN */
        high[i] = (Part)(((Whole)held[l][i] & above) | ((Whole)high[i] & ~above));
      }
  }
  for (int i = 0; i < PARTS; i++) *(Part *)(best + i * LANES) = high[i];
}

/* One segment of the keys of one head against all its queries. */
static void scan(const float *turned, const float *keys, int64_t stride, int dim, int num_queries, int k, int start,
                 int stop, const int32_t *limit, const int32_t *first, Best *best, int32_t *room, int space) {
  float out[GROUP * TILE] __attribute__((aligned(64))), highest[GROUP] __attribute__((aligned(64)));
  const float *tile[TILE];
  for (int base = start; base < stop; base += TILE) {
    int width = stop - base < TILE ? stop - base : TILE;
    if (base + 3 * TILE <= stop) /* the tile after the next: one row of memory is too short for the processor to see */
      for (int l = 0; l < TILE; l++)
        for (int d = 0; d < dim; d += 16) __builtin_prefetch(keys + (base + 2 * TILE + l) * stride + d);
    for (int l = 0; l < TILE; l++) tile[l] = keys + (base + (l < width ? l : width - 1)) * stride;
    for (int q0 = 0; q0 < num_queries; q0 += GROUP) {
      scores(tile, turned + (int64_t)q0 * dim, dim, out, highest);
      int last = num_queries - q0 < GROUP ? num_queries - q0 : GROUP;
      for (int g = 0; g < last; g++) {
        Best *held = best + q0 + g;
        if (!(highest[g] > held->bar)) continue;
        int low = first ? first[q0 + g] - base : 0, high = limit[q0 + g] - base;
        if (high > width) high = width;
        if (low < 0) low = 0;
        const float *column = out + g;
        for (int l = low; l < high; l++)
          if (column[l * GROUP] > held->bar) {
            held->score[held->count] = column[l * GROUP];
            held->index[held->count++] = base + l;
          }
        if (held->count > space - TILE) shrink(held, k, room);
      }
    }
  }
  for (int q = 0; q < num_queries; q++) shrink(best + q, k, room);
}

/* q fp32 [batch, heads, num_queries, dim]; keys fp32 with strides (in numbers) of batch, head and block; limit and
first (may be null) int32 [1 or batch, num_queries] with strides limit_batch, first_batch; lists int32 [batch, heads,
num_queries, k], zeroed; counts int32 [batch, heads, num_queries]. Returns 0, or 1 if memory is short. */
int select_blocks(const float *q, const float *keys, int64_t key_batch, int64_t key_head, int64_t key_block,
                  const int32_t *limit, int limit_batch, const int32_t *first, int first_batch, int batch, int heads,
                  int num_queries, int num_keys, int dim, int k, int32_t *lists, int32_t *counts, int threads) {
  int end = 0;
  for (int i = 0; i < (limit_batch ? batch : 1) * num_queries; i++)
    if (limit[i] > end) end = limit[i];
  if (end > num_keys) end = num_keys;
  int begin = end;
  for (int i = 0; first && i < (first_batch ? batch : 1) * num_queries; i++)
    if (first[i] < begin) begin = first[i];
  if (!first || begin < 0) begin = 0;
  begin -= begin % TILE;
  int planes = batch * heads, failed = 0, segments = 1;
  /* Enough tasks to keep the threads busy to the end. */
  while (threads > 1 && planes * segments < 4 * threads && (end - begin) / (segments + 1) >= SHORTEST) segments++;
  int length = ((end - begin) / segments / TILE + 1) * TILE;
  int groups = (num_queries + GROUP - 1) / GROUP, space = 2 * k + 4 * TILE;
  int64_t rows = (int64_t)planes * num_queries;
  float *part_score = malloc(sizeof(float) * rows * segments * k);
  int32_t *part_index = malloc(sizeof(int32_t) * rows * segments * k);
  int32_t *part_count = malloc(sizeof(int32_t) * rows * segments);
  if (!part_score || !part_index || !part_count) failed = 1;

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *turned = calloc((size_t)groups * GROUP * dim, sizeof(float));
    int longest = space > segments * k ? space : segments * k;
    float *score = malloc(sizeof(float) * num_queries * space);
    int32_t *room = malloc(sizeof(int32_t) * longest), *index = malloc(sizeof(int32_t) * num_queries * space);
    Best *best = malloc(sizeof(Best) * num_queries);
    int short_of = !turned || !room || !score || !index || !best;
    if (short_of) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic)
      for (int task = 0; task < planes * segments; task++) {
        int plane = task / segments, segment = task % segments, b = plane / heads, h = plane % heads;
        const float *rows_q = q + (int64_t)plane * num_queries * dim;
        for (int n = 0; n < num_queries; n++)
          for (int d = 0; d < dim; d++)
            turned[((int64_t)(n / GROUP) * dim + d) * GROUP + n % GROUP] = rows_q[(int64_t)n * dim + d];
        for (int n = 0; n < num_queries; n++)
          best[n] = (Best){score + (int64_t)n * space, index + (int64_t)n * space, 0, -INFINITY};
        int start = begin + segment * length, stop = start + length < end ? start + length : end;
        scan(turned, keys + b * key_batch + h * key_head, key_block, dim, num_queries, k, start, stop,
             limit + (int64_t)b * limit_batch, first ? first + (int64_t)b * first_batch : NULL, best, room, space);
        for (int n = 0; n < num_queries; n++) {
          int64_t at = ((int64_t)plane * num_queries + n) * segments + segment;
          part_count[at] = best[n].count;
          memcpy(part_score + at * k, best[n].score, sizeof(float) * best[n].count);
          memcpy(part_index + at * k, best[n].index, sizeof(int32_t) * best[n].count);
        }
      }
      /* The best of all segments, which follow each other in ascending order. */
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; row++) {
        Best all = {part_score + row * segments * k, part_index + row * segments * k, 0, -INFINITY};
        for (int segment = 0; segment < segments; segment++) {
          int64_t at = (row * segments + segment) * k;
          int count = part_count[row * segments + segment];
          memmove(all.score + all.count, part_score + at, sizeof(float) * count);
          memmove(all.index + all.count, part_index + at, sizeof(int32_t) * count);
          all.count += count;
        }
        shrink(&all, k, room);
        memcpy(lists + row * k, all.index, sizeof(int32_t) * all.count);
        counts[row] = all.count;
      }
    }
    free(turned), free(room), free(score), free(index), free(best);
  }
  free(part_score), free(part_index), free(part_count);
  return failed;
}
