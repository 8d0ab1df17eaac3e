/* One tick of walking, stepping up, jumping, swimming and falling, for n players.

The same arithmetic in the same order as `player.py` (the definition, and what runs without a compiler): built without
fused multiply-add, both give the same bits. Wishes (walking in blocks on dry land) come from the caller, so that sine
and cosine are NumPy's in both.
*/
#include <math.h>
#include <stdint.h>

#define HALF_WIDTH 0.3
#define HEIGHT 1.8
#define GRAVITY 0.22
#define JUMP 0.66
#define TERMINAL 1.5
#define WATER_FACTOR 0.5
#define SWIM 0.3
#define FLOAT 0.04
#define SKIN 1e-6
#define FEEL 0.02

typedef struct {
    const uint8_t *blocks; /* [X, Z, Y] */
    const uint8_t *passable; /* [256] */
    int64_t X, Z, Y;
} World;

/* Stone beyond the sides and below the bottom, air above the top. */
static int block_at(const World *w, int64_t x, int64_t y, int64_t z) {
    if (x < 0 || x >= w->X || z < 0 || z >= w->Z || y < 0) return 1;
    return y < w->Y ? w->blocks[(x * w->Z + z) * w->Y + y] : 0;
}

static int hits(const World *w, double x, double y, double z) {
    const int64_t xs[2] = {(int64_t)floor(x - HALF_WIDTH + SKIN), (int64_t)floor(x + HALF_WIDTH - SKIN)};
    const int64_t zs[2] = {(int64_t)floor(z - HALF_WIDTH + SKIN), (int64_t)floor(z + HALF_WIDTH - SKIN)};
    const int64_t ys[3] = {
        (int64_t)floor(y + SKIN), (int64_t)floor(y + 0.5 * HEIGHT), (int64_t)floor(y + HEIGHT - SKIN)};
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 2; k++)
            for (int j = 0; j < 3; j++)
                if (!w->passable[block_at(w, xs[i], ys[j], zs[k])]) return 1;
    return 0;
}

/* Along x (axis 0) or z; where that is blocked, up one block if there is room. */
static void push(const World *w, double *p, double delta, int axis, int steady) {
    const double x = p[0], y = p[1], z = p[2];
    const double to_x = axis == 0 ? x + delta : x, to_z = axis == 0 ? z : z + delta;
    if (hits(w, to_x, y, to_z)) {
        const double up = floor(y + SKIN) + 1.0;
        if (!steady || delta == 0 || hits(w, to_x, up, to_z) || hits(w, x, up, z)) return;
        p[1] = up;
    }
    p[0] = to_x;
    p[2] = to_z;
}

/* At most a block at a time; stops at floors and ceilings. Returns the speed left. */
static double fall(const World *w, double *p, double speed) {
    double left = speed;
    for (int i = 0; i < 2; i++) {
        const double delta = left < -1 ? -1 : left > 1 ? 1 : left;
        const double to = p[1] + delta;
        if (hits(w, p[0], to, p[2])) {
            const double stop = delta < 0 ? floor(to) + 1.0 : floor(to + HEIGHT) - HEIGHT - SKIN;
            if (!hits(w, p[0], stop, p[2])) p[1] = stop;
            left = 0;
            speed = 0;
        } else {
            p[1] = to;
            left = left - delta;
        }
    }
    return speed;
}

/* positions [n, 3] and rise [n] in place; worlds: n pointers; wish [n, 2]: east, south; jump [n]. */
void move_players(
    int64_t n, const uint64_t *worlds, const int64_t *size, const uint8_t *passable, int water, double *positions,
    double *rise, const double *wish, const uint8_t *jump
) {
    for (int64_t i = 0; i < n; i++) {
        const World world = {(const uint8_t *)(uintptr_t)worlds[i], passable, size[0], size[1], size[2]};
        const World *w = &world;
        double *p = positions + 3 * i;
        const int wet =
            block_at(w, (int64_t)floor(p[0]), (int64_t)floor(p[1] + 0.4), (int64_t)floor(p[2])) == water;
        const double factor = wet ? WATER_FACTOR : 1.0;
        const int grounded = hits(w, p[0], p[1] - FEEL, p[2]);
        push(w, p, wish[2 * i] * factor, 0, grounded || wet);
        push(w, p, wish[2 * i + 1] * factor, 2, grounded || wet);

        double speed = rise[i];
        if (grounded && speed <= 0) speed = jump[i] ? JUMP : 0.0;
        if (wet) speed = jump[i] ? SWIM : FLOAT;
        const int loose = !hits(w, p[0], p[1] - FEEL, p[2]) || speed > 0;
        speed = fall(w, p, loose ? speed : 0.0);
        speed = loose ? (speed - GRAVITY > -TERMINAL ? speed - GRAVITY : -TERMINAL) : 0.0;
        if (speed < 0 && hits(w, p[0], p[1] - FEEL, p[2])) speed = 0.0;
        rise[i] = speed;
    }
}
