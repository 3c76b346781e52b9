/* Replay of policies along a trace: every round and every pass in it, counted. The reference implementation is
 * perfmodel/replay/reference.py.
 *
 * The prediction of an exit at a column does not depend on earlier rounds. Neither does the column where a block stops, nor the
 * tokens that reach a deeper exit. The work is therefore split in two. distances.c scans all columns once, from back to
 * front, and finds the distance from each column to the next rejected token, the next stop, and the next token that arrives
 * at each exit. rounds.c then goes round by round, in jumps of these distances. entries.c turns the counts into entries;
 * module.c is called from perfmodel/replay/compiled.py.
 *
 * Letters: C columns, E exits, L active exits, M prompts, P places of a round that can be cold, Q policies.
 *
 * A *level* is the segments from one active exit to the next: level l runs the tokens that leave at none of the first l active
 * exits. Level L lies below the last active exit; only the verification of a self draft runs it. A column has two *sides*: its
 * predictions on the text's path, and off it, after a block's first rejected token.
 *
 * Within a prompt, columns and known tokens differ by a constant, so the number of tokens that a segment has processed is
 * stored as a column (`processed`). A token that reaches a segment first pushes all earlier unprocessed tokens through it.
 */
#ifndef S2D_SIMULATE_H
#define S2D_SIMULATE_H

#include <stddef.h>
#include <stdint.h>

/* Kinds of entries, and their names in Python. The cold kinds count cold passes once more. */
#define ENTRY_KINDS(KIND)              \
    KIND(AHEAD, "ahead")               \
    KIND(EXIT, "exit")                 \
    KIND(ROUND, "round")               \
    KIND(SEGMENT, "segment")           \
    KIND(VERIFY, "verify")             \
    KIND(ACCEPTED, "accepted")         \
    KIND(TAKEN, "taken")               \
    KIND(BLOCK, "block")               \
    KIND(COLD_AHEAD, "cold ahead")     \
    KIND(COLD_EXIT, "cold exit")       \
    KIND(COLD_SEGMENT, "cold segment") \
    KIND(COLD_VERIFY, "cold verify")

/* One count of equal events in a group: see perfmodel.replay.reference.Entry. */
#define ENTRY_FIELDS(FIELD) \
    FIELD(int64_t, group)   \
    FIELD(int64_t, kind)    \
    FIELD(int64_t, stage)   \
    FIELD(int64_t, size)    \
    FIELD(int64_t, number)  \
    FIELD(int64_t, cached)

/* One policy. Plain decoding has num_active 0. `first_group` is the group of its first prompt, or of all prompts. A length that
 * `adapts` grows by 2 after a fully accepted round and shrinks by 1 otherwise. A floor of 0 never stops a block. `drops_token`:
 * the token below the confidence floor is predicted, but it is not part of the block. */
#define RULE_FIELDS(FIELD)             \
    FIELD(int64_t, first_group)        \
    FIELD(int64_t, num_active)         \
    FIELD(int64_t, first_cap)          \
    FIELD(int64_t, cap)                \
    FIELD(int64_t, adapts)             \
    FIELD(int64_t, runs_ahead)         \
    FIELD(int64_t, catches_up_at_once) \
    FIELD(int64_t, drops_token)        \
    FIELD(double, confidence_floor)    \
    FIELD(double, survival_floor)

#define AS_CONSTANT(name, text) name,
#define AS_MEMBER(type, name) type name;

enum { ENTRY_KINDS(AS_CONSTANT) NUM_ENTRY_KINDS };
enum { ON_PATH, OFF_PATH, NUM_SIDES };

typedef struct {
    ENTRY_FIELDS(AS_MEMBER)
} Entry;

typedef struct {
    RULE_FIELDS(AS_MEMBER)
} Rule;

typedef struct {
    Entry *entries;
    size_t length, room;
    int is_out_of_memory;
} Output;

/* The part that is the same for all policies: perfmodel.replay.compiled.TraceLayout. */
typedef struct {
    int64_t num_columns, num_exits, num_prompts, num_cold_places;
    int is_self_draft, by_prompt, keep_blocks;
    const float *confidence[NUM_SIDES];  /* [E, C] */
    const uint8_t *accepted, *ends_text; /* [E, C] */
    const int32_t *room;                 /* [C]; most tokens of a block that begins here */
    const int64_t *begin, *end, *known;  /* [M]; first column, first column past the text, tokens known before the first */
} TraceLayout;

/* Predictions of one side under one policy. */
typedef struct {
    uint8_t *exit_level;      /* [C]; active exit at which the token leaves */
    int32_t *to_stop;         /* [C]; tokens up to and with the first after which a block stops */
    int32_t *to_arrival;      /* [L, C + 1]; columns to the next token that arrives at an exit; unused for the first exit */
    const double **agreement; /* [L]; under a survival floor, calibrated confidence at every column */
} Side;

typedef struct {
    int64_t number, cached; /* passes, and the cached tokens before them, in sum */
} Count;

typedef struct {
    Count *by_rows;
    int64_t max_rows;
} Passes;

/* One policy along the trace, and its counts since the last group ended. */
typedef struct {
    const TraceLayout *layout;
    const Rule *rule;
    const int64_t *active;   /* [L]; zero-based active exits */
    const double *threshold; /* [L - 1] */
    int num_sides;           /* 1 if the trace has no confidences off the path: those on the path are used */
    Side sides[NUM_SIDES];
    int32_t *to_rejection;         /* [C]; accepted tokens from here on before the first rejected one */
    int64_t *processed;            /* [E + 1]; by level, column up to which its segments have run */
    Passes *draft_passes;          /* [E + 1]; by level; at the first level, only the first pass of each block */
    Passes *push_passes;           /* [E + 1]; by level, passes that a self draft's verification needs */
    Passes rounds;                 /* by drafted tokens; cached: known before the verification, in sum */
    Passes predictions;            /* as `rounds`, by predicted tokens: the drafted ones and a dropped one */
    int64_t *dropped_by_level;     /* [E + 1]; dropped tokens by the active exit where they left */
    int64_t *rounds_by_accepted;   /* by accepted tokens */
    int64_t *rounds_by_arrivals;   /* [E + 1, P + 1]; by level, then by tokens that arrived there, P or more together */
    int64_t *unpushed_by_arrivals; /* [E + 1, P + 1]; those of them whose tokens had all run through the level when drafted */
    int64_t *rounds_by_depth;      /* [E + 1]; by the number of segments that ran */
    int64_t *rounds_by_exit_waits; /* [P + 1]; by exit checks that were waited for, P or more together */
} Replay;

static inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

/* Distances along all columns under the policy. `same_exits`: the policy before had the same exits and thresholds, so tokens
 * leave at the same exits. `same_stops`: its blocks also stop at the same columns. */
void find_distances(Replay *replay, int same_exits, int same_stops);

/* All rounds of one prompt. */
void run_prompt(Replay *replay, int64_t prompt, int64_t group, Output *out);

/* Write the counts of a group as entries, and reset them. */
void end_group(Replay *replay, int64_t group, Output *out);

void emit(Output *out, Entry entry);

#endif
