/* Voxel ray marcher: one source for the CPU (C, OpenMP where there is it) and for CUDA (NVRTC).
 *
 * Plain float32, in a fixed order, without fused multiply-add (-ffp-contract=off, --fmad=false), so that all backends
 * agree; `twin.py` repeats these operations in torch one by one. Change the three together.
 *
 * Blocks are uint8 [world][x][z][y]. The atlas is uint8 [block][face][341][3]: faces side, top, bottom; mips of side 16,
 * 8, 4, 2, 1 one after the other. A camera is 12 floats: eye; right and up, scaled to the edges of the image; forward.
 */
#ifdef __CUDACC__
#define FN __device__ static inline
#define INFINITE __int_as_float(0x7f800000)
typedef unsigned char u8;
typedef unsigned int u32;
typedef long long i64;
#else
#include <math.h>
#include <stdint.h>
#define FN static inline
#define INFINITE INFINITY
typedef uint8_t u8;
typedef uint32_t u32;
typedef int64_t i64;
#endif

#define SX 256
#define SZ 256
#define SY 64
#define FAR 60.0f     /* view distance in blocks; fog has reached the sky's colour there */
#define MAX_STEPS 180 /* cells a ray can cross within FAR: at most 60 * sqrt(3) + 3 */
#define TEXELS 341

FN u32 mix(u32 h) {
  h ^= h >> 16;
  h *= 0x7feb352du;
  h ^= h >> 15;
  h *= 0x846ca68bu;
  h ^= h >> 16;
  return h;
}

/* Colour of the sky (0 to 255) in a unit direction: a gradient and the sun's disc. */
FN void sky(float dx, float dy, float dz, float *c) {
  float s = 1.f - (dy < 0.f ? 0.f : dy);
  s = s * s;
  c[0] = 90.f + 106.f * s;
  c[1] = 146.f + 74.f * s;
  c[2] = 226.f + 18.f * s;
  if (dx * 0.4851f + dy * 0.7276f + dz * 0.4851f > 0.988f) {
    c[0] = 255.f;
    c[1] = 244.f;
    c[2] = 200.f;
  }
}

/* Follow one ray of unit direction d from o. `cone` is the width of a sample at distance 1.
 * Writes the colour (0 to 255) and the distance along the ray (infinite for sky); returns the block id (0 for sky).
 * Blocks around the eye itself are not drawn, so that an eye in water looks out of it. */
FN int march(const u8 *world, const u8 *atlas, float ox, float oy, float oz, float dx, float dy, float dz, float cone,
             float *c, float *depth) {
  int x = (int)floorf(ox), y = (int)floorf(oy), z = (int)floorf(oz);
  int sx = dx < 0.f ? -1 : 1, sy = dy < 0.f ? -1 : 1, sz = dz < 0.f ? -1 : 1;
  float ix = dx == 0.f ? 1e30f : 1.f / fabsf(dx);
  float iy = dy == 0.f ? 1e30f : 1.f / fabsf(dy);
  float iz = dz == 0.f ? 1e30f : 1.f / fabsf(dz);
  float tx = (sx > 0 ? (float)(x + 1) - ox : ox - (float)x) * ix;
  float ty = (sy > 0 ? (float)(y + 1) - oy : oy - (float)y) * iy;
  float tz = (sz > 0 ? (float)(z + 1) - oz : oz - (float)z) * iz;
  float t = 0.f;
  int axis = -1, id = 0; /* axis of the face last crossed: 0 x, 1 y, 2 z */
  for (int n = 0; n < MAX_STEPS; n++) {
    if ((y >= SY && sy > 0) || y < 0) break;
    if (x < 0 || x >= SX || z < 0 || z >= SZ) break;
    if (y < SY) {
      id = world[(x * SZ + z) * SY + y];
      if (id && axis >= 0) break;
    }
    if (tx <= ty && tx <= tz) {
      t = tx;
      tx += ix;
      x += sx;
      axis = 0;
    } else if (tz <= ty) {
      t = tz;
      tz += iz;
      z += sz;
      axis = 2;
    } else {
      t = ty;
      ty += iy;
      y += sy;
      axis = 1;
    }
    id = 0;
    if (t > FAR) break;
  }
  float back[3];
  sky(dx, dy, dz, back);
  *depth = id ? t : INFINITE;
  if (!id) {
    c[0] = back[0];
    c[1] = back[1];
    c[2] = back[2];
    return 0;
  }

  float px = ox + dx * t, py = oy + dy * t, pz = oz + dz * t, u, v, facing;
  if (axis == 0) {
    u = pz - floorf(pz);
    v = 1.f - (py - floorf(py));
    facing = fabsf(dx);
  } else if (axis == 2) {
    u = px - floorf(px);
    v = 1.f - (py - floorf(py));
    facing = fabsf(dz);
  } else {
    u = px - floorf(px);
    v = pz - floorf(pz);
    facing = fabsf(dy);
  }
  int face = axis == 1 ? (sy < 0 ? 1 : 2) : 0;
  float footprint = cone * t * 16.f / (0.35f + 0.65f * facing); /* texels a sample covers */
  int lod = footprint < 1.2f ? 0 : footprint < 2.4f ? 1 : footprint < 4.8f ? 2 : footprint < 9.6f ? 3 : 4;
  int size = 16 >> lod, offset = lod == 0 ? 0 : lod == 1 ? 256 : lod == 2 ? 320 : lod == 3 ? 336 : 340;
  int iu = (int)(u * (float)size), iv = (int)(v * (float)size);
  if (iu >= size) iu = size - 1;
  if (iv >= size) iv = size - 1;
  const u8 *texel = atlas + ((id * 3 + face) * TEXELS + offset + iv * size + iu) * 3;

  /* Every block has its own tint; faces towards the sun are brighter; distance fades into the sky. */
  u32 h = mix((u32)x * 73856093u ^ (u32)y * 19349663u ^ (u32)z * 83492791u);
  float tint = 0.93f + 0.14f * (float)(h & 255u) / 255.f;
  float shade = axis == 1 ? (sy < 0 ? 1.0f : 0.5f) : axis == 0 ? (sx < 0 ? 0.86f : 0.62f) : (sz < 0 ? 0.78f : 0.68f);
  float fog = t / FAR;
  fog = fog * fog * fog;
  if (fog > 1.f) fog = 1.f;
  float light = tint * shade;
  for (int i = 0; i < 3; i++) {
    float q = (float)texel[i] * light;
    if (q > 255.f) q = 255.f;
    c[i] = q * (1.f - fog) + back[i] * fog;
  }
  return id;
}

/* One pixel of one frame: the mean of S x S samples, and depth and block id of its centre where wanted. */
FN void pixel(const u8 *worlds, const i64 *index, const float *cameras, const u8 *atlas, int H, int W, int S, i64 frame,
              int row, int column, u8 *rgb, float *depth, u8 *ids) {
  const float *m = cameras + frame * 12;
  const u8 *world = worlds + index[frame] * ((i64)SX * SZ * SY);
  float sum[3] = {0.f, 0.f, 0.f}, c[3], d;
  float cone = 2.f * sqrtf(m[6] * m[6] + m[7] * m[7] + m[8] * m[8]) / (float)(H * S);
  for (int j = 0; j < S; j++)
    for (int i = 0; i < S; i++) {
      float a = 2.f * ((float)column + ((float)i + 0.5f) / (float)S) / (float)W - 1.f;
      float b = 1.f - 2.f * ((float)row + ((float)j + 0.5f) / (float)S) / (float)H;
      float dx = m[9] + a * m[3] + b * m[6], dy = m[10] + a * m[4] + b * m[7], dz = m[11] + a * m[5] + b * m[8];
      float r = 1.f / sqrtf(dx * dx + dy * dy + dz * dz);
      march(world, atlas, m[0], m[1], m[2], dx * r, dy * r, dz * r, cone, c, &d);
      sum[0] += c[0];
      sum[1] += c[1];
      sum[2] += c[2];
    }
  i64 o = (frame * H + row) * W + column;
  float q = 1.f / (float)(S * S);
  for (int i = 0; i < 3; i++) rgb[o * 3 + i] = (u8)(sum[i] * q + 0.5f);
  if (depth || ids) {
    float a = 2.f * ((float)column + 0.5f) / (float)W - 1.f, b = 1.f - 2.f * ((float)row + 0.5f) / (float)H;
    float dx = m[9] + a * m[3] + b * m[6], dy = m[10] + a * m[4] + b * m[7], dz = m[11] + a * m[5] + b * m[8];
    float r = 1.f / sqrtf(dx * dx + dy * dy + dz * dz);
    int id = march(world, atlas, m[0], m[1], m[2], dx * r, dy * r, dz * r, cone, c, &d);
    if (depth) depth[o] = d;
    if (ids) ids[o] = (u8)id;
  }
}

#ifdef __CUDACC__
/* One thread a pixel; a warp takes a tile of 8x4 pixels, whose rays walk through the same blocks.
 * extra: 1 writes depth, 2 writes block ids. */
extern "C" __global__ void render(const u8 *worlds, const i64 *index, const float *cameras, const u8 *atlas, int H,
                                  int W, int S, int N, int extra, u8 *rgb, float *depth, u8 *ids) {
  i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  int across = (W + 7) / 8, down = (H + 3) / 4;
  i64 per_frame = (i64)across * down * 32, frame = thread / per_frame;
  if (frame >= N) return;
  int rest = (int)(thread - frame * per_frame), tile = rest / 32, lane = rest % 32;
  int column = (tile % across) * 8 + lane % 8, row = (tile / across) * 4 + lane / 8;
  if (column >= W || row >= H) return;
  pixel(worlds, index, cameras, atlas, H, W, S, frame, row, column, rgb, (extra & 1) ? depth : 0, (extra & 2) ? ids : 0);
}
#else
void render(const u8 *worlds, const i64 *index, const float *cameras, const u8 *atlas, int H, int W, int S, int N,
            int extra, u8 *rgb, float *depth, u8 *ids, int threads) {
  (void)threads;
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
  for (i64 line = 0; line < (i64)N * H; line++)
    for (int column = 0; column < W; column++)
      pixel(worlds, index, cameras, atlas, H, W, S, line / H, (int)(line % H), column, rgb, (extra & 1) ? depth : 0,
            (extra & 2) ? ids : 0);
}
#endif
