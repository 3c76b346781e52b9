/* One policy along all columns, from the last to the first: distances, so that rounds need not look at every token. */
#include "simulate.h"

#include <math.h>
#include <string.h>

#define FAR (1 << 30) /* no column is as far */

/* A number if something, 0 or 1, is so, and 0 otherwise: no branch, which would be guessed wrong. */
static inline int32_t if_so(int is_so, int32_t number) { return number & -(int32_t)is_so; }

/* The least float that is not below: a float is at least this one if and only if it is at least the number. */
static float float_from(double number) {
    float near = (float)number;
    return near < number ? nextafterf(near, INFINITY) : near;
}

static void find_levels(const Course *course, int which) {
    const TraceLayout *tape = course->tape;
    uint8_t *level = course->sides[which].level;
    memset(level, 0, (size_t)tape->num_columns);
    for (int64_t place = course->rule->num_looked - 2; place >= 0; place--) {
        const float *confidence = tape->confidence[which] + course->looked[place] * tape->num_columns;
        float threshold = float_from(course->threshold[place]);
        for (int64_t column = 0; column < tape->num_columns; column++) {
            uint8_t stays = confidence[column] < threshold;
            level[column] = (uint8_t)((level[column] + 1) & -stays);
        }
    }
}

static void find_comings(const Course *course, int which) {
    int64_t num_columns = course->tape->num_columns;
    const uint8_t *level = course->sides[which].level;
    for (int64_t exit = 1; exit < course->rule->num_looked; exit++) {
        int32_t *until = course->sides[which].until + exit * (num_columns + 1), further = FAR;
        until[num_columns] = FAR;
        for (int64_t column = num_columns - 1; column >= 0; column--) {
            further = if_so(level[column] < exit, further + 1);
            until[column] = further;
        }
    }
}

static void find_refusals(Course *course) {
    const TraceLayout *tape = course->tape;
    const uint8_t *level = course->sides[ON_PATH].level;
    int32_t right = 0;
    for (int64_t column = tape->num_columns - 1; column >= 0; column--) {
        int64_t exit = course->looked[level[column]];
        right = if_so(tape->accepted[exit * tape->num_columns + column], right + 1);
        course->right[column] = right;
    }
}

static void find_stops(const Course *course, int which) {
    const TraceLayout *tape = course->tape;
    const uint8_t *level = course->sides[which].level;
    float floor = course->rule->stop == FLOOR ? float_from(course->rule->floor) : -INFINITY;
    int32_t length = FAR;
    for (int64_t column = tape->num_columns - 1; column >= 0; column--) {
        int64_t cell = course->looked[level[column]] * tape->num_columns + column;
        int stops = tape->ends_text[cell] | (tape->confidence[which][cell] < floor);
        length = 1 + if_so(!stops, length);
        course->sides[which].length[column] = length;
    }
}

void look_along(Course *course, int is_alike, int stops_alike) {
    for (int which = 0; which < course->num_sides; which++) {
        if (!is_alike) find_levels(course, which);
        if (!is_alike) find_comings(course, which);
        if (!is_alike || !stops_alike) find_stops(course, which);
    }
    if (!is_alike) find_refusals(course);
}
