/* One policy's rounds: how long their blocks are, what is accepted of them, and the passes that this takes. */
#include "simulate.h"

/* Tokens of a block that begins at a column and may have so many. */
static int64_t block_length(const Course *course, int64_t begin, int64_t most) {
    const Side *on_path = &course->sides[ON_PATH], *off_path = &course->sides[OFF_PATH];
    int64_t to_mistake = course->right[begin] + 1, drafted = least(most, on_path->length[begin]);
    double survival = 1;
    if (course->num_sides > 1 && drafted > to_mistake) {
        drafted = to_mistake + least(most - to_mistake, off_path->length[begin + to_mistake]);
    }
    if (course->rule->stop != SURVIVAL) return drafted;
    for (int64_t step = 0; step < drafted; step++) {
        const Side *side = step < to_mistake || course->num_sides == 1 ? on_path : off_path;
        survival *= side->agreement[side->level[begin + step]][begin + step];
        if (survival < course->rule->floor) return step + 1;
    }
    return drafted;
}

static inline void count(Passes *passes, int64_t rows, int64_t cached) {
    passes->of[rows].number++;
    passes->of[rows].cached += cached;
    if (rows > passes->longest) passes->longest = rows;
}

/* The passes of a level over the tokens of some columns that come to it; how many. `known`: of column 0, as it were. */
static inline int64_t catch_up(Course *course, int64_t level, const Side *side, int64_t begin, int64_t end, int64_t known) {
    const int32_t *until = side->until + level * (course->tape->num_columns + 1);
    Passes *passes = &course->drafting[level];
    int64_t came = 0, done = course->done[level];
    for (int64_t column = begin + until[begin]; column < end; column += 1 + until[column + 1]) {
        count(passes, column - done, known + done);
        done = column;
        came++;
    }
    course->done[level] = done;
    return came;
}

/* All passes of a block, level by level; exit checks that are waited for. Every token runs through the first level. */
static int64_t draft(Course *course, int64_t begin, int64_t drafted, int64_t known) {
    int64_t past = begin + drafted, mistake = past, came = drafted, checks = 0;
    int64_t num_looked = course->rule->num_looked, runs_ahead = course->rule->runs_ahead;
    if (course->num_sides > 1) mistake = least(past, begin + course->right[begin] + 1);
    if (drafted) {
        count(&course->drafting[0], begin - course->done[0], known + course->done[0]);
        course->done[0] = past - 1;
    }
    for (int64_t level = 0; level < num_looked; level++) {
        if (level) came = catch_up(course, level, &course->sides[ON_PATH], begin, mistake, known);
        if (level && mistake < past) came += catch_up(course, level, &course->sides[OFF_PATH], mistake, past, known);
        course->rounds_with[level][least(came, COLD_PLACES)]++;
        checks = runs_ahead ? came : checks + came;
    }
    return checks;
}

/* A self draft's tokens run through all segments before they are verified. */
static void push_through(Course *course, int64_t past, int64_t known) {
    for (int64_t level = 0; level <= course->rule->num_looked; level++) {
        count(&course->pushed[level], past - course->done[level], known + course->done[level]);
        course->done[level] = past;
    }
}

void run_prompt(Course *course, int64_t prompt, int64_t group, Output *out) {
    const TraceLayout *tape = course->tape;
    const Rule *rule = course->rule;
    int64_t begin = tape->begin[prompt], end = tape->end[prompt], known = tape->known[prompt] - begin, cap = rule->start;
    for (int64_t level = 0; level <= rule->num_looked; level++) course->done[level] = begin - 1;
    while (begin < end) {
        int64_t drafted = 0, accepted = 0;
        if (rule->num_looked) {
            drafted = block_length(course, begin, least(cap, tape->room[begin]));
            accepted = least(drafted, course->right[begin]);
            course->checks[least(draft(course, begin, drafted, known), COLD_PLACES)]++;
            if (tape->is_self_draft) push_through(course, begin + drafted, known);
        }
        count(&course->rounds, drafted, known + begin - 1);
        course->accepted[accepted]++;
        if (tape->keep_blocks) emit(out, (Entry){group, BLOCK, 0, drafted, accepted, 0});
        begin += accepted;
        for (int64_t level = 0; level <= rule->num_looked; level++) course->done[level] = least(course->done[level], begin);
        begin++;
        if (rule->adapts && drafted) cap = accepted == drafted ? least(cap + 2, rule->cap) : cap > 1 ? cap - 1 : 1;
    }
}
