// Which remembered views and changes lie near a pose: `keyframes.py`, `nearest_views.py` and `changes.py` define it, and
// do it where there is no compiler. The same operations in the same order, so that both choose alike to the last bit.
//
// Poses are rows of five doubles: x, y, z in blocks, pitch and yaw in degrees.

#include <math.h>
#include <stdint.h>

typedef struct {
    double near_blocks;             // of a seen view, within which it may serve by place
    double dreamed_blocks;          // of a dreamed view, within which it may show a change
    double near_degrees;            // of both
    double changed_within;          // blocks around a hand's work in which the change can be seen
    double blocks, degrees, alike;  // of `apart`
} Distances;

static double modulo(double value, double by) {  // as NumPy's, of the sign of `by`, which is positive
    double rest = fmod(value, by);
    return rest < 0.0 ? rest + by : rest;
}

static double squared_distance(const double *a, const double *b) {
    double x = a[0] - b[0], y = a[1] - b[1], z = a[2] - b[2];
    return x * x + y * y + z * z;
}

static int within(const double *view, const double *pose, double blocks, double degrees) {
    if (!(squared_distance(view, pose) <= blocks * blocks)) return 0;
    double pitch = modulo(view[3] - pose[3] + 180.0, 360.0) - 180.0;
    double yaw = modulo(view[4] - pose[4] + 180.0, 360.0) - 180.0;
    return fabs(pitch) <= degrees && fabs(yaw) <= degrees;
}

static double apart(const double *a, const double *b, const Distances *by) {
    double pitch = fabs(a[3] - b[3]), yaw = modulo(fabs(a[4] - b[4]), 360.0);
    double turned = fmax(pitch, fmin(yaw, 360.0 - yaw)) / by->degrees;
    return sqrt(squared_distance(a, b) / (by->blocks * by->blocks) + turned * turned);
}

// The last view of a hand's work within so many blocks of a pose, the first view since the change; 0 without any.
int64_t since_change(int64_t n, const double *poses, const uint8_t *hands, const double *pose, double blocks) {
    for (int64_t i = n - 1; i >= 0; i--)
        if (hands[i] && squared_distance(poses + 5 * i, pose) <= blocks * blocks) return i;
    return 0;
}

// Whether any view from `first` on lies within so many blocks and degrees of a pose.
int any_within(int64_t n, int64_t first, const double *poses, const double *pose, double blocks, double degrees) {
    for (int64_t i = n - 1; i >= first; i--)
        if (within(poses + 5 * i, pose, blocks, degrees)) return 1;
    return 0;
}

// Of the views `places` [m], ascending, at most `count` of the nearest that do not show the same; of equals the latest.
static int64_t nearest(
    int64_t m, const int64_t *places, const double *poses, const double *pose, int64_t count, double *far, int64_t *out,
    const Distances *by
) {
    int64_t chosen = 0;
    for (int64_t k = 0; k < m; k++) far[k] = apart(poses + 5 * places[k], pose, by);
    while (chosen < count) {
        int64_t best = -1;
        for (int64_t k = m - 1; k >= 0; k--)
            if (far[k] < INFINITY && (best < 0 || far[k] < far[best])) best = k;
        if (best < 0) break;
        out[chosen++] = places[best];
        for (int64_t k = 0; k < m; k++)
            if (apart(poses + 5 * places[k], poses + 5 * places[best], by) < by->alike) far[k] = INFINITY;
    }
    return chosen;
}

// The views that a frame sees: their number and, ascending, their places in `out` [count + 1]; -1 if it goes by content.
// `changes` [n, 4] are NaN where not known; `told` says whether known ones are told. `places` [n] and `far` [n] are room.
int64_t seen_from(
    int64_t n, const double *poses, const uint8_t *hands, const uint8_t *generated, const double *changes,
    const double *pose, int64_t count, int told, int64_t *places, double *far, int64_t *out, const Distances *by
) {
    int64_t late = since_change(n, poses, hands, pose, by->changed_within), newest = -1;
    for (int64_t i = n - 1; i >= 0 && newest < 0; i--)
        if (!generated[i] && within(poses + 5 * i, pose, by->near_blocks, by->near_degrees)) newest = i;
    if (newest < 0) return -1;
    int fresh = newest >= late;
    if (!fresh) {  // all that was seen is out of date, unless every change is told
        if (!told) return -1;
        double reach = by->changed_within * by->changed_within;
        for (int64_t i = 0; i < n; i++)
            if (hands[i] && isnan(changes[4 * i]) && squared_distance(poses + 5 * i, pose) <= reach) return -1;
    }
    int64_t m = 0;
    for (int64_t i = fresh ? late : 0; i < n; i++)
        if (!generated[i]) places[m++] = i;
    int64_t found = nearest(m, places, poses, pose, count, far, out, by);
    if (!fresh) {  // a dreamed view shows what the change looks like
        m = 0;
        for (int64_t i = late; i < n; i++)
            if (generated[i] && within(poses + 5 * i, pose, by->dreamed_blocks, by->near_degrees)) places[m++] = i;
        found += nearest(m, places, poses, pose, 1, far, out + found, by);
    }
    for (int64_t i = 1; i < found; i++)
        for (int64_t k = i; k > 0 && out[k - 1] > out[k]; k--) {
            int64_t other = out[k];
            out[k] = out[k - 1], out[k - 1] = other;
        }
    return found;
}

// The nearest of the changes [m, 4] that lie before an eye, at most `count`, nearest first, into `out` [count, 4], which
// is NaN elsewhere; of equals the first. `reach` is in blocks from the eye, `far` [m] is room.
void told_changes(
    int64_t m, const double *changes, const double *eye, const double *look, double reach, int64_t count, double *far,
    double *out
) {
    for (int64_t k = 0; k < m; k++) {
        const double *cell = changes + 4 * k;
        double x = cell[0] + 0.5 - eye[0], y = cell[1] + 0.5 - eye[1], z = cell[2] + 0.5 - eye[2];
        double distance = sqrt(x * x + y * y + z * z);
        far[k] = distance <= reach && x * look[0] + y * look[1] + z * look[2] > 0.0 ? distance : INFINITY;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t best = -1;
        for (int64_t k = 0; k < m; k++)
            if (far[k] < INFINITY && (best < 0 || far[k] < far[best])) best = k;
        for (int j = 0; j < 4; j++) out[4 * i + j] = best < 0 ? NAN : changes[4 * best + j];
        if (best >= 0) far[best] = INFINITY;
    }
}
