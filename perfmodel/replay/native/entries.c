/* What was counted by levels, as entries by segments and exits: perfmodel.replay.counts.ENTRY. */
#include "simulate.h"

#include <stdlib.h>
#include <string.h>

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

static int64_t level_of(const Course *course, int64_t segment) {
    int64_t level = 0;
    while (level < course->rule->num_looked && course->looked[level] < segment) level++;
    return level;
}

/* Whether a segment is launched for every token that comes to the looked-at exit above it, before its answer is read. */
static int is_ahead(const Course *course, int64_t segment) {
    int64_t level = level_of(course, segment);
    return course->rule->runs_ahead && segment && level < course->rule->num_looked && level_of(course, segment - 1) < level;
}

/* The level whose passes a segment has. */
static int64_t source_of(const Course *course, int64_t segment) {
    int64_t level = level_of(course, segment);
    if (is_ahead(course, segment)) return level - 1; /* it runs for every token that comes to the exit above it */
    return course->rule->catches_up_at_once && level < course->rule->num_looked ? 0 : level;
}

/* Passes by their rows, those of blocks' tokens and of verifications together; either may be NULL. */
static void emit_passes(Output *out, Entry entry, const Passes *drafting, const Passes *pushed) {
    const Passes *both[] = {drafting, pushed};
    int64_t longest = 0;
    for (int which = 0; which < 2; which++) {
        if (both[which] && both[which]->longest > longest) longest = both[which]->longest;
    }
    for (int64_t rows = 1; rows <= longest; rows++) {
        entry.size = rows;
        entry.number = entry.cached = 0;
        for (int which = 0; which < 2; which++) {
            if (!both[which] || rows > both[which]->longest) continue;
            entry.number += both[which]->of[rows].number;
            entry.cached += both[which]->of[rows].cached;
        }
        if (entry.number) emit(out, entry);
    }
}

/* Passes at the first places of their rounds: of n in a round, one at each of places 1 to n.
 *
 * `rounds_with`: rounds by how many passes they have, told up to P; NULL where none has any. `is_pushed`: each of the rounds
 * has one pass more.
 */
static void emit_cold(Output *out, Entry entry, const int64_t *rounds_with, int is_pushed, int64_t num_rounds) {
    for (int64_t place = 1; place <= COLD_PLACES; place++) {
        int64_t least_number = place - is_pushed;
        entry.size = place;
        entry.number = least_number ? 0 : num_rounds;
        for (int64_t number = least_number; rounds_with && least_number && number <= COLD_PLACES; number++) {
            entry.number += rounds_with[number];
        }
        if (entry.number) emit(out, entry);
    }
}

/* Every segment's passes of one kind, ahead of an answer or not, or those of them at cold places. */
static void emit_segments(const Course *course, int64_t group, Output *out, int64_t kind, int64_t num_rounds) {
    int is_of_ahead = kind % COLD == AHEAD;
    int is_pushed = course->tape->is_self_draft && course->rule->num_looked && !is_of_ahead;
    for (int64_t segment = 0; segment < course->tape->num_exits; segment++) {
        int64_t level = source_of(course, segment);
        int drafts = level < course->rule->num_looked && is_ahead(course, segment) == is_of_ahead;
        Entry entry = {group, kind, segment, 0, 0, 0};
        if (kind < COLD) {
            emit_passes(out, entry, drafts ? &course->drafting[level] : NULL, is_pushed ? &course->pushed[level] : NULL);
        } else {
            emit_cold(out, entry, drafts ? course->rounds_with[level] : NULL, is_pushed, num_rounds);
        }
    }
}

static void emit_rounds(const Course *course, int64_t group, Output *out) {
    const Passes *rounds = &course->rounds;
    for (int64_t drafted = 0; drafted <= rounds->longest; drafted++) {
        if (rounds->of[drafted].number) emit(out, (Entry){group, ROUND, 0, drafted, rounds->of[drafted].number, 0});
    }
}

static void emit_verifications(const Course *course, int64_t group, Output *out) {
    const Passes *rounds = &course->rounds;
    for (int64_t drafted = 0; drafted <= rounds->longest; drafted++) {
        if (!rounds->of[drafted].number) continue;
        emit(out, (Entry){group, VERIFY, 0, drafted + 1, rounds->of[drafted].number, rounds->of[drafted].cached});
    }
}

/* Tokens that came to a looked-at exit; none came below the last. */
static int64_t tokens_at(const Course *course, int64_t level) {
    const Passes *passes = &course->drafting[level];
    int64_t tokens = 0;
    for (int64_t rows = 1; level < course->rule->num_looked && rows <= passes->longest; rows++)
        tokens += passes->of[rows].number;
    return tokens;
}

static void emit_exits(const Course *course, int64_t group, Output *out, int64_t what) {
    int64_t num_looked = course->rule->num_looked;
    for (int64_t level = 0; level < num_looked; level++) {
        int64_t tokens = tokens_at(course, level), is_last = level == num_looked - 1;
        if (what == TAKEN) tokens -= tokens_at(course, level + 1);
        if (what == EXIT && course->rule->runs_ahead && !is_last) tokens = 0;
        if (tokens) emit(out, (Entry){group, what, course->looked[level], 1, tokens, 0});
    }
}

/* Verifications behind more than one segment. What came to an exit came to those before, so rounds are as deep as the last. */
static void emit_depths(Course *course, int64_t group, Output *out, int64_t num_rounds) {
    const Rule *rule = course->rule;
    int64_t num_looked = rule->num_looked, num_deeper = 0;
    if (course->tape->is_self_draft) {
        if (num_looked && course->tape->num_exits > 1) {
            emit(out, (Entry){group, COLD + VERIFY, 0, course->tape->num_exits, num_rounds, 0});
        }
        return;
    }
    for (int64_t level = num_looked - 1; level >= 0; level--) {
        int64_t depth = course->looked[level] + 1 + (rule->runs_ahead && level < num_looked - 1);
        int64_t number = 0;
        for (int64_t came = 1; came <= COLD_PLACES; came++) number += course->rounds_with[level][came];
        number -= num_deeper;
        num_deeper += number;
        if (rule->catches_up_at_once) depth = course->looked[num_looked - 1] + 1;
        course->depths[depth] += number;
    }
    for (int64_t depth = 2; depth <= course->tape->num_exits; depth++) {
        if (course->depths[depth]) emit(out, (Entry){group, COLD + VERIFY, 0, depth, course->depths[depth], 0});
    }
}

/* Of blocks' passes through the first level all but the first: of one row, and as many tokens are known as follows. */
static void count_others(Course *course) {
    const Passes *rounds = &course->rounds;
    Passes *first = &course->drafting[0];
    for (int64_t drafted = 2; drafted <= rounds->longest; drafted++) {
        int64_t others = drafted - 1, number = rounds->of[drafted].number;
        first->of[1].number += others * number;
        first->of[1].cached += others * (rounds->of[drafted].cached + number) + number * others * (others - 1) / 2;
        if (number && first->longest < 1) first->longest = 1;
    }
}

static void clear(Passes *passes) {
    memset(passes->of, 0, (size_t)(passes->longest + 1) * sizeof *passes->of);
    passes->longest = 0;
}

void end_group(Course *course, int64_t group, Output *out) {
    int64_t num_exits = course->tape->num_exits, longest = course->rounds.longest, num_rounds = 0;
    for (int64_t drafted = 0; drafted <= longest; drafted++) num_rounds += course->rounds.of[drafted].number;
    if (course->rule->num_looked) count_others(course);
    emit_segments(course, group, out, AHEAD, num_rounds);
    emit_exits(course, group, out, EXIT);
    emit_rounds(course, group, out);
    emit_segments(course, group, out, SEGMENT, num_rounds);
    emit_verifications(course, group, out);
    for (int64_t accepted = 0; accepted <= longest; accepted++) {
        if (course->accepted[accepted]) emit(out, (Entry){group, ACCEPTED, 0, accepted, course->accepted[accepted], 0});
    }
    emit_exits(course, group, out, TAKEN);
    emit_segments(course, group, out, COLD + AHEAD, num_rounds);
    emit_cold(out, (Entry){group, COLD + EXIT, 0, 0, 0, 0}, course->checks, 0, num_rounds);
    emit_segments(course, group, out, COLD + SEGMENT, num_rounds);
    emit_depths(course, group, out, num_rounds);
    memset(course->accepted, 0, (size_t)(longest + 1) * sizeof *course->accepted);
    clear(&course->rounds);
    for (int64_t level = 0; level <= num_exits; level++) {
        clear(&course->drafting[level]);
        clear(&course->pushed[level]);
    }
    memset(course->depths, 0, (size_t)(num_exits + 1) * sizeof *course->depths);
    memset(course->checks, 0, sizeof course->checks);
    memset(course->rounds_with, 0, (size_t)(num_exits + 1) * sizeof *course->rounds_with);
}
