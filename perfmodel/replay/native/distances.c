/* Distances along all columns under one policy, computed once so that rounds can skip tokens. */
#include <math.h>
#include <string.h>

#include "simulate.h"

#define FAR (1 << 30) /* longer than any trace */

/* The number if the condition is 1, else 0. There is no branch, because the processor would often mispredict it. */
static inline int32_t number_if(int condition, int32_t number) { return number & -(int32_t)condition; }

/* The smallest float that is not below a double. A float is at least this number if and only if it is at least the double. */
static float float_from(double number) {
    float nearest = (float)number;
    return nearest < number ? nextafterf(nearest, INFINITY) : nearest;
}

static void find_exit_levels(const Replay *replay, int side) {
    const TraceLayout *layout = replay->layout;
    uint8_t *exit_level = replay->sides[side].exit_level;
    memset(exit_level, 0, (size_t)layout->num_columns);
    for (int64_t level = replay->rule->num_active - 2; level >= 0; level--) {
        const float *confidence = layout->confidence[side] + replay->active[level] * layout->num_columns;
        float threshold = float_from(replay->threshold[level]);
        for (int64_t column = 0; column < layout->num_columns; column++) {
            uint8_t goes_on = confidence[column] < threshold;
            exit_level[column] = (uint8_t)((exit_level[column] + 1) & -goes_on);
        }
    }
}

static void find_arrivals(const Replay *replay, int side) {
    int64_t num_columns = replay->layout->num_columns;
    const uint8_t *exit_level = replay->sides[side].exit_level;
    for (int64_t level = 1; level < replay->rule->num_active; level++) {
        int32_t *to_arrival = replay->sides[side].to_arrival + level * (num_columns + 1), distance = FAR;
        to_arrival[num_columns] = FAR;
        for (int64_t column = num_columns - 1; column >= 0; column--) {
            distance = number_if(exit_level[column] < level, distance + 1);
            to_arrival[column] = distance;
        }
    }
}

static void find_rejections(Replay *replay) {
    const TraceLayout *layout = replay->layout;
    const uint8_t *exit_level = replay->sides[ON_PATH].exit_level;
    int32_t distance = 0;
    for (int64_t column = layout->num_columns - 1; column >= 0; column--) {
        int64_t exit = replay->active[exit_level[column]];
        distance = number_if(layout->accepted[exit * layout->num_columns + column], distance + 1);
        replay->to_rejection[column] = distance;
    }
}

/* Stops at an end-of-text token or below a confidence floor. A survival floor depends on where the block began: rounds.c. */
static void find_stops(const Replay *replay, int side) {
    const TraceLayout *layout = replay->layout;
    const uint8_t *exit_level = replay->sides[side].exit_level;
    float floor = float_from(replay->rule->confidence_floor);
    int32_t distance = FAR;
    for (int64_t column = layout->num_columns - 1; column >= 0; column--) {
        int64_t cell = replay->active[exit_level[column]] * layout->num_columns + column;
        int stops = layout->ends_text[cell] | (layout->confidence[side][cell] < floor);
        distance = 1 + number_if(!stops, distance);
        replay->sides[side].to_stop[column] = distance;
    }
}

void find_distances(Replay *replay, int same_exits, int same_stops) {
    for (int side = 0; side < replay->num_sides; side++) {
        if (!same_exits) find_exit_levels(replay, side);
        if (!same_exits) find_arrivals(replay, side);
        if (!same_exits || !same_stops) find_stops(replay, side);
    }
    if (!same_exits) find_rejections(replay);
}
