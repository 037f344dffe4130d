/* Result texts from columns: JSON objects with the same names, row by row, without an object a row in between.
 *
 * The twin in Python is in `results.py`; a test compares the two.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum kind { ARRAY, INTEGERS, CHOICES };

typedef struct {
    enum kind kind;
    /* ARRAY: a JSON array, cut as it is walked over. */
    const char *at, *end;
    /* INTEGERS: a list of int; the text of the last one is kept, since neighbours are often the same object. */
    PyObject *list, *last;
    char digits[24];
    int length;
    /* CHOICES: texts, and which of them for each row. */
    PyObject *texts;
    Py_buffer steps;
    /* The piece of the row at hand. */
    const char *piece;
    Py_ssize_t size;
} Column;

static int
print_integer(char *out, int64_t value)
{
    char reversed[20];
    int count = 0, length = 0;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do {
        reversed[count++] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (value < 0)
        out[length++] = '-';
    while (count)
        out[length++] = reversed[--count];
    return length;
}

/* The next item of a JSON array, as it was written; commas in strings and in inner values do not end it. */
static int
next_item(Column *column)
{
    const char *at = column->at;
    Py_ssize_t depth = 0;
    for (; at < column->end; at++) {
        char c = *at;
        if (c == '"') {
            for (at++; at < column->end && *at != '"'; at++)
                if (*at == '\\')
                    at++;
        } else if (c == '[' || c == '{') {
            depth++;
        } else if (c == ']' || c == '}') {
            if (depth-- == 0)
                break;
        } else if (c == ',' && depth == 0) {
            break;
        }
    }
    if (at >= column->end || at == column->at) {
        PyErr_SetString(PyExc_ValueError, "a JSON array has fewer items than there are rows");
        return -1;
    }
    column->piece = column->at;
    column->size = at - column->at;
    column->at = at + 1;
    return 0;
}

static int
next_piece(Column *column, Py_ssize_t row)
{
    if (column->kind == ARRAY)
        return next_item(column);
    if (column->kind == INTEGERS) {
        if (row >= PyList_GET_SIZE(column->list)) {
            PyErr_SetString(PyExc_ValueError, "fewer integers than rows");
            return -1;
        }
        PyObject *item = PyList_GET_ITEM(column->list, row);
        if (item != column->last) {
            if (!PyLong_Check(item)) {
                PyErr_SetString(PyExc_TypeError, "a list must hold integers");
                return -1;
            }
            long long value = PyLong_AsLongLong(item);
            if (value == -1 && PyErr_Occurred())
                return -1;
            column->length = print_integer(column->digits, value);
            column->last = item;
        }
        column->piece = column->digits;
        column->size = column->length;
        return 0;
    }
    int64_t step;
    memcpy(&step, (const char *)column->steps.buf + row * sizeof step, sizeof step);
    if (step < 0 || step >= PyTuple_GET_SIZE(column->texts)) {
        PyErr_SetString(PyExc_ValueError, "a step without a text");
        return -1;
    }
    PyObject *text = PyTuple_GET_ITEM(column->texts, step);
    column->piece = PyBytes_AS_STRING(text);
    column->size = PyBytes_GET_SIZE(text);
    return 0;
}

static int
read_column(Column *column, PyObject *given, Py_ssize_t rows)
{
    if (PyBytes_Check(given)) {
        column->kind = ARRAY;
        column->at = PyBytes_AS_STRING(given);
        column->end = column->at + PyBytes_GET_SIZE(given);
        if (column->at == column->end || *column->at++ != '[') {
            PyErr_SetString(PyExc_ValueError, "not a JSON array");
            return -1;
        }
        return 0;
    }
    if (PyList_Check(given)) {
        column->kind = INTEGERS;
        column->list = given;
        return 0;
    }
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 2 || !PyTuple_Check(PyTuple_GET_ITEM(given, 0))) {
        PyErr_SetString(PyExc_TypeError, "a column is bytes, a list, or a tuple of texts with a buffer");
        return -1;
    }
    column->texts = PyTuple_GET_ITEM(given, 0);
    for (Py_ssize_t each = 0; each < PyTuple_GET_SIZE(column->texts); each++)
        if (!PyBytes_Check(PyTuple_GET_ITEM(column->texts, each))) {
            PyErr_SetString(PyExc_TypeError, "texts must be bytes");
            return -1;
        }
    if (PyObject_GetBuffer(PyTuple_GET_ITEM(given, 1), &column->steps, PyBUF_SIMPLE) < 0)
        return -1;
    column->kind = CHOICES; /* from here on the buffer is to be released */
    if (column->steps.len / (Py_ssize_t)sizeof(int64_t) != rows) {
        PyErr_SetString(PyExc_ValueError, "not one step a row");
        return -1;
    }
    return 0;
}

static PyObject *
zip_objects(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t rows;
    PyObject *literals, *given, *texts = NULL;
    if (!PyArg_ParseTuple(args, "nO!O!", &rows, &PyTuple_Type, &literals, &PyTuple_Type, &given))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(given);
    if (rows < 0 || PyTuple_GET_SIZE(literals) != count + 1) {
        PyErr_SetString(PyExc_ValueError, "one literal more than columns is needed");
        return NULL;
    }
    Py_ssize_t fixed = 0;
    for (Py_ssize_t each = 0; each <= count; each++) {
        PyObject *literal = PyTuple_GET_ITEM(literals, each);
        if (!PyBytes_Check(literal)) {
            PyErr_SetString(PyExc_TypeError, "literals must be bytes");
            return NULL;
        }
        fixed += PyBytes_GET_SIZE(literal);
    }
    Column *columns = PyMem_Calloc(count ? count : 1, sizeof *columns);
    if (columns == NULL)
        return PyErr_NoMemory();
    Py_ssize_t begun = 0;
    for (; begun < count; begun++) {
        columns[begun].kind = ARRAY;
        if (read_column(&columns[begun], PyTuple_GET_ITEM(given, begun), rows) < 0) {
            begun++;
            goto failed;
        }
    }
    texts = PyList_New(rows);
    if (texts == NULL)
        goto failed;
    for (Py_ssize_t row = 0; row < rows; row++) {
        Py_ssize_t size = fixed;
        for (Py_ssize_t each = 0; each < count; each++) {
            if (next_piece(&columns[each], row) < 0)
                goto failed;
            size += columns[each].size;
        }
        PyObject *text = PyBytes_FromStringAndSize(NULL, size);
        if (text == NULL)
            goto failed;
        PyList_SET_ITEM(texts, row, text);
        char *at = PyBytes_AS_STRING(text);
        for (Py_ssize_t each = 0; each <= count; each++) {
            PyObject *literal = PyTuple_GET_ITEM(literals, each);
            Py_ssize_t length = PyBytes_GET_SIZE(literal);
            memcpy(at, PyBytes_AS_STRING(literal), length);
            at += length;
            if (each < count) {
                memcpy(at, columns[each].piece, columns[each].size);
                at += columns[each].size;
            }
        }
    }
    goto done;
failed:
    Py_CLEAR(texts);
done:
    for (Py_ssize_t each = 0; each < begun; each++)
        if (columns[each].steps.obj != NULL)
            PyBuffer_Release(&columns[each].steps);
    PyMem_Free(columns);
    return texts;
}

static PyMethodDef methods[] = {
    {"zip_objects", zip_objects, METH_VARARGS, "Literals and columns in turn, row by row: a list of bytes."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_results", .m_doc = "Result texts from columns.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__results(void)
{
    return PyModuleDef_Init(&definition);
}
