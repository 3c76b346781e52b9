/* Counts by level, written as entries by segment and exit. */
#include <stdlib.h>
#include <string.h>

#include "simulate.h"

void emit(Output *out, Entry entry) {
    if (out->length == out->room) {
        size_t room = out->room ? 2 * out->room : 1024;
        Entry *grown = realloc(out->entries, room * sizeof *grown);
        if (!grown) {
            out->is_out_of_memory = 1;
            return;
        }
        out->entries = grown;
        out->room = room;
    }
    out->entries[out->length++] = entry;
}

static int64_t segment_level(const Replay *replay, int64_t segment) {
    int64_t level = 0;
    while (level < replay->rule->num_active && replay->active[level] < segment) level++;
    return level;
}

/* Whether a segment is launched for every token that arrives at the active exit above it, before the exit's answer is read. */
static int runs_ahead(const Replay *replay, int64_t segment) {
    int64_t level = segment_level(replay, segment);
    return replay->rule->runs_ahead && segment && level < replay->rule->num_active &&
           segment_level(replay, segment - 1) < level;
}

/* The level whose passes are those of the segment. */
static int64_t source_level(const Replay *replay, int64_t segment) {
    int64_t level = segment_level(replay, segment);
    if (runs_ahead(replay, segment)) return level - 1; /* it runs for every token that arrives at the exit above it */
    return replay->rule->catches_up_at_once && level < replay->rule->num_active ? 0 : level;
}

/* Passes by rows, drafting and pushing together; either may be NULL. */
static void emit_passes(Output *out, Entry entry, const Passes *drafting, const Passes *pushing) {
    const Passes *both[] = {drafting, pushing};
    int64_t max_rows = 0;
    for (int i = 0; i < 2; i++) {
        if (both[i] && both[i]->max_rows > max_rows) max_rows = both[i]->max_rows;
    }
    for (int64_t rows = 1; rows <= max_rows; rows++) {
        entry.size = rows;
        entry.number = entry.cached = 0;
        for (int i = 0; i < 2; i++) {
            if (!both[i] || rows > both[i]->max_rows) continue;
            entry.number += both[i]->by_rows[rows].number;
            entry.cached += both[i]->by_rows[rows].cached;
        }
        if (entry.number) emit(out, entry);
    }
}

/* Cold passes: of n passes in a round, one at each of the places 1 to n, up to P.
 *
 * `by_drafting`: rounds by the passes that draft, P or more together; NULL if no pass drafts. `unpushed`: a self draft's
 * verification adds a pass to every round but these, also by the passes that draft; NULL if it adds none.
 */
static void emit_cold(const Replay *replay, Output *out, Entry entry, const int64_t *by_drafting, const int64_t *unpushed,
                      int64_t num_rounds) {
    int64_t num_cold_places = replay->layout->num_cold_places;
    for (int64_t place = 1; place <= num_cold_places; place++) {
        int64_t needed = place - (unpushed != NULL); /* passes that draft before the pass at this place */
        entry.size = place;
        entry.number = needed ? 0 : num_rounds;
        for (int64_t passes = needed; by_drafting && needed && passes <= num_cold_places; passes++) {
            entry.number += by_drafting[passes];
        }
        if (unpushed && by_drafting) entry.number -= unpushed[needed];
        for (int64_t passes = 0; unpushed && !by_drafting && !needed && passes <= num_cold_places; passes++) {
            entry.number -= unpushed[passes];
        }
        if (entry.number) emit(out, entry);
    }
}

/* The passes of all segments, either those that run ahead of an answer or the others; as a cold kind, only the cold ones. */
static void emit_segments(const Replay *replay, int64_t group, Output *out, int64_t kind, int64_t num_rounds) {
    int is_ahead = kind == AHEAD || kind == COLD_AHEAD, is_cold = kind == COLD_AHEAD || kind == COLD_SEGMENT;
    int is_pushed = replay->layout->is_self_draft && replay->rule->num_active && !is_ahead;
    for (int64_t segment = 0; segment < replay->layout->num_exits; segment++) {
        int64_t level = source_level(replay, segment);
        int drafts = level < replay->rule->num_active && runs_ahead(replay, segment) == is_ahead;
        Entry entry = {group, kind, segment, 0, 0, 0};
        if (is_cold) {
            int64_t places = level * (replay->layout->num_cold_places + 1);
            emit_cold(replay, out, entry, drafts ? replay->rounds_by_arrivals + places : NULL,
                      is_pushed ? replay->unpushed_by_arrivals + places : NULL, num_rounds);
        } else {
            const Passes *pushing = is_pushed ? &replay->push_passes[level] : NULL;
            emit_passes(out, entry, drafts ? &replay->draft_passes[level] : NULL, pushing);
        }
    }
}

static void emit_rounds(const Replay *replay, int64_t group, Output *out) {
    const Passes *rounds = &replay->rounds;
    for (int64_t drafted = 0; drafted <= rounds->max_rows; drafted++) {
        if (rounds->by_rows[drafted].number) emit(out, (Entry){group, ROUND, 0, drafted, rounds->by_rows[drafted].number, 0});
    }
}

static void emit_verifications(const Replay *replay, int64_t group, Output *out) {
    const Passes *rounds = &replay->rounds;
    for (int64_t drafted = 0; drafted <= rounds->max_rows; drafted++) {
        Count count = rounds->by_rows[drafted];
        if (count.number) emit(out, (Entry){group, VERIFY, 0, drafted + 1, count.number, count.cached});
    }
}

/* Tokens that arrived at an active exit; none below the last. */
static int64_t tokens_at(const Replay *replay, int64_t level) {
    const Passes *passes = &replay->draft_passes[level];
    int64_t tokens = 0;
    for (int64_t rows = 1; level < replay->rule->num_active && rows <= passes->max_rows; rows++) {
        tokens += passes->by_rows[rows].number;
    }
    return tokens;
}

/* Exit checks (EXIT), or drafted tokens by the exit where they left (TAKEN). */
static void emit_exits(const Replay *replay, int64_t group, Output *out, int64_t kind) {
    int64_t num_active = replay->rule->num_active;
    for (int64_t level = 0; level < num_active; level++) {
        int64_t tokens = tokens_at(replay, level), is_last = level == num_active - 1;
        if (kind == TAKEN) tokens -= tokens_at(replay, level + 1) + replay->dropped_by_level[level];
        if (kind == EXIT && replay->rule->runs_ahead && !is_last) tokens = 0;
        if (tokens) emit(out, (Entry){group, kind, replay->active[level], 1, tokens, 0});
    }
}

/* Verifications after more than one segment, by the number of segments that ran in their rounds. A token that arrives at an
 * exit has passed those above it, so the deepest token of a round decides. */
static void emit_cold_verifications(Replay *replay, int64_t group, Output *out, int64_t num_rounds) {
    const Rule *rule = replay->rule;
    int64_t num_active = rule->num_active, num_exits = replay->layout->num_exits;
    int64_t num_cold_places = replay->layout->num_cold_places, num_deeper = 0;
    if (replay->layout->is_self_draft) {
        if (num_active && num_exits > 1) emit(out, (Entry){group, COLD_VERIFY, 0, num_exits, num_rounds, 0});
        return;
    }
    for (int64_t level = num_active - 1; level >= 0; level--) {
        int64_t depth = replay->active[level] + 1 + (rule->runs_ahead && level < num_active - 1);
        int64_t number = 0;
        for (int64_t arrivals = 1; arrivals <= num_cold_places; arrivals++) {
            number += replay->rounds_by_arrivals[level * (num_cold_places + 1) + arrivals];
        }
        number -= num_deeper;
        num_deeper += number;
        if (rule->catches_up_at_once) depth = replay->active[num_active - 1] + 1;
        replay->rounds_by_depth[depth] += number;
    }
    for (int64_t depth = 2; depth <= num_exits; depth++) {
        int64_t number = replay->rounds_by_depth[depth];
        if (number) emit(out, (Entry){group, COLD_VERIFY, 0, depth, number, 0});
    }
}

/* Adds the passes through level 0 of all predicted tokens of blocks but the first. Each has one row, and one more token is
 * known before each of them. */
static void count_later_passes(Replay *replay) {
    const Passes *rounds = &replay->predictions;
    Passes *passes = &replay->draft_passes[0];
    for (int64_t predicted = 2; predicted <= rounds->max_rows; predicted++) {
        int64_t later = predicted - 1, number = rounds->by_rows[predicted].number;
        passes->by_rows[1].number += later * number;
        passes->by_rows[1].cached += later * (rounds->by_rows[predicted].cached + number) + number * later * (later - 1) / 2;
        if (number && passes->max_rows < 1) passes->max_rows = 1;
    }
}

static void reset(Passes *passes) {
    memset(passes->by_rows, 0, (size_t)(passes->max_rows + 1) * sizeof *passes->by_rows);
    passes->max_rows = 0;
}

void end_group(Replay *replay, int64_t group, Output *out) {
    int64_t levels = replay->layout->num_exits + 1, num_cold_places = replay->layout->num_cold_places;
    int64_t longest = replay->rounds.max_rows, num_rounds = 0;
    for (int64_t drafted = 0; drafted <= longest; drafted++) num_rounds += replay->rounds.by_rows[drafted].number;
    if (replay->rule->num_active) count_later_passes(replay);
    emit_segments(replay, group, out, AHEAD, num_rounds);
    emit_exits(replay, group, out, EXIT);
    emit_rounds(replay, group, out);
    emit_segments(replay, group, out, SEGMENT, num_rounds);
    emit_verifications(replay, group, out);
    for (int64_t accepted = 0; accepted <= longest; accepted++) {
        int64_t number = replay->rounds_by_accepted[accepted];
        if (number) emit(out, (Entry){group, ACCEPTED, 0, accepted, number, 0});
    }
    emit_exits(replay, group, out, TAKEN);
    emit_segments(replay, group, out, COLD_AHEAD, num_rounds);
    emit_cold(replay, out, (Entry){group, COLD_EXIT, 0, 0, 0, 0}, replay->rounds_by_exit_waits, NULL, num_rounds);
    emit_segments(replay, group, out, COLD_SEGMENT, num_rounds);
    emit_cold_verifications(replay, group, out, num_rounds);
    memset(replay->rounds_by_accepted, 0, (size_t)(longest + 1) * sizeof *replay->rounds_by_accepted);
    reset(&replay->rounds);
    reset(&replay->predictions);
    for (int64_t level = 0; level < levels; level++) {
        reset(&replay->draft_passes[level]);
        reset(&replay->push_passes[level]);
    }
    memset(replay->dropped_by_level, 0, (size_t)levels * sizeof *replay->dropped_by_level);
    memset(replay->rounds_by_depth, 0, (size_t)levels * sizeof *replay->rounds_by_depth);
    memset(replay->rounds_by_exit_waits, 0, (size_t)(num_cold_places + 1) * sizeof *replay->rounds_by_exit_waits);
    memset(replay->rounds_by_arrivals, 0, (size_t)(levels * (num_cold_places + 1)) * sizeof *replay->rounds_by_arrivals);
    memset(replay->unpushed_by_arrivals, 0, (size_t)(levels * (num_cold_places + 1)) * sizeof *replay->unpushed_by_arrivals);
}
