/* The inner loops of the wire: finding messages, cutting journal pages, assembling put-alls.
 *
 * Each function has a twin in Python of the same name in `cutting.py`, which says what it does and is what runs where
 * this module could not be compiled; a test compares the two. Nothing here trusts a length that came from outside.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are little-endian, and read as they lie in memory"
#endif

#define FRAME_HEADER 6
#define ITEM_HEADER 31  /* of a frame with an item: up to where the key begins */
#define TEXT_HEADER 16  /* of a value that is a text: length, hash, type, length of the text */
#define FINAL (1 << 13)

static int32_t
little_int(const char *at)
{
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int32_t
big_int(const char *at)
{
    const unsigned char *byte = (const unsigned char *)at;
    return (int32_t)((uint32_t)byte[0] << 24 | (uint32_t)byte[1] << 16 | (uint32_t)byte[2] << 8 | byte[3]);
}

static char *
put_little_int(char *at, int32_t value)
{
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

static char *
put_big_int(char *at, int32_t value)
{
    uint32_t bits = (uint32_t)value;
    unsigned char bytes[4] = {bits >> 24, bits >> 16 & 0xff, bits >> 8 & 0xff, bits & 0xff};
    memcpy(at, bytes, sizeof bytes);
    return at + sizeof bytes;
}

static char *
put_frame(char *at, Py_ssize_t content)
{
    at = put_little_int(at, (int32_t)(content + FRAME_HEADER));
    memset(at, 0, 2);
    return at + 2;
}

static PyObject *
find_message(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buffer;
    Py_ssize_t position, end, largest;
    if (!PyArg_ParseTuple(args, "y*nnn", &buffer, &position, &end, &largest))
        return NULL;
    const char *bytes = buffer.buf;
    Py_ssize_t need = 0;
    int final = 0;
    if (position < 0 || end > buffer.len) {
        PyBuffer_Release(&buffer);
        PyErr_SetString(PyExc_ValueError, "bounds outside of the buffer");
        return NULL;
    }
    while (end - position >= FRAME_HEADER) {
        int32_t length = little_int(bytes + position);
        if (length < FRAME_HEADER || length > largest) {
            need = -1;
            break;
        }
        if (length > end - position) {
            need = length;
            break;
        }
        uint16_t flags;
        memcpy(&flags, bytes + position + 4, sizeof flags);
        position += length;
        if (flags & FINAL) {
            final = 1;
            break;
        }
    }
    PyBuffer_Release(&buffer);
    return Py_BuildValue("nOn", position, final ? Py_True : Py_False, need);
}

static int
append(PyObject *list, PyObject *item)
{
    if (item == NULL)
        return -1;
    int failed = PyList_Append(list, item);
    Py_DECREF(item);
    return failed;
}

static int
note_foreign(PyObject *foreign, Py_ssize_t row, int32_t type)
{
    PyObject *key = PyLong_FromSsize_t(row), *value = PyLong_FromLong(type);
    int failed = key == NULL || value == NULL ? -1 : PyDict_SetItem(foreign, key, value);
    Py_XDECREF(key);
    Py_XDECREF(value);
    return failed;
}

static PyObject *
cut_items(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer buffer;
    Py_ssize_t position;
    long long first, count;
    if (!PyArg_ParseTuple(args, "y*nLL", &buffer, &position, &first, &count))
        return NULL;
    const char *bytes = buffer.buf;
    PyObject *sequences = PyList_New(0), *keys = PyList_New(0), *values = PyList_New(0), *foreign = PyDict_New();
    if (sequences == NULL || keys == NULL || values == NULL || foreign == NULL)
        goto failed;
    if (position < 0)
        goto malformed;
    Py_ssize_t row = 0;
    for (long long sequence = first; count > 0; sequence++, count--) {
        if (position > buffer.len - FRAME_HEADER)
            goto malformed;
        const char *item = bytes + position;
        Py_ssize_t length = little_int(item);
        if (length < ITEM_HEADER || length > buffer.len - position)
            goto malformed;
        position += length;
        int32_t kind = big_int(item + 23);
        if (kind != 1 && kind != 4 && kind != 512)
            continue; /* a removal */
        Py_ssize_t key_length = big_int(item + 27), room = length - ITEM_HEADER;
        if (key_length < 0 || key_length > room - 4)
            goto malformed;
        const char *key = item + ITEM_HEADER, *value = key + key_length;
        Py_ssize_t value_length = big_int(value), rest = room - key_length - 4;
        if (value_length > rest)
            goto malformed;
        int32_t type = value_length >= 8 ? big_int(value + 8) : 0;
        PyObject *text;
        if (value_length >= 12 && (type == -130 || type == -11)) {
            Py_ssize_t text_length = big_int(value + 12);
            if (text_length < 0 || text_length > value_length - 12)
                goto malformed;
            text = PyBytes_FromStringAndSize(value + TEXT_HEADER, text_length);
        } else {
            if (note_foreign(foreign, row, type) < 0)
                goto failed;
            text = PyBytes_FromStringAndSize(value + 4, value_length > 0 ? value_length : 0);
        }
        if (append(values, text) < 0 || append(keys, PyBytes_FromStringAndSize(key, key_length)) < 0
            || append(sequences, PyLong_FromLongLong(sequence)) < 0)
            goto failed;
        row++;
    }
    PyBuffer_Release(&buffer);
    return Py_BuildValue("NNNN", sequences, keys, values, foreign);

malformed:
    PyErr_SetString(PyExc_ValueError, "an item of the journal ends before its parts do");
failed:
    PyBuffer_Release(&buffer);
    Py_XDECREF(sequences);
    Py_XDECREF(keys);
    Py_XDECREF(values);
    Py_XDECREF(foreign);
    return NULL;
}

static PyObject *
join_entries(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer prefix, suffix;
    PyObject *keys, *texts, *joined = NULL;
    if (!PyArg_ParseTuple(args, "y*O!O!y*", &prefix, &PyList_Type, &keys, &PyList_Type, &texts, &suffix))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(keys);
    if (PyList_GET_SIZE(texts) != count) {
        PyErr_SetString(PyExc_ValueError, "as many keys as texts are needed");
        goto done;
    }
    Py_ssize_t size = prefix.len + suffix.len;
    for (Py_ssize_t row = 0; row < count; row++) {
        PyObject *key = PyList_GET_ITEM(keys, row), *text = PyList_GET_ITEM(texts, row);
        if (!PyBytes_Check(key) || !PyBytes_Check(text)) {
            PyErr_SetString(PyExc_TypeError, "keys and texts must be bytes");
            goto done;
        }
        size += PyBytes_GET_SIZE(key) + PyBytes_GET_SIZE(text) + 2 * FRAME_HEADER + 12;
        if (size > INT32_MAX) {
            PyErr_SetString(PyExc_OverflowError, "a message of more than 2 GiB");
            goto done;
        }
    }
    joined = PyByteArray_FromStringAndSize(NULL, size);
    if (joined == NULL)
        goto done;
    char *at = PyByteArray_AS_STRING(joined);
    memcpy(at, prefix.buf, prefix.len);
    at += prefix.len;
    for (Py_ssize_t row = 0; row < count; row++) {
        PyObject *key = PyList_GET_ITEM(keys, row), *text = PyList_GET_ITEM(texts, row);
        Py_ssize_t length = PyBytes_GET_SIZE(key);
        at = put_frame(at, length);
        memcpy(at, PyBytes_AS_STRING(key), length);
        at += length;
        length = PyBytes_GET_SIZE(text);
        at = put_frame(at, length + 12);
        at = put_big_int(at, 0);
        at = put_big_int(at, -130);
        at = put_big_int(at, (int32_t)length);
        memcpy(at, PyBytes_AS_STRING(text), length);
        at += length;
    }
    memcpy(at, suffix.buf, suffix.len);
done:
    PyBuffer_Release(&prefix);
    PyBuffer_Release(&suffix);
    return joined;
}

static PyMethodDef methods[] = {
    {"find_message", find_message, METH_VARARGS, "See `cutting.find_message`."},
    {"cut_items", cut_items, METH_VARARGS, "See `cutting.cut_items`."},
    {"join_entries", join_entries, METH_VARARGS, "See `cutting.join_entries`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_wire", .m_doc = "Inner loops of the wire, compiled.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__wire(void)
{
    return PyModuleDef_Init(&definition);
}
