/* Functions of numbers as the C library computes them, on whole columns.
 *
 * NumPy has its own for processors with AVX-512, with other last bits: the same job would not give the same features on
 * two machines, and a `floor` makes a whole number of a last bit. The twin is in `maths.py`. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <string.h>

typedef struct {
    const char *name;
    double (*one)(double);
    double (*two)(double, double);
} Function;

static const Function FUNCTIONS[] = {
    {"exp", exp, NULL},   {"expm1", expm1, NULL}, {"log", log, NULL},   {"log1p", log1p, NULL}, {"log10", log10, NULL},
    {"log2", log2, NULL}, {"sin", sin, NULL},     {"cos", cos, NULL},   {"tan", tan, NULL},     {"asin", asin, NULL},
    {"acos", acos, NULL}, {"atan", atan, NULL},   {"atan2", NULL, atan2}, {"hypot", NULL, hypot}, {"pow", NULL, pow},
};

static PyObject *apply(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *name;
    Py_buffer a, b, out;
    if (!PyArg_ParseTuple(args, "sy*y*w*", &name, &a, &b, &out))
        return NULL;
    const Function *function = NULL;
    for (size_t i = 0; i < sizeof(FUNCTIONS) / sizeof(*FUNCTIONS); i++)
        if (!strcmp(FUNCTIONS[i].name, name))
            function = &FUNCTIONS[i];
    Py_ssize_t size = (Py_ssize_t)sizeof(double), count = out.len / size;
    int fits = function && (a.len == out.len || a.len == size) && (b.len == out.len || b.len == size);
    if (fits) {
        const double *x = a.buf, *y = b.buf;
        Py_ssize_t step = a.len == out.len, other = b.len == out.len; /* a single number is for all rows */
        double *to = out.buf;
        for (Py_ssize_t i = 0; i < count; i++)
            to[i] = function->one ? function->one(x[i * step]) : function->two(x[i * step], y[i * other]);
    } else {
        PyErr_SetString(PyExc_ValueError, "no such function, or columns of other lengths");
    }
    PyBuffer_Release(&a);
    PyBuffer_Release(&b);
    PyBuffer_Release(&out);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"apply", apply, METH_VARARGS, "Fill an array with a function of one or two others; see `maths.py`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_maths", .m_doc = "The C library's functions.", .m_size = 0, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__maths(void) { return PyModuleDef_Init(&definition); }
