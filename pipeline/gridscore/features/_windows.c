/* The kernel of windows: what `window_kernel.py` does, which says what that is, bit by bit the same.
 *
 * All numbers of the specification come as float64. Nothing here trusts a state: it is the grid's bytes. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF /* as GCC has it with -std=c11 */
#endif

enum { SPAN, LAST, VALUES, DECAY, ROWS };
enum { COUNT, SUM, MEAN, MIN, MAX, STD, FIRST, NEWEST, LAG, DISTINCT, SEEN, SINCE, DECAYED, FUNCTIONS };
enum { MAX_OPEN = 128, MAX_CLOSED = 64, CELLS = 32, MAX_VALUES = 256, MOST_LAST = 1000, HALF_LIVES = 32, HEADER = 36 };
/* A state has no more elements in a series than this; one is added before the oldest is closed. */
enum { ROOM = MAX_OPEN + MOST_LAST + 2 };
/* Instead of the sequence of an event that only looks. */
static const int64_t LOOK = -2;
/* Of years 1 to 9999: no event has another time. */
static const double FIRST_TIME = -62135596800.0, END_TIME = 253402300800.0;

typedef struct {
    double time, sum, squares, low, high, first, last;
    uint32_t count;
} Element;

typedef struct {
    int kind, last, column, bare;
    double seconds;
    int closed, total;
    Element *elements;
} Kept;

typedef struct {
    int function, series, last, column;
} Call;

typedef struct {
    int64_t sequence;
    double newest, floor, until;
    uint32_t late;
} Entity;

static double faded(double total, double seconds, double half_life)
{
    return seconds >= half_life * HALF_LIVES ? 0.0 : total * pow(2.0, -seconds / half_life);
}

static Element together(const Element *a, const Element *b)
{
    double n = a->count, m = b->count, apart = b->sum / m - a->sum / n;
    Element both = *b;
    uint64_t count = (uint64_t)a->count + b->count;
    both.count = count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
    both.sum = a->sum + b->sum;
    both.squares = a->squares + b->squares + apart * apart * (n * m / (n + m));
    both.low = b->low < a->low ? b->low : a->low;
    both.high = b->high > a->high ? b->high : a->high;
    both.first = a->first;
    return both;
}

static void drop(Kept *kept, int place, int count)
{
    memmove(kept->elements + place, kept->elements + place + count,
            sizeof(Element) * (size_t)(kept->total - place - count));
    kept->total -= count;
}

static void expire(Kept *kept, double now)
{
    int gone = 0;
    while (gone < kept->closed && kept->elements[gone].time <= now - kept->seconds)
        gone++;
    if (gone) {
        drop(kept, 0, gone);
        kept->closed -= gone;
    }
}

static int is_after(const Element *element, double time, double value)
{
    if (element->time != time)
        return element->time > time;
    return element->last > value || (isnan(value) && !isnan(element->last));
}

/* The closed elements that a series can have. */
static int most_closed(const Kept *kept)
{
    switch (kept->kind) {
    case SPAN:
        return MAX_CLOSED;
    case VALUES:
        return MAX_VALUES;
    case DECAY:
        return 1;
    default:
        return kept->last;
    }
}

static void insert(Kept *kept, double time, double value)
{
    if (kept->total >= ROOM)
        return; /* `decode` and `apply` leave room: this only guards the memory behind it */
    value = isfinite(value) ? value + 0.0 : (double)NAN;
    int place = kept->total;
    while (place > kept->closed && is_after(kept->elements + place - 1, time, value))
        place--;
    memmove(kept->elements + place + 1, kept->elements + place, sizeof(Element) * (size_t)(kept->total - place));
    kept->elements[place] = (Element){time, value, 0.0, value, value, value, value, 1};
    kept->total++;
}

static void close_oldest(Kept *kept)
{
    if (kept->kind == SPAN || kept->kind == VALUES)
        expire(kept, kept->elements[kept->closed].time);
    Element new = kept->elements[kept->closed];
    if (kept->kind == VALUES)
        for (int place = 0; place < kept->closed; place++)
            if (kept->elements[place].last == new.last) {
                drop(kept, place, 1);
                kept->closed--;
                break;
            }
    if (kept->kind == DECAY && kept->closed) {
        Element *before = kept->elements;
        double value = faded(before->sum, new.time - before->time, kept->seconds) + new.sum;
        drop(kept, 0, 1);
        kept->elements[0] = (Element){new.time, value, 0.0, value, value, value, value, 1};
        return;
    }
    kept->closed++;
    if (kept->closed <= most_closed(kept))
        return;
    if (kept->kind != SPAN) {
        drop(kept, 0, 1);
        kept->closed--;
    } else {
        double cell = kept->seconds / CELLS;
        int end = 0;
        for (int place = 0; place < kept->closed; place++) {
            Element *each = kept->elements + place;
            if (end && floor(kept->elements[end - 1].time / cell) == floor(each->time / cell))
                kept->elements[end - 1] = together(kept->elements + end - 1, each);
            else
                kept->elements[end++] = *each;
        }
        drop(kept, end, kept->closed - end);
        kept->closed = end;
    }
}

/* Whether the event is late. */
static int apply(Entity *entity, Kept *series, int count, double lateness, int64_t sequence, double time,
                 const double *columns, Py_ssize_t step)
{
    if ((sequence >= 0 && sequence <= entity->sequence) || sequence == LOOK || time < entity->until)
        return 0;
    if (sequence > entity->sequence)
        entity->sequence = sequence;
    if (time < entity->floor) {
        entity->late += entity->late < UINT32_MAX;
        return 1;
    }
    for (int i = 0; i < count; i++) {
        double value = columns[series[i].column * step];
        if (series[i].kind == ROWS || isfinite(value))
            insert(series + i, time, value);
    }
    if (time > entity->newest)
        entity->newest = time;
    for (int i = 0; i < count; i++)
        while (series[i].total - series[i].closed > MAX_OPEN) {
            double oldest = series[i].elements[series[i].closed].time;
            if (oldest > entity->floor)
                entity->floor = oldest;
            close_oldest(series + i);
        }
    if (entity->newest - lateness > entity->floor)
        entity->floor = entity->newest - lateness;
    for (int i = 0; i < count; i++) {
        Kept *kept = series + i;
        while (kept->closed < kept->total && kept->elements[kept->closed].time < entity->floor)
            close_oldest(kept);
        if (kept->kind == SPAN || kept->kind == VALUES)
            expire(kept, entity->floor);
    }
    return 0;
}

/* Values that were counted: a table with open addressing, at most about half full. A slot is taken if it has the mark of
 * this count. The seed is of this process: who chooses values cannot choose them so that they all begin at one slot. */
enum { SLOTS = 2048 };
typedef struct {
    uint64_t seed, mark, marks[SLOTS];
    double values[SLOTS];
} Seen;

static int add_new(Seen *seen, double value)
{
    uint64_t bits;
    value += 0.0; /* there is one zero */
    memcpy(&bits, &value, sizeof(bits));
    bits = (bits ^ seen->seed) * 0xff51afd7ed558ccdULL;
    bits = (bits ^ (bits >> 32)) * 0xc4ceb9fe1a85ec53ULL;
    int slot = (int)(bits >> 53);
    for (; seen->marks[slot] == seen->mark; slot = (slot + 1) % SLOTS)
        if (seen->values[slot] == value)
            return 0;
    seen->marks[slot] = seen->mark;
    seen->values[slot] = value;
    return 1;
}

static int past(const Element *elements, int begin, int end, double time)
{
    while (begin < end) {
        int middle = (begin + end) / 2;
        if (elements[middle].time > time)
            end = middle;
        else
            begin = middle + 1;
    }
    return begin;
}

static double ask(const Entity *entity, const Kept *kept, const Call *call, double time, double value, Seen *seen)
{
    double now = time < entity->floor ? entity->floor : time;
    const Element *elements = kept->elements;
    int end = past(elements, 0, kept->total, now);
    if (kept->kind == DECAY) {
        double total = 0.0, at = now;
        for (int i = 0; i < end; i++) {
            total = total != 0.0 ? faded(total, elements[i].time - at, kept->seconds) + elements[i].sum : elements[i].sum;
            at = elements[i].time;
        }
        return faded(total, now - at, kept->seconds);
    }
    int begin = kept->kind == LAST || kept->kind == ROWS ? (end > call->last ? end - call->last : 0)
                                                         : past(elements, 0, end, now - kept->seconds);
    int has_gaps = kept->kind == ROWS;
#define IS_IN(i) (!has_gaps || !isnan(elements[i].last))
    if (call->function == DISTINCT) {
        int different = 0;
        seen->mark++;
        for (int i = begin; i < end; i++)
            different += IS_IN(i) && add_new(seen, elements[i].last);
        return different;
    }
    if (call->function == SEEN) {
        if (!isfinite(value))
            return NAN;
        for (int i = begin; i < end; i++)
            if (elements[i].last == value)
                return 1.0;
        return 0.0;
    }
    while (begin < end && !IS_IN(begin))
        begin++;
    while (begin < end && !IS_IN(end - 1))
        end--;
    switch (call->function) {
    case SINCE:
        return begin < end ? now - elements[end - 1].time : NAN;
    case LAG:
        return end - begin == call->last ? elements[begin].last : NAN;
    case FIRST:
        return begin < end ? elements[begin].first : NAN;
    case NEWEST:
        return begin < end ? elements[end - 1].last : NAN;
    case COUNT: {
        double n = 0.0;
        for (int i = begin; i < end; i++)
            n += IS_IN(i) ? elements[i].count : 0;
        return n;
    }
    }
    if (begin == end)
        return call->function == SUM ? 0.0 : NAN;
    Element all = elements[begin];
    for (int i = begin + 1; i < end; i++)
        if (IS_IN(i))
            all = together(&all, elements + i);
    switch (call->function) {
    case SUM:
        return all.sum;
    case MEAN:
        return all.sum / all.count;
    case MIN:
        return all.low;
    case MAX:
        return all.high;
    default:
        return all.count > 1 && all.squares >= 0 ? sqrt(all.squares / (all.count - 1.0)) : NAN;
    }
}

/* ------------------------------------------------------------------ states */

static int read_bytes(const char **at, const char *end, void *to, size_t count)
{
    if ((size_t)(end - *at) < count)
        return 0;
    memcpy(to, *at, count);
    *at += count;
    return 1;
}

/* Returns why a state is not one of these series; NULL if it is. */
static const char *decode(Entity *entity, Kept *series, int count, const char *at, Py_ssize_t length)
{
    *entity = (Entity){-1, -INFINITY, -INFINITY, -INFINITY, 0};
    for (int i = 0; i < count; i++)
        series[i].closed = series[i].total = 0;
    if (!length)
        return NULL;
    static const char *const cut = "a state is cut off", *const foreign = "a state is not one of these windows";
    const char *end = at + length;
    if (length < HEADER)
        return cut;
    read_bytes(&at, end, &entity->sequence, 8);
    read_bytes(&at, end, &entity->newest, 8);
    read_bytes(&at, end, &entity->floor, 8);
    read_bytes(&at, end, &entity->until, 8);
    read_bytes(&at, end, &entity->late, 4);
    if (entity->sequence < -1 || !(entity->newest >= FIRST_TIME && entity->newest < END_TIME) ||
        !(entity->floor <= entity->newest) || !(entity->until < END_TIME))
        return foreign;
    for (int i = 0; i < count; i++) {
        int kind = series[i].kind;
        double before = FIRST_TIME;
        uint16_t counts[2];
        if (!read_bytes(&at, end, counts, sizeof(counts)))
            return cut;
        if (counts[0] > counts[1] || counts[0] > most_closed(series + i) || counts[1] - counts[0] > MAX_OPEN)
            return foreign;
        series[i].closed = counts[0];
        series[i].total = counts[1];
        for (int j = 0; j < counts[1]; j++) {
            Element *each = series[i].elements + j;
            if (!read_bytes(&at, end, &each->time, 8) || !read_bytes(&at, end, &each->count, 4))
                return cut;
            if (!each->count || (each->count > 1 && kind != SPAN) ||
                !(each->time >= before && each->time <= entity->newest))
                return foreign;
            before = each->time;
            double value = 1.0, many[6];
            if (series[i].bare) {
                each->sum = each->count;
                each->squares = 0.0;
                each->low = each->high = each->first = each->last = 1.0;
            } else if (each->count == 1) {
                if (!read_bytes(&at, end, &value, 8))
                    return cut;
                if (kind != DECAY && !isfinite(value) && !(kind == ROWS && isnan(value)))
                    return foreign;
                *each = (Element){each->time, value, 0.0, value, value, value, value, 1};
            } else {
                if (!read_bytes(&at, end, many, sizeof(many)))
                    return cut;
                *each = (Element){each->time, many[0], many[1], many[2], many[3], many[4], many[5], each->count};
            }
        }
    }
    return at == end ? NULL : "a state is too long";
}

static PyObject *encode(const Entity *entity, const Kept *series, int count)
{
    if (entity->newest < FIRST_TIME)
        return PyBytes_FromStringAndSize(NULL, 0); /* it has had no events */
    Py_ssize_t length = HEADER;
    for (int i = 0; i < count; i++) {
        length += 4;
        for (int j = 0; j < series[i].total; j++)
            length += 12 + (series[i].bare ? 0 : series[i].elements[j].count == 1 ? 8 : 48);
    }
    PyObject *state = PyBytes_FromStringAndSize(NULL, length);
    if (!state)
        return NULL;
    char *to = PyBytes_AS_STRING(state);
#define PUT(from, size) (memcpy(to, from, size), to += (size))
    PUT(&entity->sequence, 8);
    PUT(&entity->newest, 8);
    PUT(&entity->floor, 8);
    PUT(&entity->until, 8);
    PUT(&entity->late, 4);
    for (int i = 0; i < count; i++) {
        uint16_t counts[2] = {(uint16_t)series[i].closed, (uint16_t)series[i].total};
        PUT(counts, 4);
        for (int j = 0; j < series[i].total; j++) {
            const Element *each = series[i].elements + j;
            PUT(&each->time, 8);
            PUT(&each->count, 4);
            if (series[i].bare)
                continue;
            PUT(&each->sum, 8);
            if (each->count != 1)
                PUT(&each->squares, 40); /* squares, low, high, first, last */
        }
    }
    return state;
}

/* ------------------------------------------------------------------ the door */

static uint64_t seed;

static PyObject *run_checked(Py_buffer *spec, Py_buffer *asked, double lateness, PyObject *states, Py_buffer *entities,
                             Py_buffer *sequences, Py_buffer *times, Py_buffer *columns, Py_buffer *out)
{
    Py_ssize_t rows = times->len / 8, known = PyList_GET_SIZE(states);
    int count = (int)(spec->len / 40), calls = (int)(asked->len / 32);
    Py_ssize_t widths = rows ? columns->len / 8 / rows : 0, outs = rows ? out->len / 8 / rows : calls;
    if (entities->len != rows * 8 || sequences->len != rows * 8 || columns->len != widths * rows * 8 ||
        out->len != outs * rows * 8 || (outs != calls && outs != calls + 1))
        return PyErr_Format(PyExc_ValueError, "columns of other lengths");
    PyObject *result = NULL, *changed = PyList_New(known);
    Kept *series = calloc((size_t)count + 1, sizeof(Kept));
    Call *call = calloc((size_t)calls + 1, sizeof(Call));
    Element *room = malloc(sizeof(Element) * ROOM * ((size_t)count + 1));
    Seen *seen = calloc(1, sizeof(Seen));
    /* The rows of each entity, in their order: where the next of each row is, and the first of each entity. */
    Py_ssize_t *next = malloc(sizeof(Py_ssize_t) * ((size_t)rows + 1)), *first = malloc(sizeof(Py_ssize_t) * ((size_t)known + 1));
    if (!changed || !series || !call || !room || !seen || !next || !first) {
        PyErr_NoMemory();
        goto done;
    }
    seen->seed = seed;
    const double *number = spec->buf;
    for (int i = 0; i < count; i++, number += 5)
        series[i] = (Kept){(int)number[0], (int)number[2], (int)number[3], number[4] != 0.0, number[1], 0, 0, room + (size_t)i * ROOM};
    number = asked->buf;
    for (int i = 0; i < calls; i++, number += 4)
        call[i] = (Call){(int)number[0], (int)number[1], (int)number[2], (int)number[3]};
    int fits = 1;
    for (int i = 0; i < count; i++)
        fits &= series[i].kind >= SPAN && series[i].kind <= ROWS && series[i].last <= MOST_LAST &&
                series[i].last >= 0 && series[i].column >= 0 && (series[i].column < widths || !rows);
    for (int i = 0; i < calls; i++)
        fits &= call[i].function >= 0 && call[i].function < FUNCTIONS && call[i].series >= 0 && call[i].series < count &&
                call[i].last >= 0 && call[i].column >= 0 && (call[i].column < widths || !rows);
    const int64_t *entity_of = entities->buf, *sequence = sequences->buf;
    for (Py_ssize_t row = 0; row < rows; row++)
        fits &= entity_of[row] >= -1 && entity_of[row] < known;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "a specification that does not fit");
        goto done;
    }
    for (Py_ssize_t i = 0; i < known; i++)
        first[i] = -1;
    for (Py_ssize_t row = rows - 1; row >= 0; row--)
        if (entity_of[row] >= 0) {
            next[row] = first[entity_of[row]];
            first[entity_of[row]] = row;
        }
    const double *time = times->buf, *values = columns->buf;
    double *to = out->buf;
    unsigned long long late = 0;
    for (Py_ssize_t i = 0; i < known; i++) {
        PyObject *before = PyList_GET_ITEM(states, i);
        if (!PyBytes_Check(before)) {
            PyErr_SetString(PyExc_TypeError, "a state must be bytes");
            goto done;
        }
        Entity entity;
        const char *wrong = decode(&entity, series, count, PyBytes_AS_STRING(before), PyBytes_GET_SIZE(before));
        if (wrong) {
            PyErr_SetString(PyExc_ValueError, wrong);
            goto done;
        }
        for (Py_ssize_t row = first[i]; row >= 0; row = next[row]) {
            for (int j = 0; j < calls; j++)
                to[j * rows + row] =
                    ask(&entity, series + call[j].series, call + j, time[row], values[call[j].column * rows + row], seen);
            if (apply(&entity, series, count, lateness, sequence[row], time[row], values + row, rows)) {
                late++;
                if (outs > calls)
                    to[calls * rows + row] = entity.newest - time[row];
            }
        }
        PyObject *after = encode(&entity, series, count);
        if (!after)
            goto done;
        PyList_SET_ITEM(changed, i, after);
    }
    result = Py_BuildValue("OK", changed, late);
done:
    Py_XDECREF(changed);
    free(series);
    free(call);
    free(room);
    free(seen);
    free(next);
    free(first);
    return result;
}

static PyObject *run(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer b[7];
    double lateness;
    PyObject *states;
    if (!PyArg_ParseTuple(args, "y*y*dO!y*y*y*y*w*", &b[0], &b[1], &lateness, &PyList_Type, &states, &b[2], &b[3], &b[4],
                          &b[5], &b[6]))
        return NULL;
    PyObject *result = run_checked(&b[0], &b[1], lateness, states, &b[2], &b[3], &b[4], &b[5], &b[6]);
    for (int i = 0; i < 7; i++)
        PyBuffer_Release(&b[i]);
    return result;
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS, "Let events ask their windows, then add them; see `window_kernel.py`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_windows", .m_doc = "The kernel of windows.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__windows(void);

PyMODINIT_FUNC PyInit__windows(void)
{
    PyObject *text = PyUnicode_FromString("the seed of Seen");
    Py_hash_t hash = text ? PyObject_Hash(text) : -1; /* another in each process, as PYTHONHASHSEED has it */
    Py_XDECREF(text);
    if (hash == -1)
        return NULL;
    seed = (uint64_t)hash;
    return PyModuleDef_Init(&definition);
}
