/* Block selection on the CPU in one scan of the pooled keys: scores and top-k together, no matrix of scores.

Maths: naive.py. Keys are read once, in tiles of 16, as they lie: a register holds one number of up to 16 queries. Every
query holds its best candidates in a short buffer, in ascending order of index; a score enters if
it beats the k-th best so far, which soon almost none does. Long histories are cut into segments for the threads. Of
equal scores the lowest index wins, so results do not depend on the segments.

Where there are 8-bit copies of the keys (`encode`), a long segment is scanned in those, a quarter of the bytes and of
the work, for an interval around each score; only keys whose interval reaches the k-th best lower end are scored in
fp32, by the same code as without copies: lists are the same. Slabs of keys are scanned twice: first for the intervals
and, from the best of each tile, a bar close to the final one, then for the few keys that pass it. With key k = s c + e (scale, code, error), query q likewise,

    |q . k - s_q s_k (c_q . c_k)| <= |q| |e_k| + |e_q| |s_k c_k|

and `SLACK` |q| |k| a channel covers all rounding. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#define CODED 1
#endif

#define TILE 16
#define GROUP 16 /* queries that share a pass over a tile */
#define SHORTEST 1024
#define SLAB 16384 /* keys whose bounds fit the second cache */

typedef struct {
  float *score;
  int32_t *index;
  int count;
  float bar; /* scores up to this one cannot be among the best k */
} Best;

/* The k-th largest of n numbers (no NaN), 1 <= k <= n, or a smaller one that no more than k reach, by bisection on
integers of the same order: counting has no branches to mispredict. `room` holds n integers. */
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
    if (reached == k) high = middle;
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

typedef struct {
  float scale, error, norm; /* s, |e| and |s c|, the latter two not too small */
} Facts;

#define LEVELS 127
#define MIDDLE 128 /* codes are stored from 1 to 255 */
#define SLACK 2.4e-7
#define TINIEST 1e-30f

/* The nearest codes -127 to 127 of a row; its magnitude. Of a row that is not finite the error is infinite. */
static double encode_row(const float *x, int dim, int8_t *code, Facts *facts) {
  float top = 0.0f;
  double whole = 0.0, error = 0.0, norm = 0.0;
  for (int d = 0; d < dim; d++) {
    top = fabsf(x[d]) > top ? fabsf(x[d]) : top;
    whole += (double)x[d] * x[d];
  }
  float scale = isfinite(whole) && isfinite(top) ? top / LEVELS : 0.0f;
  for (int d = 0; d < dim; d++) {
    float level = scale > 0.0f ? nearbyintf(x[d] / scale) : 0.0f;
    level = level > LEVELS ? LEVELS : level < -LEVELS ? -LEVELS : level;
    double held = (double)scale * level, missing = x[d] - held;
    code[d] = (int8_t)level;
    error += missing * missing;
    norm += held * held;
  }
  const double up = 1.000001;
  *facts = (Facts){scale, isfinite(error) ? (float)(sqrt(error) * up) : INFINITY, (float)(sqrt(norm) * up)};
  return sqrt(whole) * up;
}

/* Make the copies of some pages, int64 [count]: keys fp32 [heads, stored, blocks, dim], codes and facts likewise. */
void encode(const float *keys, uint8_t *codes, Facts *facts, const int64_t *pages, int count, int64_t stored, int heads,
            int blocks, int dim) {
  int8_t code[dim];
  for (int h = 0; h < heads; h++)
    for (int i = 0; i < count; i++)
      for (int m = 0; m < blocks; m++) {
        int64_t row = (h * stored + pages[i]) * blocks + m;
        encode_row(keys + row * dim, dim, code, facts + row);
        for (int d = 0; d < dim; d++) codes[row * dim + d] = (uint8_t)(code[d] + MIDDLE);
      }
}

#ifdef CODED
/* Up to GROUP queries in 8 bits: codes as [dim / PACK][GROUP][PACK]; what a key's error and norm weigh in the bound. */
#ifdef __AVX512VNNI__
#define PACK 4
typedef int8_t Code;
#else
#define PACK 2
typedef int16_t Code;
#endif
typedef struct {
  Code *code;
  int32_t start[GROUP]; /* of the sums: takes MIDDLE out again */
  float scale[GROUP], error[GROUP], norm[GROUP];
} Coded;

/* Returns whether all queries are finite. */
static int encode_queries(const float *q, int count, int dim, Coded *out) {
  int8_t code[dim];
  memset(out->code, 0, sizeof(Code) * GROUP * dim);
  for (int g = 0; g < GROUP; g++) {
    out->start[g] = 0, out->scale[g] = out->error[g] = out->norm[g] = 0.0f;
    if (g >= count) continue;
    Facts facts;
    double length = encode_row(q + (int64_t)g * dim, dim, code, &facts), slack = SLACK * dim * length;
    if (!isfinite(length)) return 0;
    out->scale[g] = facts.scale;
    out->error[g] = (float)(length + slack), out->norm[g] = (float)(facts.error + slack);
    for (int d = 0; d < dim; d++) {
      out->code[(d / PACK * GROUP + g) * PACK + d % PACK] = code[d];
      if (PACK == 4) out->start[g] -= MIDDLE * code[d];
    }
  }
  return 1;
}

/* Products of codes [KEYS][GROUP]. */
static void multiply(const uint8_t *codes, const Coded *query, int dim, int32_t *out) {
#ifdef __AVX512VNNI__
  __m512i held[KEYS];
  for (int l = 0; l < KEYS; l++) held[l] = _mm512_loadu_si512(query->start);
  for (int d = 0; d < dim; d += PACK) {
    __m512i part = _mm512_loadu_si512(query->code + d * GROUP);
    for (int l = 0; l < KEYS; l++) {
      int32_t four;
      memcpy(&four, codes + l * dim + d, sizeof four);
      held[l] = _mm512_dpbusd_epi32(held[l], _mm512_set1_epi32(four), part);
    }
  }
  for (int l = 0; l < KEYS; l++) _mm512_storeu_si512(out + l * GROUP, held[l]);
#else
  for (int l = 0; l < KEYS; l += 4) {
    __m256i held[4][2];
    int16_t wide[4 * dim];
    for (int d = 0; d < 4 * dim; d++) wide[d] = (int16_t)(codes[l * dim + d] - MIDDLE);
    for (int i = 0; i < 4; i++) held[i][0] = held[i][1] = _mm256_setzero_si256();
    for (int d = 0; d < dim; d += PACK) {
      const __m256i *part = (const __m256i *)(query->code + d * GROUP);
      __m256i low = _mm256_loadu_si256(part), high = _mm256_loadu_si256(part + 1);
      for (int i = 0; i < 4; i++) {
        int32_t two;
        memcpy(&two, wide + i * dim + d, sizeof two);
        __m256i both = _mm256_set1_epi32(two);
        held[i][0] = _mm256_add_epi32(held[i][0], _mm256_madd_epi16(both, low));
        held[i][1] = _mm256_add_epi32(held[i][1], _mm256_madd_epi16(both, high));
      }
    }
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 2; j++) _mm256_storeu_si256((__m256i *)(out + (l + i) * GROUP + 8 * j), held[i][j]);
  }
#endif
}

/* Which of GROUP numbers are larger, a bit each (not of NaN). */
static inline unsigned above(const float *x, const float *bar) {
#ifdef __AVX512F__
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_loadu_ps(bar), _CMP_GT_OQ);
#else
  __m256 low = _mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(bar), _CMP_GT_OQ);
  __m256 high = _mm256_cmp_ps(_mm256_loadu_ps(x + 8), _mm256_loadu_ps(bar + 8), _CMP_GT_OQ);
  return (unsigned)_mm256_movemask_ps(low) | (unsigned)_mm256_movemask_ps(high) << 8;
#endif
}

/* The larger of two numbers, the second one if the first is NaN. */
static inline Part larger(Part a, Part b) {
#ifdef __AVX512F__
  return (Part)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return (Part)_mm256_max_ps((__m256)a, (__m256)b);
#endif
}

static inline Part choose(Whole which, Part a, Part b) { return (Part)(((Whole)a & which) | ((Whole)b & ~which)); }

/* Of up to SLAB keys: upper ends of their scores [keys][GROUP]; of each tile the highest of them, and a number that
the lower end of one of its keys reaches (-inf where not all of its keys are allowed). */
typedef struct {
  float *upper, *most, *reached;
} Slab;

/* The keys that each of GROUP queries may choose. */
typedef struct {
  int32_t from[GROUP], to[GROUP];
} Span;

/* Fill one tile of a slab. */
static void upper_ends(const uint8_t *codes, const Facts *facts, const Coded *query, int dim, int tile,
                       const Span *span, int base, const Slab *slab) {
  Part most[PARTS];
  float error = 0.0f, norm = 0.0f;
  for (int i = 0; i < PARTS; i++) most[i] = (Part){0} - INFINITY;
  for (int j = 0; j < TILE; j += KEYS) {
    int32_t sums[KEYS * GROUP] __attribute__((aligned(64)));
    multiply(codes + (int64_t)j * dim, query, dim, sums);
    for (int l = 0; l < KEYS; l++) {
      Facts key = facts[j + l];
      error = key.error > error ? key.error : error, norm = key.norm > norm ? key.norm : norm;
      for (int i = 0; i < PARTS; i++) {
        int at = i * LANES;
        Part score = __builtin_convertvector(*(const Whole *)(sums + l * GROUP + at), Part);
        score *= *(const Part *)(query->scale + at) * key.scale;
        Part missed = *(const Part *)(query->error + at) * key.error;
        score += missed + (*(const Part *)(query->norm + at) * key.norm + TINIEST);
        *(Part *)(slab->upper + (tile * TILE + j + l) * GROUP + at) = score;
        most[i] = larger(score, most[i]);
      }
    }
  }
  for (int i = 0; i < PARTS; i++) {
    int at = i * LANES;
    Part bound = *(const Part *)(query->error + at) * error;
    bound += *(const Part *)(query->norm + at) * norm + TINIEST;
    Whole good = (*(const Whole *)(span->from + at) <= base) & (*(const Whole *)(span->to + at) >= base + TILE);
    good &= bound < INFINITY;
    *(Part *)(slab->most + tile * GROUP + at) = most[i];
    *(Part *)(slab->reached + tile * GROUP + at) = choose(good, most[i] - 2.0f * bound, (Part){0} - INFINITY);
  }
}

/* Raise the bars to what keys of k tiles reach: nearly the k-th highest, by a few steps of bisection. */
static void raise_bars(const Slab *slab, int tiles, int k, float *bars) {
  for (int i = 0; i < PARTS; i++) {
    const float *at = slab->reached + i * LANES;
    Part low = (Part){0} + INFINITY, high = -low;
    Whole there = {0};
    for (int n = 0; n < tiles; n++) {
      Part x = *(const Part *)(at + n * GROUP);
      Whole finite = x > -INFINITY;
      there -= finite;
      low = choose(finite & (x < low), x, low);
      high = larger(x, high);
    }
    Whole most = there >= k;
    for (int step = 0; step < 8; step++) {
      Part middle = low + 0.5f * (high - low);
      Whole count = {0};
      for (int n = 0; n < tiles; n++) count -= *(const Part *)(at + n * GROUP) >= middle;
      Whole enough = count >= k;
      low = choose(enough, middle, low), high = choose(enough, high, middle);
    }
    /* Scores at the bar pass. */
    low -= choose(low > 0.0f, low, -low) * 1e-6f + TINIEST;
    Part bar = *(Part *)(bars + i * LANES);
    *(Part *)(bars + i * LANES) = choose(most & (low > bar), low, bar);
  }
}

/* Keys that may be among the best k of a query, in ascending order. */
typedef struct {
  float *upper, *lower;
  int32_t *index;
  int count, enough; /* `narrow` at so many */
} Likely;

/* Drop what does not reach the bar, which k keys reach. */
static void narrow(Likely *likely, int k, int32_t *room, float *bar) {
  if (likely->count <= k) return;
  float reached = kth_largest(likely->lower, likely->count, k, room);
  *bar = reached > *bar ? reached : *bar;
  int kept = 0;
  for (int i = 0; i < likely->count; i++) {
    likely->upper[kept] = likely->upper[i];
    likely->lower[kept] = likely->lower[i];
    likely->index[kept] = likely->index[i];
    kept += likely->upper[i] >= *bar;
  }
  likely->count = kept, likely->enough = kept + k;
}

/* Whether a segment pays: fewer keys are scored in fp32 than without copies. */
static int pays(int keys, int num_queries, int k) {
  return keys > 2 * k * (num_queries < GROUP ? num_queries : GROUP);
}

#define EIGHT 8

/* Scores of eight keys against one query, every 16th number from `query` on: the same bits as those of `scores`.
dim is a multiple of eight. */
static void scores_of_one(const float *const *keys, const float *query, int dim, float *out) {
  __m256 sum = _mm256_setzero_ps();
  for (int d = 0; d < dim; d += EIGHT) {
    /* A square of numbers, turned: rows of four keys and of the other four side by side, then pairs, then fours. */
    __m256 half[EIGHT], pair[EIGHT], row[EIGHT];
    for (int l = 0; l < 4; l++)
      for (int i = 0; i < 2; i++)
        half[4 * i + l] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(keys[l] + d + 4 * i)),
                                               _mm_loadu_ps(keys[l + 4] + d + 4 * i), 1);
    for (int i = 0; i < EIGHT; i += 2) {
      pair[i] = _mm256_unpacklo_ps(half[i], half[i + 1]);
      pair[i + 1] = _mm256_unpackhi_ps(half[i], half[i + 1]);
    }
    for (int i = 0; i < EIGHT; i += 4)
      for (int l = 0; l < 2; l++) {
        row[i + 2 * l] = _mm256_shuffle_ps(pair[i + l], pair[i + l + 2], 0x44);
        row[i + 2 * l + 1] = _mm256_shuffle_ps(pair[i + l], pair[i + l + 2], 0xee);
      }
    for (int i = 0; i < EIGHT; i++) sum += row[i] * _mm256_set1_ps(query[(d + i) * GROUP]);
  }
  _mm256_storeu_ps(out, sum);
}

/* `scan` of up to GROUP queries by the copies, `turned` being theirs. Returns 0 where too many keys have scores
too near each other (or where numbers are not finite): then nothing is found. */
static int scan_codes(const float *turned, const float *keys, int64_t stride, const uint8_t *codes,
                      const Facts *facts, int dim, int num_queries, int k, int start, int stop, const int32_t *limit,
                      const int32_t *first, Best *best, int32_t *room, int space, const Coded *query, const Slab *slab,
                      Likely *likely, int likely_space) {
  uint8_t last_codes[TILE * dim];
  Facts last_facts[TILE];
  float bars[GROUP];
  Span span;
  for (int g = 0; g < GROUP; g++) {
    int there = g < num_queries;
    bars[g] = there ? -INFINITY : INFINITY;
    span.from[g] = there && first ? first[g] : 0;
    span.to[g] = !there ? 0 : limit[g] < stop ? limit[g] : stop;
  }
  for (int g = 0; g < num_queries; g++) likely[g].count = 0, likely[g].enough = 2 * k;
  for (int from = start; from < stop; from += SLAB) {
    int to = stop - from < SLAB ? stop : from + SLAB, tiles = (to - from + TILE - 1) / TILE;
    for (int n = 0; n < tiles; n++) {
      int base = from + n * TILE, width = to - base < TILE ? to - base : TILE;
      const uint8_t *tile = codes + (int64_t)base * dim;
      const Facts *about = facts + base;
      if (width < TILE) {
        memset(last_codes, MIDDLE, sizeof last_codes), memset(last_facts, 0, sizeof last_facts);
        memcpy(last_codes, tile, (size_t)width * dim), memcpy(last_facts, about, sizeof(Facts) * width);
        tile = last_codes, about = last_facts;
      } else
        for (int d = 0; d < TILE * dim; d += 64) __builtin_prefetch(tile + 4 * TILE * dim + d);
      upper_ends(tile, about, query, dim, n, &span, base, slab);
    }
    raise_bars(slab, tiles, k, bars);
    for (int n = 0; n < tiles; n++) {
      if (!above(slab->most + n * GROUP, bars)) continue;
      /* Which keys pass is hard to foresee: they are listed without a branch. */
      unsigned passed[TILE];
      int rows[TILE], count = 0;
      for (int l = n * TILE; l < (n + 1) * TILE && from + l < to; l++) {
        passed[count] = above(slab->upper + l * GROUP, bars), rows[count] = l;
        count += passed[count] != 0;
      }
      for (int i = 0; i < count; i++)
        for (unsigned left = passed[i]; left; left &= left - 1) {
          int l = rows[i], g = __builtin_ctz(left), key = from + l;
          if (key < span.from[g] || key >= span.to[g]) continue;
          Likely *held = likely + g;
          if (held->count == likely_space) return 0;
          float upper = slab->upper[l * GROUP + g];
          float bound = query->error[g] * facts[key].error + (query->norm[g] * facts[key].norm + TINIEST);
          held->upper[held->count] = upper;
          held->lower[held->count] = bound < INFINITY ? upper - 2.0f * bound : -INFINITY;
          held->index[held->count++] = key;
          if (held->count >= held->enough) narrow(held, k, room, bars + g);
        }
    }
  }
  for (int g = 0; g < num_queries; g++) {
    Likely *held = likely + g;
    narrow(held, k, room, bars + g);
    /* A line of each key: their pages are looked up side by side. */
    for (int i = 0; i < held->count; i++) __builtin_prefetch(keys + held->index[i] * stride);
  }
  for (int g = 0; g < num_queries; g++) {
    Likely *held = likely + g;
    for (int i = 0; g + 1 < num_queries && i < held[1].count; i++)
      for (int d = 16; d < dim; d += 16) __builtin_prefetch(keys + held[1].index[i] * stride + d);
    for (int i = 0; i < held->count; i += EIGHT) {
      const float *some[EIGHT];
      float out[EIGHT];
      int width = held->count - i < EIGHT ? held->count - i : EIGHT;
      for (int l = 0; l < EIGHT; l++) some[l] = keys + held->index[i + (l < width ? l : width - 1)] * stride;
      scores_of_one(some, turned + g, dim, out);
      for (int l = 0; l < width; l++)
        if (out[l] > best[g].bar) {
          best[g].score[best[g].count] = out[l];
          best[g].index[best[g].count++] = held->index[i + l];
        }
      if (best[g].count > space - EIGHT) shrink(best + g, k, room);
    }
    shrink(best + g, k, room);
  }
  return 1;
}
#endif

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

/* q fp32 [batch, heads, num_queries, dim]; keys fp32 with strides (in numbers) of batch, head and block; codes and facts
of them [heads, ...], shared by the batch, with a stride (in blocks) of the head, or null; limit and
first (may be null) int32 [1 or batch, num_queries] with strides limit_batch, first_batch; lists int32 [batch, heads,
num_queries, k], zeroed; counts int32 [batch, heads, num_queries]. Keys lie in so many runs: those from run_from[r] to
run_from[r + 1] - 1 in a row, the first of them at run_row[r] (in blocks). Returns 0, or 1 if memory is short. */
int select_blocks(const float *q, const float *keys, int64_t key_batch, int64_t key_head, int64_t key_block,
                  const uint8_t *codes, const Facts *facts, int64_t code_head, const int32_t *limit, int limit_batch,
                  const int32_t *first, int first_batch, int batch, int heads,
                  int num_queries, int runs, const int32_t *run_from, const int64_t *run_row, int dim, int k,
                  int32_t *lists, int32_t *counts, int threads) {
  int end = 0, num_keys = run_from[runs];
  for (int i = 0; i < (limit_batch ? batch : 1) * num_queries; i++)
    if (limit[i] > end) end = limit[i];
  if (end > num_keys) end = num_keys;
  int begin = end;
  for (int i = 0; first && i < (first_batch ? batch : 1) * num_queries; i++)
    if (first[i] < begin) begin = first[i];
  if (!first || begin < 0) begin = 0;
  begin -= begin % TILE;
  int planes = batch * heads, failed = 0, segments = threads > 1 ? threads : 1;
  /* As many planes as fill the threads stay whole, because every segment has its own k best; the rest is cut. */
  while (segments > 1 && (end - begin) / segments < SHORTEST) segments--;
  int whole = segments > 1 ? planes - planes % threads : planes, tasks = whole + (planes - whole) * segments;
  int length = ((end - begin) / segments / TILE + 1) * TILE;
  int groups = (num_queries + GROUP - 1) / GROUP, space = 2 * k + 4 * TILE;
  int64_t rows = (int64_t)planes * num_queries;
  int step = codes ? GROUP : num_queries; /* queries that share a scan */
  float *part_score = malloc(sizeof(float) * rows * segments * k);
  int32_t *part_index = malloc(sizeof(int32_t) * rows * segments * k);
  int32_t *part_count = calloc(rows * segments, sizeof(int32_t));
  if (!part_score || !part_index || !part_count) failed = 1;

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float *turned = calloc((size_t)groups * GROUP * dim, sizeof(float));
    int wide = 8 * k + 4 * TILE, longest = wide > segments * k ? wide : segments * k;
    float *score = malloc(sizeof(float) * num_queries * space);
    int32_t *room = malloc(sizeof(int32_t) * longest), *index = malloc(sizeof(int32_t) * num_queries * space);
    Best *best = malloc(sizeof(Best) * num_queries);
    int short_of = !turned || !room || !score || !index || !best;
#ifdef CODED
    Coded query = {malloc(sizeof(Code) * GROUP * dim), {0}, {0}, {0}, {0}};
    float *ends = malloc(sizeof(float) * GROUP * wide * 2);
    int32_t *named = malloc(sizeof(int32_t) * GROUP * wide);
    Likely likely[GROUP];
    for (int g = 0; g < GROUP; g++)
      likely[g] = (Likely){ends + 2 * g * wide, ends + (2 * g + 1) * wide, named + g * wide, 0, 0};
    int slab_keys = (end - begin < SLAB ? end - begin : SLAB) + TILE;
    Slab slab = {aligned_alloc(64, sizeof(float) * GROUP * slab_keys),
                 aligned_alloc(64, sizeof(float) * GROUP * (slab_keys / TILE + 1)),
                 aligned_alloc(64, sizeof(float) * GROUP * (slab_keys / TILE + 1))};
    short_of |= !query.code || !ends || !named || !slab.upper || !slab.most || !slab.reached;
#endif
    if (short_of) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp barrier
    if (!failed) {
#pragma omp for schedule(dynamic)
      for (int task = 0; task < tasks; task++) {
        int cut = task >= whole, segment = cut ? (task - whole) % segments : 0;
        int plane = cut ? whole + (task - whole) / segments : task, b = plane / heads, h = plane % heads;
        const float *rows_q = q + (int64_t)plane * num_queries * dim;
        for (int n = 0; n < num_queries; n++)
          for (int d = 0; d < dim; d++)
            turned[((int64_t)(n / GROUP) * dim + d) * GROUP + n % GROUP] = rows_q[(int64_t)n * dim + d];
        for (int n = 0; n < num_queries; n++)
          best[n] = (Best){score + (int64_t)n * space, index + (int64_t)n * space, 0, -INFINITY};
        int start = begin + segment * length, stop = cut && start + length < end ? start + length : end;
        const float *plane_keys = keys + b * key_batch + h * key_head;
        const int32_t *to = limit + (int64_t)b * limit_batch, *from = first ? first + (int64_t)b * first_batch : NULL;
        for (int r = 0; r < runs; r++) {
          int run_start = run_from[r] > start ? run_from[r] : start, run_stop = run_from[r + 1] < stop ? run_from[r + 1] : stop;
          if (run_start >= run_stop) continue;
          int64_t shift = run_row[r] - run_from[r];
          const float *run_keys = plane_keys + shift * key_block;
          for (int q0 = 0; q0 < num_queries; q0 += step) {
            int some = num_queries - q0 < step ? num_queries - q0 : step;
            const float *part = turned + (int64_t)q0 * dim;
            const int32_t *after = from ? from + q0 : NULL;
#ifdef CODED
            if (codes && pays(run_stop - run_start, some, k) &&
                encode_queries(rows_q + (int64_t)q0 * dim, some, dim, &query) &&
                scan_codes(part, run_keys, key_block, codes + (h * code_head + shift) * dim,
                           facts + h * code_head + shift, dim, some, k, run_start, run_stop, to + q0, after, best + q0,
                           room, space, &query, &slab, likely, wide))
              continue;
#endif
            scan(part, run_keys, key_block, dim, some, k, run_start, run_stop, to + q0, after, best + q0, room, space);
          }
        }
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
#ifdef CODED
    free(query.code), free(ends), free(named), free(slab.upper), free(slab.most), free(slab.reached);
#endif
  }
  free(part_score), free(part_index), free(part_count);
  return failed;
}
