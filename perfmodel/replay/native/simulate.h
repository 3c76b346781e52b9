/* The rounds that policies run along a trace, and every pass in them, counted: what telling.py tells token by token.
 *
 * What an exit says at a column does not depend on the policy's past, and neither does where a block stops or which tokens come
 * to a deeper exit. So there are two steps: `columns.c`, once along all columns, back to front, how far it is from each one to
 * the next refusal, the next stop, and the next token that comes to each exit; then `rounds.c`, round by round, in jumps of
 * these distances. `entries.c` makes entries of what was counted, and `module.c` is called by perfmodel/replay/compiled.py.
 *
 * Letters: C columns, E exits, L looked-at exits, M prompts, P places of a round that are told apart, Q policies.
 *
 * A *level* is the segments from one looked-at exit to the next: level l is run by the tokens that leave at none of the first
 * l exits; level L lies below the last, and a self draft's verification alone runs it. A column has two *sides*: what is said
 * there on the text's path, and what is said behind a mistake.
 *
 * Within a prompt, columns and known tokens differ by a constant, so how many tokens a segment has processed is told by the
 * column up to which it has (`done`). When a token comes to a segment that others never reach, it owes their rows first.
 */
#ifndef S2D_COURSE_H
#define S2D_COURSE_H

#include <stddef.h>
#include <stdint.h>

enum { COLD_PLACES = 3 };                                                   /* P: perfmodel.passes.passes */
enum { NEVER, FLOOR, SURVIVAL };                                            /* Rule.stop */
enum { AHEAD, EXIT, ROUND, SEGMENT, VERIFY, ACCEPTED, TAKEN, BLOCK, COLD }; /* Entry.what: perfmodel.replay.counts */
enum { ON_PATH, OFF_PATH, NUM_SIDES };

/* One policy: a row of `perfmodel.replay.compiled.RULE`. */
typedef struct {
    int64_t first_group; /* of its first prompt, or of all */
    int64_t num_looked;  /* L; 0 in plain decoding */
    int64_t start, cap;  /* tokens of the first block, and of the longest */
    int64_t adapts;      /* whether the length moves, +2/-1 */
    int64_t stop;
    int64_t runs_ahead, catches_up_at_once;
    double floor; /* of the stop rule */
} Rule;

/* One count: a row of `perfmodel.replay.counts.ENTRY`. */
typedef struct {
    int64_t group, what, stage;
    int64_t size; /* rows of a pass, tokens, or a place */
    int64_t number, cached;
} Entry;

typedef struct {
    Entry *entries;
    size_t length, room;
    int is_out_of_memory;
} Output;

/* What is the same for all policies: perfmodel.replay.layout. */
typedef struct {
    int64_t num_columns, num_exits, num_prompts;
    int is_self_draft, by_prompt, keep_blocks;
    const float *confidence[NUM_SIDES];  /* [E, C] */
    const uint8_t *accepted, *ends_text; /* [E, C] */
    const int32_t *room;                 /* [C]; tokens that a block starting here may draft */
    const int64_t *begin, *end, *known;  /* [M]; first column, first past the text, tokens known before the first */
} TraceLayout;

/* What one policy makes of the columns of one side. */
typedef struct {
    uint8_t *level;           /* [C]; looked-at exit at which the token leaves */
    int32_t *length;          /* [C]; tokens up to the first after which a block stops */
    int32_t *until;           /* [L, C + 1]; columns from each on to the next token that comes to an exit; none for the first */
    const double **agreement; /* [L]; calibrated confidence at every column, of a survival rule */
} Side;

typedef struct {
    int64_t number, cached; /* passes, and tokens in the cache before them, in sum */
} Count;

typedef struct {
    Count *of; /* by rows */
    int64_t longest;
} Passes;

/* One policy on its way, and what it has counted since the last group ended. */
typedef struct {
    const TraceLayout *tape;
    const Rule *rule;
    const int64_t *looked;   /* [L] */
    const double *threshold; /* [L - 1] */
    int num_sides;
    Side sides[NUM_SIDES]; /* of them; what is said on the path stands in for what is not told off it */
    int32_t *right;        /* [C]; tokens from here on before the first that would be refused */
    int64_t *done;         /* [E + 1]; by level */
    Passes *drafting;      /* [E + 1]; by level, of blocks' tokens; of the first only the first of each block */
    Passes *pushed;        /* [E + 1]; by level, of a self draft's verifications */
    Passes rounds;         /* by drafted tokens; cached: known before the verification, in sum */
    int64_t *accepted;     /* rounds by accepted tokens */
    int64_t (*rounds_with)[COLD_PLACES + 1]; /* [E + 1]; by level, rounds by how many tokens came, told up to P */
    int64_t *depths;                         /* [E + 1]; rounds by the segments that ran in them */
    int64_t checks[COLD_PLACES + 1];         /* rounds by the exit checks that were waited for, told up to P */
} Course;

static inline int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }

/* What the policy makes of all columns. `is_alike`: tokens leave where they left under the one before; `stops_alike`: and its
 * blocks stop where they did. */
void look_along(Course *course, int is_alike, int stops_alike);

/* All rounds of one prompt. */
void run_prompt(Course *course, int64_t prompt, int64_t group, Output *out);

/* What was counted, as entries in their order; the counters are at zero again. */
void end_group(Course *course, int64_t group, Output *out);

void emit(Output *out, Entry entry);

#endif
