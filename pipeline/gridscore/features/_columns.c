/* Decodes JSON events straight to cells, from which columns are made: no Python object an event.

A text of the common shape is read here: an object with plain keys, and values whose meaning leaves no choice; what the
schema does not name is passed over, whatever it holds. For anything else (times written in other ways, repeated keys, numbers at the edge of what a double holds, whatever is not JSON or breaks the schema) `decode` calls back,
and msgspec says what the event is or why it is not one. So nothing is accepted or refused here that msgspec would not, and
the twin in `columns.py`, which asks msgspec for every event, gives the same cells.

Texts are `bytes`, which end with a zero that is not counted: a reader that stops at every byte that it does not expect
cannot run over the end. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <datetime.h>
#include <float.h>
#include <math.h>
#include <stdint.h>

enum { FLOAT = 0, INT = 1, STRING = 2, BOOL = 3, TIME = 4, STAMP = 5 };                   /* what a field is */
enum { ABSENT = 0, IS_NULL, IS_FALSE, IS_TRUE, IS_INT, IS_FLOAT, IS_TEXT, IS_MICROS, IS_ZONED, IS_OBJECT }; /* what a cell is */

typedef union {
    int64_t integer; /* IS_INT; IS_MICROS: microseconds since 1970 */
    double number;
    struct {
        uint32_t begin, length;
    } text; /* in the bytes of the row; ASCII. IS_TEXT; IS_ZONED: a time that is not in UTC */
    PyObject *object;
} Cell;

/* A row of a lookup that was found for a text. It stands as long as the index that it was found in has its version. */
typedef struct {
    uint64_t version;
    Py_ssize_t row;
    unsigned char length;
    char text[31];
} Found;

typedef struct {
    PyObject *attribute; /* str: of the struct that msgspec makes */
    PyObject *key;       /* bytes; msgspec allows none that has escapes in JSON */
    const char *text;    /* of the key */
    Py_ssize_t length;
    char kind, optional;
    Py_ssize_t next; /* the field that followed this one last time */
    PyObject **texts; /* strings seen of late, by hash: most come again */
    Found *found;     /* and their rows */
} Field;

typedef struct {
    PyObject_HEAD
    Py_ssize_t count, first; /* of fields; the one that came first last time */
    Field *fields;
    size_t mask;
    Py_ssize_t *slots; /* fields by hash of key, -1 where there is none */
} Decoder;

typedef struct {
    PyObject_HEAD
    Decoder *decoder;
    Py_ssize_t rows;
    Cell *cells; /* row by row */
    unsigned char *tags;
    PyObject **texts; /* the bytes of each row; NULL if its cells need none */
} Cells;

static PyTypeObject DecoderType, CellsType;
static PyObject *epoch, *timestamp_name, *astimezone_name;

#define TEXTS 1024 /* remembered by field */
#define ROWS 4096
#define LONGEST_TEXT 31

static inline uint64_t hash_of(const char *text, size_t length)
{
    uint64_t hash = length * 0x9E3779B97F4A7C15u, word;
    for (; length >= 8; text += 8, length -= 8) {
        memcpy(&word, text, 8);
        hash = (hash ^ word) * 0xFF51AFD7ED558CCDu;
        hash ^= hash >> 32;
    }
    word = 0;
    memcpy(&word, text, length);
    hash = (hash ^ word) * 0xFF51AFD7ED558CCDu;
    return hash ^ (hash >> 29) ^ (hash >> 47);
}

/* `memcmp` for short texts, without the call. */
static inline int is_same(const char *a, const char *b, size_t length)
{
    uint64_t x, y;
    uint32_t u, v;
    if (length >= 8) {
        for (size_t at = 0;; at = at + 16 <= length ? at + 8 : length - 8) {
            memcpy(&x, a + at, 8);
            memcpy(&y, b + at, 8);
            if (x != y || at + 8 == length)
                return x == y;
        }
    }
    if (length >= 4) {
        memcpy(&u, a, 4);
        memcpy(&v, b, 4);
        if (u != v)
            return 0;
        memcpy(&u, a + length - 4, 4);
        memcpy(&v, b + length - 4, 4);
        return u == v;
    }
    while (length > 0 && *a == *b)
        a++, b++, length--;
    return length == 0;
}

/* ------------------------------------------------------------------ reading a text */

static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

#define LONGEST_NUMBER 64

static inline int is_digit(char c) { return (unsigned char)(c - '0') < 10; }

static inline const char *skip_space(const char *p)
{
    while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')
        p++;
    return p;
}

/* Each reader returns where it stopped, or NULL if msgspec must say. None of them raises. */

static const char *read_number(const char *p, int kind, Cell *cell, unsigned char *tag)
{
    const char *begin = p;
    int negative = *p == '-';
    p += negative;
    if (!is_digit(*p) || (*p == '0' && is_digit(p[1])))
        return NULL;
    const char *start = p;
    uint64_t mantissa = 0; /* wrong from the 20th digit on, and not used then */
    int exponent = 0;
    Py_ssize_t fraction = 0;
    for (; is_digit(*p); p++)
        mantissa = mantissa * 10 + (uint64_t)(*p - '0');
    Py_ssize_t digits = *start == '0' ? 0 : p - start;
    int whole = *p != '.' && *p != 'e' && *p != 'E';
    if (whole) {
        if (negative && mantissa == 0)
            return NULL;
        if (kind != FLOAT) {
            if (digits > 18)
                return NULL;
            cell->integer = negative ? -(int64_t)mantissa : (int64_t)mantissa;
            *tag = IS_INT;
            return p;
        }
    } else {
        if (kind == INT)
            return NULL;
        if (*p == '.') {
            start = ++p;
            if (digits == 0)
                while (*p == '0')
                    p++;
            digits -= p - start;
            for (; is_digit(*p); p++)
                mantissa = mantissa * 10 + (uint64_t)(*p - '0');
            fraction = p - start;
            digits += fraction;
            if (fraction == 0)
                return NULL;
        }
        if (*p == 'e' || *p == 'E') {
            p++;
            int minus = *p == '-';
            p += *p == '-' || *p == '+';
            start = p;
            for (; is_digit(*p) && p - start < 4; p++)
                exponent = exponent * 10 + (*p - '0');
            if (p == start || is_digit(*p))
                return NULL;
            if (minus)
                exponent = -exponent;
        }
    }
    if (p - begin >= LONGEST_NUMBER)
        return NULL;
    exponent -= (int)fraction;
    double value;
    /* Both are exact, so their product or quotient is what is nearest to the decimal number. */
    if (FLT_EVAL_METHOD == 0 && digits <= 19 && mantissa <= (UINT64_C(1) << 53) && exponent >= -22 && exponent <= 22) {
        value = (double)mantissa;
        value = exponent < 0 ? value / POWERS[-exponent] : value * POWERS[exponent];
        value = negative ? -value : value;
    } else {
        char copy[LONGEST_NUMBER], *stop;
        size_t length = (size_t)(p - begin);
        if (exponent < -280 || exponent > 240) /* nowhere near 0 or infinity */
            return NULL;
        memcpy(copy, begin, length);
        copy[length] = 0;
        value = PyOS_string_to_double(copy, &stop, NULL);
        if (PyErr_Occurred() || stop != copy + length) {
            PyErr_Clear();
            return NULL;
        }
    }
    cell->number = value;
    *tag = IS_FLOAT;
    return p;
}

/* From behind the opening quote to the closing one. */
static inline const char *find_quote(const char *p, const char *end, int *ascii)
{
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    uint64_t word, quote, slash, odd;
    for (; end - p >= 8; p += 8) {
        memcpy(&word, p, 8);
        quote = word ^ (ones * '"');
        slash = word ^ (ones * '\\');
        odd = ((quote - ones) & ~quote) | ((slash - ones) & ~slash) | (word - ones * 0x20) | word;
        if (odd & high)
            break;
    }
    for (;; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"')
            return p;
        if (c < 0x20 || c == '\\')
            return NULL;
        if (c >= 0x80)
            *ascii = 0;
    }
}

static inline int two(const char *p) { return is_digit(p[0]) && is_digit(p[1]) ? (p[0] - '0') * 10 + p[1] - '0' : -1; }

/* `2026-01-31T12:00:00.5Z` to microseconds, and its zone to minutes; 0 if it is written otherwise or is far away. */
static int read_time(const char *p, size_t length, int64_t *micros, int *zone)
{
    static const unsigned char last[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (length < 20 || length > 40 || p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':')
        return 0;
    size_t stop = length - 1;
    *zone = 0;
    if (p[stop] != 'Z') {
        if (length < 25 || p[length - 3] != ':' || (p[length - 6] != '+' && p[length - 6] != '-'))
            return 0;
        stop = length - 6;
        int hours = two(p + stop + 1), minutes = two(p + stop + 4);
        if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59)
            return 0;
        *zone = (p[stop] == '-' ? -1 : 1) * (hours * 60 + minutes);
    }
    int century = two(p), year = two(p + 2), month = two(p + 5), day = two(p + 8);
    int hour = two(p + 11), minute = two(p + 14), second = two(p + 17);
    if (century < 0 || year < 0 || month < 1 || month > 12 || day < 1 || hour < 0 || hour > 23 || minute < 0 ||
        minute > 59 || second < 0 || second > 59)
        return 0;
    year += century * 100;
    if (year < 1700 || year > 2250) /* there a double holds every microsecond */
        return 0;
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (day > last[month - 1] + (leap && month == 2))
        return 0;
    int64_t fraction = 0;
    if (stop > 19) {
        if (p[19] != '.' || stop == 20)
            return 0;
        int64_t unit = 100000;
        for (size_t i = 20; i < stop; i++, unit /= 10) {
            if (!is_digit(p[i]))
                return 0;
            fraction += unit * (p[i] - '0');
        }
        fraction += stop > 26 && p[26] >= '5'; /* as msgspec rounds */
    }
    /* Days since 1970, with years that begin in March. */
    int y = year - (month <= 2), m = (month + 9) % 12;
    int64_t days = (int64_t)365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
    *micros = ((days * 24 + hour) * 60 + minute - *zone) * 60000000 + second * 1000000 + fraction;
    return 1;
}

/* From a byte that is not ASCII to behind the last such byte in a row, as long as they are UTF-8. */
static const char *skip_utf8(const char *p)
{
    const unsigned char *u = (const unsigned char *)p;
    while (*u >= 0x80) {
        /* What the second byte may be keeps out overlong forms, surrogates, and what is beyond U+10FFFF. */
        unsigned char low = *u == 0xE0 ? 0xA0 : *u == 0xF0 ? 0x90 : 0x80, high = *u == 0xED ? 0x9F : *u == 0xF4 ? 0x8F : 0xBF;
        int more = *u >= 0xC2 && *u <= 0xDF ? 1 : *u >= 0xE0 && *u <= 0xEF ? 2 : *u >= 0xF0 && *u <= 0xF4 ? 3 : 0;
        if (!more || u[1] < low || u[1] > high)
            return NULL;
        for (u += 2; --more; u++) /* a zero at the end is not a continuation */
            if ((*u & 0xC0) != 0x80)
                return NULL;
    }
    return (const char *)u;
}

/* From behind `\u` to behind its four digits, and those of its second half; what they stand for goes to `code`. */
static const char *read_code(const char *p, uint32_t *code)
{
    for (int half = 0; half < 2; half++) {
        uint32_t unit = 0;
        for (int i = 0; i < 4; i++, p++) {
            char c = *p;
            uint32_t digit = (uint32_t)(is_digit(c) ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : 16);
            if (digit > 15)
                return NULL;
            unit = unit << 4 | digit;
        }
        if (half) {
            *code = 0x10000 + ((*code & 0x3FF) << 10) + (unit & 0x3FF);
            return (unit & 0xFC00) == 0xDC00 ? p : NULL;
        }
        *code = unit;
        if ((unit & 0xF800) != 0xD800)
            return p;
        if ((unit & 0xFC00) != 0xD800 || p[0] != '\\' || p[1] != 'u')
            return NULL;
        p += 2;
    }
    return NULL;
}

/* From behind the opening quote to behind the closing one. */
static const char *skip_string(const char *p, const char *end)
{
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    uint64_t word, quote, slash;
    uint32_t code;
    for (;;) {
        for (; end - p >= 8; p += 8) {
            memcpy(&word, p, 8);
            quote = word ^ (ones * '"');
            slash = word ^ (ones * '\\');
            if ((((quote - ones) & ~quote) | ((slash - ones) & ~slash) | (word - ones * 0x20) | word) & high)
                break;
        }
        while ((unsigned char)*p >= 0x20 && (unsigned char)*p < 0x80 && *p != '"' && *p != '\\')
            p++;
        if (*p == '"')
            return p + 1;
        if ((unsigned char)*p >= 0x80) {
            if (!(p = skip_utf8(p)))
                return NULL;
        } else if (*p == '\\') {
            p += 2;
            switch (p[-1]) {
            case '"':
            case '\\':
            case '/':
            case 'b':
            case 'f':
            case 'n':
            case 'r':
            case 't':
                break;
            case 'u':
                if (!(p = read_code(p, &code)))
                    return NULL;
                break;
            default:
                return NULL;
            }
        } else {
            return NULL;
        }
    }
}

/* The string between its quotes, which `skip_string` has passed, in UTF-8, which is never longer than its escapes. */
static Py_ssize_t unescape(const char *p, const char *quote, char *text)
{
    static const char letters[] = "bfnrt", meanings[] = "\b\f\n\r\t";
    char *to = text;
    while (p < quote) {
        uint32_t code;
        if (*p != '\\') {
            *to++ = *p++;
        } else if (p[1] != 'u') {
            const char *found = strchr(letters, p[1]);
            *to++ = found ? meanings[found - letters] : p[1];
            p += 2;
        } else {
            p = read_code(p + 2, &code);
            int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
            *to++ = (char)(more ? (0xF0 << (3 - more) & 0xFF) | code >> 6 * more : code);
            while (more--)
                *to++ = (char)(0x80 | (code >> 6 * more & 0x3F));
        }
    }
    return to - text;
}

static PyObject *unescaped(const char *p, const char *quote)
{
    char *text = PyMem_Malloc((size_t)(quote - p) + 1);
    if (!text)
        return PyErr_NoMemory();
    PyObject *made = PyUnicode_DecodeUTF8(text, unescape(p, quote, text), NULL);
    PyMem_Free(text);
    return made;
}

static const char *read_value(const char *p, const char *text, const char *end, const Field *field, Cell *cell,
                              unsigned char *tag)
{
    int kind = field->kind;
    if (*p == 'n') {
        if (!field->optional || p[1] != 'u' || p[2] != 'l' || p[3] != 'l')
            return NULL;
        *tag = IS_NULL;
        return p + 4;
    }
    switch (kind) {
    case FLOAT:
    case INT:
    case STAMP:
        return read_number(p, kind, cell, tag);
    case BOOL:
        if (p[0] == 't' && p[1] == 'r' && p[2] == 'u' && p[3] == 'e') {
            *tag = IS_TRUE;
            return p + 4;
        }
        if (p[0] == 'f' && p[1] == 'a' && p[2] == 'l' && p[3] == 's' && p[4] == 'e') {
            *tag = IS_FALSE;
            return p + 5;
        }
        return NULL;
    }
    if (*p != '"')
        return NULL;
    int ascii = 1, zone;
    int64_t micros;
    const char *begin = p + 1;
    p = find_quote(begin, end, &ascii);
    if (!p) {
        if (kind == TIME || !(p = skip_string(begin, end)))
            return NULL;
        cell->object = unescaped(begin, --p);
        *tag = IS_OBJECT;
    } else if (kind == TIME) {
        if (!read_time(begin, (size_t)(p - begin), &micros, &zone))
            return NULL;
        *tag = zone ? IS_ZONED : IS_MICROS;
        if (!zone)
            cell->integer = micros;
    } else if (ascii) {
        *tag = IS_TEXT;
    } else {
        cell->object = PyUnicode_DecodeUTF8(begin, p - begin, NULL);
        *tag = IS_OBJECT;
    }
    if (*tag == IS_TEXT || *tag == IS_ZONED) {
        cell->text.begin = (uint32_t)(begin - text);
        cell->text.length = (uint32_t)(p - begin);
    }
    if (*tag == IS_OBJECT && !cell->object) {
        PyErr_Clear();
        *tag = ABSENT;
        return NULL;
    }
    return p + 1;
}

static const char *skip_number(const char *p)
{
    p += *p == '-';
    if (!is_digit(*p) || (*p == '0' && is_digit(p[1])))
        return NULL;
    while (is_digit(*p))
        p++;
    if (*p == '.') {
        if (!is_digit(*++p))
            return NULL;
        while (is_digit(*p))
            p++;
    }
    if (*p == 'e' || *p == 'E') {
        p++;
        p += *p == '-' || *p == '+';
        if (!is_digit(*p))
            return NULL;
        while (is_digit(*p))
            p++;
    }
    return p;
}

#define DEEPEST 64 /* of lists and objects in a value; msgspec says what is deeper */

/* A value that the schema does not name: read as JSON, and as nothing else. */
static const char *skip_value(const char *p, const char *end)
{
    uint64_t objects = 0; /* a bit for each level: whether it is an object */
    int depth = 0;
    for (;;) { /* at a value */
        switch (*p) {
        case '"':
            p = skip_string(p + 1, end);
            break;
        case 'n':
            p = p[1] == 'u' && p[2] == 'l' && p[3] == 'l' ? p + 4 : NULL;
            break;
        case 't':
            p = p[1] == 'r' && p[2] == 'u' && p[3] == 'e' ? p + 4 : NULL;
            break;
        case 'f':
            p = p[1] == 'a' && p[2] == 'l' && p[3] == 's' && p[4] == 'e' ? p + 5 : NULL;
            break;
        case '[':
        case '{':
            if (depth == DEEPEST)
                return NULL;
            objects = objects << 1 | (*p == '{');
            depth++;
            p = skip_space(p + 1);
            if (*p == (objects & 1 ? '}' : ']'))
                goto close;
            goto item;
        default:
            p = skip_number(p);
        }
        if (!p)
            return NULL;
    behind:
        if (!depth)
            return p;
        p = skip_space(p);
        if (*p != ',') {
            if (*p != (objects & 1 ? '}' : ']'))
                return NULL;
        close:
            p++;
            objects >>= 1;
            depth--;
            goto behind;
        }
        p = skip_space(p + 1);
    item:
        if (objects & 1) {
            if (*p != '"' || !(p = skip_string(p + 1, end)))
                return NULL;
            p = skip_space(p);
            if (*p != ':')
                return NULL;
            p = skip_space(p + 1);
        }
    }
}

#define LONGEST_KEY 1024 /* with its escapes; msgspec reads what is longer */

static inline int is_key(const Field *field, const char *p, Py_ssize_t length)
{
    return field->length == length && is_same(field->text, p, (size_t)length);
}

static Py_ssize_t field_of(const Decoder *self, const char *key, Py_ssize_t length)
{
    for (size_t slot = hash_of(key, (size_t)length) & self->mask; self->slots[slot] >= 0;
         slot = (slot + 1) & self->mask)
        if (is_key(&self->fields[self->slots[slot]], key, length))
            return self->slots[slot];
    return -1;
}

/* Whether the text was read; if not, some cells may have been filled. */
static int read_event(Decoder *self, const char *text, Py_ssize_t size, Cell *cells, unsigned char *tags)
{
    const char *end = text + size, *p = skip_space(text);
    Py_ssize_t seen = 0, *following = &self->first;
    if (*p != '{')
        return 0;
    p = skip_space(p + 1);
    if (*p == '}') {
        p++;
    } else {
        for (;;) {
            if (*p != '"')
                return 0;
            const char *key = ++p;
            Py_ssize_t found = *following, length = found < 0 ? 0 : self->fields[found].length;
            if (found >= 0 && end - p > length && p[length] == '"' && is_key(&self->fields[found], p, length)) {
                p += length;
            } else {
                int ascii = 1;
                p = find_quote(p, end, &ascii);
                if (p) {
                    found = field_of(self, key, p - key);
                    if (found < 0 && !ascii && !skip_string(key, end))
                        return 0;
                } else {
                    char plain[LONGEST_KEY];
                    p = skip_string(key, end);
                    if (!p || --p - key > LONGEST_KEY)
                        return 0;
                    found = field_of(self, plain, unescape(key, p, plain));
                }
                if (found >= 0)
                    *following = found;
            }
            p = skip_space(p + 1);
            if (*p != ':')
                return 0;
            p = skip_space(p + 1);
            if (found >= 0) {
                if (tags[found] != ABSENT)
                    return 0;
                p = read_value(p, text, end, &self->fields[found], &cells[found], &tags[found]);
                following = &self->fields[found].next;
                seen++;
            } else {
                p = skip_value(p, end);
            }
            if (!p)
                return 0;
            p = skip_space(p);
            if (*p == '}') {
                p++;
                break;
            }
            if (*p != ',')
                return 0;
            p = skip_space(p + 1);
        }
    }
    if (skip_space(p) != end)
        return 0;
    if (seen != self->count)
        for (Py_ssize_t i = 0; i < self->count; i++)
            if (tags[i] == ABSENT) {
                if (!self->fields[i].optional)
                    return 0;
                tags[i] = IS_NULL;
            }
    return 1;
}

/* ------------------------------------------------------------------ cells */

static void clear_cells(const Cell *cells, const unsigned char *tags, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        if (tags[i] == IS_OBJECT)
            Py_DECREF(cells[i].object);
}

static Cells *new_cells(Decoder *decoder, Py_ssize_t rows)
{
    size_t width = decoder->count ? (size_t)decoder->count : 1;
    if ((size_t)rows > (PY_SSIZE_T_MAX / sizeof(Cell) - 1) / width) {
        PyErr_NoMemory();
        return NULL;
    }
    Cells *self = PyObject_New(Cells, &CellsType);
    if (!self)
        return NULL;
    self->decoder = (Decoder *)Py_NewRef((PyObject *)decoder);
    self->rows = 0;
    self->cells = PyMem_Malloc((size_t)rows * width * sizeof(Cell) + 1);
    self->tags = PyMem_Malloc((size_t)rows * width + 1);
    self->texts = PyMem_Malloc((size_t)rows * sizeof(PyObject *) + 1);
    if (!self->cells || !self->tags || !self->texts) {
        Py_DECREF(self);
        PyErr_NoMemory();
        return NULL;
    }
    return self;
}

static void cells_dealloc(Cells *self)
{
    clear_cells(self->cells, self->tags, self->rows * self->decoder->count);
    for (Py_ssize_t row = 0; row < self->rows; row++)
        Py_XDECREF(self->texts[row]);
    PyMem_Free(self->cells);
    PyMem_Free(self->tags);
    PyMem_Free(self->texts);
    Py_DECREF(self->decoder);
    PyObject_Free(self);
}

static Py_ssize_t cells_length(PyObject *self) { return ((Cells *)self)->rows; }

/* A new reference. */
static PyObject *text_object(Field *field, const char *text, size_t length)
{
    PyObject **place = NULL;
    if (length <= LONGEST_TEXT) {
        if (!field->texts && !(field->texts = PyMem_Calloc(TEXTS, sizeof(PyObject *))))
            return PyErr_NoMemory();
        place = &field->texts[hash_of(text, length) & (TEXTS - 1)];
        if (*place && (size_t)PyUnicode_GET_LENGTH(*place) == length &&
            is_same(PyUnicode_DATA(*place), text, length))
            return Py_NewRef(*place);
    }
    PyObject *made = PyUnicode_New((Py_ssize_t)length, 127);
    if (!made)
        return NULL;
    memcpy(PyUnicode_DATA(made), text, length);
    if (place)
        Py_XSETREF(*place, Py_NewRef(made));
    return made;
}

/* Of a time that `read_time` has read before. */
static int64_t micros_of(const Cells *self, Py_ssize_t row, const Cell *cell, int *zone)
{
    int64_t micros = 0;
    read_time(PyBytes_AS_STRING(self->texts[row]) + cell->text.begin, cell->text.length, &micros, zone);
    return micros;
}

/* A new reference. */
static PyObject *time_of(int64_t integer)
{
    int64_t seconds = integer / 1000000, micros = integer % 1000000;
    PyObject *delta = PyDelta_FromDSU((int)(seconds / 86400), (int)(seconds % 86400), (int)micros);
    PyObject *time = delta ? PyNumber_Add(epoch, delta) : NULL;
    Py_XDECREF(delta);
    return time;
}

/* A new reference. */
static PyObject *object_of(const Cells *self, Py_ssize_t row, Py_ssize_t column)
{
    Py_ssize_t at = row * self->decoder->count + column;
    const Cell *cell = &self->cells[at];
    switch (self->tags[at]) {
    case IS_FALSE:
        Py_RETURN_FALSE;
    case IS_TRUE:
        Py_RETURN_TRUE;
    case IS_INT:
        return PyLong_FromLongLong(cell->integer);
    case IS_FLOAT:
        return PyFloat_FromDouble(cell->number);
    case IS_TEXT:
        return text_object(&self->decoder->fields[column], PyBytes_AS_STRING(self->texts[row]) + cell->text.begin,
                           cell->text.length);
    case IS_MICROS:
        return time_of(cell->integer);
    case IS_ZONED: {
        int zone;
        PyObject *time = time_of(micros_of(self, row, cell, &zone));
        PyObject *delta = time ? PyDelta_FromDSU(0, zone * 60, 0) : NULL;
        PyObject *named = delta ? PyTimeZone_FromOffset(delta) : NULL;
        PyObject *local = named ? PyObject_CallMethodOneArg(time, astimezone_name, named) : NULL;
        Py_XDECREF(named);
        Py_XDECREF(delta);
        Py_XDECREF(time);
        return local;
    }
    case IS_OBJECT:
        return Py_NewRef(cell->object);
    default:
        Py_RETURN_NONE;
    }
}

static int column_of(const Cells *self, PyObject *argument, Py_ssize_t *column)
{
    *column = PyNumber_AsSsize_t(argument, PyExc_IndexError);
    if (*column == -1 && PyErr_Occurred())
        return 0;
    if (*column < 0 || *column >= self->decoder->count) {
        PyErr_SetString(PyExc_IndexError, "no such field");
        return 0;
    }
    return 1;
}

static PyObject *cells_objects(PyObject *object, PyObject *argument)
{
    Cells *self = (Cells *)object;
    Py_ssize_t column;
    if (!column_of(self, argument, &column))
        return NULL;
    PyObject *list = PyList_New(self->rows);
    if (!list)
        return NULL;
    for (Py_ssize_t row = 0; row < self->rows; row++) {
        PyObject *item = object_of(self, row, column);
        if (!item) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, row, item);
    }
    return list;
}

static int number_of_object(PyObject *object, double *number)
{
    if (!PyDateTime_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a string is not a number");
        return 0;
    }
    PyObject *seconds = PyObject_CallMethodNoArgs(object, timestamp_name);
    if (!seconds)
        return 0;
    *number = PyFloat_AsDouble(seconds);
    Py_DECREF(seconds);
    return !PyErr_Occurred();
}

static PyObject *cells_numbers(PyObject *object, PyObject *argument)
{
    Cells *self = (Cells *)object;
    Py_ssize_t column, width = self->decoder->count;
    if (!column_of(self, argument, &column))
        return NULL;
    PyObject *array = PyByteArray_FromStringAndSize(NULL, self->rows * (Py_ssize_t)sizeof(double));
    if (!array)
        return NULL;
    double *numbers = (double *)PyByteArray_AS_STRING(array);
    for (Py_ssize_t row = 0, at = column; row < self->rows; row++, at += width) {
        double number;
        int zone;
        switch (self->tags[at]) {
        case IS_FLOAT:
            number = self->cells[at].number;
            break;
        case IS_INT:
            number = (double)self->cells[at].integer;
            break;
        case IS_TRUE:
            number = 1.0;
            break;
        case IS_FALSE:
            number = 0.0;
            break;
        case IS_MICROS:
            number = (double)self->cells[at].integer / 1e6;
            break;
        case IS_ZONED:
            number = (double)micros_of(self, row, &self->cells[at], &zone) / 1e6;
            break;
        case IS_NULL:
            number = Py_NAN;
            break;
        case IS_OBJECT:
            if (number_of_object(self->cells[at].object, &number))
                break;
            Py_DECREF(array);
            return NULL;
        default:
            Py_DECREF(array);
            PyErr_SetString(PyExc_TypeError, "a string is not a number");
            return NULL;
        }
        numbers[row] = number;
    }
    return array;
}

/* The row that an index has for a value; -1 with an exception set. */
static Py_ssize_t row_of(const Cells *self, Py_ssize_t row, Py_ssize_t column, PyObject *index)
{
    PyObject *key = object_of(self, row, column);
    if (!key)
        return -1;
    PyObject *value = PyDict_GetItemWithError(index, key);
    Py_DECREF(key);
    if (!value)
        return PyErr_Occurred() ? -1 : 0;
    return PyLong_AsSsize_t(value);
}

static PyObject *cells_rows(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Cells *self = (Cells *)object;
    Py_ssize_t column;
    if (count != 3 || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "rows takes a field, a dict, and its version");
        return NULL;
    }
    if (!column_of(self, args[0], &column))
        return NULL;
    uint64_t version = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    Field *field = &self->decoder->fields[column];
    if (!field->found && !(field->found = PyMem_Calloc(ROWS, sizeof(Found)))) /* no version is 0 */
        return PyErr_NoMemory();
    PyObject *array = PyByteArray_FromStringAndSize(NULL, self->rows * (Py_ssize_t)sizeof(Py_ssize_t));
    if (!array)
        return NULL;
    Py_ssize_t *rows = (Py_ssize_t *)PyByteArray_AS_STRING(array);
    for (Py_ssize_t row = 0, at = column; row < self->rows; row++, at += self->decoder->count) {
        const char *text = NULL;
        size_t length = 0;
        Found *found = NULL;
        if (version && self->tags[at] == IS_TEXT && self->cells[at].text.length <= LONGEST_TEXT) {
            text = PyBytes_AS_STRING(self->texts[row]) + self->cells[at].text.begin;
            length = self->cells[at].text.length;
            found = &field->found[(hash_of(text, length) + version) & (ROWS - 1)];
            if (found->version == version && found->length == length && is_same(found->text, text, length)) {
                rows[row] = found->row;
                continue;
            }
        }
        rows[row] = row_of(self, row, column, args[1]);
        if (rows[row] == -1 && PyErr_Occurred()) {
            Py_DECREF(array);
            return NULL;
        }
        if (found) {
            found->version = version;
            found->row = rows[row];
            found->length = (unsigned char)length;
            memcpy(found->text, text, length);
        }
    }
    return array;
}

static PyObject *cells_take(PyObject *object, PyObject *argument)
{
    Cells *self = (Cells *)object;
    Py_ssize_t width = self->decoder->count;
    PyObject *rows = PySequence_Tuple(argument);
    if (!rows)
        return NULL;
    Cells *taken = new_cells(self->decoder, PyTuple_GET_SIZE(rows));
    for (Py_ssize_t i = 0; taken && i < PyTuple_GET_SIZE(rows); i++) {
        Py_ssize_t row = PyNumber_AsSsize_t(PyTuple_GET_ITEM(rows, i), PyExc_IndexError);
        if (row < 0 || row >= self->rows) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_IndexError, "no such row");
            Py_CLEAR(taken);
            break;
        }
        memcpy(taken->cells + i * width, self->cells + row * width, (size_t)width * sizeof(Cell));
        memcpy(taken->tags + i * width, self->tags + row * width, (size_t)width);
        for (Py_ssize_t at = i * width; at < (i + 1) * width; at++)
            if (taken->tags[at] == IS_OBJECT)
                Py_INCREF(taken->cells[at].object);
        taken->texts[i] = Py_XNewRef(self->texts[row]);
        taken->rows = i + 1;
    }
    Py_DECREF(rows);
    return (PyObject *)taken;
}

static PyMethodDef cells_methods[] = {
    {"objects", cells_objects, METH_O, "The values of a field as decoded."},
    {"numbers", cells_numbers, METH_O, "The values of a field as float64."},
    {"rows", (PyCFunction)(void (*)(void))cells_rows, METH_FASTCALL, "What a dict of ints has for a field's values."},
    {"take", cells_take, METH_O, "The cells of some rows."},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods cells_sequence = {.sq_length = cells_length};

static PyTypeObject CellsType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gridscore.features._columns.Cells",
    .tp_basicsize = sizeof(Cells),
    .tp_dealloc = (destructor)cells_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "Decoded events: a cell for each row and field.",
    .tp_methods = cells_methods,
    .tp_as_sequence = &cells_sequence,
};

/* ------------------------------------------------------------------ the decoder */

/* Fills the cells of a row with what msgspec decoded. */
static int take_struct(Decoder *self, PyObject *event, Cell *cells, unsigned char *tags)
{
    for (Py_ssize_t i = 0; i < self->count; i++) {
        PyObject *value = PyObject_GetAttr(event, self->fields[i].attribute);
        if (!value)
            return 0;
        if (value == Py_None) {
            tags[i] = IS_NULL;
        } else if (PyBool_Check(value)) {
            tags[i] = value == Py_True ? IS_TRUE : IS_FALSE;
        } else if (PyFloat_CheckExact(value)) {
            cells[i].number = PyFloat_AS_DOUBLE(value);
            tags[i] = IS_FLOAT;
        } else if (PyLong_CheckExact(value)) {
            long long integer = PyLong_AsLongLong(value);
            if (integer == -1 && PyErr_Occurred()) {
                Py_DECREF(value);
                return 0;
            }
            cells[i].integer = integer;
            tags[i] = IS_INT;
        } else {
            cells[i].object = Py_NewRef(value);
            tags[i] = IS_OBJECT;
        }
        Py_DECREF(value);
    }
    return 1;
}

static PyObject *decoder_decode(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Decoder *self = (Decoder *)object;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "decode takes the texts and what decodes the others");
        return NULL;
    }
    PyObject *texts = PySequence_Tuple(args[0]); /* nobody changes it while we call back */
    if (!texts)
        return NULL;
    Py_ssize_t width = self->count;
    Cells *result = new_cells(self, PyTuple_GET_SIZE(texts));
    for (Py_ssize_t i = 0; result && i < PyTuple_GET_SIZE(texts); i++) {
        PyObject *text = PyTuple_GET_ITEM(texts, i);
        Cell *cells = result->cells + result->rows * width;
        unsigned char *tags = result->tags + result->rows * width;
        memset(tags, ABSENT, (size_t)width);
        if (PyBytes_CheckExact(text) && PyBytes_GET_SIZE(text) < INT32_MAX &&
            read_event(self, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), cells, tags)) {
            result->texts[result->rows++] = Py_NewRef(text);
            continue;
        }
        clear_cells(cells, tags, width);
        memset(tags, ABSENT, (size_t)width);
        PyObject *position = PyLong_FromSsize_t(i);
        PyObject *event = position ? PyObject_CallOneArg(args[1], position) : NULL;
        Py_XDECREF(position);
        if (event && event != Py_None) {
            if (take_struct(self, event, cells, tags)) {
                result->texts[result->rows++] = NULL;
            } else {
                clear_cells(cells, tags, width);
                Py_CLEAR(event);
            }
        }
        if (!event)
            Py_CLEAR(result);
        Py_XDECREF(event);
    }
    Py_DECREF(texts);
    return (PyObject *)result;
}

static void decoder_dealloc(Decoder *self)
{
    for (Py_ssize_t i = 0; self->fields && i < self->count; i++) {
        Py_XDECREF(self->fields[i].attribute);
        Py_XDECREF(self->fields[i].key);
        for (size_t j = 0; self->fields[i].texts && j < TEXTS; j++)
            Py_XDECREF(self->fields[i].texts[j]);
        PyMem_Free(self->fields[i].texts);
        PyMem_Free(self->fields[i].found);
    }
    PyMem_Free(self->fields);
    PyMem_Free(self->slots);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int set_field(Decoder *self, Py_ssize_t i, PyObject *definition)
{
    Field *field = &self->fields[i];
    PyObject *attribute, *key;
    int kind, optional;
    if (!PyTuple_Check(definition)) {
        PyErr_SetString(PyExc_TypeError, "a field is a tuple");
        return 0;
    }
    if (!PyArg_ParseTuple(definition, "USip", &attribute, &key, &kind, &optional))
        return 0;
    if (kind < FLOAT || kind > STAMP) {
        PyErr_SetString(PyExc_ValueError, "no such kind of field");
        return 0;
    }
    if (PyBytes_GET_SIZE(key) == 0) {
        PyErr_SetString(PyExc_ValueError, "a field has no name");
        return 0;
    }
    field->attribute = Py_NewRef(attribute);
    field->key = Py_NewRef(key);
    field->kind = (char)kind;
    field->optional = (char)optional;
    field->next = -1;
    field->text = PyBytes_AS_STRING(key);
    field->length = PyBytes_GET_SIZE(key);
    size_t slot = hash_of(field->text, (size_t)field->length) & self->mask;
    while (self->slots[slot] >= 0)
        slot = (slot + 1) & self->mask;
    self->slots[slot] = i;
    return 1;
}

static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *definitions;
    if (keywords && PyDict_GET_SIZE(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Decoder takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &definitions))
        return NULL;
    Decoder *self = (Decoder *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(definitions);
    size_t size = 8;
    while (size < (size_t)count * 2)
        size *= 2;
    self->mask = size - 1;
    self->first = -1;
    self->fields = PyMem_Calloc((size_t)count + 1, sizeof(Field));
    self->slots = PyMem_Malloc(size * sizeof(Py_ssize_t));
    if (!self->fields || !self->slots) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->count = count;
    for (size_t slot = 0; slot < size; slot++)
        self->slots[slot] = -1;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!set_field(self, i, PyTuple_GET_ITEM(definitions, i))) {
            Py_DECREF(self);
            return NULL;
        }
    return (PyObject *)self;
}

static PyMethodDef decoder_methods[] = {
    {"decode", (PyCFunction)(void (*)(void))decoder_decode, METH_FASTCALL,
     "Decode texts; those that are not simple are asked for by their position, which gives a struct, or None."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject DecoderType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "gridscore.features._columns.Decoder",
    .tp_basicsize = sizeof(Decoder),
    .tp_dealloc = (destructor)decoder_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Decodes events with these fields: a tuple of (attribute, JSON key in UTF-8, kind, optional).",
    .tp_methods = decoder_methods,
    .tp_new = decoder_new,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_columns", .m_doc = "JSON events to columns.", .m_size = -1,
};

PyMODINIT_FUNC PyInit__columns(void)
{
    PyDateTime_IMPORT;
    if (!PyDateTimeAPI || PyType_Ready(&DecoderType) < 0 || PyType_Ready(&CellsType) < 0)
        return NULL;
    if (!(timestamp_name = PyUnicode_InternFromString("timestamp")) ||
        !(astimezone_name = PyUnicode_InternFromString("astimezone")))
        return NULL;
    epoch = PyDateTimeAPI->DateTime_FromDateAndTime(1970, 1, 1, 0, 0, 0, 0, PyDateTime_TimeZone_UTC,
                                                    PyDateTimeAPI->DateTimeType);
    if (!epoch)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (!made)
        return NULL;
    if (PyModule_AddObjectRef(made, "Decoder", (PyObject *)&DecoderType) < 0 ||
        PyModule_AddObjectRef(made, "Cells", (PyObject *)&CellsType) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
