/* The rounds of one policy: length, accepted tokens and passes of each block. */
#include "simulate.h"

/* Tokens predicted for a block that begins at a column and may have up to `cap`; the last of them may be dropped. */
static int64_t num_predictions(const Replay *replay, int64_t begin, int64_t cap) {
    const Side *on_path = &replay->sides[ON_PATH], *off_path = &replay->sides[OFF_PATH];
    int64_t to_rejected = replay->to_rejection[begin] + 1, predicted = minimum(cap, on_path->to_stop[begin]);
    double survival = 1;
    if (replay->num_sides > 1 && predicted > to_rejected) {
        predicted = to_rejected + minimum(cap - to_rejected, off_path->to_stop[begin + to_rejected]);
    }
    if (replay->rule->survival_floor <= 0) return predicted;
    for (int64_t step = 0; step < predicted; step++) {
        const Side *side = step < to_rejected || replay->num_sides == 1 ? on_path : off_path;
        survival *= side->agreement[side->exit_level[begin + step]][begin + step];
        if (survival < replay->rule->survival_floor) return step + 1;
    }
    return predicted;
}

/* Whether a block's last predicted token is dropped. Its earlier tokens are not below the confidence floor. */
static int drops_last(Replay *replay, int64_t begin, int64_t predicted) {
    if (!replay->rule->drops_token || !predicted) return 0;
    int64_t column = begin + predicted - 1;
    int side = replay->num_sides > 1 && predicted - 1 > replay->to_rejection[begin] ? OFF_PATH : ON_PATH;
    int64_t level = replay->sides[side].exit_level[column];
    int64_t cell = replay->active[level] * replay->layout->num_columns + column;
    int drops = replay->layout->confidence[side][cell] < replay->rule->confidence_floor;
    replay->dropped_by_level[level] += drops;
    return drops;
}

static inline void count(Passes *passes, int64_t rows, int64_t cached) {
    passes->by_rows[rows].number++;
    passes->by_rows[rows].cached += cached;
    if (rows > passes->max_rows) passes->max_rows = rows;
}

/* The passes of a level over the tokens of some columns that arrive there; returns how many. `known`: tokens known at column 0
 * if the prompt began there. */
static inline int64_t catch_up(Replay *replay, int64_t level, const Side *side, int64_t begin, int64_t end, int64_t known) {
    const int32_t *to_arrival = side->to_arrival + level * (replay->layout->num_columns + 1);
    Passes *passes = &replay->draft_passes[level];
    int64_t arrivals = 0, processed = replay->processed[level];
    for (int64_t column = begin + to_arrival[begin]; column < end; column += 1 + to_arrival[column + 1]) {
        count(passes, column - processed, known + processed);
        processed = column;
        arrivals++;
    }
    replay->processed[level] = processed;
    return arrivals;
}

/* All passes that predict the tokens from `begin` to before `end`, level by level; returns the exit checks that are waited for.
 * Every token runs through level 0. `block_end`: the column after the last token that is not dropped. */
static int64_t draft(Replay *replay, int64_t begin, int64_t end, int64_t block_end, int64_t known) {
    int64_t off_path_begin = end, arrivals = end - begin, exit_waits = 0;
    int64_t num_active = replay->rule->num_active, runs_ahead = replay->rule->runs_ahead;
    int64_t num_cold_places = replay->layout->num_cold_places, places = 0;
    if (replay->num_sides > 1) off_path_begin = minimum(end, begin + replay->to_rejection[begin] + 1);
    if (begin < end) {
        count(&replay->draft_passes[0], begin - replay->processed[0], known + replay->processed[0]);
        replay->processed[0] = end - 1;
    }
    for (int64_t level = 0; level < num_active; level++) {
        if (level) arrivals = catch_up(replay, level, &replay->sides[ON_PATH], begin, off_path_begin, known);
        if (level && off_path_begin < end) {
            arrivals += catch_up(replay, level, &replay->sides[OFF_PATH], off_path_begin, end, known);
        }
        replay->rounds_by_arrivals[places + minimum(arrivals, num_cold_places)]++;
        if (replay->processed[level] == block_end) replay->unpushed_by_arrivals[places + minimum(arrivals, num_cold_places)]++;
        places += num_cold_places + 1;
        exit_waits = runs_ahead ? arrivals : exit_waits + arrivals;
    }
    return exit_waits;
}

/* The tokens of a self draft run through all segments before they are verified. */
static void push_through(Replay *replay, int64_t end, int64_t known) {
    for (int64_t level = 0; level <= replay->rule->num_active; level++) {
        count(&replay->push_passes[level], end - replay->processed[level], known + replay->processed[level]);
        replay->processed[level] = end;
    }
}

void run_prompt(Replay *replay, int64_t prompt, int64_t group, Output *out) {
    const TraceLayout *layout = replay->layout;
    const Rule *rule = replay->rule;
    int64_t begin = layout->begin[prompt], end = layout->end[prompt];
    int64_t known = layout->known[prompt] - begin, cap = rule->first_cap;
    for (int64_t level = 0; level <= rule->num_active; level++) replay->processed[level] = begin - 1;
    while (begin < end) {
        int64_t predicted = 0, drafted = 0, accepted = 0;
        if (rule->num_active) {
            predicted = num_predictions(replay, begin, minimum(cap, layout->room[begin]));
            drafted = predicted - drops_last(replay, begin, predicted);
            accepted = minimum(drafted, replay->to_rejection[begin]);
            int64_t exit_waits = draft(replay, begin, begin + predicted, begin + drafted, known);
            replay->rounds_by_exit_waits[minimum(exit_waits, layout->num_cold_places)]++;
            if (layout->is_self_draft) push_through(replay, begin + drafted, known);
        }
        count(&replay->predictions, predicted, known + begin - 1);
        count(&replay->rounds, drafted, known + begin - 1);
        replay->rounds_by_accepted[accepted]++;
        if (layout->keep_blocks) emit(out, (Entry){group, BLOCK, 0, drafted, accepted, 0});
        begin += accepted;
        for (int64_t level = 0; level <= rule->num_active; level++) {
            replay->processed[level] = minimum(replay->processed[level], begin);
        }
        begin++;
        if (rule->adapts && drafted) cap = accepted == drafted ? minimum(cap + 2, rule->cap) : cap > 1 ? cap - 1 : 1;
    }
}
