/* Block selection on the CPU in one scan of the pooled keys: scores and top-k together, no matrix of scores.

Maths: naive.py. Keys are read once, in tiles of 16 that are turned around so that 16 scores fill a vector; six queries
share a tile. Every query holds its best candidates in a short buffer, in ascending order of index; a score enters if
it beats the k-th best so far, which soon almost none does. Long histories are cut into segments for the threads. Of
equal scores the lowest index wins, so results do not depend on the segments. */

#ifdef __AVX__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 16
#define GROUP 6
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

/* As many numbers as a register holds. A tile is one of them, or pairs: wider types than a register end up in memory. */
#ifdef __AVX512F__
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float Part __attribute__((vector_size(4 * LANES)));

typedef float Four __attribute__((vector_size(16), aligned(4)));
typedef int32_t Order __attribute__((vector_size(16)));
#ifdef __clang__
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (Order){i, j, k, l})
#endif

#ifdef __AVX__
/* Four numbers of two rows, side by side. */
static inline __m256 both(const float *one, const float *other) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(one)), _mm_loadu_ps(other), 1);
}
#endif

/* Turn 16 keys [16][dim] around to [dim][16]. */
static void turn(const float *keys, int64_t stride, int dim, float *tile) {
  int d = 0;
#ifdef __AVX__
  for (; d + 4 <= dim; d += 4)
    for (int l = 0; l < TILE; l += 8) {
      const float *from = keys + l * stride + d;
      __m256 a = both(from, from + 4 * stride), b = both(from + stride, from + 5 * stride);
      __m256 c = both(from + 2 * stride, from + 6 * stride), e = both(from + 3 * stride, from + 7 * stride);
      __m256 ab = _mm256_unpacklo_ps(a, b), ce = _mm256_unpacklo_ps(c, e);
      __m256 AB = _mm256_unpackhi_ps(a, b), CE = _mm256_unpackhi_ps(c, e);
      float *to = tile + d * TILE + l;
      _mm256_store_ps(to, _mm256_shuffle_ps(ab, ce, 0x44));
      _mm256_store_ps(to + TILE, _mm256_shuffle_ps(ab, ce, 0xee));
      _mm256_store_ps(to + 2 * TILE, _mm256_shuffle_ps(AB, CE, 0x44));
      _mm256_store_ps(to + 3 * TILE, _mm256_shuffle_ps(AB, CE, 0xee));
    }
#endif
  for (; d + 4 <= dim; d += 4)
    for (int l = 0; l < TILE; l += 4) {
      const float *from = keys + l * stride + d;
      Four a = *(const Four *)from, b = *(const Four *)(from + stride);
      Four c = *(const Four *)(from + 2 * stride), e = *(const Four *)(from + 3 * stride);
      Four ab = PICK(a, b, 0, 4, 1, 5), ce = PICK(c, e, 0, 4, 1, 5);
      Four AB = PICK(a, b, 2, 6, 3, 7), CE = PICK(c, e, 2, 6, 3, 7);
      float *to = tile + d * TILE + l;
      *(Four *)to = PICK(ab, ce, 0, 1, 4, 5);
      *(Four *)(to + TILE) = PICK(ab, ce, 2, 3, 6, 7);
      *(Four *)(to + 2 * TILE) = PICK(AB, CE, 0, 1, 4, 5);
      *(Four *)(to + 3 * TILE) = PICK(AB, CE, 2, 3, 6, 7);
    }
  for (; d < dim; d++)
    for (int l = 0; l < TILE; l++) tile[d * TILE + l] = keys[l * stride + d];
}

/* Scores [6][16] of 16 keys against six queries: keys as [dim][16], queries as [dim][6]. */
static void scores(const float *keys, const float *queries, int dim, float *out) {
#if LANES == TILE
  Part a = {0}, b = {0}, c = {0}, d = {0}, e = {0}, f = {0};
  for (int i = 0; i < dim; i++, queries += GROUP) {
    Part key = *(const Part *)(keys + i * TILE);
    a += queries[0] * key, b += queries[1] * key, c += queries[2] * key;
    d += queries[3] * key, e += queries[4] * key, f += queries[5] * key;
  }
  Part *to = (Part *)out;
  to[0] = a, to[1] = b, to[2] = c, to[3] = d, to[4] = e, to[5] = f;
#else
  for (int at = 0; at < TILE; at += 2 * LANES) {
    Part a = {0}, b = {0}, c = {0}, d = {0}, e = {0}, f = {0}, A = {0}, B = {0}, C = {0}, D = {0}, E = {0}, F = {0};
    const float *query = queries;
    for (int i = 0; i < dim; i++, query += GROUP) {
      Part one = *(const Part *)(keys + i * TILE + at), two = *(const Part *)(keys + i * TILE + at + LANES);
      a += query[0] * one, A += query[0] * two, b += query[1] * one, B += query[1] * two;
      c += query[2] * one, C += query[2] * two, d += query[3] * one, D += query[3] * two;
      e += query[4] * one, E += query[4] * two, f += query[5] * one, F += query[5] * two;
    }
    Part low[GROUP] = {a, b, c, d, e, f}, high[GROUP] = {A, B, C, D, E, F};
    for (int g = 0; g < GROUP; g++) {
      *(Part *)(out + g * TILE + at) = low[g];
      *(Part *)(out + g * TILE + at + LANES) = high[g];
    }
  }
#endif
}

/* One segment of the keys of one head against all its queries. */
static void scan(const float *turned, const float *keys, int64_t stride, int dim, int num_queries, int k, int start,
                 int stop, const int32_t *limit, const int32_t *first, Best *best, float *tile, int32_t *room, int space) {
  float out[GROUP * TILE] __attribute__((aligned(4 * TILE)));
  for (int base = start; base < stop; base += TILE) {
    int width = stop - base < TILE ? stop - base : TILE;
    if (base + 3 * TILE <= stop) /* the tile after the next: one row of memory is too short for the processor to see */
      for (int l = 0; l < TILE; l++)
        for (int d = 0; d < dim; d += 16) __builtin_prefetch(keys + (base + 2 * TILE + l) * stride + d);
    if (width == TILE)
      turn(keys + base * stride, stride, dim, tile);
    else
      for (int l = 0; l < width; l++)
        for (int d = 0; d < dim; d++) tile[d * TILE + l] = keys[(base + l) * stride + d];
    for (int q0 = 0; q0 < num_queries; q0 += GROUP) {
      scores(tile, turned + (int64_t)q0 * dim, dim, out);
      int last = num_queries - q0 < GROUP ? num_queries - q0 : GROUP;
      for (int g = 0; g < last; g++) {
        Best *held = best + q0 + g;
        int low = first ? first[q0 + g] - base : 0, high = limit[q0 + g] - base;
        if (high > width) high = width;
        if (low < 0) low = 0;
        const float *row = out + g * TILE;
        int any = 0;
        for (int l = 0; l < TILE; l++) any |= row[l] > held->bar;
        if (!any) continue;
        for (int l = low; l < high; l++)
          if (row[l] > held->bar) {
            held->score[held->count] = row[l];
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
    float *tile = aligned_alloc(4 * TILE, sizeof(float) * dim * TILE);
    if (tile) memset(tile, 0, sizeof(float) * dim * TILE);
    int longest = space > segments * k ? space : segments * k;
    float *score = malloc(sizeof(float) * num_queries * space);
    int32_t *room = malloc(sizeof(int32_t) * longest), *index = malloc(sizeof(int32_t) * num_queries * space);
    Best *best = malloc(sizeof(Best) * num_queries);
    int short_of = !turned || !tile || !room || !score || !index || !best;
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
             limit + (int64_t)b * limit_batch, first ? first + (int64_t)b * first_batch : NULL, best, tile, room, space);
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
    free(turned), free(tile), free(room), free(score), free(index), free(best);
  }
  free(part_score), free(part_index), free(part_count);
  return failed;
}
