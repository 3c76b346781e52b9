/* perfmodel.replay._native: arrays from Python, and the bytes of all entries back. perfmodel/replay/compiled.py lays them out.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* one build serves every Python from 3.11 on */
#include <Python.h>
#include <stdlib.h>

#include "simulate.h"

/* Zeroed memory that is given back at once with all before it; see `give_back`. */
typedef struct Chunk {
    struct Chunk *before;
} Chunk;

static void *take(Chunk **memory, int64_t number, size_t size) {
    Chunk *chunk = calloc(1, sizeof *chunk + (size_t)number * size);
    if (!chunk) return NULL;
    chunk->before = *memory;
    *memory = chunk;
    return chunk + 1;
}

static void give_back(Chunk *memory) {
    while (memory) {
        Chunk *before = memory->before;
        free(memory);
        memory = before;
    }
}

static int make_course(Course *course, const TraceLayout *tape, Chunk **memory) {
    int64_t num_columns = tape->num_columns, levels = tape->num_exits + 1, rows = 1;
    int is_whole = 1;
    for (int64_t prompt = 0; prompt < tape->num_prompts; prompt++) {
        int64_t past = prompt + 1 < tape->num_prompts ? tape->begin[prompt + 1] : num_columns;
        if (past - tape->begin[prompt] + 2 > rows) rows = past - tape->begin[prompt] + 2;
    }
    course->tape = tape;
    course->num_sides = tape->confidence[OFF_PATH] ? NUM_SIDES : 1;
    for (int which = 0; which < course->num_sides; which++) {
        Side *side = &course->sides[which];
        is_whole &= (side->level = take(memory, num_columns, sizeof *side->level)) != NULL;
        is_whole &= (side->length = take(memory, num_columns, sizeof *side->length)) != NULL;
        is_whole &= (side->until = take(memory, levels * (num_columns + 1), sizeof *side->until)) != NULL;
        is_whole &= (side->agreement = take(memory, levels, sizeof *side->agreement)) != NULL;
    }
    is_whole &= (course->right = take(memory, num_columns, sizeof *course->right)) != NULL;
    is_whole &= (course->drafting = take(memory, levels, sizeof *course->drafting)) != NULL;
    is_whole &= (course->pushed = take(memory, levels, sizeof *course->pushed)) != NULL;
    is_whole &= (course->accepted = take(memory, rows, sizeof *course->accepted)) != NULL;
    is_whole &= (course->done = take(memory, levels, sizeof *course->done)) != NULL;
    is_whole &= (course->depths = take(memory, levels, sizeof *course->depths)) != NULL;
    is_whole &= (course->rounds_with = take(memory, levels, sizeof *course->rounds_with)) != NULL;
    is_whole &= (course->rounds.of = take(memory, rows, sizeof *course->rounds.of)) != NULL;
    for (int64_t level = 0; is_whole && level < levels; level++) {
        is_whole &= (course->drafting[level].of = take(memory, rows, sizeof(Count))) != NULL;
        is_whole &= (course->pushed[level].of = take(memory, rows, sizeof(Count))) != NULL;
    }
    return is_whole;
}

/* Buffers of the arguments, in their order. */
enum { RULES, LOOKED, THRESHOLDS, CURVES, AGREEMENT, ON, OFF, ACCEPTED_BY, ENDS, ROOM, BEGIN, END, KNOWN, NUM_BUFFERS };

/* Whether two policies look at the same exits and let tokens leave at the same thresholds. */
static int are_alike(const Py_buffer *given, int64_t num_exits, int64_t one, int64_t other) {
    const Rule *rules = given[RULES].buf;
    const int64_t *looked = given[LOOKED].buf;
    const double *thresholds = given[THRESHOLDS].buf;
    if (rules[one].num_looked != rules[other].num_looked) return 0;
    for (int64_t place = 0; place < rules[one].num_looked; place++) {
        int64_t here = one * num_exits + place, there = other * num_exits + place;
        if (looked[here] != looked[there] || thresholds[here] != thresholds[there]) return 0;
    }
    return 1;
}

static void begin_policy(Course *course, const Py_buffer *given, int64_t policy) {
    const Rule *rules = given[RULES].buf;
    int64_t num_exits = course->tape->num_exits, num_columns = course->tape->num_columns;
    const int64_t *curve = (const int64_t *)given[CURVES].buf + policy * num_exits;
    int is_alike = policy && are_alike(given, num_exits, policy - 1, policy);
    int stops_alike = is_alike && rules[policy - 1].stop != FLOOR && rules[policy].stop != FLOOR;
    course->rule = &rules[policy];
    course->looked = (const int64_t *)given[LOOKED].buf + policy * num_exits;
    course->threshold = (const double *)given[THRESHOLDS].buf + policy * num_exits;
    for (int64_t place = 0; course->rule->stop == SURVIVAL && place < course->rule->num_looked; place++) {
        for (int which = 0; which < course->num_sides; which++) {
            int64_t row = curve[place] * course->num_sides + which;
            course->sides[which].agreement[place] = (const double *)given[AGREEMENT].buf + row * num_columns;
        }
    }
    if (course->rule->num_looked) look_along(course, is_alike, stops_alike);
}

static void run_policies(const TraceLayout *tape, Course *course, const Py_buffer *given, Output *out) {
    int64_t num_policies = given[RULES].len / (int64_t)sizeof(Rule);
    for (int64_t policy = 0; policy < num_policies; policy++) {
        begin_policy(course, given, policy);
        for (int64_t prompt = 0; prompt < tape->num_prompts; prompt++) {
            int64_t group = course->rule->first_group + (tape->by_prompt ? prompt : 0);
            run_prompt(course, prompt, group, out);
            if (tape->by_prompt) end_group(course, group, out);
        }
        if (!tape->by_prompt) end_group(course, course->rule->first_group, out);
    }
}

static PyObject *run(PyObject *module, PyObject *args) {
    Py_buffer given[NUM_BUFFERS] = {{0}};
    TraceLayout tape = {0};
    Course course = {0};
    Output out = {0};
    Chunk *memory = NULL;
    PyObject *entries = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "pppy*y*y*y*y*y*z*y*y*y*y*y*y*", &tape.is_self_draft, &tape.by_prompt, &tape.keep_blocks,
                          &given[RULES], &given[LOOKED], &given[THRESHOLDS], &given[CURVES], &given[AGREEMENT], &given[ON],
                          &given[OFF], &given[ACCEPTED_BY], &given[ENDS], &given[ROOM], &given[BEGIN], &given[END],
                          &given[KNOWN])) {
        return NULL;
    }
    tape.num_columns = given[ROOM].len / (int64_t)sizeof *tape.room;
    tape.num_prompts = given[BEGIN].len / (int64_t)sizeof *tape.begin;
    tape.num_exits = tape.num_columns ? given[ACCEPTED_BY].len / tape.num_columns : 0;
    tape.confidence[ON_PATH] = given[ON].buf;
    tape.confidence[OFF_PATH] = given[OFF].buf;
    tape.accepted = given[ACCEPTED_BY].buf;
    tape.ends_text = given[ENDS].buf;
    tape.room = given[ROOM].buf;
    tape.begin = given[BEGIN].buf;
    tape.end = given[END].buf;
    tape.known = given[KNOWN].buf;
    Py_BEGIN_ALLOW_THREADS
    if (make_course(&course, &tape, &memory)) {
        run_policies(&tape, &course, given, &out);
    } else {
        out.is_out_of_memory = 1;
    }
    give_back(memory);
    Py_END_ALLOW_THREADS
    for (int which = 0; which < NUM_BUFFERS; which++) PyBuffer_Release(&given[which]);
    if (out.is_out_of_memory) {
        PyErr_NoMemory();
    } else {
        entries = PyBytes_FromStringAndSize((const char *)out.entries, (Py_ssize_t)(out.length * sizeof *out.entries));
    }
    free(out.entries);
    return entries;
}

static PyMethodDef methods[] = {{"run", run, METH_VARARGS, "See perfmodel.replay.compiled."}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
