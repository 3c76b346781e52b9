/* The Python module perfmodel.replay._native: arrays in, entries out.
 * It takes the arrays of perfmodel/replay/compiled.py and returns all entries as bytes.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* one build works with every Python from 3.11 on */
#include <Python.h>
#include <stdlib.h>

#include "simulate.h"

/* Zeroed memory in a list, freed all at once. */
typedef struct Chunk {
    struct Chunk *before;
} Chunk;

static void *allocate(Chunk **memory, int64_t number, size_t size) {
    Chunk *chunk = calloc(1, sizeof *chunk + (size_t)number * size);
    if (!chunk) return NULL;
    chunk->before = *memory;
    *memory = chunk;
    return chunk + 1;
}

static void free_all(Chunk *memory) {
    while (memory) {
        Chunk *before = memory->before;
        free(memory);
        memory = before;
    }
}

/* Allocates a member of a struct that is a pointer; 0 where there is no memory. */
#define ALLOCATE(member, number) (((member) = allocate(memory, number, sizeof *(member))) != NULL)

static int make_replay(Replay *replay, const TraceLayout *layout, Chunk **memory) {
    int64_t num_columns = layout->num_columns, levels = layout->num_exits + 1, rows = 1;
    int64_t places = layout->num_cold_places + 1;
    int is_complete = 1;
    for (int64_t prompt = 0; prompt < layout->num_prompts; prompt++) {
        int64_t end = prompt + 1 < layout->num_prompts ? layout->begin[prompt + 1] : num_columns;
        if (end - layout->begin[prompt] + 2 > rows) rows = end - layout->begin[prompt] + 2;
    }
    replay->layout = layout;
    replay->num_sides = layout->confidence[OFF_PATH] ? NUM_SIDES : 1;
    for (int i = 0; i < replay->num_sides; i++) {
        Side *side = &replay->sides[i];
        is_complete &= ALLOCATE(side->exit_level, num_columns);
        is_complete &= ALLOCATE(side->to_stop, num_columns);
        is_complete &= ALLOCATE(side->to_arrival, levels * (num_columns + 1));
        is_complete &= ALLOCATE(side->agreement, levels);
    }
    is_complete &= ALLOCATE(replay->to_rejection, num_columns);
    is_complete &= ALLOCATE(replay->processed, levels);
    is_complete &= ALLOCATE(replay->draft_passes, levels);
    is_complete &= ALLOCATE(replay->push_passes, levels);
    is_complete &= ALLOCATE(replay->rounds.by_rows, rows);
    is_complete &= ALLOCATE(replay->predictions.by_rows, rows);
    is_complete &= ALLOCATE(replay->dropped_by_level, levels);
    is_complete &= ALLOCATE(replay->rounds_by_accepted, rows);
    is_complete &= ALLOCATE(replay->rounds_by_arrivals, levels * places);
    is_complete &= ALLOCATE(replay->unpushed_by_arrivals, levels * places);
    is_complete &= ALLOCATE(replay->rounds_by_depth, levels);
    is_complete &= ALLOCATE(replay->rounds_by_exit_waits, places);
    for (int64_t level = 0; is_complete && level < levels; level++) {
        is_complete &= ALLOCATE(replay->draft_passes[level].by_rows, rows);
        is_complete &= ALLOCATE(replay->push_passes[level].by_rows, rows);
    }
    return is_complete;
}

/* The buffers among the arguments, in order. */
enum {
    RULES,
    ACTIVE,
    THRESHOLDS,
    CURVE_NUMBERS,
    AGREEMENT,
    CONFIDENCE,
    OFF_PATH_CONFIDENCE,
    ACCEPTED_TOKENS,
    ENDS_TEXT,
    ROOM,
    BEGIN,
    END,
    KNOWN,
    NUM_BUFFERS
};

/* Whether two policies have the same active exits and thresholds. */
static int have_same_exits(const Py_buffer *buffers, int64_t num_exits, int64_t a, int64_t b) {
    const Rule *rules = buffers[RULES].buf;
    const int64_t *active = buffers[ACTIVE].buf;
    const double *thresholds = buffers[THRESHOLDS].buf;
    if (rules[a].num_active != rules[b].num_active) return 0;
    for (int64_t level = 0; level < rules[a].num_active; level++) {
        int64_t in_a = a * num_exits + level, in_b = b * num_exits + level;
        if (active[in_a] != active[in_b] || thresholds[in_a] != thresholds[in_b]) return 0;
    }
    return 1;
}

static void begin_policy(Replay *replay, const Py_buffer *buffers, int64_t policy) {
    const Rule *rules = buffers[RULES].buf;
    int64_t num_exits = replay->layout->num_exits, num_columns = replay->layout->num_columns;
    const int64_t *curve = (const int64_t *)buffers[CURVE_NUMBERS].buf + policy * num_exits;
    int same_exits = policy && have_same_exits(buffers, num_exits, policy - 1, policy);
    int same_stops = same_exits && rules[policy - 1].confidence_floor == rules[policy].confidence_floor;
    replay->rule = &rules[policy];
    replay->active = (const int64_t *)buffers[ACTIVE].buf + policy * num_exits;
    replay->threshold = (const double *)buffers[THRESHOLDS].buf + policy * num_exits;
    for (int64_t level = 0; replay->rule->survival_floor > 0 && level < replay->rule->num_active; level++) {
        for (int side = 0; side < replay->num_sides; side++) {
            int64_t row = curve[level] * replay->num_sides + side;
            replay->sides[side].agreement[level] = (const double *)buffers[AGREEMENT].buf + row * num_columns;
        }
    }
    if (replay->rule->num_active) find_distances(replay, same_exits, same_stops);
}

static void run_policies(const TraceLayout *layout, Replay *replay, const Py_buffer *buffers, Output *out) {
    int64_t num_policies = buffers[RULES].len / (int64_t)sizeof(Rule);
    for (int64_t policy = 0; policy < num_policies; policy++) {
        begin_policy(replay, buffers, policy);
        for (int64_t prompt = 0; prompt < layout->num_prompts; prompt++) {
            int64_t group = replay->rule->first_group + (layout->by_prompt ? prompt : 0);
            run_prompt(replay, prompt, group, out);
            if (layout->by_prompt) end_group(replay, group, out);
        }
        if (!layout->by_prompt) end_group(replay, replay->rule->first_group, out);
    }
}

static PyObject *run(PyObject *module, PyObject *args) {
    Py_buffer buffers[NUM_BUFFERS] = {{0}};
    TraceLayout layout = {0};
    Replay replay = {0};
    Output out = {0};
    Chunk *memory = NULL;
    PyObject *entries = NULL;
    long long num_cold_places;
    (void)module;
    if (!PyArg_ParseTuple(args, "pppLy*y*y*y*y*y*z*y*y*y*y*y*y*", &layout.is_self_draft, &layout.by_prompt, &layout.keep_blocks,
                          &num_cold_places, &buffers[RULES], &buffers[ACTIVE], &buffers[THRESHOLDS], &buffers[CURVE_NUMBERS],
                          &buffers[AGREEMENT], &buffers[CONFIDENCE], &buffers[OFF_PATH_CONFIDENCE], &buffers[ACCEPTED_TOKENS],
                          &buffers[ENDS_TEXT], &buffers[ROOM], &buffers[BEGIN], &buffers[END], &buffers[KNOWN])) {
        return NULL;
    }
    layout.num_cold_places = num_cold_places;
    layout.num_columns = buffers[ROOM].len / (int64_t)sizeof *layout.room;
    layout.num_prompts = buffers[BEGIN].len / (int64_t)sizeof *layout.begin;
    layout.num_exits = layout.num_columns ? buffers[ACCEPTED_TOKENS].len / layout.num_columns : 0;
    layout.confidence[ON_PATH] = buffers[CONFIDENCE].buf;
    layout.confidence[OFF_PATH] = buffers[OFF_PATH_CONFIDENCE].buf;
    layout.accepted = buffers[ACCEPTED_TOKENS].buf;
    layout.ends_text = buffers[ENDS_TEXT].buf;
    layout.room = buffers[ROOM].buf;
    layout.begin = buffers[BEGIN].buf;
    layout.end = buffers[END].buf;
    layout.known = buffers[KNOWN].buf;
    Py_BEGIN_ALLOW_THREADS
    if (make_replay(&replay, &layout, &memory)) {
        run_policies(&layout, &replay, buffers, &out);
    } else {
        out.is_out_of_memory = 1;
    }
    free_all(memory);
    Py_END_ALLOW_THREADS
    for (int i = 0; i < NUM_BUFFERS; i++) PyBuffer_Release(&buffers[i]);
    if (out.is_out_of_memory) {
        PyErr_NoMemory();
    } else {
        entries = PyBytes_FromStringAndSize((const char *)out.entries, (Py_ssize_t)(out.length * sizeof *out.entries));
    }
    free(out.entries);
    return entries;
}

/* The tables of simulate.h as texts. A field that can hold a half is a floating-point number. */
#define AS_NAME(name, text) text,
#define AS_FIELD(type, name) #name,
#define AS_FORMAT(type, name) (type)0.5 == 0 ? "i8" : "f8",
static const char *const entry_kinds[] = {ENTRY_KINDS(AS_NAME) NULL};
static const char *const entry_fields[] = {ENTRY_FIELDS(AS_FIELD) NULL};
static const char *const rule_fields[] = {RULE_FIELDS(AS_FIELD) NULL};
static const char *const rule_formats[] = {RULE_FIELDS(AS_FORMAT) NULL};

static int add_texts(PyObject *module, const char *attribute, const char *const *texts) {
    Py_ssize_t number = 0;
    int result = -1;
    while (texts[number]) number++;
    PyObject *tuple = PyTuple_New(number);
    if (!tuple) return -1;
    for (Py_ssize_t i = 0; i < number; i++) {
        PyObject *text = PyUnicode_FromString(texts[i]);
        if (!text || PyTuple_SetItem(tuple, i, text) < 0) goto done;
    }
    result = PyModule_AddObjectRef(module, attribute, tuple);
done:
    Py_DECREF(tuple);
    return result;
}

static int add_constants(PyObject *module) {
    if (add_texts(module, "ENTRY_KINDS", entry_kinds) < 0) return -1;
    if (add_texts(module, "ENTRY_FIELDS", entry_fields) < 0) return -1;
    if (add_texts(module, "RULE_FIELDS", rule_fields) < 0) return -1;
    return add_texts(module, "RULE_FORMATS", rule_formats);
}

static PyMethodDef methods[] = {{"run", run, METH_VARARGS, "See perfmodel.replay.compiled."}, {NULL, NULL, 0, NULL}};
static PyModuleDef_Slot slots[] = {{Py_mod_exec, add_constants}, {0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
